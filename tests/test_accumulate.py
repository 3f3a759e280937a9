"""Training on less or other hardware gives the same: parts of a step, GPUs, precision."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from unlearning import LORA, Load, Tensor, change, draw, every_method, settings_of

from unlearn_lib.model import scoring
from unlearn_lib.unlearn import trainer
from unlearn_lib.unlearn.methods import METHODS
from unlearn_lib.unlearn.steps import RETAIN, Pools, Step, step_terms
from unlearn_lib.unlearn.trainer import UnlearnTrainer, unlearn
from unlearn_lib.util import CompanionError

NLL = "forget_nll"
EIGHT: dict[str, Any] = {
    "steps": 2,
    "batch_size": 8,
    "beta": 0.02,
    "mismatch_answers": 2,
    "layer": 0,
}
UNEVEN: dict[str, Any] = {"retain_batch_size": 3, "keep_batch_size": 1}
EVERY_TERM = ("ga_mismatch_kl", "npo_keep_kl", "dpo_ap", "me_kl", "undial_gd", "rmu")


@pytest.fixture
def ragged(pools: Pools) -> Pools:
    """Forget rows with unlike numbers of substitutes."""
    some = [answers[: 1 + i % 2] for i, answers in enumerate(pools.substitutes)]
    return replace(pools, substitutes=some)


def gradients_of_all(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What AdamW is given at each step, in one vector."""
    gradients: list[Tensor] = []
    step = torch.optim.AdamW.step

    def spied(self: Any, *rest: Any, **named: Any) -> Any:
        places = (p for group in self.param_groups for p in group["params"])
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in places]
        gradients.append(torch.cat(parts).clone())
        return step(self, *rest, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", spied)
    return gradients


@pytest.mark.parametrize(
    "name, sizes", [*((name, {}) for name in METHODS), *((name, UNEVEN) for name in EVERY_TERM)]
)
def test_eight_rows_at_once_or_two_four_times(
    name: str, sizes: Any, load_tiny: Load, ragged: Pools, tmp_path: Path, monkeypatch: Any
) -> None:
    """A small step size, so that the second step begins at the same weights."""
    gradients, histories = gradients_of_all(monkeypatch), []
    for accumulate in (1, 4):
        tiny = load_tiny("llama", seed=0, lora=LORA)
        change(tiny)
        settings = settings_of(**EIGHT, **sizes, learning_rate=1e-7, accumulate=accumulate)
        outcome = unlearn(tiny, METHODS[name], settings, ragged, 3, tmp_path / "c")
        histories.append(outcome.history)
    for whole, parts in zip(*histories, strict=True):
        assert set(whole) == set(parts)
        for term in set(whole) - {"seconds", "tokens"}:
            assert parts[term] == pytest.approx(whole[term], rel=1e-5, abs=1e-5), term
    for whole, parts in zip(gradients[:2], gradients[2:], strict=True):
        assert float(whole.norm()) > 1e-3
        assert float((parts - whole).norm() / whole.norm()) < 1e-5


@every_method
def test_accumulation_draws_the_same_rows(name: str, ragged: Pools) -> None:
    drawn = draw(ragged, name, **EIGHT)
    assert drawn == draw(ragged, name, **EIGHT, accumulate=4)
    for step in drawn:
        dealt = [part for part, *_ in step.parts(settings_of(**EIGHT, accumulate=4))]
        assert len(dealt) == 4
        for role in ("forget", "mismatch", "keep", "retain"):
            rows = [row for part in dealt for row in getattr(part, role)]
            assert sorted(map(repr, rows)) == sorted(map(repr, getattr(step, role)))


def test_parts_by_hand(pools: Pools) -> None:
    step = Step(tuple(pools.forget), (pools.retain[0],), before=(1.0, 2.0, 3.0), seed=7)
    settings = settings_of(forget_weight=0.6, retain_weight=0.5)
    ((part, weighted, shares),) = step.parts(settings)
    assert part == step and weighted == settings and set(shares.values()) == {1.0}
    dealt = list(step.parts(settings.model_copy(update={"accumulate": 9})))
    assert [part.before for part, *_ in dealt] == [(1.0,), (2.0,), (3.0,)], "none is empty"
    assert [len(part.retain) for part, *_ in dealt] == [1, 0, 0]
    assert all(part.seed == 7 for part, *_ in dealt)
    assert [weighted.forget_weight for _, weighted, _ in dealt] == [pytest.approx(0.2)] * 3
    assert dealt[0][1].retain_weight == 0.5
    assert [shares["forget_nll"] for *_, shares in dealt] == [pytest.approx(1 / 3)] * 3
    tokens = [len(row.answers[0]) for row in pools.forget]
    assert dealt[1][2]["entropy"] == pytest.approx(tokens[1] / sum(tokens))


def test_the_limit_is_on_the_whole_step(
    load_tiny: Load, pools: Pools, tmp_path: Path, monkeypatch: Any
) -> None:
    """A part whose forget loss alone passes the cap stops nothing."""
    costs: list[float] = []
    spied = UnlearnTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, **rest: Any) -> Any:
        costs.append(step_terms(model, inputs["part"][0], METHODS["ga"], settings_of())[1][NLL])
        return spied(self, model, inputs, **rest)

    monkeypatch.setattr(UnlearnTrainer, "compute_loss", compute_loss)
    settings = settings_of(steps=1, batch_size=3, accumulate=3)
    outcome = unlearn(
        load_tiny("opt", seed=0), METHODS["ga"], settings, pools, 0, tmp_path / "first"
    )
    mean = outcome.history[0][NLL]
    assert mean == pytest.approx(sum(costs) / 3, rel=1e-5) and max(costs) > mean + 0.01
    settings = settings_of(steps=1, batch_size=3, accumulate=3, forget_loss_cap=mean + 0.005)
    again = unlearn(load_tiny("opt", seed=0), METHODS["ga"], settings, pools, 0, tmp_path / "c")
    assert again.stopped is None and len(again.history) == 1


