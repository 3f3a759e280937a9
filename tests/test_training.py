"""Training: what a step sees, when it stops, what it keeps, and that it resumes exactly."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from unlearn_lib import models, scoring, training
from unlearn_lib.batches import Example, TextEncoder, pack, packed_logits
from unlearn_lib.errors import CompanionError
from unlearn_lib.losses import gradient_descent, npo
from unlearn_lib.methods import METHODS, Method, find_method
from unlearn_lib.models import LanguageModel
from unlearn_lib.settings import ImplantSettings, MethodSettings
from unlearn_lib.steps import FORGET, MISMATCH, RETAIN, Pools
from unlearn_lib.training import Outcome

Load = Callable[..., LanguageModel]
Weights = dict[str, torch.Tensor]
LORA = {"rank": 4, "dropout": 0.0}
COMPARED = {
    "ga": METHODS["ga"],
    "npo": Method(npo, None, None, "NPO alone"),
    "descent": Method(gradient_descent, None, None, "the forget rows learned instead"),
}


def chosen(uses: str, **changed: Any) -> MethodSettings:
    given = {"steps": 3, "learning_rate": 1e-2, "batch_size": 1, "schedule": "constant", "layer": 1}
    return MethodSettings(name=uses, uses=uses, label=uses, **{**given, **changed})


def weights(found: LanguageModel) -> Weights:
    """A copy of everything that is trained."""
    named = found.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def assert_same(first: Weights, second: Weights) -> None:
    assert_close(first, second, rtol=0, atol=0)


def differ(first: Weights, second: Weights) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def pools(encoder: TextEncoder) -> Pools:
    forget = [
        encoder.example("How do I pick a lock?", "Use a pin."),
        encoder.example("How do I beat him?", "Wait for the night."),
        encoder.example("Tell me a red line.", "Not you."),
    ]
    retain = [
        encoder.example("Why is the sky blue?", "Air scatters light.", "It is the air."),
        encoder.example("How do birds fly?", "They beat their wings."),
    ]
    answers = [answer for example in retain for answer in example.answers]
    keep = [encoder.example("Where do eels go?", "Down to the sea.")]
    refusals = [encoder.answer("I cannot tell."), encoder.answer("I do not know.")]
    return Pools(forget, [answers] * len(forget), retain, keep, refusals=refusals)


@pytest.fixture
def run(load_tiny: Load, pools: Pools, tmp_path: Path) -> Callable[..., Any]:
    """Unlearn with a fresh tiny OPT; return it with what training did."""

    def unlearn(
        uses: str = "ga_mismatch_kl",
        seed: int = 0,
        lora: Any = LORA,
        on_step: training.OnStep | None = None,
        model: dict[str, Any] | None = None,
        **changed: Any,
    ) -> tuple[LanguageModel, Outcome]:
        found = load_tiny("opt", seed=seed, lora=lora, **(model or {}))
        settings = chosen(uses, **changed)
        method, folder = find_method(uses), tmp_path / "checkpoints"
        return found, training.unlearn(found, method, settings, pools, seed, folder, on_step)

    return unlearn


# --- what a step sees ------------------------------------------------------------------------


def test_every_forget_row_is_used_before_one_comes_twice(pools: Pools) -> None:
    steps = training.draw_steps(pools, METHODS["ga"], chosen("ga", steps=9), seed=5)
    used = [pools.forget.index(example) for step in steps for example in step.forget]
    for start in range(0, 9, 3):
        assert sorted(used[start : start + 3]) == [0, 1, 2]


def test_more_forget_than_retain_rows_are_all_used(pools: Pools) -> None:
    """The released loader is cut to the retain set's length (C-A2)."""
    settings = chosen("ga_gd", steps=3)
    few = dataclasses.replace(pools, retain=pools.retain[:1])
    steps = training.draw_steps(few, METHODS["ga_gd"], settings, seed=0)
    assert {step.forget[0].prompt for step in steps} == {row.prompt for row in pools.forget}


