"""Known people to forget, neighbours to keep, and other neighbours to ask about.

A fact can only be forgotten if it is known. So the base model is asked about many known people
first; what it answers right is dealt, person by person, into those to forget, neighbours to keep in
training, and other neighbours on whom the damage is measured. Yuan et al. (2025) also keep the
neighbours of training and of evaluation apart, though they do not say so.

As in their code, training takes what the model answered (`original_answer`), and so does cosine
similarity; ROUGE, probability and entailment take the gold answer (`answer`), as does what they do
not measure, memorisation and membership attacks. The truth ratio takes paraphrase and wrong
answers.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unlearn_lib.data.questions import Question, Questions, read_questions
from unlearn_lib.data.words import holds
from unlearn_lib.settings import PeopleData
from unlearn_lib.util import EMBEDDED, CompanionError

SENTENCE_END = re.compile(r"(?<![A-Z])(?<!\bSt)(?<!\bDr)[.!?](?=\s|$)")
"""The end of a sentence, and not of an initial or a title."""


@dataclass(frozen=True)
class PeopleSplits:
    """Questions that the base model answers right, by what becomes of their people.

    Attributes:
        forget: to be forgotten.
        neighbours: of other people, to train on as what is kept.
        evaluation: of further people, in no training.
        counts: `questions` and `people` that were asked about, `right` answers, and people that
            `qualified`.
    """

    forget: Questions
    neighbours: Questions
    evaluation: Questions
    counts: dict[str, int]


def load_people() -> Questions:
    """Return the embedded questions about known people, those on one person together."""
    columns = ("person", "short", "paraphrased_answer", "perturbed_answer")
    return read_questions(EMBEDDED / "known_people.jsonl", columns)


def deal_people(
    questions: Sequence[Question], right: Sequence[bool], settings: PeopleData
) -> PeopleSplits:
    """Deal the people whom a model knows, by seed; only questions that it answers right stay.

    Args:
        questions: asked of the base model; `subject` is the person.
        right: whether it answered each right, as long as `questions`.
        settings: how many people each part has, and how many right answers they need.

    Raises:
        CompanionError: too few people with `least_right` right answers; says how many.
    """
    known = [row for row, is_known in zip(questions, right, strict=True) if is_known]
    answered = Counter(row.subject for row in known)
    qualified = [person for person, count in answered.items() if count >= settings.least_right]
    sizes = (settings.forget_people, settings.neighbours, settings.evaluation_neighbours)
    people = len({row.subject for row in questions})
    if len(qualified) < sum(sizes):
        raise CompanionError(
            f"The model answers {settings.least_right} questions right about {len(qualified)} of "
            f"{people} people, and {sum(sizes)} are needed; lower 'least_right' or their numbers."
        )
    order = np.random.default_rng(settings.seed).permutation(len(qualified))
    groups = [{qualified[i] for i in group} for group in np.split(order, np.cumsum(sizes))[:3]]
    parts = [tuple(row for row in known if row.subject in group) for group in groups]
    counts = {"questions": len(questions), "right": len(known), "people": people}
    return PeopleSplits(parts[0], parts[1], parts[2], counts | {"qualified": len(qualified)})


def as_answered(question: Question, answer_text: str) -> Question:
    """Return the question with a model's answer, as far as its first sentence, as its statement.

    A sentence that does not hold `short` yet is followed by the next one. A wrong or empty answer
    leaves the question as it is. `answer` stays the gold one.
    """
    text = " ".join(answer_text.split())
    if not holds(text, question.short):
        return question
    beginnings = (text[: match.end()].strip() for match in SENTENCE_END.finditer(text))
    answer = next((part for part in beginnings if holds(part, question.short)), text)
    return replace(question, original_answer=answer)


def as_trained(questions: Sequence[Question]) -> Questions:
    """Return questions with what the model answered in place of the gold answer."""
    return tuple(replace(row, answer=row.statement) for row in questions)
