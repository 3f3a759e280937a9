"""Steps, their terms, training, the stop rule, resuming, teaching, and the released code's faults."""

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from unlearn_lib.model import loading, scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.packing import pack, packed_logits
from unlearn_lib.model.tokens import Example, PassageEncoder, TextEncoder
from unlearn_lib.settings import MemoriseSettings, MethodSettings, TeachSettings
from unlearn_lib.unlearn import losses, trainer
from unlearn_lib.unlearn.methods import METHODS, PAIRED, Method, find_method
from unlearn_lib.unlearn.released import PROMPT_CHARACTERS, as_released, empty_share, sentences
from unlearn_lib.unlearn.steps import (
    FORGET,
    KEEP,
    MISMATCH,
    RETAIN,
    Pools,
    Step,
    draw_steps,
    epoch_steps,
    step_terms,
)
from unlearn_lib.unlearn.trainer import Outcome, memorise, teach, unlearn
from unlearn_lib.util import CompanionError

Load = Callable[..., LanguageModel]
Tensor = torch.Tensor
LORA = {"rank": 4, "dropout": 0.0}
DROPOUT = {"rank": 4, "dropout": 0.2}
every_method = pytest.mark.parametrize("name", METHODS)
lora_or_all = pytest.mark.parametrize("lora", [DROPOUT, None], ids=["lora", "all weights"])


def settings_of(**changed: Any) -> MethodSettings:
    values = {
        "steps": 3,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "schedule": "constant",
        "layer": 1,
    }
    return MethodSettings(**{**values, **changed})


@pytest.fixture(scope="module")
def pools(encoder: TextEncoder) -> Pools:
    forget = [
        encoder.example("How do I pick a lock?", "Use a pin."),
        encoder.example("How do I beat him?", "Wait for the night and ride the wind."),
        encoder.example("Tell me a red line.", "Not you."),
    ]
    retain = [
        encoder.example("Why is the sky blue?", "Air scatters light.", "It is the air."),
        encoder.example("How do birds fly?", "They beat their wings."),
    ]
    keep = [
        encoder.example("Where do eels go?", "Down to the sea."),
        replace(encoder.example("Why red?", "It is the wind."), score_prompt=True),
    ]
    refusals = [encoder.answer(text) for text in ("I cannot tell.", "I do not know.", "No.")]
    answers = [answer for example in retain for answer in example.answers]
    return Pools(forget, [answers] * 3, retain, keep, refusals=refusals)


def draw(pools: Pools, name: str, seed: int = 0, **changed: Any) -> list[Step]:
    return draw_steps(pools, METHODS[name], settings_of(**changed), seed)


