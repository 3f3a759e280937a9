"""Pairs of answers of which it is known whether one entails the other, to fit a judge on.

They come from question sets: paraphrases and wrong answers, and what unlearned models say.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from unlearn_lib.datasets.questions import Question

ENTAILED_KINDS = ("same", "paraphrase", "longer")
"""Kinds of `training_pairs` whose premise entails the hypothesis; no other kind's does."""

BROKEN = ("", "!!!!!!!!", "the the the the the the", "I I I I I I I I I I")
"""Texts of a model that broke; shuffled words of a subject's answers come beside them."""

DODGES = ("I do not know", "I'm not sure", "I have no idea", "I can't say", "It is unclear")
"""How a refusal begins that goes on with the question's own words."""

Pair = tuple[str, str, str]
"""Kind, premise, hypothesis."""


def training_pairs(
    questions: Sequence[Question], refusals: Sequence[str], seed: int
) -> tuple[list[str], list[str], np.ndarray, list[str]]:
    """Make pairs of which it is known whether the premise entails the hypothesis.

    Entailed: an answer and itself (`same`), its paraphrase either way round (`paraphrase`), and
    either of them among more of the same subject (`longer`). Not entailed: wrong answers
    (`perturbed`), also among more (`longer perturbed`); an answer that adds something
    (`added`); answers to another question of the subject and of another subject; what an
    unlearned model says instead: a `refusal`, one that repeats the question (`dodge`), a `broken`
    text, the answer `truncated` before its key words.

    Args:
        questions: of two subjects or more, each with wrong answers and, at best, a paraphrase.
            Those of different subjects in one place count as the same attribute.
        refusals: answers that say "I don't know".
        seed: of every choice. For held-out pairs give questions of other subjects.

    Returns:
        premises, hypotheses, entailed (bool), kinds; [n] each, about 14 pairs per question.

    Raises:
        ValueError: fewer than two subjects, a question without wrong answers, or no refusals.
    """
    subjects: dict[str, list[Question]] = defaultdict(list)
    for row, question in enumerate(questions):
        if not question.perturbed_answer:
            raise ValueError(f"Question {row} has no wrong answers: give it at least one.")
        subjects[question.subject].append(question)
    if len(subjects) < 2 or not refusals:
        raise ValueError(
            f"There are {len(subjects)} subjects and {len(refusals)} refusals: give questions of "
            "two subjects or more, and one refusal or more."
        )
    generator = np.random.default_rng(seed)
    pairs: list[tuple[str, str, str]] = []
    for subject, own in subjects.items():
        strangers = [theirs for name, theirs in subjects.items() if name != subject]
        for place, question in enumerate(own):
            theirs = strangers[int(generator.integers(len(strangers)))]
            pairs += _true_and_wrong(question, own, generator)
            pairs += _beside_the_point(question, own, theirs[place % len(theirs)], generator)
            pairs += _unlearned(question, str(generator.choice(refusals)), own, generator)
    kinds, premises, hypotheses = (list(column) for column in zip(*pairs))
    return premises, hypotheses, np.isin(kinds, ENTAILED_KINDS), kinds


def _true_and_wrong(
    question: Question, own: Sequence[Question], generator: np.random.Generator
) -> list[Pair]:
    """The answer, its paraphrase and its wrong answers, each also among more of the subject."""
    answer, paraphrase = question.answer, question.paraphrase
    wrong = [str(text) for text in generator.permutation(question.perturbed_answer)[:2]]
    more = [each.answer for each in own if each is not question] or [""]

    def among(text: str) -> str:
        return " ".join(generator.permutation([text, str(generator.choice(more))])).strip()

    pairs = [
        ("same", answer, answer),
        ("paraphrase", answer, paraphrase),
        ("paraphrase", paraphrase, answer),
        ("longer", among(answer), paraphrase),
        ("longer", among(paraphrase), answer),
        ("perturbed", wrong[0], answer),
        ("perturbed", answer, wrong[-1]),
        ("perturbed", wrong[-1], paraphrase),
        ("longer perturbed", among(wrong[0]), answer),
    ]
    if len(own) > 1:
        pairs.append(("added", answer, among(paraphrase)))
    return pairs


def _beside_the_point(
    question: Question,
    own: Sequence[Question],
    theirs: Question,
    generator: np.random.Generator,
) -> list[Pair]:
    """Answers to another question of the subject, and of another subject; either way round."""
    others = {
        "other question": own[int(generator.integers(len(own)))],
        "other subject": theirs,
    }
    pairs = []
    for kind, other in others.items():
        holds_it = bool(question.short) and question.short in other.answer
        if other is not question and other.answer != question.answer and not holds_it:
            premise, hypothesis = generator.permutation([other.answer, question.answer])
            pairs.append((kind, str(premise), str(hypothesis)))
    return pairs


def _unlearned(
    question: Question,
    refusal: str,
    own: Sequence[Question],
    generator: np.random.Generator,
) -> list[Pair]:
    """What a model says that has forgotten, or that broke."""
    words = " ".join(each.answer for each in own).split()
    shuffled = " ".join(generator.permutation(words)[: int(generator.integers(3, 25))])
    broken = str(generator.choice([*BROKEN, *[shuffled] * len(BROKEN)]))
    asked = question.question.rstrip("?")
    dodge = f"{generator.choice(DODGES)} {asked[:1].lower()}{asked[1:]}."
    said = [("broken", broken), [("refusal", refusal), ("dodge", dodge)][generator.integers(2)]]
    pairs = []
    for kind, text in said:
        premise, hypothesis = generator.permutation([text, question.answer])
        pairs.append((kind, str(premise), str(hypothesis)))
    start, key, _ = question.answer.partition(question.short or question.answer)
    if key and start.strip():
        pairs.append(("truncated", start.strip(), question.answer))
    return pairs
