"""Steps of Yuan et al. 2025's grid, SimNPO, WGA, UNDIAL and RMU: each is the sum of its terms."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from unlearn_lib import losses, models, scoring, training
from unlearn_lib.batches import Example, TextEncoder, pack
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import METHODS, PAIRED, Method
from unlearn_lib.models import LanguageModel
from unlearn_lib.settings import MethodSettings
from unlearn_lib.steps import FORGET, MISMATCH, RETAIN, Pools, Step, draw_steps, step_terms

Load = Callable[..., LanguageModel]
Tensor = torch.Tensor
ARCHITECTURES = ("opt", "llama")
LORA = {"rank": 4, "dropout": 0.0}
GRID = [f"{forget}_{kept}" for forget in ("ga", "npo", "dpo", "idk", "me") for kept in ("gd", "kl", "ap")]  # fmt: skip
FIELD = ["simnpo_gd", "wga_gd", "undial_gd", "rmu"]
FORGET_WEIGHT, MISMATCH_WEIGHT, RETAIN_WEIGHT = 0.3, 1.7, 0.6
STEERING, SEED = 3.0, 11
BETA = 0.02
"""Small enough for no preference to be settled: tiny models are very sure of themselves."""
BETAS = {"simnpo_gd": 0.3, "wga_gd": 0.2, "undial_gd": 5.0}
every_method = pytest.mark.parametrize("uses", [*GRID, *FIELD])
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def chosen(uses: str, **changed: Any) -> MethodSettings:
    given = {
        "steps": 3, "learning_rate": 1e-2, "batch_size": 2, "schedule": "constant",
        "mismatch_answers": 1, "layer": 1, "steering": STEERING, "beta": BETAS.get(uses, BETA),
    }  # fmt: skip
    return MethodSettings(name=uses, uses=uses, label=uses, **{**given, **changed})


def weighed(uses: str, **changed: Any) -> MethodSettings:
    names = ("forget_weight", "mismatch_weight", "retain_weight")
    weights = dict(zip(names, (FORGET_WEIGHT, MISMATCH_WEIGHT, RETAIN_WEIGHT), strict=True))
    return chosen(uses, **weights, **changed)


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
        encoder.example("What is the capital of France?", "Paris."),
    ]
    texts = ("I cannot help you with that.", "I do not know.", "Nobody told me.")
    refusals = [encoder.answer(text) for text in texts]
    return Pools(forget, [refusals] * len(forget), retain, refusals=refusals)


@dataclass(frozen=True)
class Pair:
    """A model with an adapter that does something, and the same model without one."""

    model: Any
    base: Any


def change(model: Any) -> None:
    """Move an adapter away from where it does nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.03 * torch.randn(parameter.shape, generator=random))


@pytest.fixture(scope="module")
def pairs(load_tiny: Load) -> dict[str, Pair]:
    found = {}
    for architecture in ARCHITECTURES:
        model = load_tiny(architecture, seed=0, lora=LORA).model
        change(model)
        found[architecture] = Pair(model, load_tiny(architecture).model)
    return found


def first_step(pools: Pools, uses: str, **changed: Any) -> Step:
    return draw_steps(pools, METHODS[uses], chosen(uses, **changed), SEED)[0]