def trained(language_model: LanguageModel) -> dict[str, Tensor]:
    named = language_model.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def change(language_model: LanguageModel, size: float = 0.03) -> None:
    """Move an adapter away from where it does nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in language_model.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=random))


def assert_same(first: Any, second: Any) -> None:
    assert_close(first, second, rtol=0, atol=0)


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)


# --- what a step sees ------------------------------------------------------------------------


def dealt(count: int, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from random.permutation(count)


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_are_dealt_by_epochs(seed: int, pools: Pools) -> None:
    """One generator: forget rows, each with its substitutes; then retain rows, each an answer.

    All forget rows are used, even with fewer retain rows, unlike in the released loader.
    """
    random = np.random.default_rng(seed)
    forget_order, retain_order = dealt(3, random), dealt(2, random)
    steps = draw(pools, "ga_mismatch_kl", seed, steps=6, mismatch_answers=2)
    for step in steps:
        expected = []
        for index in [next(forget_order) for _ in range(2)]:
            substitutes = [pools.substitutes[index][i] for i in random.choice(3, 2, replace=False)]
            row = pools.forget[index]
            expected.append(Example(row.prompt, (row.answers[0], *substitutes)))
        assert step.forget == tuple(expected)
        expected = []
        for index in [next(retain_order) for _ in range(2)]:
            row = pools.retain[index]
            answer = row.answers[random.integers(len(row.answers))]
            expected.append(Example(row.prompt, (answer,), score_prompt=True))
        assert step.retain == tuple(expected)
    used = [row.prompt for step in steps for row in step.forget]
    assert all(set(used[i : i + 3]) == {row.prompt for row in pools.forget} for i in (0, 3, 6, 9))


@every_method
def test_a_step_scores_what_its_method_says(name: str, pools: Pools) -> None:
    method, unread = METHODS[name], {row.answers[0] for row in pools.forget}
    for step in draw(pools, name, mismatch_answers=2):
        assert step.seed == 0
        packed, roles = pack(step.examples), step.roles()
        scored = [tuple(packed.labels[packed.rows == i].tolist()) for i in range(len(roles))]
        assert set(roles) == {
            role for role in (FORGET, MISMATCH, KEEP, RETAIN) if getattr(method, role)
        }
        for role, loss in ((FORGET, method.forget), (RETAIN, method.retain)):
            answers = [tokens for tokens, other in zip(scored, roles, strict=True) if other == role]
            if loss in PAIRED:
                assert set(answers[1::2]) <= set(pools.refusals)
                assert not set(answers[::2]) & set(pools.refusals)
        assert all(row.score_prompt == method.retain_prompts for row in step.retain)
        assert all(row.score_prompt == method.forget_prompts for row in step.forget)
        if method.forget is None:
            assert not unread & set(scored), "no forget loss, no forget answer"


def test_roles_by_hand(pools: Pools) -> None:
    row, other = pools.forget[0], Example((5,), ((6,), (7,)))
    step = Step((other, row), (row,), keep=(row,), mismatch=(other,))
    assert step.roles() == [FORGET, MISMATCH, FORGET, MISMATCH, MISMATCH, KEEP, RETAIN]
    assert replace(step, substitutes_only=True).roles()[:3] == [MISMATCH] * 3
    assert replace(step, paired=True).roles()[:3] == [FORGET] * 3


def test_the_seed_decides_the_rows_and_nothing_else_does(pools: Pools) -> None:
    for name in ("ga_mismatch_kl", "dpo_ap"):
        assert draw(pools, name, 0) == draw(pools, name, 0) != draw(pools, name, 1)
    for name in ("npo_gd", "simnpo_gd", "wga_gd", "undial_gd", "rmu"):
        assert draw(pools, name) == draw(pools, "ga_gd")
    without = replace(pools, keep=[], refusals=())
    assert draw(without, "ga_mismatch_kl") == draw(pools, "ga_mismatch_kl")


def test_rows_to_keep_and_what_was_before_come_with_their_rows(pools: Pools) -> None:
    known = replace(pools, before=[10.0, 20.0, 30.0])
    steps = draw(known, "npo_keep_kl", 3, steps=4, keep_batch_size=1, retain_batch_size=3)
    assert steps[0].roles() == [FORGET] * 2 + [KEEP] + [RETAIN] * 3
    assert {row for step in steps[:2] for row in step.keep} == set(pools.keep)
    prompts = [row.prompt for row in pools.forget]
    for step in steps:
        assert step.before == tuple(10.0 * (1 + prompts.index(r.prompt)) for r in step.forget)


@pytest.mark.parametrize(
    "name, empty",
    [("ga", "forget"), ("ga_gd", "retain"), ("keep_kl", "keep"), ("dpo_gd", "refusals"),
     ("idk_ap", "refusals"), ("ga_mismatch_kl", "substitutes")],
)  # fmt: skip
def test_a_needed_set_that_is_empty_is_refused(pools: Pools, name: str, empty: str) -> None:
    rows: list[Any] = [[]] * 3 if empty == "substitutes" else []
    with pytest.raises(CompanionError, match=f"'{name}' needs rows of the set '{empty}'"):
        draw(replace(pools, **{empty: rows}), name)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(CompanionError, match="did you mean 'simnpo_gd'"):
        find_method("simnpo_dg")


# --- the terms by the book: every answer in a plain row of its own ---------------------------

SETTINGS: dict[str, Any] = {
    "forget_weight": 0.3, "mismatch_weight": 1.7, "retain_weight": 0.6, "keep_weight": 2.0,
    "beta": 0.02, "steering": 3.0, "mismatch_answers": 2,
}  # fmt: skip
SEED = 11
ALL_FOUR = Method(
    "all", "", losses.dpo, "retain", losses.forward_kl, losses.gradient_descent, retain_prompts=True
)


def plain(model: Any, row: Example, place: int, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one answer: log-probabilities [t, V], costs [t], and activations [t, d] of a block."""
    ids = torch.tensor([[*row.prompt, *row.answers[place]]])
    start = 1 if row.score_prompt else len(row.prompt)
    blocks = [part for name, part in model.named_modules() if name.endswith(f"layers.{layer}")]
    states: list[Any] = []
    hook = blocks[0].register_forward_hook(lambda _, inputs, output: states.append(output))
    log_q = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
    hook.remove()
    state = states[0][0] if isinstance(states[0], tuple) else states[0]
    costs = functional.nll_loss(log_q, ids[0, start:], reduction="none")
    return log_q, costs, state[0, start - 1 : -1]


