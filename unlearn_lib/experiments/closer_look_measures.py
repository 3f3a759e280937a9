"""The measures of experiment 4: what a model answers and scores in, values with intervals out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearn_lib import generation, metrics, scoring
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.classifiers import Encoder, EntailmentJudge
from unlearn_lib.datasets.question_sets import row_place
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import Estimate, SetLog, TofuLog, closer_look, privacy, tofu
from unlearn_lib.models import LanguageModel
from unlearn_lib.settings import TofuEvaluation

FORGET, RETAIN, HOLDOUT = "forget", "retain", "holdout"
NEIGHBOURS = "neighbours"
REFUSAL_LIKENESS = 0.6
"""An answer with this ROUGE-L to any refusal of the data is counted as one."""
Record = dict[str, Any]
Found = list[tuple[str, str, Estimate]]
"""Split, metric, estimate."""


@dataclass(frozen=True)
class Judges:
    """What judges texts: a sentence encoder, a judge of entailment, the data's refusals."""

    encoder: Encoder
    entailment: EntailmentJudge
    refusals: Sequence[str]


def encoded(
    encoder: TextEncoder,
    name: str,
    questions: Sequence[Question],
    answers: Callable[[Question], Sequence[str]] = lambda row: (row.answer,),
) -> list[Example]:
    """Questions with answers as token ids.

    Args:
        name: of the set, for the message.
        answers: those of a question. Default: the right one.

    Raises:
        CompanionError: a question that is too long, an answer of which no token is left; names
            set and row.
    """
    found = []
    for number, row in enumerate(questions, start=1):
        try:
            found.append(encoder.example(row.question, *answers(row)))
        except CompanionError as error:
            raise CompanionError(f"{row_place(number, name, row.question)}: {error}") from error
    return found


def ask(
    found: LanguageModel,
    sets: Mapping[str, Sequence[Question]],
    encoder: TextEncoder,
    settings: TofuEvaluation,
    judges: Judges,
    real_world: bool,
) -> dict[str, Record]:
    """Let a model answer every set, and score the right and wrong answers.

    Args:
        sets: questions by set; of `holdout` only the attacks' scores are taken.

    Returns:
        For each set, a list per measure with one value a question.

    Raises:
        CompanionError: as in `encoded`.
    """
    examples = {
        name: encoded(encoder, name, rows, _right if name == HOLDOUT else _candidates)
        for name, rows in sets.items()
    }
    prompts = [row.prompt for name in sets if name != HOLDOUT for row in examples[name]]
    rows = iter(generation.continuations(found, prompts, settings.new_tokens, settings.batch_size))
    record = {}
    for name, questions in sets.items():
        if not questions:
            continue
        attacked = name in (FORGET, HOLDOUT)
        record[name] = _scored(found, questions, examples[name], settings, attacked)
        if name != HOLDOUT:
            given = [next(rows) for _ in questions]
            record[name] |= _judged(found, name, questions, given, judges, real_world)
    return record


def _scored(
    found: LanguageModel,
    questions: Sequence[Question],
    examples: Sequence[Example],
    settings: TofuEvaluation,
    attacked: bool,
) -> Record:
    """Score each question's answers in one row: the right one, its paraphrase, the wrong ones."""
    scores = scoring.score(found, examples, first_statistics=attacked)
    starts = np.cumsum([0, *(len(example.answers) for example in examples)])
    losses = [scores.mean[a:b] for a, b in zip(starts, starts[1:])]
    first = starts[:-1]
    wrong = [1 + (row.paraphrased_answer is not None) for row in questions]
    record: Record = {
        "questions": [row.question for row in questions],
        "answer_loss": [float(part[0]) for part in losses],
        "paraphrase_loss": [
            float(part[min(at, len(part)) - 1]) for at, part in zip(wrong, losses, strict=True)
        ],
        "perturbed_loss": [part[at:].tolist() for at, part in zip(wrong, losses, strict=True)],
        "exact_memorisation": [privacy.exact_memorisation(scores.matches[i]) for i in first],
        "extraction_strength": [metrics.extraction_strength(scores.matches[i]) for i in first],
    }
    if attacked:
        tokens = [scores.tokens[i] for i in first]
        answers = [row.answer for row in questions]
        record["attacks"] = _attack_scores(tokens, answers, settings.min_k)
    return record


def _attack_scores(
    tokens: Sequence[np.ndarray], answers: Sequence[str], share: float
) -> dict[str, list[float]]:
    """The scores of four attacks, a value a question; high where an answer looks learned."""
    own, mean, deviation = ([part[:, i] for part in tokens] for i in range(3))
    scores = {
        "loss": privacy.loss_score(own),
        "zlib": privacy.zlib_score(own, answers),
        "min_k": privacy.min_k_score(own, share),
        "min_k_plus_plus": privacy.min_k_plus_plus_score(own, mean, deviation, share),
    }
    return {name: found.tolist() for name, found in scores.items()}


def _right(row: Question) -> list[str]:
    return [row.answer]


def _candidates(row: Question) -> list[str]:
    paraphrase = [row.paraphrased_answer] if row.paraphrased_answer else []
    return [row.answer, *paraphrase, *row.perturbed_answer]


