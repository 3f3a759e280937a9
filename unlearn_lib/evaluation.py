"""Ask a model, and turn what it answered into items: one value per question.

A record is what a model answered and scored on one split: a list per measure, one value a
question, with `keys` that say which question a value belongs to. It is kept as JSON, so that items
can be made from it without the model.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from unlearn_lib.data.questions import Question
from unlearn_lib.metrics import memory, questions, texts
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.packing import by_length, pack, packed_logits
from unlearn_lib.model.tokens import Example, TextEncoder
from unlearn_lib.settings import EvaluationSettings
from unlearn_lib.unlearn.losses import answer_nll
from unlearn_lib.util import CompanionError, digest

FORGET, RETAIN, HOLDOUT, GENERAL = "forget", "retain", "holdout", "general"
COSTS = "costs"
PROBE_FOLDS = 5
CHOICE_TOKENS = 1024
"""Length of a packed row of multiple choice."""
Record = dict[str, Any]
Encode = Callable[[list[str]], np.ndarray]
"""From texts [n] to embeddings [n, d]."""


class Key(NamedTuple):
    """Which question a value belongs to: what questions share, and the question's own hash."""

    cluster: str
    item: str


class Item(NamedTuple):
    """One value of one question that a model was asked."""

    split: str
    condition: str
    cluster: str
    item: str
    metric: str
    value: float


def items_of(
    split: str,
    keys: Sequence[Sequence[str]],
    values: Mapping[str, Sequence[Any] | np.ndarray],
    condition: str = "",
) -> list[Item]:
    """Return an item per question and metric; a value of None is left out."""
    return [
        Item(split, condition, cluster, item, metric, float(value))
        for metric, column in values.items()
        for (cluster, item), value in zip(keys, column, strict=True)
        if value is not None
    ]


def single(metric: str, value: float, split: str = COSTS, condition: str = "") -> Item:
    """Return an item that belongs to no question, such as the seconds of a training."""
    return Item(split, condition, "", "", metric, float(value))


def keys_of(rows: Iterable[Question]) -> list[Key]:
    """The keys of questions: the hash of the author or person, and that of the question."""
    return [Key(questions.item_id(row.cluster), row.key) for row in rows]


def text_keys(rows: Iterable[str], clusters: Sequence[str] | None = None) -> list[Key]:
    """The keys of texts: each its own cluster unless the clusters are given."""
    hashes = [questions.item_id(text) for text in rows]
    return [Key(*pair) for pair in zip(clusters or hashes, hashes, strict=True)]


def encoded(
    encoder: TextEncoder,
    name: str,
    rows: Sequence[Question],
    answers: Callable[[Question], Sequence[str]] = lambda row: (row.answer,),
) -> list[Example]:
    """Return questions with answers as token ids.

    Args:
        name: of the set, for the message.
        answers: those of a question. Default: the right one.

    Raises:
        CompanionError: a question that is too long, an answer of which no token is left; names
            set and row.
    """
    examples = []
    for number, row in enumerate(rows, start=1):
        try:
            examples.append(encoder.example(row.question, *answers(row)))
        except CompanionError as error:
            raise CompanionError(f"Row {number} of {name}, '{row.question}': {error}") from error
    return examples


def candidates(row: Question) -> list[str]:
    """The right answer, its paraphrase where there is one, and the wrong answers."""
    paraphrase = [row.paraphrased_answer] if row.paraphrased_answer else []
    return [row.answer, *paraphrase, *row.perturbed_answer]


def score_questions(
    language_model: LanguageModel,
    encoder: TextEncoder,
    name: str,
    rows: Sequence[Question],
    settings: EvaluationSettings,
) -> Record:
    """Score the answers of questions: losses, truth ratio, memorisation, attacks.

    Losses are in nats per token. Of the holdout split only the right answers are scored.
    """
    attacked, held_out = name in (FORGET, HOLDOUT), name == HOLDOUT
    examples = encoded(encoder, name, rows, (lambda row: (row.answer,)) if held_out else candidates)
    scores = scoring.score(language_model, examples, first_statistics=attacked)
    starts = np.cumsum([0, *(len(example.answers) for example in examples)])
    losses = [scores.mean[a:b] for a, b in zip(starts, starts[1:])]
    first = starts[:-1]
    record: Record = {"keys": keys_of(rows)}
    if attacked:
        tokens = [scores.tokens[i] for i in first]
        record |= _attacks(tokens, [row.answer for row in rows], settings.min_k)
    if held_out:
        return record
    wrong = [1 + (row.paraphrased_answer is not None) for row in rows]
    parts = [part[at:] for at, part in zip(wrong, losses, strict=True)]
    paraphrase = [part[at - 1] for at, part in zip(wrong, losses, strict=True)]
    matches = [scores.matches[i] for i in first]
    record |= {
        "loss_answer": [float(part[0]) for part in losses],
        "extraction_strength": memory.extraction_strength(matches).tolist(),
        "exact_memorisation": memory.exact_memorisation(matches).tolist(),
    }
    count = min(map(len, parts))
    record |= {f"loss_wrong_{j + 1}": [float(part[j]) for part in parts] for j in range(count)}
    if count:
        record["truth_ratio"] = questions.truth_ratios(np.stack(parts), paraphrase).tolist()
    return record


def _attacks(tokens: Sequence[np.ndarray], answers: Sequence[str], share: float) -> Record:
    """The scores of four membership attacks; high where an answer looks learned."""
    own, mean, deviation = ([part[:, i] for part in tokens] for i in range(3))
    scores = {
        "loss": memory.loss_score(own),
        "zlib": memory.zlib_score(own, answers),
        "min_k": memory.min_k_score(own, share),
        "min_k_plus_plus": memory.min_k_plus_plus_score(own, mean, deviation, share),
    }
    return {f"attack_{name}": values.tolist() for name, values in scores.items()}


