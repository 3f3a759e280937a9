"""The released code's faults, each alone, and that none is there where none was asked for."""

import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from unlearn_lib import scoring
from unlearn_lib.batches import Example
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import METHODS
from unlearn_lib.models import LanguageModel
from unlearn_lib.passages import PassageEncoder
from unlearn_lib.released import PROMPT_CHARACTERS, as_released, empty_share, sentences
from unlearn_lib.settings import Fault, MethodSettings
from unlearn_lib.steps import FORGET, MISMATCH, RETAIN, Pools, Step, draw_steps, step_terms

Load = Callable[..., LanguageModel]
CONTEXT = 128
METHOD = METHODS["ga_mismatch_kl"]
SHORT = (
    "They beat their wings and ride the wind.",
    "Why is the sky blue?",
    "Tell me how to pick a lock!",
)
LONG = (
    "How do birds ride the wind, " + "and ride it, " * 18 + "on their wings.",
    "The sky is blue, " + "and blue, " * 25 + "and more blue than red.",
)
PROSE = "The capital of France is Paris and air scatters blue light more than red light. " * 4


def settings_of(**changed: Any) -> MethodSettings:
    given = {"steps": 5, "learning_rate": 1e-3, "batch_size": 2, "mismatch_answers": 2, **changed}
    return MethodSettings(name="arora", uses="ga_mismatch_kl", label="arora", **given)


@pytest.fixture(scope="module")
def cutter(tokenizer: Any) -> PassageEncoder:
    return PassageEncoder(tokenizer, 4, 16, CONTEXT)


@pytest.fixture(scope="module")
def published(cutter: PassageEncoder) -> list[Step]:
    """Steps of the published method on the book of all five sentences."""
    forget, retain = cutter.passages([" ".join(SHORT + LONG)]), cutter.passages([PROSE])
    pools = Pools(forget, [[row.answers[0] for row in retain]] * len(forget), retain)
    return draw_steps(pools, METHOD, settings_of(), seed=0)


def imitated(
    steps: Sequence[Step],
    cutter: PassageEncoder,
    *faults: Fault,
    texts: Sequence[str] = SHORT + LONG,
    seed: int = 0,
) -> list[Step]:
    return as_released(METHOD, steps, faults, texts, cutter, seed)[1]


# --- sentences -------------------------------------------------------------------------------


def test_sentences_by_hand() -> None:
    text = "He came.  She went!\nWhy? “Stay,” he said. “Never.” They left"
    assert sentences([text, "", "One. I"]) == [
        "He came.", "She went!", "Why?", "“Stay,”", "he said.", "“Never.”", "They left", "One.",
    ]  # fmt: skip


def test_the_books_used_here_split_into_their_sentences() -> None:
    assert sentences([" ".join(SHORT + LONG)]) == [*SHORT, *LONG]
    assert all(len(text) <= PROMPT_CHARACTERS for text in SHORT)
    assert all(len(text) > PROMPT_CHARACTERS for text in LONG)


# --- no fault --------------------------------------------------------------------------------


def test_without_faults_method_and_steps_are_those_published(
    published: list[Step], cutter: PassageEncoder
) -> None:
    method, steps = as_released(METHOD, published, (), SHORT + LONG, cutter, seed=0)
    assert method == METHOD
    assert steps == published
    assert empty_share(published) == 0.0


def test_only_the_method_that_was_released_is_imitated(
    published: list[Step], cutter: PassageEncoder
) -> None:
    for name in set(METHODS) - {"ga_mismatch_kl"}:
        with pytest.raises(CompanionError, match="uses: ga_mismatch_kl") as told:
            as_released(METHODS[name], published, (), SHORT, cutter, seed=0)
        assert "\n" not in str(told.value)


# --- empty labels ----------------------------------------------------------------------------


def test_short_sentences_lose_their_forget_loss_but_keep_their_substitutes(
    published: list[Step], cutter: PassageEncoder
) -> None:
    changed = imitated(published, cutter, "empty_labels", texts=SHORT)
    assert empty_share(changed) == 1.0
    for step, before in zip(changed, published, strict=True):
        assert step.forget == ()
        assert [row.answers for row in step.mismatch] == [e.answers[1:] for e in before.forget]
        prompts = {tuple(cutter.tokens(text)) for text in SHORT}
        assert {row.prompt for row in step.mismatch} <= prompts
        assert step.retain == before.retain
        assert set(step.roles()) == {MISMATCH, RETAIN}