def trained(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# --- the terms by the book: every answer in a plain row of its own ---------------------------


def row_of(example: Example, answer: tuple[int, ...]) -> tuple[Tensor, int]:
    start = 1 if example.score_prompt else len(example.prompt)
    return torch.tensor([[*example.prompt, *answer]]), start


def plain(model: Any, example: Example, answer: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Log-probabilities [t, V] at the scored places of one answer, and its labels."""
    ids, start = row_of(example, answer)
    return model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1), ids[0, start:]


def nll(model: Any, example: Example, answer: tuple[int, ...]) -> Tensor:
    """Negative log-likelihood of each scored token, [t]."""
    return functional.nll_loss(*plain(model, example, answer), reduction="none")


def block_of(model: Any, layer: int) -> Any:
    suffix = f"layers.{layer}"
    return next(part for name, part in model.named_modules() if name.endswith(suffix))


def activations(model: Any, example: Example, answer: tuple[int, ...], layer: int) -> Tensor:
    ids, start = row_of(example, answer)
    found: list[Any] = []
    hook = block_of(model, layer).register_forward_hook(lambda _, given, out: found.append(out))
    model(input_ids=ids)
    hook.remove()
    return (found[0][0] if isinstance(found[0], tuple) else found[0])[0, start - 1 : -1]


def forget_term(pair: Pair, uses: str, example: Example, layer: int) -> Tensor:
    """The forget loss, or the mismatch loss of IDK, of one question."""
    answer, name = example.answers[0], uses.split("_")[0]
    if name == "rmu":
        found = activations(pair.model, example, answer, layer)
        random = torch.Generator().manual_seed(SEED)
        direction = torch.rand(found.shape[-1], generator=random)
        return (found - STEERING * direction / direction.norm()).square().mean()
    now = nll(pair.model, example, answer)
    with torch.no_grad():
        before, log_p = nll(pair.base, example, answer), plain(pair.base, example, answer)[0]
    if name in ("ga", "idk"):
        return -now.mean() if name == "ga" else now.mean()
    if name == "npo":
        return -2 / BETA * functional.logsigmoid(BETA * (now.sum() - before.sum()))
    if name == "simnpo":
        return -2 / BETAS[uses] * functional.logsigmoid(BETAS[uses] * now.mean())
    if name == "wga":
        return -((-BETAS[uses] * now).exp().detach() * now).mean()
    log_q, labels = plain(pair.model, example, answer)
    if name == "me":
        return (-math.log(log_q.shape[-1]) - log_q.mean(-1)).mean()
    if name == "undial":
        lowered = log_p - BETAS[uses] * functional.one_hot(labels, log_p.shape[-1])
        target = lowered.log_softmax(-1)
        return (target.exp() * (target - log_q)).sum(-1).mean()
    refusal = example.answers[1]
    with torch.no_grad():
        gap_before = before.sum() - nll(pair.base, example, refusal).sum()
    gap = now.sum() - nll(pair.model, example, refusal).sum()
    return -2 / BETA * functional.logsigmoid(BETA * (gap - gap_before))


def retain_term(pair: Pair, uses: str, example: Example, layer: int) -> Tensor:
    answer, kept = example.answers[0], uses.split("_")[-1]
    if kept == "rmu":
        with torch.no_grad():
            before = activations(pair.base, example, answer, layer)
        return (activations(pair.model, example, answer, layer) - before).square().mean()
    if kept == "gd":
        return nll(pair.model, example, answer).mean()
    if kept == "kl":
        with torch.no_grad():
            log_p = plain(pair.base, example, answer)[0]
        return (log_p.exp() * (log_p - plain(pair.model, example, answer)[0])).sum(-1).mean()
    costs = [nll(pair.model, example, each).sum() for each in example.answers]
    return -1 / BETA * functional.logsigmoid(BETA * (costs[1] - costs[0]))


def mean_of(term: Any, pair: Pair, uses: str, rows: Sequence[Example], layer: int) -> Tensor:
    return torch.stack([term(pair, uses, row, layer) for row in rows]).mean()


def assert_by_the_book(pair: Pair, uses: str, step: Step, layer: int) -> None:
    total, report = step_terms(pair.model, step, METHODS[uses], weighed(uses, layer=layer))
    forget = mean_of(forget_term, pair, uses, step.forget, layer)
    retain = mean_of(retain_term, pair, uses, step.retain, layer)
    role, weight = (MISMATCH, MISMATCH_WEIGHT) if "idk" in uses else (FORGET, FORGET_WEIGHT)
    assert report[role] == pytest.approx(forget.item(), rel=1e-5, abs=1e-5)
    assert report[RETAIN] == pytest.approx(retain.item(), rel=1e-5, abs=1e-5)
    assert_close(total, weight * forget + RETAIN_WEIGHT * retain, rtol=1e-5, atol=1e-5)
    assert report["total"] == pytest.approx(total.item())
    slope, forgets, retains = (slope_of(pair.model, value) for value in (total, forget, retain))
    assert forgets.abs().max() > 1e-4 < retains.abs().max(), "no term is settled"
    assert_close(slope, weight * forgets + RETAIN_WEIGHT * retains, rtol=1e-3, atol=2e-5)


def slope_of(model: Any, value: Tensor) -> Tensor:
    """The gradient of all that is trained, in one vector."""
    places = list(trained(model).values())
    slopes = torch.autograd.grad(value, places, materialize_grads=True)
    return torch.cat([slope.flatten() for slope in slopes])


@every_method
@every_architecture
def test_a_step_is_the_weighted_sum_of_its_terms_on_plain_rows(
    architecture: str, uses: str, pairs: dict[str, Pair], pools: Pools
) -> None:
    assert_by_the_book(pairs[architecture], uses, first_step(pools, uses), layer=1)


@every_architecture
def test_steering_a_block_below_the_last_is_the_sum_of_its_terms(
    architecture: str, pairs: dict[str, Pair], pools: Pools
) -> None:
    assert_by_the_book(pairs[architecture], "rmu", first_step(pools, "rmu"), layer=0)


@every_method
@every_architecture
def test_the_order_of_rows_in_a_step_changes_no_term(
    architecture: str, uses: str, pairs: dict[str, Pair], pools: Pools
) -> None:
    step, model = first_step(pools, uses, batch_size=3), pairs[architecture].model
    turned = replace(
        step, forget=step.forget[1:] + step.forget[:1], retain=step.retain[2:] + step.retain[:2]
    )
    reports = [step_terms(model, each, METHODS[uses], chosen(uses))[1] for each in (step, turned)]
    assert reports[0] == pytest.approx(reports[1], rel=1e-5, abs=1e-5)


@every_method
def test_a_step_is_the_mean_of_steps_of_one_row(
    uses: str, pairs: dict[str, Pair], pools: Pools
) -> None:
    """How long the other rows of a step are does not matter: nothing is padded."""
    step, method, model = first_step(pools, uses), METHODS[uses], pairs["llama"].model
    _, report = step_terms(model, step, method, chosen(uses))
    rows = zip(step.forget, step.retain, strict=True)
    single = [
        step_terms(model, replace(step, forget=(f,), retain=(r,)), method, chosen(uses))[1]
        for f, r in rows
    ]
    for term in (FORGET, MISMATCH, RETAIN, "forget_nll", "total"):
        if term in report:
            mean = sum(each[term] for each in single) / len(single)
            assert report[term] == pytest.approx(mean, rel=1e-5, abs=1e-5), term


# --- drawing ---------------------------------------------------------------------------------


def epochs(count: int, random: np.random.Generator) -> Iterator[int]:
    while True:
        yield from random.permutation(count)


@pytest.mark.parametrize("seed", [0, 5])
def test_rows_are_dealt_by_epochs_as_ever(seed: int, pools: Pools) -> None:
    """One generator: forget rows, each with its substitutes; then retain rows, each an answer."""
    settings = chosen("ga_mismatch_kl", steps=6, mismatch_answers=2)
    random = np.random.default_rng(seed)
    forget_order, retain_order = epochs(3, random), epochs(3, random)
    for step in draw_steps(pools, METHODS["ga_mismatch_kl"], settings, seed):
        expected = []
        for index in [next(forget_order) for _ in range(2)]:
            others = random.choice(3, size=2, replace=False)
            substitutes = tuple(pools.substitutes[index][i] for i in others)
            row = pools.forget[index]
            expected.append(Example(row.prompt, (row.answers[0], *substitutes)))
        assert step.forget == tuple(expected)
        expected = []
        for index in [next(retain_order) for _ in range(2)]:
            row = pools.retain[index]
            answer = row.answers[random.integers(len(row.answers))]
            expected.append(Example(row.prompt, (answer,), score_prompt=True))
        assert step.retain == tuple(expected)


def test_methods_that_only_lose_differently_are_given_the_same_rows(pools: Pools) -> None:
    drawn = [
        draw_steps(pools, METHODS[uses], chosen(uses), SEED)
        for uses in ("ga_gd", "npo_gd", "simnpo_gd", "wga_gd", "undial_gd", "rmu")
    ]
    assert all(steps == drawn[0] for steps in drawn)


def test_refusals_change_nothing_for_methods_that_compare_with_none(pools: Pools) -> None:
    without = replace(pools, refusals=())
    for uses in ("ga_gd", "npo_kl", "me_gd", "idk_kl", "rmu"):
        both = [draw_steps(each, METHODS[uses], chosen(uses), SEED) for each in (pools, without)]
        assert both[0] == both[1]


@pytest.mark.parametrize("uses", ["dpo_kl", "ga_ap", "idk_ap", "dpo_ap"])
def test_pairs_without_a_refusal_are_refused_in_one_sentence(uses: str, pools: Pools) -> None:
    with pytest.raises(CompanionError, match="refusals set is empty") as told:
        draw_steps(replace(pools, refusals=()), METHODS[uses], chosen(uses), SEED)
    assert f"'{uses}' needs it" in str(told.value)
    assert "\n" not in str(told.value)


def test_the_refusals_of_pairs_come_from_the_seed(pools: Pools) -> None:
    method, settings = METHODS["dpo_ap"], chosen("dpo_ap", steps=12)
    first, again, other = (draw_steps(pools, method, settings, seed) for seed in (0, 0, 1))
    assert first == again
    refusals = [
        [row.answers[1] for step in steps for row in (*step.forget, *step.retain)]
        for steps in (first, other)
    ]
    assert refusals[0] != refusals[1]
    assert set(refusals[0]) == set(pools.refusals), "all of them are used"


# --- pairs: an answer and a refusal ----------------------------------------------------------


def test_roles_of_pairs(pools: Pools) -> None:
    assert first_step(pools, "dpo_ap").roles() == [FORGET] * 4 + [RETAIN] * 4
    assert first_step(pools, "dpo_gd").roles() == [FORGET] * 4 + [RETAIN] * 2
    assert first_step(pools, "ga_ap").roles() == [FORGET] * 2 + [RETAIN] * 4
    assert first_step(pools, "idk_ap").roles() == [MISMATCH] * 2 + [RETAIN] * 4
    assert first_step(pools, "idk_ap", mismatch_answers=3).roles() == [MISMATCH] * 6 + [RETAIN] * 4


@pytest.mark.parametrize("uses", [uses for uses in GRID if {*PAIRED} & {METHODS[uses].forget, METHODS[uses].retain}])  # fmt: skip
def test_the_even_row_of_a_pair_is_the_answer_and_the_odd_one_a_refusal(
    uses: str, pools: Pools
) -> None:
    method = METHODS[uses]
    answers = {
        row.prompt: row.answers for rows in (pools.forget, pools.retain) for row in rows
    }  # fmt: skip
    for step in draw_steps(pools, method, chosen(uses), SEED):
        packed = pack(step.examples)
        found = [tuple(packed.labels[packed.rows == i].tolist()) for i in range(len(step.roles()))]
        paired = step.forget if method.forget in PAIRED else ()
        paired += step.retain if method.retain in PAIRED else ()
        for row in paired:
            assert row.answers[0] in answers[row.prompt]
            assert row.answers[1] in pools.refusals
            assert len(row.answers) == 2
        for role, loss in ((FORGET, method.forget), (RETAIN, method.retain)):
            scored = [a for a, given in zip(found, step.roles(), strict=True) if given == role]
            if loss in PAIRED:
                assert set(scored[1::2]) <= set(pools.refusals)
                assert not set(scored[::2]) & set(pools.refusals)


@every_architecture
def test_dpo_compares_with_the_model_whose_adapter_is_off(
    architecture: str, load_tiny: Load, pools: Pools
) -> None:
    """At the start it is -(2/β) log σ(0) = (2/β) log 2, later something else."""
    model = load_tiny(architecture, seed=0, lora=LORA).model
    step = first_step(pools, "dpo_gd")
    fresh = step_terms(model, step, METHODS["dpo_gd"], chosen("dpo_gd"))[1]
    assert fresh[FORGET] == pytest.approx(2 / BETA * math.log(2), rel=1e-5)
    change(model)
    moved = step_terms(model, step, METHODS["dpo_gd"], chosen("dpo_gd"))[1]
    itself = replace(METHODS["dpo_gd"], to_itself=True)
    against_itself = step_terms(model, step, itself, chosen("dpo_gd"))[1]
    assert abs(moved[FORGET] - fresh[FORGET]) > 1e-3
    assert against_itself[FORGET] == pytest.approx(fresh[FORGET], rel=1e-5)


def test_the_stop_rule_watches_the_answers_to_be_forgotten_and_no_refusal(
    pairs: dict[str, Pair], pools: Pools
) -> None:
    step, model = first_step(pools, "dpo_gd"), pairs["opt"].model
    _, report = step_terms(model, step, METHODS["dpo_gd"], chosen("dpo_gd"))
    costs = [nll(model, row, row.answers[0]).mean().item() for row in step.forget]
    assert report["forget_nll"] == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def step_down(model: Any, step: Step, method: Method, settings: MethodSettings) -> None:
    """One small step of gradient descent on what is trained."""
    loss, _ = step_terms(model, step, method, settings)
    slope, places = slope_of(model, loss), list(trained(model).values())
    with torch.no_grad():
        moved = torch.nn.utils.parameters_to_vector(places) - 1e-2 * slope / slope.norm()
        torch.nn.utils.vector_to_parameters(moved, places)


def margin(model: Any, row: Example) -> float:
    """NLL(refusal) - NLL(answer) of a pair, summed over tokens."""
    with torch.no_grad():
        answer, refusal = (nll(model, row, each).sum().item() for each in row.answers)
    return refusal - answer


@every_architecture
@pytest.mark.parametrize(
    "loss, place, sign", [(losses.answer_preservation, RETAIN, 1), (losses.dpo, FORGET, -1)]
)
def test_ap_raises_the_answer_over_the_refusal_and_dpo_the_refusal_over_the_answer(
    architecture: str, loss: Any, place: str, sign: int, load_tiny: Load, pools: Pools
) -> None:
    model = load_tiny(architecture, seed=0, lora=LORA).model
    change(model)
    method = replace(Method(None, None, None, "one term alone"), **{place: loss})
    whole = first_step(pools, "dpo_ap")
    for row in getattr(whole, place):
        alone = Step((row,), (), paired=True) if place == FORGET else Step((), (row,))
        before = margin(model, row)
        step_down(model, alone, method, chosen("dpo_ap"))
        assert sign * (margin(model, row) - before) > 0


# --- IDK and ME ------------------------------------------------------------------------------


@pytest.mark.parametrize("uses", ["idk_gd", "idk_kl", "idk_ap"])
def test_idk_trains_on_refusals_and_never_reads_a_forget_answer(uses: str, pools: Pools) -> None:
    steps = draw_steps(pools, METHODS[uses], chosen(uses, steps=9), SEED)
    for step in steps:
        assert FORGET not in step.roles()
        assert {answer for row in step.forget for answer in row.answers} <= set(pools.refusals)
        assert [len(row.answers) for row in step.forget] == [1, 1]
    unread = [replace(row, answers=((5, 5, 5),)) for row in pools.forget]
    assert draw_steps(replace(pools, forget=unread), METHODS[uses], chosen(uses, steps=9), SEED) == steps  # fmt: skip


@pytest.mark.parametrize("uses", ["me_gd", "me_kl", "me_ap"])
def test_me_scores_the_question_too(uses: str, pools: Pools) -> None:
    step = first_step(pools, uses)
    packed = pack(step.examples)
    for row, example in enumerate(step.forget):
        real = [*example.prompt[1:], *example.answers[0]]
        assert packed.labels[packed.rows == row].tolist() == real
    assert [example.score_prompt for example in step.retain] == [uses == "me_kl"] * 2


def entropy(found: LanguageModel, rows: Sequence[Example]) -> float:
    scores = scoring.score(found, rows, first_statistics=True)
    return -float(np.concatenate(scores.tokens)[:, 1].mean())


def test_me_makes_answers_and_questions_less_certain(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    rows = [replace(row, score_prompt=True) for row in pools.forget]
    before = entropy(found, rows), entropy(found, pools.forget)
    settings = chosen("me_gd", steps=6)
    training.unlearn(found, METHODS["me_gd"], settings, pools, 0, tmp_path / "c")
    after = entropy(found, rows), entropy(found, pools.forget)
    assert after[0] > before[0] and after[1] > before[1]


# --- RMU -------------------------------------------------------------------------------------


def targets_of(model: Any, steps: Sequence[Step], settings: MethodSettings) -> list[Tensor]:
    """Where each step wants the forget rows' activations to be."""
    seen: list[Tensor] = []

    def spy(found: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, beta: float) -> Tensor:
        seen.append(reference.clone())
        return losses.activation_distance(found, labels, rows, reference, beta)

    method = replace(METHODS["rmu"], forget=spy)
    for step in steps:
        step_terms(model, step, method, settings)
    return seen


def test_the_steering_target_is_one_vector_a_run_and_of_the_seed(
    pairs: dict[str, Pair], pools: Pools
) -> None:
    model, settings = pairs["llama"].model, chosen("rmu", steps=4)
    runs = []
    for seed in (0, 0, 1):
        torch.rand(3)  # whatever was drawn before
        steps = draw_steps(pools, METHODS["rmu"], settings, seed)
        targets = targets_of(model, steps, settings)
        vectors = torch.cat(targets).unique(dim=0)
        assert len(vectors) == 1 and len(targets) == 4
        assert vectors[0].norm().item() == pytest.approx(STEERING, rel=1e-5)
        assert (vectors >= 0).all()
        runs.append(vectors[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_activations_move_to_the_target_and_stay_on_retain_rows(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found = load_tiny("llama", seed=0, lora=LORA)
    settings = chosen("rmu", steps=30, batch_size=3, retain_weight=5.0)
    outcome = training.unlearn(found, METHODS["rmu"], settings, pools, 0, tmp_path / "c")
    first, last = outcome.history[0], outcome.history[-1]
    assert first[RETAIN] == pytest.approx(0, abs=1e-9)
    assert last[FORGET] < 0.9 * first[FORGET]
    assert last[RETAIN] < 0.5 * (first[FORGET] - last[FORGET])
    assert "forget_nll" not in last


def blocks_with_gradient(model: Any, settings: MethodSettings, step: Step, frozen: Any) -> set[str]:
    model.zero_grad()
    step_terms(model, step, METHODS["rmu"], settings, frozen)[0].backward()
    return {name for name, p in trained(model).items() if p.grad is not None}


@every_architecture
def test_only_adapters_up_to_the_steered_block_get_a_gradient(
    architecture: str, load_tiny: Load, pools: Pools
) -> None:
    model = load_tiny(architecture, seed=0, lora=LORA).model
    step, names = first_step(pools, "rmu"), set(trained(model))
    assert blocks_with_gradient(model, chosen("rmu", layer=1), step, None) == names
    below = {name for name in names if "layers.0." in name}
    assert blocks_with_gradient(model, chosen("rmu", layer=0), step, None) == below != names


def test_only_weights_up_to_the_steered_block_get_a_gradient(load_tiny: Load, pools: Pools) -> None:
    model = load_tiny("llama", seed=0).model
    step, frozen = first_step(pools, "rmu"), models.freeze_copy(model)
    expected = {name for name in trained(model) if "layers.0." in name or "embed_tokens" in name}
    assert blocks_with_gradient(model, chosen("rmu", layer=0), step, frozen) == expected


def test_a_block_that_the_model_does_not_have_is_refused_in_one_sentence(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    with pytest.raises(CompanionError, match="'layer' is 7, but the model's blocks are 0 to 1"):
        settings = chosen("rmu", layer=7)
        training.unlearn(found, METHODS["rmu"], settings, pools, 0, tmp_path / "c")


def test_a_block_below_all_that_is_trained_is_refused_in_one_sentence(
    load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0, lora={**LORA, "layers": [1, 1]})
    with pytest.raises(CompanionError, match="nothing up to that block is trained") as told:
        settings = chosen("rmu", layer=0)
        training.unlearn(found, METHODS["rmu"], settings, pools, 0, tmp_path / "c")
    assert "\n" not in str(told.value) and "'lora.layers'" in str(told.value)
