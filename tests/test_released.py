"""The released code's faults, one by one."""

import string
from dataclasses import replace
from typing import Any

import pytest
from unlearning import LORA, Load, change, settings_of

from unlearn_lib.model.tokens import PassageEncoder
from unlearn_lib.unlearn import steps
from unlearn_lib.unlearn.methods import METHODS
from unlearn_lib.unlearn.released import PROMPT_CHARACTERS, as_released, empty_share, sentences
from unlearn_lib.unlearn.steps import FORGET, MISMATCH, RETAIN, Pools, Step, step_terms
from unlearn_lib.util import CompanionError

# --- the released code's faults --------------------------------------------------------------

RELEASED = METHODS["ga_mismatch_kl"]
SHORT = (
    "They beat their wings and ride the wind.",
    "Why is the sky blue?",
    "Tell me how to pick a lock!",
)
LONG = (
    "How do birds ride the wind, " + "and ride it, " * 18 + "on their wings.",
    "The sky is blue, " + "and blue, " * 25 + "and more blue than red.",
)


@pytest.fixture(scope="module")
def cutter(tokenizer: Any) -> PassageEncoder:
    return PassageEncoder(tokenizer, 4, 16, 512)


@pytest.fixture(scope="module")
def published(cutter: PassageEncoder) -> list[Step]:
    """Steps of the published method on the book of all five sentences."""
    forget, retain = cutter.passages([" ".join(SHORT + LONG)]), cutter.passages([LONG[0] * 2])
    pools = Pools(forget, [[row.answers[0] for row in retain]] * len(forget), retain)
    return steps.draw_steps(pools, RELEASED, settings_of(steps=5, mismatch_answers=2), 0)


def test_sentences_by_hand() -> None:
    text = "He came.  She went!\nWhy? “Stay,” he said. “Never.” They left"
    expected = "He came.|She went!|Why?|“Stay,”|he said.|“Never.”|They left|One.".split("|")
    assert sentences([text, "", "One. I"]) == expected
    assert sentences([" ".join(SHORT + LONG)]) == [*SHORT, *LONG]
    assert max(map(len, SHORT)) <= PROMPT_CHARACTERS < min(map(len, LONG))


def test_without_faults_all_is_as_published_and_only_that_method_is_imitated(
    published: list[Step], cutter: PassageEncoder
) -> None:
    assert as_released(RELEASED, published, (), SHORT, cutter, 0) == (RELEASED, published)
    assert empty_share(published) == 0.0
    for name in set(METHODS) - {"ga_mismatch_kl"}:
        with pytest.raises(CompanionError, match="uses: ga_mismatch_kl"):
            as_released(METHODS[name], published, (), SHORT, cutter, 0)


def test_sentences_without_a_label_lose_their_forget_loss_but_keep_their_substitutes(
    published: list[Step], cutter: PassageEncoder
) -> None:
    faulty = as_released(RELEASED, published, ["empty_labels"], SHORT + LONG, cutter, 0)[1]
    for step, before in zip(faulty, published, strict=True):
        assert len(step.forget) + len(step.mismatch) == 2 and step.retain == before.retain
        substitutes = [row.answers[1:] for row in before.forget]
        assert all(row.answers in substitutes for row in step.mismatch)
        assert all(cutter.text(row.prompt) in SHORT for row in step.mismatch)
        for row in step.forget:
            prompt, label = cutter.text(row.prompt), cutter.text(row.answers[0])
            assert len(prompt) == PROMPT_CHARACTERS and prompt + label in LONG
            assert row.answers[1:] in substitutes
    # Ten rows take each of the five sentences twice, and two of the five have a label.
    assert sum(len(step.forget) for step in faulty) == 4
    assert empty_share(faulty) == sum(not step.forget for step in faulty) / 5


def test_the_random_answer_is_the_books_own_sentence_and_a_letter(
    published: list[Step], cutter: PassageEncoder
) -> None:
    faulty, used = as_released(RELEASED, published, ["book_mismatch"], SHORT, cutter, 0)[1], []
    for step, before in zip(faulty, published, strict=True):
        assert [row.answers for row in step.forget] == [row.answers[:1] for row in before.forget]
        assert step.roles() == [FORGET] * 2 + [MISMATCH] * 2 + [RETAIN] * 2
        for row in step.mismatch:
            text = cutter.text((*row.prompt, *row.answers[0]))
            assert len(row.prompt) == 2 and text[-1] in string.ascii_lowercase
            used.append(text[:-1])
    assert set(used) == set(SHORT)


def test_all_faults_leave_steps_that_fit_the_context_and_can_be_trained(
    published: list[Step], tokenizer: Any, load_tiny: Load
) -> None:
    small = PassageEncoder(tokenizer, 4, 16, 64)
    faults: Any = ("empty_labels", "book_mismatch", "kl_to_itself")
    method, faulty = as_released(RELEASED, published, faults, SHORT + LONG, small, 3)
    assert method == replace(RELEASED, to_itself=True)
    assert faulty == as_released(RELEASED, published, faults, SHORT + LONG, small, 3)[1]
    assert faulty != as_released(RELEASED, published, faults, SHORT + LONG, small, 4)[1]
    adapted = load_tiny("opt", seed=0, lora=LORA)
    change(adapted)
    for step in faulty:
        for row in (*step.forget, *step.mismatch):
            assert row.prompt and all(row.answers)
            assert len(row.prompt) + max(map(len, row.answers)) <= 64
        report = step_terms(adapted.model, step, method, settings_of())[1]
        assert (FORGET in report) == bool(step.forget) and report[MISMATCH] > 0
        assert report[RETAIN] == pytest.approx(0.0, abs=1e-6), "the KL to itself"