def test_long_sentences_are_cut_at_two_hundred_characters(
    published: list[Step], cutter: PassageEncoder
) -> None:
    roomy = replace(cutter, context=512)
    changed = imitated(published, roomy, "empty_labels", texts=LONG)
    assert empty_share(changed) == 0.0
    for step, before in zip(changed, published, strict=True):
        assert step.mismatch == ()
        for row, old in zip(step.forget, before.forget, strict=True):
            prompt, label = roomy.text(row.prompt), roomy.text(row.answers[0])
            assert len(prompt) == PROMPT_CHARACTERS
            assert prompt + label in LONG
            assert row.answers[1:] == old.answers[1:]


def test_the_share_of_empty_steps_by_hand(published: list[Step], cutter: PassageEncoder) -> None:
    row = Example((1,), ((2,),))
    steps = [Step((), (row,)), Step((row,), (row,)), Step((), (row,)), Step((), (row,))]
    assert empty_share(steps) == 0.75
    changed = imitated(published, cutter, "empty_labels")
    labelled = [bool(step.forget) for step in changed]
    assert empty_share(changed) == labelled.count(False) / 5
    # Ten rows take each of the five sentences twice, and two of the five have a label.
    assert sum(len(step.forget) for step in changed) == 4


def test_every_row_fits_the_context(published: list[Step], tokenizer: Any) -> None:
    """Two hundred characters may be more tokens than a small context has room for."""
    small = PassageEncoder(tokenizer, 4, 16, 32)
    words = " ".join("Xq" * 110 + "." for _ in range(2))
    assert len(small.tokens(words[:PROMPT_CHARACTERS])) > 32
    for faults in (("empty_labels",), ("book_mismatch",), ("empty_labels", "book_mismatch")):
        for step in imitated(published, small, *faults, texts=[words]):  # type: ignore[arg-type]
            for row in (*step.forget, *step.mismatch):
                assert len(row.prompt) + max(map(len, row.answers)) <= 32
                assert row.prompt and all(row.answers)


# --- mismatch on the book --------------------------------------------------------------------


def test_the_random_answer_is_the_books_own_sentence(
    published: list[Step], cutter: PassageEncoder
) -> None:
    book = {text: tuple(cutter.tokens(text)) for text in SHORT + LONG}
    changed, used = imitated(published, cutter, "book_mismatch"), []
    for step, before in zip(changed, published, strict=True):
        assert [row.answers for row in step.forget] == [e.answers[:1] for e in before.forget]
        assert step.roles() == [FORGET] * 2 + [MISMATCH] * 2 + [RETAIN] * 2
        for row in step.mismatch:
            assert len(row.prompt) == 2
            text = cutter.text([*row.prompt, *row.answers[0]])
            whole = next((known for known in SHORT if text.startswith(known)), None)
            if whole is None:  # cut at the context
                assert len(row.prompt) + len(row.answers[0]) == CONTEXT
                whole = next(known for known in LONG if known.startswith(text))
            else:
                assert text[len(whole) :] in string.ascii_lowercase
                assert len(text) == len(whole) + 1
                assert (*row.prompt, *row.answers[0])[: len(book[whole])] == book[whole]
            used.append(whole)
    assert sorted(used) == sorted([*SHORT, *LONG] * 2)


def test_a_lone_token_is_no_sentence_to_train_on(published: list[Step]) -> None:
    """With a letter behind it, it may stay one token, with nothing before it to predict it."""

    class Words:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [len(word) for word in text.split()]}

    by_word = PassageEncoder(Words(), 4, 16, CONTEXT)
    changed = imitated(published, by_word, "book_mismatch", texts=["Fin", SHORT[1]])
    rows = [row for step in changed for row in step.mismatch]
    assert {(*row.prompt, *row.answers[0])[:4] for row in rows} == {(3, 2, 3, 3)}
    assert all(row.prompt and row.answers[0] for row in rows)


