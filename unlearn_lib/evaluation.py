"""Ask a model, and turn what it answered into items: one value per question.

A record is what a task keeps of a model, as JSON: `items`, and by split what was `asked` and the
`texts` that were answered. What else is measured later, against the base model or by a judge, is
measured from it without the model.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from unlearn_lib import judges
from unlearn_lib.data.questions import Question
from unlearn_lib.metrics import memory, questions, texts
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example, TextEncoder
from unlearn_lib.settings import EvaluationSettings
from unlearn_lib.util import CompanionError

FORGET, RETAIN, HOLDOUT, GENERAL = "forget", "retain", "holdout", "general"
PROBE_FOLDS = 5
Record = dict[str, Any]
Values = dict[str, Any]
"""By metric one value per question, [n]."""
Key = tuple[str, str]
"""Which question a value belongs to: what questions share, and the question's own hash."""


class Item(NamedTuple):
    """One value of one question that a model was asked."""

    split: str
    condition: str
    cluster: str
    item: str
    metric: str
    value: float


def items_of(split: str, keys: Sequence[Key], values: Values, condition: str = "") -> list[Item]:
    """Return an item per question and metric; a value of None is left out."""
    return [
        Item(split, condition, cluster, item, metric, float(value))
        for metric, column in values.items()
        for (cluster, item), value in zip(keys, column, strict=True)
        if value is not None
    ]


def single(metric: str, value: float, split: str = "costs", condition: str = "") -> Item:
    """Return an item that belongs to no question, such as the seconds of a training."""
    return Item(split, condition, "", "", metric, float(value))


def keys_of(rows: Iterable[Question]) -> list[Key]:
    """The keys of questions: the hash of the author or person, and that of the question."""
    return [(questions.item_id(row.cluster), questions.item_id(row.question)) for row in rows]


def text_keys(rows: Iterable[str]) -> list[Key]:
    """The keys of texts: each is its own cluster."""
    return [(key, key) for key in map(questions.item_id, rows)]


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
            raise CompanionError(f"Row {number} of {name}: {error}") from error
    return examples


def candidates(row: Question) -> list[str]:
    """The right answer, its paraphrase where there is one, and the wrong answers."""
    paraphrase = [row.paraphrased_answer] if row.paraphrased_answer else []
    return [row.answer, *paraphrase, *row.perturbed_answer]


def by_question(values: np.ndarray, examples: Sequence[Example]) -> np.ndarray:
    """The values of all answers, [R], as a row per question; each has as many answers."""
    counts = [len(example.answers) for example in examples]
    return np.stack(np.split(values, np.cumsum(counts)[:-1]))


def score_questions(
    language_model: LanguageModel,
    encoder: TextEncoder,
    name: str,
    rows: Sequence[Question],
    settings: EvaluationSettings,
) -> Values:
    """Score the answers of questions: losses, truth ratio, memorisation, attacks.

    Losses are in nats per token. Of the holdout split only the right answers are scored.
    """
    attacked, held_out = name in (FORGET, HOLDOUT), name == HOLDOUT
    examples = encoded(encoder, name, rows, (lambda row: (row.answer,)) if held_out else candidates)
    scores = scoring.score(language_model, examples, first_statistics=attacked)
    losses = by_question(scores.mean, examples)
    first = slice(None, None, losses.shape[1])
    values = _attacks(scores.tokens[first], rows, settings.min_k) if attacked else {}
    if held_out:
        return values
    right = 1 if rows[0].paraphrased_answer is None else 2
    wrong = losses[:, right:]
    values |= {
        "loss_answer": losses[:, 0],
        "extraction_strength": memory.extraction_strength(scores.matches[first]),
        "exact_memorisation": memory.exact_memorisation(scores.matches[first]),
    }
    values |= {f"loss_wrong_{number}": column for number, column in enumerate(wrong.T, start=1)}
    return values | {"truth_ratio": questions.truth_ratios(wrong, losses[:, right - 1])}


