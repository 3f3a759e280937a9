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
from torch.testing import assert_close

from unlearn_lib.model import scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.packing import pack
from unlearn_lib.model.tokens import Example, PassageEncoder, TextEncoder
from unlearn_lib.settings import MemoriseSettings, MethodSettings, TeachSettings
from unlearn_lib.unlearn import losses, steps, trainer
from unlearn_lib.unlearn.methods import METHODS, PAIRED, find_method
from unlearn_lib.unlearn.released import PROMPT_CHARACTERS, as_released, empty_share, sentences
from unlearn_lib.unlearn.steps import FORGET, KEEP, MISMATCH, RETAIN, Pools, Step, step_terms
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
    return steps.draw_steps(pools, METHODS[name], settings_of(**changed), seed)


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
    drawn = draw(pools, "ga_mismatch_kl", seed, steps=6, mismatch_answers=2)
    for step in drawn:
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
    used = [row.prompt for step in drawn for row in step.forget]
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
    drawn = draw(known, "npo_keep_kl", 3, steps=4, keep_batch_size=1, retain_batch_size=3)
    assert drawn[0].roles() == [FORGET] * 2 + [KEEP] + [RETAIN] * 3
    assert {row for step in drawn[:2] for row in step.keep} == set(pools.keep)
    prompts = [row.prompt for row in pools.forget]
    for step in drawn:
        assert step.before == tuple(10.0 * (1 + prompts.index(r.prompt)) for r in step.forget)


def test_a_needed_set_that_is_empty_is_refused(pools: Pools) -> None:
    needed = {"ga": "forget", "ga_gd": "retain", "keep_kl": "keep", "idk_ap": "refusals"}
    for name, empty in (needed | {"dpo_gd": "refusals", "ga_mismatch_kl": "substitutes"}).items():
        rows: list[Any] = [[]] * 3 if empty == "substitutes" else []
        with pytest.raises(CompanionError, match=f"'{name}' needs rows of the set '{empty}'"):
            draw(replace(pools, **{empty: rows}), name)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(CompanionError, match="did you mean 'simnpo_gd'"):
        find_method("simnpo_dg")


# --- the terms by the book: every answer in a plain row of its own ---------------------------

WEIGHTS = {"forget_weight": 0.3, "mismatch_weight": 1.7, "retain_weight": 0.6, "keep_weight": 2.0}
SEED = 11


def separate(model: Any, examples: Sequence[Example], layer: int | None) -> tuple[Tensor, ...]:
    """What a model gives at the scored places, with labels and rows: one forward an answer.

    Logits, or the activations of a block.
    """
    parts: list[list[Tensor]] = [[], [], []]
    states: list[Any] = []
    block = next(m for name, m in model.named_modules() if name.endswith(f"layers.{layer or 0}"))
    hook = block.register_forward_hook(lambda _, inputs, output: states.append(output))
    for example in examples:
        for answer in example.answers:
            ids = torch.tensor([[*example.prompt, *answer]])
            start = 1 if example.score_prompt else len(example.prompt)
            outputs = model(input_ids=ids).logits
            if layer is not None:
                outputs = states[-1][0] if isinstance(states[-1], tuple) else states[-1]
            rows = torch.full((ids.shape[1] - start,), len(parts[0]))
            for part, values in zip(parts, (outputs[0, start - 1 : -1], ids[0, start:], rows)):
                part.append(values)
    hook.remove()
    return tuple(torch.cat(part) for part in parts)


