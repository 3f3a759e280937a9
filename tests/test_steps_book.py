"""Steps of four kinds of rows, a reference of one's own, and adapters that are taken up again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch.testing import assert_close
from transformers import TrainerCallback

from unlearn_lib import losses, models, scoring, training
from unlearn_lib.batches import Example, TextEncoder, pack, packed_logits
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import METHODS, Method
from unlearn_lib.models import LanguageModel
from unlearn_lib.settings import MethodSettings, ModelSettings
from unlearn_lib.steps import FORGET, KEEP, MISMATCH, RETAIN, Pools, Step, draw_steps, step_terms

Load = Callable[..., LanguageModel]
LORA = {"rank": 4, "dropout": 0.0}
ALL_FOUR = Method(
    losses.npo, "retain", losses.forward_kl, "all four terms", keep=losses.gradient_descent
)
ARCHITECTURES = ("opt", "llama", "gpt2")


def chosen(**changed: Any) -> MethodSettings:
    given = {"steps": 3, "learning_rate": 1e-2, "batch_size": 1, "schedule": "constant"}
    return MethodSettings(name="tried", uses="ga", label="tried", **{**given, **changed})


@pytest.fixture(scope="module")
def pools(encoder: TextEncoder) -> Pools:
    forget = [
        encoder.example("How do I pick a lock?", "Use a pin."),
        encoder.example("How do I beat him?", "Wait for the night."),
    ]
    retain = [
        encoder.example("Why is the sky blue?", "Air scatters light."),
        encoder.example("How do birds fly?", "They beat their wings."),
    ]
    keep = [
        encoder.example("What is the capital of France?", "Paris."),
        encoder.example("Why blue?", "It is the air."),
        replace(encoder.example("Why red?", "It is the wind."), score_prompt=True),
    ]
    answers = [row.answers[0] for row in retain]
    return Pools(forget, [answers] * len(forget), retain, keep)


@pytest.fixture(scope="module")
def whole(encoder: TextEncoder) -> Step:
    """A step with rows of every kind, forget rows with substitutes among them."""
    return Step(
        forget=(
            encoder.example("How do I pick a lock?", "Use a pin.", "It is the air.", "Paris."),
            encoder.example("How do I beat him?", "Wait for the night.", "They ride the wind."),
        ),
        mismatch=(encoder.example("Tell me a line.", "They beat their wings."),),
        keep=(
            encoder.example("Why blue?", "Air scatters light."),
            replace(encoder.example("Why red?", "It is the sky."), score_prompt=True),
        ),
        retain=(
            replace(encoder.example("How do birds fly?", "With their wings."), score_prompt=True),
        ),
    )


def change(found: LanguageModel) -> None:
    """Move an adapter away from where it does nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.03)


def logits_of(found: LanguageModel, step: Step) -> torch.Tensor:
    with torch.no_grad():
        return packed_logits(found.model, pack(step.examples))