def by_hand(loss: Any, role: str, row: Example, model: Any, base: Any, layer: int) -> Tensor:
    """A loss of one answer, or of one pair, as its paper writes it."""
    beta, name = SETTINGS["beta"], loss.__name__
    log_q, costs, states = plain(model, row, 0, layer)
    with torch.no_grad():
        log_p, before, targets = plain(base, row, 0, layer)
    if name in ("gradient_descent", "gradient_ascent"):
        return costs.mean() * (1 if name == "gradient_descent" else -1)
    if name == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    if name == "maximum_entropy":
        return (-math.log(log_q.shape[-1]) - log_q.mean(-1)).mean()
    if name == "wga":
        return -((-beta * costs).exp().detach() * costs).mean()
    if name == "undial":
        labels = torch.tensor(row.answers[0])
        target = (log_p - beta * functional.one_hot(labels, log_p.shape[-1])).log_softmax(-1)
        return (target.exp() * (target - log_q)).sum(-1).mean()
    if name == "activation_distance":
        direction = torch.rand(states.shape[-1], generator=torch.Generator().manual_seed(SEED))
        steered = SETTINGS["steering"] * direction / direction.norm()
        return (states - (steered if role == FORGET else targets)).square().mean()
    if name == "simnpo":
        return -2 / beta * functional.logsigmoid(beta * costs.mean())
    margin, factor = costs.sum() - before.sum(), 2
    if name in ("dpo", "answer_preservation"):
        refused = plain(model, row, 1, layer)[1].sum()
        with torch.no_grad():
            refused_before = plain(base, row, 1, layer)[1].sum()
        margin -= refused - refused_before
    if name == "answer_preservation":
        margin, factor = refused - costs.sum(), 1
    return -factor / beta * functional.logsigmoid(beta * margin)


def slope_of(model: Any, value: Tensor) -> Tensor:
    """The gradient of all that is trained, in one vector."""
    places = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(value, places, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


@every_method
@pytest.mark.parametrize("architecture, layer", [("opt", 1), ("llama", 0)])
def test_a_step_is_the_weighted_sum_of_its_terms_on_plain_rows(
    architecture: str, layer: int, name: str, load_tiny: Load, pools: Pools
) -> None:
    adapted, base = load_tiny(architecture, seed=0, lora=LORA), load_tiny(architecture).model
    change(adapted)
    method, settings, model = METHODS[name], settings_of(**SETTINGS, layer=layer), adapted.model
    step = draw_steps(pools, method, settings, SEED)[0]
    rows: dict[str, list[Example]] = {
        FORGET: list(step.forget) if method.forget else [],
        MISMATCH: [
            Example(row.prompt, (answer,))
            for row in step.forget if method.mismatch
            for answer in row.answers[1 if method.forget else 0 :]
        ],
        KEEP: list(step.keep),
        RETAIN: list(step.retain),
    }  # fmt: skip
    terms = {FORGET: method.forget, KEEP: method.keep, RETAIN: method.retain}
    terms[MISMATCH] = losses.gradient_descent
    total, report = step_terms(model, step, method, settings)
    expected = torch.zeros(())
    for role, examples in rows.items():
        assert (role in report) == bool(examples)
        if examples:
            values = [by_hand(terms[role], role, row, model, base, layer) for row in examples]
            value = torch.stack(values).mean()
            assert report[role] == pytest.approx(value.item(), rel=1e-5, abs=1e-5)
            expected = expected + SETTINGS[f"{role}_weight"] * value
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert_close(slope_of(model, total), slope_of(model, expected), rtol=1e-3, atol=2e-5)
    if method.forget and not method.steers:
        costs = [plain(model, row, 0, layer)[1].mean() for row in step.forget]
        assert report["forget_nll"] == pytest.approx(torch.stack(costs).mean().item(), rel=1e-5)
    turned = replace(step, forget=step.forget[::-1], retain=step.retain[::-1])
    other = step_terms(model, turned, method, settings)[1]
    assert other == pytest.approx(report, rel=1e-5, abs=1e-5), "the order of rows does not matter"


def test_what_a_step_is_compared_with(load_tiny: Load, pools: Pools) -> None:
    """The model without its adapter, a model that is handed over, or losses kept from before."""
    adapted, base = load_tiny("opt", seed=0, lora=DROPOUT), load_tiny("opt")
    change(adapted)
    adapted.model.train()
    forget, retain = tuple(pools.forget), tuple(pools.retain[1:])
    step, settings = Step(forget, retain), settings_of(beta=0.5)

    def terms(name: str, step: Step = step, frozen: Any = None, **fault: Any) -> dict[str, float]:
        method = replace(METHODS[name], **fault)
        return step_terms(adapted.model.eval(), step, method, settings, frozen)[1]

    kl = terms("kl_only")[RETAIN]
    assert kl > 1e-3
    assert terms("kl_only", frozen=base.model)[RETAIN] == pytest.approx(kl, rel=1e-4)
    itself = terms("kl_only", to_itself=True)
    assert itself[RETAIN] == pytest.approx(0.0, abs=1e-6), "the released notebook's fault"
    kept = [scoring.answer_losses(each, forget)[0].tolist() for each in (base, adapted)]
    as_base, as_now = (terms("npo", replace(step, before=tuple(before))) for before in kept)
    assert as_base[FORGET] == pytest.approx(terms("npo")[FORGET], rel=1e-5)
    assert as_now[FORGET] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("layer, blocks", [(1, {"0", "1"}), (0, {"0"})])
def test_only_adapters_up_to_the_steered_block_get_a_gradient(
    layer: int, blocks: set[str], load_tiny: Load, pools: Pools
) -> None:
    model = load_tiny("llama", seed=0, lora=LORA).model
    step, settings = draw(pools, "rmu")[0], settings_of(layer=layer)
    step_terms(model, step, METHODS["rmu"], settings)[0].backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None]
    assert {name.split("layers.")[1][0] for name in moved} == blocks
    last_alone = load_tiny("llama", seed=0, lora={**LORA, "layers": [1, 1]}).model
    if layer == 0:
        with pytest.raises(CompanionError, match="nothing up to that block is trained"):
            step_terms(last_alone, step, METHODS["rmu"], settings)