def _attacks(tokens: Sequence[np.ndarray], rows: Sequence[Question], share: float) -> Values:
    """The scores of four membership attacks; high where an answer looks learned."""
    own, mean, deviation = ([part[:, i] for part in tokens] for i in range(3))
    return {
        "attack_loss": memory.loss_score(own),
        "attack_zlib": memory.zlib_score(own, [row.answer for row in rows]),
        "attack_min_k": memory.min_k_score(own, share),
        "attack_min_k_plus_plus": memory.min_k_plus_plus_score(own, mean, deviation, share),
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
) -> Values:
    """What ECO measures of answers beside ROUGE-L and cosine: BLEU, METEOR, variety, fluency.

    Args:
        replies, answers: the answers as texts, and as the scorer's token ids.
        prompts: what was asked, as token ids, without a guard's or a prompt's addition.
        scorer: the model whose weights never change; an empty answer has no loss.
    """
    places = [place for place, row in enumerate(answers) if len(row)]
    filled = [Example(tuple(prompts[place]), (tuple(answers[place]),)) for place in places]
    losses, counts = np.full((2, len(answers)), None)
    scores = scoring.score(scorer, filled)
    losses[places], counts[places] = scores.nll, scores.counts
    return {
        "bleu": texts.bleu(truths, replies),
        "meteor": texts.meteor(truths, replies),
        "unique_token_ratio": texts.unique_token_ratio(answers),
        "loss_generated": losses,
        "tokens_generated": counts,
    }


class Choices(NamedTuple):
    """What a model says of the choices of n questions: float64 [n, choices] each.

    Attributes:
        losses: of each choice, in nats, summed over its tokens; of letters, minus the log of the
            letter's share among the letters.
        first: the logit of its first token after the prompt.
        per_token: losses over the choice's tokens; of letters, the same as losses.
    """

    losses: np.ndarray
    first: np.ndarray
    per_token: np.ndarray


def choose(
    language_model: LanguageModel,
    encoder: TextEncoder,
    rows: Sequence[Question],
    letters: bool = False,
) -> Choices:
    """Let a model choose between a question's answers; the right one stands first.

    Args:
        letters: the answers are letters of choices that the question lists: only the logits of
            their tokens right after the prompt count, as in ECO's released code ("top logit").

    Raises:
        CompanionError: as `encoded` does; two letters begin with the same token.
    """
    examples = encoded(
        encoder, "multiple choice", rows, lambda row: (row.answer, *row.perturbed_answer)
    )
    if letters:
        for example in examples:
            if len({answer[0] for answer in example.answers}) < len(example.answers):
                raise CompanionError(
                    "The tokenizer begins several of the letters A to D with the same token, so "
                    "that their logits tell nothing; set 'form' of the data to likelihood."
                )
    scores = scoring.score(language_model, examples)
    first = by_question(scores.first, examples)
    if letters:
        losses = -special.log_softmax(first, axis=1)
        return Choices(losses, first, losses)
    return Choices(by_question(scores.nll, examples), first, by_question(scores.mean, examples))


def probe_right(losses: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Which questions a probe reads from what `choose` returned, bool [n].

    It sees the logits of the choices' first tokens, then minus the choices' losses, turned from
    question to question so that the right choice stands in each place as often.
    """
    places = np.arange(len(losses)) % losses.shape[1]
    turned = (np.arange(losses.shape[1]) - places[:, None]) % losses.shape[1]
    features = np.hstack([np.take_along_axis(part, turned, axis=1) for part in (first, -losses)])
    folds = min(PROBE_FOLDS, np.bincount(places).min())
    return questions.probe_right(features, places, folds)


def answers_to(
    model: LanguageModel,
    asked: Mapping[str, Sequence[Any]],
    encode: Callable[[Any], Sequence[int]],
    settings: EvaluationSettings,
) -> dict[str, list[list[int]]]:
    """Greedy answers to what is asked of each split, as token ids; all splits at once.

    Args:
        encode: from one thing that is asked to its prompt, as token ids.
    """
    prompts = [encode(each) for part in asked.values() for each in part]
    answers = iter(generate.continuations(model, prompts, settings.new_tokens, settings.batch_size))
    return {split: [next(answers) for _ in part] for split, part in asked.items()}


def judged(
    judge: judges.Judge, firsts: Sequence[str], seconds: Sequence[str], truth: Any
) -> list[Item]:
    """Items of a judge on held-out pairs: its score, and whether it is right.

    Args:
        truth: bool [n], or [n, k] for k labels of which any makes a pair positive.
    """
    flags = np.asarray(truth, bool).reshape(len(firsts), -1).any(axis=1)
    scores = judge.probability(firsts, seconds)
    right = (scores > 0.5) == flags
    pairs = enumerate(zip(firsts, seconds, strict=True))
    keys = text_keys(f"{place} {first}\n{second}" for place, (first, second) in pairs)
    items = []
    for split, flag in (("positive", True), ("negative", False)):
        places = np.flatnonzero(flags == flag)
        values = {"judge_score": scores[places], "judge_right": right[places]}
        items += items_of(split, [keys[place] for place in places], values)
    return items
