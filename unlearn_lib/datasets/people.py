"""Experiment 4, real-world scenario: known people to forget, neighbours to keep and to ask about.

A fact can only be forgotten if it is known. So the unmodified model is asked about many known
people first; what it answers right is dealt, person by person, into those to forget, neighbours
to keep in training, and other neighbours on whom the damage is measured. Yuan et al. (2025) also
keep the neighbours of training and of evaluation apart, though they do not say so.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unlearn_lib.assets import folder_sha256
from unlearn_lib.datasets.files import EMBEDDED
from unlearn_lib.datasets.overlap import words_of
from unlearn_lib.datasets.question_sets import read_questions
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import PeopleData

SENTENCE_END = re.compile(r"(?<![A-Z])(?<!\bSt)(?<!\bDr)[.!?](?=\s|$)")
"""The end of a sentence, and not of an initial or a title."""
NEEDED = ("person", "short", "paraphrased_answer", "perturbed_answer")


@dataclass(frozen=True)
class PeopleSplits:
    """Questions that the unmodified model answers right, by what becomes of their people.

    Attributes:
        forget: to be forgotten.
        neighbours: of other people, to train on as what is kept.
        evaluation: of further people, in no training.
        counts: `questions` and `people` that were asked about, `right` answers, and people that
            `qualified`.
    """

    forget: tuple[Question, ...]
    neighbours: tuple[Question, ...]
    evaluation: tuple[Question, ...]
    counts: dict[str, int]


def load_people(path: Path | None = None) -> tuple[tuple[Question, ...], str]:
    """Read questions about known people, in the order of the file, and the file's sha256.

    Args:
        path: JSON lines with `person`, `question`, `answer`, `short` (the words that a right
            answer must hold), `paraphrased_answer` and `perturbed_answer`; None for the embedded
            set.

    Raises:
        CompanionError: no such file, a row without one of these, and what
            `question_sets.check_questions` refuses.
    """
    path = path or EMBEDDED / "known_people.jsonl"
    return read_questions(path, NEEDED), folder_sha256([path], path.parent)


def is_right(question: Question, answer_text: str) -> bool:
    """Whether an answer holds the question's `short` words, whole and in a row.

    Case, accents and punctuation make no difference: «Charlotte Bronte, in 1847!» is right where
    `short` is «Brontë» or «1847», and not where it is «184».

    Raises:
        ValueError: the question's `short` has no word.
    """
    wanted, given = _words(question.short), _words(answer_text)
    if not wanted:
        raise ValueError(f"'{question.question}' has no short answer to look for.")
    starts = range(len(given) - len(wanted) + 1)
    return any(given[start : start + len(wanted)] == wanted for start in starts)


def _words(text: str) -> list[str]:
    letters = unicodedata.normalize("NFKD", text.casefold())
    return words_of("".join(letter for letter in letters if not unicodedata.combining(letter)))


def deal_people(
    questions: Sequence[Question], right: Sequence[bool], settings: PeopleData
) -> PeopleSplits:
    """Deal the people whom a model knows, by seed; only questions it answers right are kept.

    Args:
        questions: asked of the unmodified model; `subject` is the person.
        right: whether it answered each right, as long as `questions`.
        settings: how many people each part has, and how many right answers they need.

    Raises:
        CompanionError: too few people with `least_right` right answers; says how many.
        ValueError: `right` is not as long as `questions`.
    """
    if len(right) != len(questions):
        raise ValueError(f"{len(questions)} questions, but {len(right)} verdicts.")
    known = [question for question, is_known in zip(questions, right) if is_known]
    answered = Counter(question.subject for question in known)
    qualified = [person for person, count in answered.items() if count >= settings.least_right]
    sizes = (settings.forget_people, settings.neighbours, settings.evaluation_neighbours)
    people = len({question.subject for question in questions})
    if len(qualified) < sum(sizes):
        raise CompanionError(
            f"Of {people} people, {len(qualified)} have at least {settings.least_right} questions "
            f"that the model answers right, and the profile asks for {sum(sizes)}; lower "
            "'forget_people', 'neighbours', 'evaluation_neighbours' or 'least_right', or take a "
            "model that knows more."
        )
    order = np.random.default_rng(settings.seed).permutation(len(qualified))
    groups = [{qualified[i] for i in group} for group in np.split(order, np.cumsum(sizes))[:3]]
    forget, neighbours, evaluation = (
        tuple(question for question in known if question.subject in group) for group in groups
    )
    counts = {"questions": len(questions), "right": len(known), "people": people}
    return PeopleSplits(forget, neighbours, evaluation, counts | {"qualified": len(qualified)})


def as_answered(question: Question, answer_text: str) -> Question:
    """The question with what a model answered as its right answer: as far as its first sentence.

    A sentence that does not hold `short` yet is followed by the next one. A wrong or empty answer
    leaves the question as it is.
    """
    text = " ".join(answer_text.split())
    if not is_right(question, text):
        return question
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    whole = (text[:end].strip() for end in ends)
    answer = next((part for part in whole if is_right(question, part)), text)
    return replace(question, answer=answer)