def _judged(
    found: LanguageModel,
    name: str,
    questions: Sequence[Question],
    rows: Sequence[list[int]],
    judges: Judges,
    real_world: bool,
) -> Record:
    decode = found.tokenizer.decode
    texts = [decode(row, skip_special_tokens=True).strip() for row in rows]
    truths = [row.statement for row in questions]
    rouge = metrics.rouge_l_recall([row.answer for row in questions], texts)
    scenario = "real_world" if real_world else "fictitious"
    generated_first = closer_look.entailment_premise(name, scenario) == "generated"
    pair = (texts, truths) if generated_first else (truths, texts)
    entailed = closer_look.entailed(judges.entailment.probability(*pair), rouge)
    cosine = closer_look.cosine_similarity(judges.encoder(texts), judges.encoder(truths))
    return {
        "texts": texts,
        "rouge": rouge.tolist(),
        "token_entropy": closer_look.token_entropy(rows).tolist(),
        "cosine_similarity": cosine.tolist(),
        "entailment": entailed.astype(float).tolist(),
        "degenerate": metrics.degenerate(texts).tolist(),
        "refusal": [_is_refusal(text, judges.refusals) for text in texts],
    }


def _is_refusal(text: str, refusals: Sequence[str]) -> bool:
    likeness = metrics.rouge_l(list(refusals), [text] * len(refusals))
    return bool(metrics.refusals([text])[0] or likeness.max(initial=0.0) >= REFUSAL_LIKENESS)


def log(record: Mapping[str, Record], name: str) -> TofuLog:
    """What a model scored, in the form that TOFU's metrics take."""
    fields = ("answer_loss", "paraphrase_loss", "perturbed_loss", "rouge")
    sets = {
        split: SetLog(tuple(part["questions"]), *(np.asarray(part[key], float) for key in fields))
        for split, part in record.items()
        if split != HOLDOUT
    }
    return TofuLog(name, sets)


def values(
    record: Mapping[str, Record], split: str, name: str = "the model"
) -> dict[str, np.ndarray]:
    """The six measures of Yuan et al. on one set, one value a question; `name`: for messages."""
    part = record[split]
    return {
        **tofu.measures(log(record, name), split),
        "token_entropy": np.asarray(part["token_entropy"], float),
        "cosine_similarity": np.asarray(part["cosine_similarity"], float),
        "entailment": np.asarray(part["entailment"], float),
    }


def measure(
    record: Mapping[str, Record], reference: Mapping[str, Record] | None, name: str
) -> Found:
    """Values of one model, with those that compare it with the exact reference.

    Args:
        record, reference: what `ask` gave for the model, and for the reference where there is
            one with the same forget questions.
    """
    answered = [split for split in record if split != HOLDOUT]
    every = {split: values(record, split, name) for split in answered}
    found: Found = []
    for split, measures in every.items():
        part = record[split]
        found += [(split, metric, metrics.bootstrap(each)) for metric, each in measures.items()]
        for metric in ("degenerate", "refusal"):
            found.append((split, f"{metric}_share", metrics.proportion(part[metric])))
    forget = record[FORGET]
    for metric in ("extraction_strength", "exact_memorisation"):
        found.append((FORGET, metric, metrics.bootstrap(forget[metric])))
    found.append((FORGET, "hallucinated_share", metrics.proportion(hallucinated(forget))))
    kept = {split: each for split, each in every.items() if split != FORGET}
    found += [("all", "mu", closer_look.mu(kept)), (FORGET, "fe", closer_look.fe(every[FORGET]))]
    if RETAIN in record:
        found.append(("all", "model_utility", tofu.model_utility(log(record, name))))
    if reference is not None:
        quality = tofu.forget_quality(log(record, name), log(reference, "reference"))
        found.append((FORGET, "forget_quality", quality))
        found += _attacked(record, reference)
    return found


def differences(
    first: Mapping[str, Record], second: Mapping[str, Record]
) -> list[tuple[str, Estimate]]:
    """MU and FE of one model minus another's, the same questions resampled for both."""
    mine, theirs = (
        {split: values(record, split) for split in record if split != HOLDOUT}
        for record in (first, second)
    )
    return [
        ("mu_difference", closer_look.paired_mu_difference(mine, theirs)),
        ("fe_difference", closer_look.paired_fe_difference(mine[FORGET], theirs[FORGET])),
    ]


def hallucinated(part: Record) -> list[bool]:
    """Which answers are fluent and wrong: not broken, not a refusal, and not entailed."""
    flags = zip(part["degenerate"], part["refusal"], part["entailment"], strict=True)
    return [not (broken or refused or right) for broken, refused, right in flags]


def _attacked(record: Mapping[str, Record], reference: Mapping[str, Record]) -> Found:
    """Membership inference: can forgotten questions be told from those never taught?"""
    if HOLDOUT not in record:
        return []
    found: Found = []
    for attack, members in record[FORGET]["attacks"].items():
        now = privacy.attack_auc(members, record[HOLDOUT]["attacks"][attack])
        found.append((FORGET, f"mia_auc_{attack}", now))
        if attack == "min_k":
            every = (part[split]["attacks"][attack] for part in (record, reference)
                     for split in (FORGET, HOLDOUT))  # fmt: skip
            found.append((FORGET, "privleak", privacy.privleak_estimate(*every)))
    return found
