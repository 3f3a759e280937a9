"""The measures of experiment 3: answers, continuations, choices in, values with intervals out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from unlearn_lib import generation, metrics, scoring
from unlearn_lib.batches import Example, TextEncoder, by_length, pack, packed_logits
from unlearn_lib.classifiers import Encoder
from unlearn_lib.datasets.questions import Question
from unlearn_lib.experiments.closer_look_measures import encoded
from unlearn_lib.losses import answer_nll
from unlearn_lib.metrics import VERBATIM_TOKENS, Estimate
from unlearn_lib.models import LanguageModel

SIMILARITIES = ("bleu", "rougeL_recall", "meteor", "cosine_similarity")
PROBE_FOLDS = 5
CHOICE_TOKENS = 1024
"""Length of a packed row of multiple choice."""
Found = list[tuple[str, Estimate]]
"""Metric, estimate."""
Record = dict[str, Any]


def said(
    rows: Sequence[Sequence[int]],
    truths: Sequence[str],
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    encoder: Encoder,
    scorer: LanguageModel,
) -> Record:
    """What can be said of answers: likeness to the truth, fluency under a fixed model, variety.

    Args:
        rows: answers as token ids.
        truths: the true answers.
        prompts: what was asked, as token ids, without any guard's or prompt's doing.
        scorer: the model whose weights never change, whoever answered.

    Returns:
        A list per measure, one value an answer; `nll` and `counts` of those that say anything.
    """
    texts = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]
    filled = [
        Example(tuple(prompt), (tuple(row),))
        for prompt, row in zip(prompts, rows, strict=True)
        if row
    ]
    nll, counts = scoring.answer_losses(scorer, filled) if filled else (np.zeros(0),) * 2
    cosine = metrics.cosine_similarity(encoder(texts), encoder(list(truths)))
    return {
        "bleu": metrics.bleu(truths, texts).tolist(),
        "rougeL_recall": metrics.rouge_l_recall(truths, texts).tolist(),
        "meteor": metrics.meteor(truths, texts).tolist(),
        "cosine_similarity": cosine.tolist(),
        "unique_token_ratio": metrics.unique_token_ratio(rows).tolist(),
        "degenerate": metrics.degenerate(texts).tolist(),
        "nll": nll.tolist(),
        "counts": counts.tolist(),
    }


def said_measured(record: Record, retained: Record | None) -> Found:
    """Values of what `said` gave, with the gap to the retained model's answers."""
    found: Found = [
        (name, metrics.bootstrap(record[name])) for name in (*SIMILARITIES, "unique_token_ratio")
    ]
    found.append(("degenerate_share", metrics.proportion(record["degenerate"])))
    if record["counts"]:
        found.append(("perplexity", metrics.perplexity(record["nll"], record["counts"])))
    if retained is not None:
        mine, theirs = ({name: each[name] for name in SIMILARITIES} for each in (record, retained))
        found.append(("asg", metrics.asg(mine, theirs)))
    return found


def leaked(texts: Sequence[str], questions: Sequence[Question]) -> np.ndarray | None:
    """Which answers hold the fact that was asked for; None where the facts are not known."""
    facts = [row.short for row in questions]
    return metrics.leak(texts, facts) if all(facts) else None


def verbatim(rows: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]) -> list[bool]:
    """Which continuations hold a verbatim run of the true text."""
    return [
        metrics.longest_run(row, truth)[1] >= min(VERBATIM_TOKENS, len(truth))
        for row, truth in zip(rows, truths, strict=True)
    ]


def choices(found: LanguageModel, encoder: TextEncoder, rows: Sequence[Question]) -> Record:
    """What a model makes of multiple choice: losses of the choices, and what a probe may read.

    Returns:
        `losses`: nats of each choice, the right one first, [n, choices]. `probe`: for
        each question the logit of each choice's first token after the prompt, then minus each
        choice's loss, turned from question to question so that the right one stands in each place
        as often; `place`: where it stands.
    """
    examples = encoded(
        encoder, "multiple choice", rows, lambda row: (row.answer, *row.perturbed_answer)
    )
    read: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for places in by_length(examples, CHOICE_TOKENS):
        parts = _choice_logits(found, [examples[place] for place in places])
        read |= dict(zip(places, parts, strict=True))
    record: Record = {"losses": [], "probe": [], "place": []}
    for number in range(len(examples)):
        losses, first = read[number]
        place = number % len(losses)
        order = np.roll(np.arange(len(losses)), place)
        record["losses"].append(losses.tolist())
        record["probe"].append([*first[order].tolist(), *(-losses[order]).tolist()])
        record["place"].append(place)
    return record


def _choice_logits(
    found: LanguageModel, examples: Sequence[Example]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each question, the losses of its choices and the logits of their first tokens."""
    share = not getattr(found.model, "guarded", False)
    packed = pack(examples, share)
    with torch.inference_mode():
        logits = packed_logits(found.model, packed).float()
    labels, rows = packed.labels.to(logits.device), packed.rows.to(logits.device)
    losses = answer_nll(logits, labels, rows, "sum").double().cpu().numpy()
    ends = np.cumsum([len(example.answers) for example in examples])
    starts = np.searchsorted(packed.rows.numpy(), np.arange(ends[-1]))
    first = logits[starts, labels[starts]].double().cpu().numpy()
    parts = (np.split(values, ends[:-1]) for values in (losses, first))
    return list(zip(*parts, strict=True))


def choices_measured(record: Mapping[str, Record], probed: str) -> list[tuple[str, str, Estimate]]:
    """Accuracy on every set, and what a linear probe reads of one set's logits."""
    found = [
        (
            name,
            "choice_accuracy",
            metrics.choice_accuracy(part["losses"], [0] * len(part["losses"])),
        )
        for name, part in record.items()
    ]
    part = record[probed]
    folds = min(PROBE_FOLDS, min(Counter(part["place"]).values()))
    probe = metrics.probe_accuracy(part["probe"], part["place"], folds)
    return [*found, (probed, "probe_accuracy", probe)]


def answers_to(
    found: LanguageModel,
    encoder: TextEncoder,
    questions: Sequence[str],
    new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """Greedy answers to plain questions as token ids."""
    prompts = [encoder.prompt(text) for text in questions]
    return generation.continuations(found, prompts, new_tokens, batch_size)