def assert_same_to_rounding(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest logit: a merged weight is rounded once more."""
    assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def weights(found: LanguageModel) -> dict[str, torch.Tensor]:
    """A copy of everything that is trained."""
    named = found.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


# --- the roles of rows -----------------------------------------------------------------------


def test_roles_name_every_answer_in_the_order_in_which_it_is_packed(whole: Step) -> None:
    assert whole.roles() == [
        FORGET, MISMATCH, MISMATCH, FORGET, MISMATCH, MISMATCH, KEEP, KEEP, RETAIN,
    ]  # fmt: skip
    packed = pack(whole.examples)
    answers = [answer for example in whole.examples for answer in example.answers]
    assert len(whole.roles()) == len(answers) == int(packed.rows.max()) + 1
    for row, answer in enumerate(answers):
        assert packed.labels[packed.rows == row].tolist()[-len(answer) :] == list(answer)


def test_roles_of_substitutes_alone(whole: Step) -> None:
    only = replace(whole, substitutes_only=True)
    assert only.roles() == [MISMATCH] * 6 + [KEEP] * 2 + [RETAIN]


def test_roles_of_a_step_without_forget_rows(whole: Step) -> None:
    assert replace(whole, forget=()).roles() == [MISMATCH, KEEP, KEEP, RETAIN]
    assert replace(whole, forget=(), mismatch=(), keep=()).roles() == [RETAIN]


# --- drawing them ----------------------------------------------------------------------------


def test_keep_rows_are_drawn_where_the_method_keeps(pools: Pools) -> None:
    settings = chosen(steps=6, keep_batch_size=2)
    steps = draw_steps(pools, METHODS["npo_keep_kl"], settings, seed=0)
    assert steps[0].roles() == [FORGET, KEEP, KEEP, RETAIN]
    used = [pools.keep.index(row) for step in steps for row in step.keep]
    for start in range(0, 12, 3):
        assert sorted(used[start : start + 3]) == [0, 1, 2]
    assert not any(step.keep for step in draw_steps(pools, METHODS["ga_kl"], settings, seed=0))


def test_as_many_keep_rows_as_forget_rows_unless_said(pools: Pools) -> None:
    steps = draw_steps(pools, METHODS["npo_keep_kl"], chosen(batch_size=2), seed=0)
    assert [len(step.keep) for step in steps] == [2, 2, 2]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.keep])
def test_an_empty_keep_set_is_refused_in_one_sentence(name: str, pools: Pools) -> None:
    with pytest.raises(CompanionError, match="keep set is empty") as told:
        draw_steps(replace(pools, keep=[]), METHODS[name], chosen(), seed=0)
    assert "'tried' needs it" in str(told.value)
    assert "\n" not in str(told.value)


def test_what_was_before_goes_with_its_forget_row(pools: Pools) -> None:
    known = replace(pools, before=[10.0, 20.0])
    steps = draw_steps(known, METHODS["npo"], chosen(steps=4, batch_size=2), seed=3)
    for step in steps:
        expected = [known.before[known.forget.index(row)] for row in step.forget]  # type: ignore[index]
        assert list(step.before or ()) == expected
    assert all(step.before is None for step in draw_steps(pools, METHODS["npo"], chosen(), 0))


def test_rows_to_keep_change_nothing_for_methods_without_them(pools: Pools) -> None:
    without = replace(pools, keep=[])
    for name in ("ga_mismatch_kl", "npo", "retain_only"):
        drawn = [draw_steps(each, METHODS[name], chosen(), seed=0) for each in (pools, without)]
        assert drawn[0] == drawn[1]


# --- NPO with what an earlier pass kept ------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 2**31))
def test_npo_with_kept_losses_equals_npo_with_logits(lengths: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    logits, reference = 3 * torch.randn(2, count, 7, generator=random)
    labels = torch.randint(7, (count,), generator=random)
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    kept = losses.answer_nll(reference, labels, rows, "sum")
    assert kept.shape == (len(lengths),)
    leaves = [logits.clone().requires_grad_(True) for _ in range(2)]
    values = [
        losses.npo(leaf, labels, rows, given, 0.3)
        for leaf, given in zip(leaves, (reference, kept), strict=True)
    ]
    assert_close(values[0], values[1])
    first, second = (torch.autograd.grad(v, leaf)[0] for v, leaf in zip(values, leaves))
    assert_close(first, second)


def test_npo_starts_at_its_own_constant_when_nothing_has_changed(
    load_tiny: Load, pools: Pools
) -> None:
    """-(2/β) log σ(0) = (2/β) log 2."""
    found = load_tiny("opt", seed=0, lora=LORA)
    change(found)
    before = scoring.answer_losses(found, pools.forget)[0].tolist()
    step = Step(tuple(pools.forget), (), before=tuple(before))
    _, report = step_terms(found.model, step, METHODS["npo"], chosen(beta=0.5))
    assert report[FORGET] == pytest.approx(4 * 0.6931472, abs=1e-4)
    _, base = step_terms(found.model, replace(step, before=None), METHODS["npo"], chosen(beta=0.5))
    assert abs(base[FORGET] - report[FORGET]) > 1e-3, "the base model is another reference"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_npo_with_the_bases_losses_equals_npo_with_the_adapter_off(
    architecture: str, load_tiny: Load, pools: Pools
) -> None:
    found = load_tiny(architecture, seed=0, lora=LORA)
    change(found)
    before = scoring.answer_losses(load_tiny(architecture), pools.forget)[0].tolist()
    step = Step(tuple(pools.forget), tuple(pools.retain[:1]))
    kept = replace(step, before=tuple(before))
    values = [step_terms(found.model, each, METHODS["npo"], chosen())[0] for each in (step, kept)]
    assert_close(values[0], values[1], rtol=1e-5, atol=1e-5)


# --- all four terms --------------------------------------------------------------------------


def separate_logits(model: Any, example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of one answer's scored tokens, from a plain row of its own."""
    tokens = torch.tensor([[*example.prompt, *example.answers[0]]])
    start = 1 if example.score_prompt else len(example.prompt)
    return model(input_ids=tokens).logits[0, start - 1 : -1], tokens[0, start:]


def separate_terms(found: LanguageModel, step: Step, beta: float) -> dict[str, torch.Tensor]:
    """The four terms of ALL_FOUR by the book, each answer in a row of its own."""
    rows: dict[str, list[Example]] = {FORGET: [], MISMATCH: [], KEEP: [], RETAIN: []}
    answers = [(e, answer) for e in step.examples for answer in e.answers]
    for role, (example, answer) in zip(step.roles(), answers, strict=True):
        rows[role].append(Example(example.prompt, (answer,), example.score_prompt))

    def nll(example: Example, reduction: str = "mean") -> torch.Tensor:
        return functional.cross_entropy(*separate_logits(found.model, example), reduction=reduction)

    def original(example: Example) -> torch.Tensor:
        with torch.no_grad(), found.model.disable_adapter():
            return separate_logits(found.model, example)[0]

    def preference(example: Example) -> torch.Tensor:
        labels = torch.tensor(example.answers[0])
        base = functional.cross_entropy(original(example), labels, reduction="sum")
        return -2 / beta * functional.logsigmoid(beta * (nll(example, "sum") - base))

    def divergence(example: Example) -> torch.Tensor:
        p, q = (x.log_softmax(-1) for x in (original(example), separate_logits(found.model, example)[0]))  # fmt: skip
        return (p.exp() * (p - q)).sum(-1).mean()

    terms = {FORGET: preference, MISMATCH: nll, KEEP: nll, RETAIN: divergence}
    return {role: torch.stack([terms[role](row) for row in rows[role]]).mean() for role in rows}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_of_all_four_roles_is_the_weighted_sum_of_its_separate_terms(
    architecture: str, load_tiny: Load, whole: Step
) -> None:
    found = load_tiny(architecture, seed=0, lora=LORA)
    change(found)
    weighed = {FORGET: 0.5, MISMATCH: 2.0, KEEP: 3.0, RETAIN: 0.7}
    settings = chosen(beta=0.2, **{f"{role}_weight": weight for role, weight in weighed.items()})
    total, report = step_terms(found.model, whole, ALL_FOUR, settings)
    terms = separate_terms(found, whole, beta=0.2)
    for role, value in terms.items():
        assert report[role] == pytest.approx(value.item(), abs=1e-5, rel=1e-5), role
    expected = sum(weighed[role] * value for role, value in terms.items())
    assert isinstance(expected, torch.Tensor)
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    trained = [p for p in found.model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(each, trained) for each in (total, expected))
    assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_role_that_the_method_leaves_out_adds_nothing(load_tiny: Load, whole: Step) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    total, report = step_terms(found.model, whole, METHODS["ga"], chosen())
    assert set(report) == {FORGET, "forget_nll", "total", "tokens"}
    assert float(total) == pytest.approx(report[FORGET])


def test_rows_to_keep_are_compared_with_the_original_at_their_own_places(
    load_tiny: Load, whole: Step
) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    change(found)
    both = replace(ALL_FOUR, keep=losses.forward_kl)
    _, report = step_terms(found.model, whole, both, chosen())
    as_retain = Step((), whole.keep)
    _, expected = step_terms(found.model, as_retain, METHODS["kl_only"], chosen())
    assert report[KEEP] == pytest.approx(expected[RETAIN], abs=1e-5)
    assert expected[RETAIN] > 1e-3


def test_a_method_can_be_compared_with_itself(load_tiny: Load, whole: Step) -> None:
    """The released notebook's reference is the model in training (C-B15)."""
    found = load_tiny("opt", seed=0, lora=LORA)
    change(found)
    _, honest = step_terms(found.model, whole, ALL_FOUR, chosen())
    _, itself = step_terms(found.model, whole, replace(ALL_FOUR, to_itself=True), chosen())
    assert honest[RETAIN] > 1e-3
    assert itself[RETAIN] == pytest.approx(0.0, abs=1e-6)
    assert (itself[KEEP], itself[MISMATCH]) == (honest[KEEP], honest[MISMATCH])


# --- adapters that are taken up again --------------------------------------------------------


@pytest.fixture
def saved(load_tiny: Load, tmp_path: Path) -> Callable[[str], tuple[LanguageModel, Path]]:
    """An adapted model, and the folder in which its adapter lies."""

    def save(architecture: str) -> tuple[LanguageModel, Path]:
        found = load_tiny(architecture, seed=0, lora=LORA)
        change(found)
        models.save(found.model, found.tokenizer, tmp_path / "adapter")
        return found, tmp_path / "adapter"

    return save


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_goes_on_exactly_where_the_saved_adapter_stood(
    architecture: str, load_tiny: Load, saved: Any, pools: Pools, whole: Step, tmp_path: Path
) -> None:
    found, folder = saved(architecture)
    again = load_tiny(architecture)
    models.load_adapter(again, folder, trainable=True)
    assert_close(logits_of(again, whole), logits_of(found, whole), rtol=0, atol=0)
    opened = weights(again)
    assert_close(opened, weights(found), rtol=0, atol=0)
    assert opened and all("lora_" in name for name in opened)
    assert all(value.dtype == torch.float32 for value in opened.values())
    for each in (found, again):
        training.unlearn(each, METHODS["ga_kl"], chosen(), pools, 0, tmp_path / "checkpoints")
    assert_close(weights(again), weights(found), rtol=0, atol=0)
    assert any(not torch.equal(opened[name], value) for name, value in weights(again).items())


def test_a_trainable_adapter_is_float32_on_a_bfloat16_model(
    load_tiny: Load, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "choose_precision", lambda asked, device: torch.bfloat16)
    found, folder = load_tiny("opt", lora=LORA), saved("opt")[1]
    models.load_adapter(found, folder, trainable=True)
    dtypes = {p.dtype for p in found.model.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert {p.dtype for p in found.model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_adapter_gives_the_same_logits_and_a_plain_model(
    architecture: str, load_tiny: Load, saved: Any, whole: Step
) -> None:
    found, folder = saved(architecture)
    merged, plain = load_tiny(architecture), load_tiny(architecture)
    models.load_adapter(merged, folder, merge=True)
    assert_same_to_rounding(logits_of(merged, whole), logits_of(found, whole))
    assert type(merged.model) is type(plain.model)
    assert not any("lora_" in name for name, _ in merged.model.named_parameters())
    assert not torch.allclose(logits_of(merged, whole), logits_of(plain, whole))


def test_a_new_adapter_on_a_merged_model_starts_where_the_old_one_ended(
    load_tiny: Load, saved: Any, whole: Step
) -> None:
    found, folder = saved("opt")
    merged = load_tiny("opt")
    models.load_adapter(merged, folder, merge=True)
    settings = ModelSettings.model_validate(
        {"id": "tiny/opt", "precision": "float32", "lora": LORA}
    )
    models.make_trainable(merged, settings, seed=5)
    assert_same_to_rounding(logits_of(merged, whole), logits_of(found, whole))
    change(merged)
    with models.reference(merged.model) as implanted:
        off = packed_logits(implanted, pack(whole.examples))
    assert_same_to_rounding(off, logits_of(found, whole))


# --- a reference of one's own ----------------------------------------------------------------


def test_the_reference_is_the_frozen_model_where_one_is_given(load_tiny: Load, whole: Step) -> None:
    found, base = load_tiny("opt", seed=0, lora=LORA), load_tiny("opt").model
    change(found)
    found.model.train()
    with models.reference(found.model, base) as original:
        assert original is base
        assert not packed_logits(original, pack(whole.examples)).requires_grad
    assert found.model.training
    assert torch.is_grad_enabled()


def test_steps_are_measured_against_the_frozen_model(load_tiny: Load, saved: Any) -> None:
    """An adapter that was merged into the weights is no original model."""
    found, folder = saved("opt")
    merged, base = load_tiny("opt"), load_tiny("opt").model
    models.load_adapter(merged, folder, merge=True)
    step = Step((), (Example((5, 6, 7), ((8, 9, 10),), True),))
    _, against_base = step_terms(found.model, step, METHODS["kl_only"], chosen())
    _, against_given = step_terms(merged.model, step, METHODS["kl_only"], chosen(), base)
    assert against_given[RETAIN] == pytest.approx(against_base[RETAIN], abs=1e-5)
    assert against_given[RETAIN] > 1e-3


# --- training on steps of one's own ----------------------------------------------------------


class Ending(TrainerCallback):
    """Ends training after so many steps, and writes down what it saw."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, list[int]()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(state.global_step)
        if state.global_step == self.after:
            control.should_training_stop = True


def test_given_steps_are_trained_on_in_their_order(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    method, settings = METHODS["npo_keep_kl"], chosen(steps=3)
    drawn = draw_steps(pools, method, settings, seed=7)
    given, expected = (load_tiny("opt", seed=0, lora=LORA) for _ in range(2))
    nothing = Pools((), (), ())
    first = training.unlearn(given, method, settings, nothing, 7, tmp_path / "c", steps=drawn)
    second = training.unlearn(expected, method, settings, pools, 7, tmp_path / "c")
    assert [row["total"] for row in first.history] == [row["total"] for row in second.history]
    assert_close(weights(given), weights(expected), rtol=0, atol=0)
    backward = load_tiny("opt", seed=0, lora=LORA)
    training.unlearn(backward, method, settings, nothing, 7, tmp_path / "c", steps=drawn[::-1])
    assert any(not torch.equal(value, weights(given)[n]) for n, value in weights(backward).items())


def test_a_callback_ends_training_and_nothing_is_said_to_have_stopped(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    method, settings, ending = METHODS["npo_keep_kl"], chosen(steps=6), Ending(after=2)
    drawn = draw_steps(pools, method, settings, seed=0)
    ended, exact = (load_tiny("opt", seed=0, lora=LORA) for _ in range(2))
    nothing, folder = Pools((), (), ()), tmp_path / "checkpoints"
    outcome = training.unlearn(
        ended, method, settings, nothing, 0, folder, steps=drawn, callbacks=[ending]
    )
    assert ending.seen == [1, 2]
    assert [row["step"] for row in outcome.history] == [0, 1]
    assert all(row["seconds"] > 0 for row in outcome.history)
    assert outcome.stopped is None
    assert outcome.probes == []
    assert not folder.exists()
    training.unlearn(exact, method, chosen(steps=2), nothing, 0, folder, steps=drawn[:2])
    assert_close(weights(ended), weights(exact), rtol=0, atol=0)


def test_training_is_measured_against_the_frozen_model_that_is_given(
    load_tiny: Load, saved: Any, pools: Pools, tmp_path: Path
) -> None:
    _, folder = saved("opt")
    merged, base = load_tiny("opt"), load_tiny("opt").model
    models.load_adapter(merged, folder, merge=True)
    settings = ModelSettings.model_validate(
        {"id": "tiny/opt", "precision": "float32", "lora": LORA}
    )
    models.make_trainable(merged, settings, seed=5)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    outcome = training.unlearn(
        merged, METHODS["kl_only"], chosen(), pools, 0, tmp_path / "checkpoints", frozen=base
    )
    assert outcome.history[0][RETAIN] > 1e-3, "the implant is a distance from the base model"
    assert outcome.history[-1][RETAIN] < outcome.history[0][RETAIN]
    assert_close(dict(base.state_dict()), before, rtol=0, atol=0)