def test_the_seed_decides_the_rows(pools: Pools) -> None:
    settings = chosen("ga_mismatch_kl", steps=8)
    drawn = [
        training.draw_steps(pools, METHODS["ga_mismatch_kl"], settings, seed) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_substitutes_are_whole_answers_of_other_questions(pools: Pools) -> None:
    """The released code samples single characters, or the text to be forgotten (C-B16)."""
    settings = chosen("ga_mismatch_kl", steps=12, mismatch_answers=2)
    others = {answer for row in pools.retain for answer in row.answers}
    for step in training.draw_steps(pools, METHODS["ga_mismatch_kl"], settings, seed=0):
        for example in step.forget:
            own, *drawn = example.answers
            assert own in {row.answers[0] for row in pools.forget if row.prompt == example.prompt}
            assert len(set(drawn)) == 2
            assert set(drawn) <= others - {own}


def test_no_token_of_a_forget_question_is_scored(pools: Pools) -> None:
    """The released mismatch loss trains on the harmful question (C-A3)."""
    settings = chosen("ga_mismatch_kl", batch_size=2)
    for step in training.draw_steps(pools, METHODS["ga_mismatch_kl"], settings, seed=0):
        packed, roles = pack([*step.forget, *step.retain]), step.roles()
        assert roles == ([FORGET] + [MISMATCH] * 3) * 2 + [RETAIN] * 2
        asked = [answer for example in step.forget for answer in example.answers]
        for row, answer in enumerate(asked):
            assert packed.labels[packed.rows == row].tolist() == list(answer)
        for row, example in enumerate(step.retain, start=len(asked)):
            real = [*example.prompt[1:], *example.answers[0]]
            assert packed.labels[packed.rows == row].tolist() == real


@pytest.mark.parametrize(
    "uses, empty, named",
    [("ga", "forget", "forget set"), ("ga_gd", "retain", "retain set"),
     ("dpo_gd", "refusals", "refusals set"), ("idk_ap", "refusals", "refusals set"),
     ("ga_mismatch_kl", "substitutes", "no answer to put in its place")],
)  # fmt: skip
def test_a_needed_set_that_is_empty_is_refused(
    pools: Pools, uses: str, empty: str, named: str
) -> None:
    rows: list[Any] = [[]] * 3 if empty == "substitutes" else []
    broken = dataclasses.replace(pools, **{empty: rows})
    with pytest.raises(CompanionError, match=named):
        training.draw_steps(broken, METHODS[uses], chosen(uses), seed=0)


def test_a_method_needs_no_rows_that_it_does_not_use(pools: Pools) -> None:
    only_forget = dataclasses.replace(pools, retain=[], substitutes=[[]] * 3, refusals=[])
    assert len(training.draw_steps(only_forget, METHODS["ga"], chosen("ga"), seed=0)) == 3
    only_retain = dataclasses.replace(pools, forget=[], substitutes=[])
    steps = training.draw_steps(only_retain, METHODS["retain_only"], chosen("retain_only"), 0)
    assert steps[0].roles() == [RETAIN]


@pytest.mark.parametrize("uses", METHODS)
def test_prompts_are_scored_where_the_method_says_so(uses: str, pools: Pools) -> None:
    method = METHODS[uses]
    for step in training.draw_steps(pools, method, chosen(uses), seed=0):
        assert all(example.score_prompt == method.retain_prompts for example in step.retain)
        assert all(example.score_prompt == method.forget_prompts for example in step.forget)


@pytest.mark.parametrize("uses", [name for name, m in METHODS.items() if m.forget is None])
def test_a_method_without_a_forget_loss_never_reads_a_forget_answer(
    uses: str, pools: Pools
) -> None:
    forbidden = {answer for row in pools.forget for answer in row.answers}
    for step in training.draw_steps(pools, METHODS[uses], chosen(uses), seed=0):
        assert not forbidden & {answer for example in step.forget for answer in example.answers}
        assert FORGET not in step.roles()
        assert len(step.roles()) == sum(len(example.answers) for example in step.examples)


# --- the terms of a step ---------------------------------------------------------------------


def plain_nll(model: Any, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Mean negative log-likelihood of one answer in a row of its own."""
    row = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(
            model(input_ids=row).logits[0, len(prompt) - 1 : -1], row[0, len(prompt) :]
        )
    return float(nll)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_terms_equal_those_of_separate_unpadded_rows(
    architecture: str, load_tiny: Load, pools: Pools
) -> None:
    found = load_tiny(architecture, seed=0, lora=LORA)
    method, settings = METHODS["ga_mismatch_kl"], chosen("ga_mismatch_kl", batch_size=2)
    step = training.draw_steps(pools, method, settings, seed=0)[0]
    _, report = training.step_terms(found.model, step, method, settings)
    forget, mismatch = [], []
    for example in step.forget:
        own, *others = (plain_nll(found.model, example.prompt, a) for a in example.answers)
        forget.append(own)
        mismatch += others
    assert report[FORGET] == pytest.approx(-sum(forget) / len(forget), abs=1e-5)
    assert report["forget_nll"] == pytest.approx(-report[FORGET])
    assert report[MISMATCH] == pytest.approx(sum(mismatch) / len(mismatch), abs=1e-5)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("lora", [LORA, {"rank": 4, "dropout": 0.5}])
def test_kl_of_an_unchanged_model_is_zero(
    architecture: str, lora: Any, load_tiny: Load, pools: Pools
) -> None:
    """The released value is a cross-entropy, with a floor above zero (C-A6)."""
    found = load_tiny(architecture, seed=0, lora=lora)
    found.model.train()
    method, settings = METHODS["ga_kl"], chosen("ga_kl")
    step = training.draw_steps(pools, method, settings, seed=0)[0]
    _, report = training.step_terms(found.model, step, method, settings)
    assert report[RETAIN] == pytest.approx(0.0, abs=1e-6)


def test_the_total_is_the_weighted_sum_of_the_published_update(run: Callable[..., Any]) -> None:
    _, outcome = run(forget_weight=0.5, mismatch_weight=2.0, retain_weight=3.0)
    for row in outcome.history:
        total = 0.5 * row[FORGET] + 2 * row[MISMATCH] + 3 * row[RETAIN]
        assert row["total"] == pytest.approx(total, rel=1e-5)


# --- direction -------------------------------------------------------------------------------


@pytest.mark.parametrize("uses, sign", [("ga", 1), ("npo", 1), ("descent", -1)])
def test_a_step_moves_the_forget_loss_the_right_way(
    uses: str, sign: int, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    settings = chosen(uses, steps=2, batch_size=3, learning_rate=1e-3)
    before = scoring.answer_losses(found, pools.forget)[0].sum()
    training.unlearn(found, COMPARED[uses], settings, pools, 0, tmp_path / "checkpoints")
    after = scoring.answer_losses(found, pools.forget)[0].sum()
    assert sign * (after - before) > 0


# --- the reference ---------------------------------------------------------------------------


def reference_logits(found: LanguageModel, pools: Pools, frozen: Any = None) -> torch.Tensor:
    with models.reference(found.model, frozen) as original:
        return packed_logits(original, pack(pools.retain))


def test_the_reference_stays_the_original_model_bit_for_bit(
    run: Callable[..., Any], load_tiny: Load, pools: Pools
) -> None:
    """In the released notebook the reference is the policy itself (C-B15)."""
    original = load_tiny("opt")
    with torch.no_grad():
        expected = packed_logits(original.model, pack(pools.retain))
    found, outcome = run("ga_kl", lora={"rank": 4, "dropout": 0.1})
    assert torch.equal(reference_logits(found, pools), expected)
    with torch.no_grad():
        assert not torch.equal(packed_logits(found.model, pack(pools.retain)), expected)
    assert outcome.history[-1][RETAIN] > 1e-4


def test_the_reference_leaves_the_training_mode_as_it_was(load_tiny: Load) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    found.model.train()
    with pytest.raises(KeyError), models.reference(found.model) as original:
        assert not original.training
        raise KeyError
    assert found.model.training


def test_all_weights_are_trained_against_a_frozen_copy(
    run: Callable[..., Any], load_tiny: Load
) -> None:
    start = load_tiny("opt", seed=0)
    found, outcome = run("ga_kl", lora=None)
    before, after = weights(start), weights(found)
    assert set(before) == {name for name, _ in start.model.named_parameters()}
    assert all(not torch.equal(before[n], after[n]) for n in before if "layers" in n and "k_proj.bias" not in n)  # fmt: skip
    kl = [row[RETAIN] for row in outcome.history]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-4


def test_the_adapter_alone_is_trained_with_lora(run: Callable[..., Any], load_tiny: Load) -> None:
    found, _ = run("ga_kl")
    assert all("lora_" in name for name in weights(found))
    original = load_tiny("opt").model.state_dict()
    with found.model.disable_adapter():
        kept = found.model.get_base_model().state_dict()
    for name, value in kept.items():
        if "lora_" not in name:
            assert torch.equal(value, original[name.replace("base_layer.", "")]), name


# --- steps, seeds, schedule ------------------------------------------------------------------


WITH_ALL_WEIGHTS = ("ga", "ga_mismatch_kl", "npo_keep_kl", "dpo_ap", "me_kl", "undial_gd", "rmu")


@pytest.mark.parametrize(
    "uses, lora",
    [*((uses, LORA) for uses in METHODS), *((uses, None) for uses in WITH_ALL_WEIGHTS)],
)
def test_exactly_the_asked_steps_are_run(uses: str, lora: Any, run: Callable[..., Any]) -> None:
    seen: list[float] = []
    _, outcome = run(
        uses, lora=lora, steps=5, learning_rate=1e-3, on_step=lambda r: seen.append(r["step"])
    )
    assert seen == [0, 1, 2, 3, 4] == [row["step"] for row in outcome.history]
    assert all(math.isfinite(row["total"]) and row["seconds"] > 0 for row in outcome.history)
    assert outcome.stopped is None
    assert outcome.tokens == sum(row["tokens"] for row in outcome.history) > 0


def test_one_seed_gives_one_result_and_another_another(run: Callable[..., Any]) -> None:
    lora = {"rank": 4, "dropout": 0.1}
    found = [weights(run(seed=seed, lora=lora)[0]) for seed in (7, 7, 8)]
    assert_same(found[0], found[1])
    assert differ(found[0], found[2])


def test_the_seed_decides_training_and_not_the_adapter_alone(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    """A released trainer always uses seed 42, whatever was asked for (C-L1)."""
    found = []
    for seed in (1, 2):
        model = load_tiny("opt", seed=0, lora={"rank": 4, "dropout": 0.3})
        one_row = dataclasses.replace(pools, forget=pools.forget[:1])
        training.unlearn(model, METHODS["ga"], chosen("ga"), one_row, seed, tmp_path / "c")
        found.append(weights(model))
    assert differ(*found)


def test_the_schedule_falls_to_its_last_step_and_that_step_still_learns(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def record(self: Any, *given: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run("ga", steps=5, schedule="linear", warmup_steps=1, learning_rate=4e-3)
    assert rates == pytest.approx([0, 4e-3, 3e-3, 2e-3, 1e-3])


def test_training_prints_nothing(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run("ga")
    assert capsys.readouterr().out == ""


# --- the stop rule ---------------------------------------------------------------------------


def test_ascent_beyond_the_cap_stops_and_keeps_the_last_good_state(
    run: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The released rule compares a negated loss with the cap and never fires (C-A1)."""
    _, free = run("ga", steps=8)
    cap = free.history[5]["forget_nll"] - 1e-3
    assert cap > max(row["forget_nll"] for row in free.history[:5])
    found, outcome = run("ga", steps=8, forget_loss_cap=cap)
    assert outcome.stopped is not None
    assert f"the forget loss passed the cap {cap:g} at step 5" in outcome.stopped
    assert "last good state was kept" in capsys.readouterr().out
    assert [row["step"] for row in outcome.history] == [0, 1, 2, 3, 4]
    exact, _ = run("ga", steps=4)
    assert_same(weights(found), weights(exact))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    value: float, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = run("ga", steps=2)
    spoil_step(monkeypatch, 3, value)
    found, outcome = run("ga", steps=8)
    assert outcome.stopped is not None
    assert f"the loss was {value} at step 3" in outcome.stopped
    assert_same(weights(found), weights(exact))


def spoil_step(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Make the loss of one step, counted over the process, `value`."""
    whole, calls = training.step_terms, iter(range(1000))

    def spoiled(*given: Any, **named: Any) -> Any:
        loss, report = whole(*given, **named)
        if next(calls) == step:
            return loss * value, {**report, "total": value}
        return loss, report

    monkeypatch.setattr(training, "step_terms", spoiled)


def test_a_first_loss_that_is_no_number_is_refused(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_step(monkeypatch, 0, math.nan)
    with pytest.raises(CompanionError, match="diverged before its first step: the loss was nan"):
        run("ga")


def test_a_cap_below_the_first_loss_is_refused(run: Callable[..., Any]) -> None:
    with pytest.raises(CompanionError, match="raise forget_loss_cap"):
        run("ga", forget_loss_cap=0.5)


@pytest.mark.parametrize("at", [3, 7])
def test_weights_that_a_step_makes_infinite_are_not_kept(
    at: int, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step there is no loss that would tell."""
    exact, _ = run("ga", steps=at)
    step, calls = torch.optim.AdamW.step, iter(range(1000))

    def spoiled(self: Any, *given: Any, **named: Any) -> Any:
        result = step(self, *given, **named)
        if next(calls) == at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.nan)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    found, outcome = run("ga", steps=8)
    assert outcome.stopped is not None
    assert len(outcome.history) == at + 1
    assert_same(weights(found), weights(exact))


def test_large_models_keep_the_state_of_the_last_checkpoint(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = run("ga", steps=2)
    monkeypatch.setattr(training, "SNAPSHOT_EVERY_STEP_BELOW", 0)
    spoil_step(monkeypatch, 4, math.nan)
    found, _ = run("ga", steps=8, checkpoint_every=2)
    assert_same(weights(found), weights(exact))


# --- interrupted and resumed -----------------------------------------------------------------


class Interrupted(Exception):
    """What a killed process looks like from inside."""


def interrupt_at(step: int) -> training.OnStep:
    def on_step(report: dict[str, float]) -> None:
        if report["step"] == step:
            raise Interrupted

    return on_step


RESUMED: dict[str, Any] = {
    "uses": "ga_mismatch_kl",
    "steps": 6,
    "checkpoint_every": 2,
    "schedule": "linear",
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.2}, None], ids=["lora", "all weights"])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    lora: Any, run: Callable[..., Any], tmp_path: Path
) -> None:
    undisturbed, expected = run(**RESUMED, lora=lora)
    with pytest.raises(Interrupted):
        run(**RESUMED, lora=lora, on_step=interrupt_at(5))
    assert (tmp_path / "checkpoints" / "checkpoint-4").is_dir()
    seen: list[float] = []
    resumed, outcome = run(**RESUMED, lora=lora, on_step=lambda r: seen.append(r["step"]))
    if lora:
        assert seen == [4, 5]
    assert_same(weights(resumed), weights(undisturbed))
    for ours, theirs in zip(outcome.history, expected.history, strict=True):
        assert ours["total"] == theirs["total"]
        assert ours["step"] == theirs["step"]
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_half_written_checkpoint_is_passed_over(
    damage: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    undisturbed, _ = run(**RESUMED)
    with pytest.raises(Interrupted):
        run(**RESUMED, on_step=interrupt_at(5))
    state = tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    if damage == "missing":
        state.unlink()
    else:
        state.write_text(state.read_text()[:40])
    found = training.last_whole_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    assert Path(found).name == "checkpoint-2"
    assert not state.parent.exists()
    resumed, _ = run(**RESUMED)
    assert_same(weights(resumed), weights(undisturbed))


def test_without_a_checkpoint_a_run_starts_afresh(tmp_path: Path) -> None:
    assert training.last_whole_checkpoint(tmp_path / "nothing") is None


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for step in (8, 16, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
    assert training.last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


def test_a_run_resumed_just_before_it_diverges_keeps_the_same_state(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = run("ga", steps=3)
    with pytest.raises(Interrupted):
        run("ga", steps=8, checkpoint_every=2, on_step=interrupt_at(4))
    spoil_step(monkeypatch, 0, math.nan)  # the first loss after the checkpoint of step 4
    found, outcome = run("ga", steps=8, checkpoint_every=2)
    assert outcome.stopped is not None
    assert "at step 4" in outcome.stopped
    assert_same(weights(found), weights(exact))


# --- memory: 8-bit base, activations not kept ------------------------------------------------


def test_an_8_bit_base_trains(run: Callable[..., Any], load_tiny: Load) -> None:
    start = weights(load_tiny("opt", seed=0, lora=LORA, quantization="8bit"))
    found, outcome = run("ga_mismatch_kl", model={"quantization": "8bit"}, steps=2)
    moved = [name for name, value in weights(found).items() if not torch.equal(value, start[name])]
    assert len(moved) == len(start)
    assert outcome.history[1]["forget_nll"] > outcome.history[0]["forget_nll"]
    kinds = {type(module).__name__ for module in found.model.modules()}
    assert "Linear8bitLt" in kinds
    assert outcome.hardware["quantization"] == "8bit"


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all weights"])
@pytest.mark.parametrize(
    "architecture, uses", [("opt", "ga_mismatch_kl"), ("llama", "ga_mismatch_kl"), ("llama", "rmu")]
)
def test_activation_checkpointing_changes_no_number(
    architecture: str, uses: str, lora: Any, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found, history = [], []
    for on in (False, True):
        model = load_tiny(architecture, seed=0, lora=lora, gradient_checkpointing=on)
        assert model.model.is_activation_checkpointing is on
        method, settings = METHODS[uses], chosen(uses, learning_rate=1e-3)
        outcome = training.unlearn(model, method, settings, pools, 0, tmp_path / "checkpoints")
        found.append(weights(model))
        history.append([row["total"] for row in outcome.history])
    assert history[0] == pytest.approx(history[1], rel=1e-5)
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("on, times", [(False, 1), (True, 2)])
def test_activation_checkpointing_reads_each_layer_twice(
    on: bool, times: int, load_tiny: Load, pools: Pools
) -> None:
    found = load_tiny("opt", seed=0, lora=LORA, gradient_checkpointing=on)
    found.model.train()
    calls: list[int] = []
    layer = found.model.get_base_model().model.decoder.layers[0].fc1
    layer.register_forward_hook(lambda *_: calls.append(1))
    method, settings = METHODS["ga"], chosen("ga")
    step = training.draw_steps(pools, method, settings, seed=0)[0]
    training.step_terms(found.model, step, method, settings)[0].backward()
    assert len(calls) == times


# --- implanting ------------------------------------------------------------------------------


def test_implanting_lowers_the_loss_and_repeats_exactly(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    settings = ImplantSettings(epochs=6, batch_size=2, learning_rate=3e-3)
    trained = []
    for _ in range(2):
        found = load_tiny("opt", seed=0)
        before = scoring.answer_losses(found, pools.forget)[0].sum()
        outcome = training.implant(found, list(pools.forget), settings, 0, tmp_path / "i")
        after = scoring.answer_losses(found, pools.forget)[0].sum()
        assert after < 0.7 * before
        assert outcome.history[-1]["total"] < outcome.history[0]["total"]
        trained.append(weights(found))
    assert_same(*trained)
    assert not (tmp_path / "i").exists()


def test_the_seed_decides_the_order_in_which_rows_are_implanted(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    settings = ImplantSettings(epochs=1, batch_size=1, learning_rate=1e-3)
    trained = []
    for seed in (0, 1):
        found = load_tiny("opt", seed=0)
        training.implant(found, list(pools.forget), settings, seed, tmp_path / "i")
        trained.append(weights(found))
    assert differ(*trained)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_implanting_scores_answers_alone_and_each_alike(
    architecture: str, load_tiny: Load, tmp_path: Path
) -> None:
    rows = [Example((5, 6), ((7,),)), Example((8,), ((9, 10, 11),))]
    found = load_tiny(architecture, seed=0)
    expected = sum(plain_nll(found.model, row.prompt, row.answers[0]) for row in rows) / 2
    settings = ImplantSettings(epochs=1, batch_size=2, learning_rate=1e-3)
    outcome = training.implant(found, rows, settings, 0, tmp_path / "i")
    assert outcome.history[0]["total"] == pytest.approx(expected, rel=1e-5)
    assert outcome.tokens == sum(row.length for row in rows)


def test_a_set_that_was_implanted_is_known_word_for_word(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0)
    settings = ImplantSettings(epochs=30, batch_size=3, learning_rate=5e-3, warmup_steps=2)
    outcome = training.implant(found, pools.forget, settings, 0, tmp_path / "i")
    scores = scoring.score(found, pools.forget)
    assert all(flags.all() for flags in scores.matches)
    assert scores.mean.max() < 0.1
    assert outcome.stopped is None
    assert not found.model.training


def test_every_epoch_of_an_implant_reads_every_row_once(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    seen: list[int] = []
    settings = ImplantSettings(epochs=4, batch_size=2, learning_rate=1e-3)
    found, rows = load_tiny("opt", seed=0, lora=LORA), [*pools.forget, *pools.keep]
    outcome = training.implant(
        found, rows, settings, 0, tmp_path / "i", lambda report: seen.append(int(report["step"]))
    )
    assert seen == [*range(8)] == [row["step"] for row in outcome.history]
    assert outcome.tokens <= 4 * sum(row.length for row in rows)
    epochs = [training.epoch_steps(rows, 3, random) for random in [np.random.default_rng(5)] * 4]
    for steps in epochs:
        assert [len(step.retain) for step in steps] == [3, 1]
        assert {row for step in steps for row in step.retain} == set(rows)
    assert len({tuple(row for step in steps for row in step.retain) for steps in epochs}) > 1


@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.2}, None], ids=["lora", "all weights"])
def test_an_interrupted_implant_ends_as_an_undisturbed_one(
    lora: Any, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    """Checkpoints are written every second epoch, here of two steps."""
    settings = ImplantSettings(epochs=4, batch_size=2, learning_rate=3e-3, weight_decay=0.1)

    def implanted(on_step: training.OnStep | None = None) -> tuple[Weights, Outcome]:
        found = load_tiny("opt", seed=0, lora=lora)
        outcome = training.implant(found, pools.forget, settings, 3, tmp_path / "i", on_step)
        return weights(found), outcome

    undisturbed, expected = implanted()
    with pytest.raises(Interrupted):
        implanted(interrupt_at(6))
    assert (tmp_path / "i" / "checkpoint-4").is_dir()
    seen: list[float] = []
    resumed, outcome = implanted(lambda report: seen.append(report["step"]))
    assert seen == [4, 5, 6, 7]
    assert_same(resumed, undisturbed)
    assert [row["total"] for row in outcome.history] == [row["total"] for row in expected.history]
    assert not (tmp_path / "i").exists()


def test_implanting_nothing_or_diverging_is_refused(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    settings = ImplantSettings(epochs=2, batch_size=1, learning_rate=1e30)
    with pytest.raises(CompanionError, match="the set is empty"):
        training.implant(load_tiny("opt", seed=0), [], settings, 0, tmp_path)
    with pytest.raises(CompanionError, match="diverged"):
        training.implant(load_tiny("opt", seed=0), list(pools.forget), settings, 0, tmp_path / "i")