# --- training --------------------------------------------------------------------------------


@pytest.fixture
def run(load_tiny: Load, pools: Pools, tmp_path: Path) -> Callable[..., Any]:
    """Unlearn with a fresh tiny OPT; return it with what training did."""

    def run(
        name: str = "ga_mismatch_kl",
        seed: int = 0,
        lora: Any = LORA,
        on_step: Any = None,
        **changed: Any,
    ) -> tuple[LanguageModel, Outcome]:
        tiny, folder = load_tiny("opt", seed=0, lora=lora), tmp_path / "checkpoints"
        settings = settings_of(**{"batch_size": 1, **changed})
        return tiny, unlearn(tiny, METHODS[name], settings, pools, seed, folder, on_step)

    return run


WITH_ALL_WEIGHTS = ("ga", "ga_mismatch_kl", "npo_keep_kl", "dpo_ap", "me_kl", "undial_gd", "rmu")


@pytest.mark.parametrize(
    "name, lora",
    [*((name, LORA) for name in METHODS), *((name, None) for name in WITH_ALL_WEIGHTS)],
)
def test_exactly_the_asked_steps_are_run(name: str, lora: Any, run: Any, capsys: Any) -> None:
    seen: list[float] = []
    tiny, outcome = run(
        name, lora=lora, learning_rate=1e-3, on_step=lambda report: seen.append(report["step"])
    )
    assert seen == [0, 1, 2] == [row["step"] for row in outcome.history]
    assert all(math.isfinite(row["total"]) and row["seconds"] > 0 for row in outcome.history)
    assert outcome.stopped is None and not tiny.model.training
    assert outcome.tokens == sum(row["tokens"] for row in outcome.history) > 0
    assert capsys.readouterr().out == ""


def test_the_seed_decides_training_and_not_the_adapter_alone(run: Any, pools: Pools) -> None:
    """A released trainer always uses seed 42, whatever was asked for."""
    first, again, other = (trained(run("retain_only", seed, DROPOUT)[0]) for seed in (7, 7, 8))
    assert_same(first, again)
    assert differ(first, other)


@lora_or_all
def test_the_reference_stays_the_original_model_bit_for_bit(
    lora: Any, run: Any, load_tiny: Load, pools: Pools
) -> None:
    """In the released notebook the reference is the policy itself."""
    tiny, outcome = run("ga_kl", lora=lora)
    assert outcome.history[0][RETAIN] == pytest.approx(0, abs=1e-6)
    assert outcome.history[-1][RETAIN] > 1e-4
    moved = trained(tiny)
    assert all("lora_" in name for name in moved) if lora else len(moved) > 20
    if lora:
        with loading.reference(tiny.model) as original:
            logits = packed_logits(original, pack(pools.retain))
        with torch.no_grad():
            assert_same(logits, packed_logits(load_tiny("opt").model, pack(pools.retain)))