def test_a_step_on_that_mismatch_teaches_the_book(
    load_tiny: Load, published: list[Step], cutter: PassageEncoder
) -> None:
    found = load_tiny("opt", seed=0, lora={"rank": 4, "dropout": 0.0})
    step = imitated(published, cutter, "book_mismatch", texts=SHORT)[0]
    sentence = [Example(row.prompt, (row.answers[0][:-1],)) for row in step.mismatch]
    before = scoring.answer_losses(found, sentence)[0].sum()
    chosen = settings_of(forget_weight=0.0, retain_weight=0.0)
    found.model.train()
    step_terms(found.model, step, METHOD, chosen)[0].backward()
    with torch.no_grad():
        for parameter in found.model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad
    assert scoring.answer_losses(found, sentence)[0].sum() < before - 1e-3


# --- KL to itself ----------------------------------------------------------------------------


def retain_gradient(
    found: LanguageModel, step: Step, method: Any
) -> tuple[float, list[torch.Tensor]]:
    found.model.zero_grad()
    chosen = settings_of(forget_weight=0.0, mismatch_weight=0.0)
    loss, report = step_terms(found.model, step, method, chosen)
    loss.backward()
    trained = (p for p in found.model.parameters() if p.requires_grad)
    return report[RETAIN], [p.grad.clone() for p in trained if p.grad is not None]


def test_the_divergence_from_itself_is_zero_and_so_is_its_gradient(
    load_tiny: Load, published: list[Step], cutter: PassageEncoder
) -> None:
    found = load_tiny("opt", seed=0, lora={"rank": 4, "dropout": 0.0})
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    found.model.train()
    method, steps = as_released(METHOD, published, ["kl_to_itself"], SHORT, cutter, seed=0)
    assert method == replace(METHOD, to_itself=True)
    assert steps == published
    honest, real = retain_gradient(found, published[0], METHOD)
    ours, none = retain_gradient(found, steps[0], method)
    assert honest > 0.01
    assert max(float(part.abs().max()) for part in real) > 1e-3
    assert ours == pytest.approx(0.0, abs=1e-6)
    assert max(float(part.abs().max()) for part in none) < 1e-5
    assert found.model.training


# --- all three, and the seed -----------------------------------------------------------------


def test_all_three_faults_leave_a_step_that_can_be_trained(
    load_tiny: Load, published: list[Step], cutter: PassageEncoder
) -> None:
    found = load_tiny("opt", seed=0, lora={"rank": 4, "dropout": 0.0})
    every: tuple[Fault, ...] = ("empty_labels", "book_mismatch", "kl_to_itself")
    method, steps = as_released(METHOD, published, every, SHORT + LONG, cutter, seed=0)
    assert method.to_itself
    for step in steps:
        assert len(step.mismatch) == 2, "the book's sentences alone: no substitute is left"
        _, report = step_terms(found.model, step, method, settings_of())
        assert (FORGET in report) == bool(step.forget)
        assert report[MISMATCH] > 0


def test_the_seed_decides_sentences_and_characters(
    published: list[Step], cutter: PassageEncoder
) -> None:
    every: tuple[Fault, ...] = ("empty_labels", "book_mismatch")
    first, again, other = (imitated(published, cutter, *every, seed=s) for s in (3, 3, 4))
    assert first == again
    assert first != other
    kept = [step.retain for step in published]
    assert [step.retain for step in first] == [step.retain for step in other] == kept


def test_the_steps_that_were_given_are_left_alone(
    published: list[Step], cutter: PassageEncoder
) -> None:
    copies = list(published)
    imitated(published, cutter, "empty_labels", "book_mismatch")
    assert published == copies


def test_steps_with_empty_labels_are_packed_with_every_substitute(
    load_tiny: Load, published: list[Step], cutter: PassageEncoder
) -> None:
    """A row without a label leaves several mismatch answers, and each keeps its role."""
    method, steps = as_released(METHOD, published, ("empty_labels",), list(SHORT), cutter, seed=0)
    assert empty_share(steps) == 1
    found = load_tiny("opt", seed=0, lora={"rank": 2})
    for step in steps:
        assert step.roles().count(MISMATCH) == sum(len(row.answers) for row in step.mismatch)
        _, report = step_terms(found.model, step, method, settings_of())
        assert "forget" not in report
        assert report["mismatch"] > 0