# --- one process, one device -----------------------------------------------------------------


def with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Faked(trainer.TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            self._n_gpu = 2

    monkeypatch.setattr(trainer, "TrainingArguments", Faked)


def steps_seen(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    seen, whole = list[Step](), step_terms

    def spied(model: Any, step: Step, *rest: Any) -> Any:
        seen.append(step)
        return whole(model, step, *rest)

    monkeypatch.setattr(trainer, "step_terms", spied)
    return seen


def test_with_several_gpus_every_drawn_row_is_used_once(
    load_tiny: Load, pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DataParallel would read steps 0, 2, 4 and 6, and then again."""
    with_two_gpus(monkeypatch)
    seen = steps_seen(monkeypatch)
    settings = settings_of(steps=8, batch_size=1)
    unlearn(load_tiny("opt", seed=0), METHODS["ga"], settings, pools, 0, tmp_path / "c")
    assert seen == draw(pools, "ga", steps=8, batch_size=1)


def test_rows_that_are_not_those_drawn_are_refused(
    load_tiny: Load, pools: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(pools, "ga", steps=5)

    def run(steps: int = 5) -> None:
        settings, tiny = settings_of(steps=steps), load_tiny("opt", seed=0)
        unlearn(tiny, METHODS["ga"], settings, pools, 0, tmp_path / "c", steps=drawn)

    for steps in (4, 6):
        with pytest.raises(CompanionError, match=f"'steps' is {steps}, .* given for 5"):
            run(steps)
    second = [{"step": step} for step in drawn[1::2]]  # what the second of two processes gets
    monkeypatch.setattr(UnlearnTrainer, "get_train_dataloader", lambda self: second)
    with pytest.raises(CompanionError, match="Step 0 got the rows of another"):
        run()


# --- the precision of what is compared with --------------------------------------------------


@pytest.fixture
def autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train all weights as on a GPU: in float32, computing in bfloat16."""
    plain = trainer.TrainingArguments
    monkeypatch.setattr(
        trainer, "TrainingArguments", lambda **named: plain(**{**named, "bf16": True})
    )


@pytest.mark.parametrize("is_given", [False, True])
@pytest.mark.parametrize("name", ["kl_only", "ga_kl", "undial_gd"])
def test_under_autocast_the_original_computes_as_the_trained_model(
    name: str, is_given: bool, autocast: None, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    tiny, other = load_tiny("llama", seed=0), load_tiny("llama").model
    settings, method = settings_of(steps=1, beta=1e-9), METHODS[name]
    frozen = other if is_given else None
    outcome = unlearn(tiny, method, settings, pools, 0, tmp_path / "c", frozen=frozen)
    role = "forget" if name == "undial_gd" else RETAIN  # at so low a beta, KL to itself as well
    assert outcome.history[0][role] == pytest.approx(0, abs=1e-8)
    assert "forward" not in vars(other), "a model that is handed over stays as it is"


@pytest.mark.parametrize("has_before", [False, True])
def test_under_autocast_npo_begins_at_its_limit(
    has_before: bool, autocast: None, load_tiny: Load, pools: Pools, tmp_path: Path
) -> None:
    tiny, settings = load_tiny("llama", seed=0), settings_of(steps=1, beta=0.1)
    before = scoring.score(tiny, pools.forget).nll.tolist() if has_before else None
    known = replace(pools, before=before)
    outcome = unlearn(tiny, METHODS["npo"], settings, known, 0, tmp_path / "c")
    assert outcome.history[0]["forget"] == pytest.approx(2 / 0.1 * math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    "name, copies", [("npo", 0), ("npo_kl", 1), ("ga_gd", 0), ("rmu", 1), ("dpo_gd", 1)]
)
def test_the_model_is_copied_only_where_the_copy_is_read(
    name: str,
    copies: int,
    load_tiny: Load,
    pools: Pools,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny, known, seen = load_tiny("opt", seed=0), replace(pools, before=[1.0] * 3), list[Any]()
    deepcopy = trainer.copy.deepcopy

    def spied(thing: Any) -> Any:
        seen.append(thing)
        return deepcopy(thing)

    monkeypatch.setattr(
        trainer.copy,
        "deepcopy",
        lambda thing, *memo: (
            spied(thing) if thing is tiny.model and not memo else deepcopy(thing, *memo)
        ),
    )
    unlearn(tiny, METHODS[name], settings_of(), known, 0, tmp_path / "c")
    assert len(seen) == copies
    released = replace(METHODS["ga_kl"], to_itself=True)
    unlearn(tiny, released, settings_of(), known, 0, tmp_path / "c")
    assert len(seen) == copies, "a copy that the released fault never reads"