def test_the_schedule_falls_to_its_last_step_and_that_step_still_learns(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], torch.optim.AdamW.step

    def record(self: Any, *rest: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *rest, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run("ga", steps=5, schedule="linear", warmup_steps=1, learning_rate=4e-3)
    assert rates == pytest.approx([0, 4e-3, 3e-3, 2e-3, 1e-3])


def test_an_8_bit_base_trains(load_tiny: Load, pools: Pools, tmp_path: Path) -> None:
    tiny = load_tiny("opt", seed=0, lora=LORA, quantization="8bit")
    start, method = trained(tiny), METHODS["ga_mismatch_kl"]
    outcome = unlearn(tiny, method, settings_of(steps=2), pools, 0, tmp_path / "c")
    assert all(not torch.equal(value, start[name]) for name, value in trained(tiny).items())
    assert outcome.hardware["quantization"] == "8bit"


@pytest.mark.parametrize("name", ["ga_mismatch_kl", "rmu"])
def test_activation_checkpointing_changes_no_number_and_reads_each_layer_twice(
    name: str, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    results, calls = [], []
    for on in (False, True):
        tiny = load_tiny("llama", seed=0, lora=LORA, gradient_checkpointing=on)
        block = tiny.model.get_base_model().model.layers[0].mlp
        block.register_forward_hook(lambda *_: calls.append(1))
        before = len(calls)
        unlearn(tiny, METHODS[name], settings_of(retain_weight=0.0), pools, 0, tmp_path / "c")
        results.append((trained(tiny), len(calls) - before))
    assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert results[1][1] > results[0][1]


def test_what_is_kept_of_an_outcome(run: Any, tmp_path: Path) -> None:
    outcome = run("ga_kl")[1]
    record = trainer.keep(outcome, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["total"].tolist() == pytest.approx([row["total"] for row in outcome.history])
    assert record["steps"] == 3 and record["stopped"] is None and "history" not in record


# --- the stop rule ---------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, step: int, value: float) -> None:
    """Make the loss of one step, counted from now, `value`."""
    whole, calls = step_terms, iter(range(1000))

    def spoiled(*rest: Any) -> Any:
        loss, report = whole(*rest)
        if next(calls) == step:
            return loss * value, {**report, "total": value}
        return loss, report

    monkeypatch.setattr(trainer, "step_terms", spoiled)


def test_ascent_beyond_the_cap_stops_and_keeps_the_last_good_state(
    run: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The released rule compares a negated loss with the cap and never fires."""
    costs = [row["forget_nll"] for row in run("ga", steps=8)[1].history]
    cap = costs[5] - 1e-3
    assert cap > max(costs[:5])
    tiny, outcome = run("ga", steps=8, forget_loss_cap=cap)
    assert "the forget loss passed the cap" in outcome.stopped and "step 5" in outcome.stopped
    assert "last good state was kept" in capsys.readouterr().out
    assert [row["step"] for row in outcome.history] == [0, 1, 2, 3, 4]
    assert_same(trained(tiny), trained(run("ga", steps=4)[0]))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("below, good", [(10**9, 3), (0, 2)])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    value: float, below: int, good: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of large models it is that of the last checkpoint."""
    exact = trained(run("ga", steps=good)[0])
    monkeypatch.setattr(trainer, "SNAPSHOT_EVERY_STEP_BELOW", below)
    spoil(monkeypatch, 4 if below else 4, value)
    tiny, outcome = run("ga", steps=8, checkpoint_every=2)
    assert f"the loss was {value} at step 4" in outcome.stopped
    assert_same(trained(tiny), exact)


@pytest.mark.parametrize("at", [3, 7])
def test_weights_that_a_step_makes_infinite_are_not_kept(
    at: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step there is no loss that would tell."""
    exact = trained(run("ga", steps=at)[0])
    step, calls = torch.optim.AdamW.step, iter(range(1000))

    def spoiled(self: Any, *rest: Any, **named: Any) -> Any:
        result = step(self, *rest, **named)
        if next(calls) == at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.nan)
        return result

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiled)
    tiny, outcome = run("ga", steps=8)
    assert outcome.stopped and len(outcome.history) == at + 1
    assert_same(trained(tiny), exact)


def test_a_first_loss_out_of_bounds_is_refused(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompanionError, match="raise forget_loss_cap"):
        run("ga", forget_loss_cap=0.5)
    spoil(monkeypatch, 0, math.nan)
    with pytest.raises(CompanionError, match="before its first step .the loss was nan"):
        run("ga")
