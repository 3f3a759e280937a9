"""What a step draws and sees: rows, roles, and the weighted sum of its losses."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from unlearning import DROPOUT, LORA, Load, Tensor, change, draw, every_method, settings_of

from unlearn_lib.model import scoring
from unlearn_lib.model.packing import pack
from unlearn_lib.model.tokens import Example
from unlearn_lib.unlearn import losses, steps
from unlearn_lib.unlearn.methods import METHODS, PAIRED, find_method
from unlearn_lib.unlearn.steps import FORGET, KEEP, MISMATCH, RETAIN, Pools, Step, step_terms
from unlearn_lib.util import CompanionError

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
        with pytest.raises(CompanionError, match=f"'{name}' needs '{empty}'"):
            draw(replace(pools, **{empty: rows}), name)
    with pytest.raises(CompanionError, match="needs 'substitutes'"):
        draw(replace(pools, substitutes=()), "ga_mismatch_kl")


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
    costs = [scoring.score(each, forget).nll.tolist() for each in (base, adapted)]
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