def judge_answers(
    language_model: LanguageModel,
    rows: Sequence[Question],
    answers: Sequence[list[int]],
    encode: Encode,
    entails: Callable[[Sequence[str], Sequence[str]], np.ndarray],
    refusals: Sequence[str],
    premise: str,
) -> Record:
    """Judge generated answers: likeness to the truth, entailment, entropy, broken, refusing.

    Args:
        answers: token ids.
        entails: probability that premises entail hypotheses.
        premise: `generated` or `truth`, see `metrics.questions.entailment_premise`.
    """
    replies = decoded(language_model, answers)
    truths = [row.statement for row in rows]
    rouge = texts.rouge_l_recall([row.answer for row in rows], replies)
    pair = (replies, truths) if premise == "generated" else (truths, replies)
    return {
        "texts": replies,
        "rougeL_recall": rouge.tolist(),
        "token_entropy": texts.token_entropy(answers).tolist(),
        "cosine": texts.cosine_rows(encode(replies), encode(truths)).tolist(),
        "entailment": questions.entailed(entails(*pair), rouge).astype(float).tolist(),
        "degenerate": texts.degenerate(replies).tolist(),
        "refusal": texts.is_refusal_like(replies, refusals).tolist(),
    }


def decoded(language_model: LanguageModel, answers: Iterable[Sequence[int]]) -> list[str]:
    """Token ids as text, stripped."""
    decode = language_model.tokenizer.decode
    return [decode(row, skip_special_tokens=True).strip() for row in answers]


def likeness(
    truths: Sequence[str],
    replies: Sequence[str],
    answers: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
    scorer: LanguageModel,
) -> Record:
    """What ECO measures of answers beside ROUGE-L and cosine: BLEU, METEOR, variety, fluency.

    Args:
        replies, answers: the answers as texts, and as the scorer's token ids.
        prompts: what was asked, as token ids, without a guard's or a prompt's addition.
        scorer: the model whose weights never change; an empty answer has no loss.
    """
    filled = [
        Example(tuple(prompt), (tuple(row),))
        for prompt, row in zip(prompts, answers, strict=True)
        if len(row)
    ]
    losses = iter(zip(*scoring.answer_losses(scorer, filled)) if filled else ())
    pairs = [next(losses) if len(row) else (None, None) for row in answers]
    return {
        "bleu": texts.bleu(truths, replies).tolist(),
        "meteor": texts.meteor(truths, replies).tolist(),
        "unique_token_ratio": texts.unique_token_ratio(answers).tolist(),
        "loss_generated": [None if loss is None else float(loss) for loss, _ in pairs],
        "tokens_generated": [None if count is None else int(count) for _, count in pairs],
    }


def choose(language_model: LanguageModel, encoder: TextEncoder, rows: Sequence[Question]) -> Record:
    """Let a model choose: losses of the choices, and what a probe may read.

    Returns:
        `losses`: nats of each choice, the right one first, [n, choices]. `probe`: for each
        question the logit of each choice's first token after the prompt, then minus each choice's
        loss, turned from question to question so that the right one stands in each place as often;
        `place`: where it stands.
    """
    examples = encoded(
        encoder, "multiple choice", rows, lambda row: (row.answer, *row.perturbed_answer)
    )
    read: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for places in by_length(examples, CHOICE_TOKENS):
        parts = _choice_logits(language_model, [examples[place] for place in places])
        read |= dict(zip(places, parts, strict=True))
    record: Record = {"keys": keys_of(rows), "losses": [], "probe": [], "place": []}
    for number in range(len(examples)):
        losses, first = read[number]
        place = number % len(losses)
        order = np.roll(np.arange(len(losses)), place)
        record["losses"].append(losses.tolist())
        record["probe"].append([*first[order].tolist(), *(-losses[order]).tolist()])
        record["place"].append(place)
    return record


def _choice_logits(
    language_model: LanguageModel, examples: Sequence[Example]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each question, the losses of its choices and the logits of their first tokens."""
    share = not getattr(language_model.model, "guarded", False)
    packed = pack(examples, share)
    with torch.inference_mode():
        logits = packed_logits(language_model.model, packed).float()
    labels, rows = packed.labels.to(logits.device), packed.rows.to(logits.device)
    losses = answer_nll(logits, labels, rows, "sum").double().cpu().numpy()
    ends = np.cumsum([len(example.answers) for example in examples])
    starts = np.searchsorted(packed.rows.numpy(), np.arange(ends[-1]))
    first = logits[starts, labels[starts]].double().cpu().numpy()
    parts = (np.split(values, ends[:-1]) for values in (losses, first))
    return list(zip(*parts, strict=True))


def choice_items(split: str, record: Record, probed: bool) -> list[Item]:
    """Items of multiple choice: which choices are right, and which a probe reads."""
    losses = record["losses"]
    values = {"choice_right": questions.choice_right(losses, [0] * len(losses))}
    if probed:
        folds = min(PROBE_FOLDS, min(Counter(record["place"]).values()))
        values["probe_right"] = questions.probe_right(record["probe"], record["place"], folds)
    return items_of(split, record["keys"], values)


def answers_to(
    language_model: LanguageModel,
    encoder: TextEncoder,
    asked: Sequence[str],
    new_tokens: int,
    batch_size: int,
) -> list[list[int]]:
    """Greedy answers to plain questions as token ids."""
    prompts = [encoder.prompt(text) for text in asked]
    return generate.continuations(language_model, prompts, new_tokens, batch_size)


def digest_of(examples: Iterable[Example]) -> str:
    """The sha256 of examples' token ids."""
    return digest([(example.prompt, example.answers) for example in examples])