def slope_of(model: Any, value: Tensor) -> Tensor:
    """The gradient of all that is trained, in one vector."""
    places = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(value, places, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


@every_method
def test_a_step_is_the_weighted_sum_of_its_losses_on_plain_rows(
    name: str, load_tiny: Load, pools: Pools
) -> None:
    adapted, base, layer = load_tiny("llama", seed=0, lora=LORA), load_tiny("llama").model, 0
    change(adapted)
    method, model = METHODS[name], adapted.model
    settings = settings_of(**WEIGHTS, beta=0.02, steering=3.0, mismatch_answers=2, layer=layer)
    step = steps.draw_steps(pools, method, settings, SEED)[0]
    own = 1 if method.forget else 0  # a forget row's answers from here on are substitutes
    mismatch = [Example(row.prompt, row.answers[own:]) for row in step.forget if method.mismatch]
    forget = [replace(row, answers=row.answers[:1]) for row in step.forget if method.forget]
    forget = list(step.forget) if method.forget in PAIRED else forget
    total, report = step_terms(model, step, method, settings)
    expected = torch.zeros(())
    for role, loss, examples in (
        (FORGET, method.forget, forget),
        (MISMATCH, losses.gradient_descent, mismatch),
        (KEEP, method.keep, step.keep),
        (RETAIN, method.retain, step.retain),
    ):
        assert (role in report) == bool(examples)
        if loss is None or not examples:
            continue
        steered = layer if method.steers else None
        with torch.no_grad():
            reference = separate(base, examples, steered)[0]
        if method.steers and role == FORGET:
            random = torch.Generator().manual_seed(SEED)
            direction = torch.rand(reference.shape[-1], generator=random)
            reference = 3.0 * direction / direction.norm()
        value = loss(*separate(model, examples, steered), reference, settings.beta)
        assert report[role] == pytest.approx(value.item(), rel=1e-5, abs=1e-5)
        expected = expected + WEIGHTS[f"{role}_weight"] * value
    assert_close(total, expected, rtol=1e-5, atol=1e-5)
    assert_close(slope_of(model, total), slope_of(model, expected), rtol=1e-3, atol=2e-5)
    if forget and not method.steers:
        first = [replace(row, answers=row.answers[:1]) for row in forget]
        cost = losses.gradient_descent(*separate(model, first, None))
        assert report["forget_nll"] == pytest.approx(cost.item(), rel=1e-5)


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
    costs = [scoring.answer_losses(each, forget)[0].tolist() for each in (base, adapted)]
    as_base, as_now = (terms("npo", replace(step, before=tuple(before))) for before in costs)
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
    tiny, outcome = run(name, lora=lora, on_step=lambda report: seen.append(report["step"]))
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
def test_divergence_is_from_the_model_before_the_first_step(lora: Any, run: Any) -> None:
    """In the released notebook it is from the model in training."""
    tiny, outcome = run("ga_kl", lora=lora)
    assert outcome.history[0][RETAIN] == pytest.approx(0, abs=1e-6)
    assert outcome.history[-1][RETAIN] > 1e-4
    assert all("lora_" in name for name in trained(tiny)) == bool(lora)


@pytest.mark.parametrize("name", ["ga_mismatch_kl", "rmu"])
def test_activation_checkpointing_changes_no_number(
    name: str, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    results = []
    for on in (False, True):
        tiny = load_tiny("llama", seed=0, lora=LORA, gradient_checkpointing=on)
        assert tiny.model.is_activation_checkpointing is on
        unlearn(tiny, METHODS[name], settings_of(), pools, 0, tmp_path / "c")
        results.append(trained(tiny))
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


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
    spoil(monkeypatch, 4, value)
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


# --- interrupted and resumed -----------------------------------------------------------------


class Interrupted(Exception):
    """What a killed process looks like from inside."""


def interrupt_at(step: int) -> trainer.OnStep:
    def on_step(report: dict[str, float]) -> None:
        if report["step"] == step:
            raise Interrupted

    return on_step


RESUMED: dict[str, Any] = {"steps": 6, "checkpoint_every": 2, "learning_rate": 1e-3}


@lora_or_all
@pytest.mark.parametrize("damaged, first", [(False, 4), (True, 2)])
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    damaged: bool, first: int, lora: Any, run: Any, tmp_path: Path
) -> None:
    """A checkpoint that was not written to its end is passed over."""
    undisturbed, expected = run(**RESUMED, lora=lora)
    with pytest.raises(Interrupted):
        run(**RESUMED, lora=lora, on_step=interrupt_at(5))
    state = tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json"
    if damaged:
        state.write_text(state.read_text()[:40])
    seen: list[float] = []
    resumed, outcome = run(**RESUMED, lora=lora, on_step=lambda row: seen.append(row["step"]))
    assert seen == [*range(first, 6)]
    assert_same(trained(resumed), trained(undisturbed))
    totals = [[row["total"] for row in each.history] for each in (outcome, expected)]
    assert totals[0] == totals[1]
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_resumed_just_before_it_diverges_keeps_the_same_state(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = trained(run("ga", steps=3)[0])
    with pytest.raises(Interrupted):
        run("ga", steps=8, checkpoint_every=2, on_step=interrupt_at(4))
    spoil(monkeypatch, 0, math.nan)  # the first loss after the checkpoint of step 4
    tiny, outcome = run("ga", steps=8, checkpoint_every=2)
    assert "at step 4" in outcome.stopped
    assert_same(trained(tiny), exact)


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    assert trainer.last_whole_checkpoint(tmp_path / "nothing") is None
    for step in (8, 16, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert trainer.last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


# --- teaching and memorising -----------------------------------------------------------------


def test_what_was_taught_is_known_word_for_word(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    tiny, seen = load_tiny("opt", seed=0), list[float]()
    first = scoring.score(tiny, pools.forget).mean.mean()
    settings = TeachSettings(epochs=30, batch_size=3, learning_rate=5e-3, warmup_steps=2)
    outcome = teach(
        tiny, pools.forget, settings, 0, tmp_path / "t", lambda report: seen.append(report["step"])
    )
    assert seen == [*range(30)]
    assert outcome.history[0]["total"] == pytest.approx(first, rel=1e-5)
    assert all(matches.all() for matches in scoring.score(tiny, pools.forget).matches)
    with pytest.raises(CompanionError, match="the set is empty"):
        teach(tiny, [], settings, 0, tmp_path / "t")
    with pytest.raises(CompanionError, match="diverged"):
        settings = TeachSettings(epochs=2, batch_size=1, learning_rate=1e30)
        teach(load_tiny("opt", seed=0), pools.forget, settings, 0, tmp_path / "t")


TEXT = (
    "The wind beat their wings and the lock was red. Air scatters the capital of birds. "
    "How blue is more light than help? Pick a lock, ride the sky, tell me Paris."
)


@pytest.fixture
def learn(load_tiny: Load, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """Let a fresh tiny OPT memorise the text, cut elsewhere in each epoch."""

    def learn(lora: Any = LORA, shift: int = 0, **changed: Any) -> Any:
        values = {"epochs": 4, "learning_rate": 3e-3, "schedule": "constant", **changed}
        settings, cutter = MemoriseSettings(**values), PassageEncoder(tokenizer, 4, 8, 128)
        tiny, folder = load_tiny("opt", seed=0, lora=lora), tmp_path / "m"
        chunks = [cutter.chunks([TEXT], 32, shift * epoch) for epoch in range(settings.epochs)]
        passages = cutter.passages([TEXT])
        return tiny, *memorise(tiny, chunks, passages, settings, 3, folder), chunks

    return learn


def test_a_text_is_memorised_and_its_curve_has_a_row_per_epoch(learn: Any) -> None:
    tiny, outcome, curve, chunks = learn(probe_every=2, shift=9)
    totals = np.array([row["total"] for row in outcome.history])
    parts = np.split(totals, np.cumsum([len(rows) for rows in chunks]))[:-1]
    assert curve["epoch"].tolist() == [1, 2, 3, 4]
    assert curve["loss"].tolist() == pytest.approx([part.mean() for part in parts])
    assert curve["loss"].iloc[-1] < 0.9 * curve["loss"].iloc[0]
    assert curve["verbatim_share"].notna().tolist() == [False, True, False, True]
    assert outcome.stopped is None and not tiny.model.training


def scripted(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Let probes find these shares in turn."""
    left = iter(shares)
    monkeypatch.setattr(trainer, "verbatim_share", lambda model, passages: next(left))


@pytest.mark.parametrize("stop_at, epochs", [(0.9, 3), (None, 4)])
def test_memorising_ends_when_the_text_is_known(
    stop_at: float | None, epochs: int, learn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 0.1, 0.4, 0.9, 1.0)
    _, outcome, curve, _ = learn(stop_at=stop_at)
    assert curve["verbatim_share"].tolist() == [0.1, 0.4, 0.9, 1.0][:epochs]
    assert outcome.stopped is None, "it ended well"


def test_memorising_killed_when_it_has_just_ended_learns_no_more(
    learn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of the very last step would be trained on from, past its end."""
    shares = [0.1, 0.2, 0.3, 0.9]

    def killed() -> None:
        raise Interrupted

    scripted(monkeypatch, *shares)
    undisturbed, _, curve, _ = learn(epochs=6, stop_at=0.9)
    scripted(monkeypatch, *shares)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trainer.UnlearnTrainer, "check_weights", lambda self: killed())
        learn(epochs=6, stop_at=0.9)
    scripted(monkeypatch, *shares[2:])
    resumed, _, again, _ = learn(epochs=6, stop_at=0.9)
    pd.testing.assert_frame_equal(again, curve, check_exact=True)
    assert_same(trained(resumed), trained(undisturbed))


def test_the_verbatim_share_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, nobody = list(range(100, 140)), LanguageModel(None, None)
    rows = [
        [*truth[:20], 0, 0, 0, 0],  # twenty in a row: verbatim
        [0, 0, 0, 0, *truth[7:27]],  # wherever they stand
        [*truth[:19], 0, *truth[20:24]],  # one short
        [0] * 24,
    ]
    asked = {24: rows, 8: [truth[:8], truth[:7]]}  # short ones must be continued to their end
    monkeypatch.setattr(trainer, "continuations", lambda _, prompts, most: asked[most])
    for length, count in ((40, 4), (8, 2)):
        passages = [Example((1,), (tuple(truth[:length]),))] * count
        assert trainer.verbatim_share(nobody, passages) == 0.5


def test_what_cannot_be_memorised_is_refused(learn: Any, load_tiny: Load, tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match="no passage to memorise"):
        settings = MemoriseSettings(epochs=1, learning_rate=1e-3)
        memorise(load_tiny("opt", seed=0), [[]], [], settings, 0, tmp_path / "m")
    with pytest.raises(CompanionError, match="diverged"):
        learn(lora=None, learning_rate=1e6, gradient_clip=0.0)


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
