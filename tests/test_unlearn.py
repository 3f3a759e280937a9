"""Training, the stop rule, resuming, teaching and memorising."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close
from unlearning import DROPOUT, LORA, Load, assert_same, differ, lora_or_all, settings_of, trained

from unlearn_lib.model import scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example, PassageEncoder
from unlearn_lib.settings import MemoriseSettings, TeachSettings
from unlearn_lib.unlearn import trainer
from unlearn_lib.unlearn.methods import METHODS
from unlearn_lib.unlearn.steps import RETAIN, Pools, step_terms
from unlearn_lib.unlearn.trainer import Outcome, memorise, teach, unlearn
from unlearn_lib.util import CompanionError

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
    assert all(row["tokens"] > 0 for row in outcome.history)
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
    tiny, outcome = run("ga_kl")
    record = trainer.keep(tiny, outcome, tmp_path)
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["total"].tolist() == pytest.approx([row["total"] for row in outcome.history])
    assert record["steps"] == 3 and record["stopped"] is None and "history" not in record
    assert record["tokens"] == history["tokens"].sum() and record["seconds"] > 0


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
@pytest.mark.parametrize("parameters", [10**4, 10**11])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(
    value: float, parameters: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a model's size, it is the state of the last step within bounds."""
    exact = trained(run("ga", steps=3)[0])
    counted = "get_num_trainable_parameters"
    monkeypatch.setattr(trainer.UnlearnTrainer, counted, lambda self: parameters)
    spoil(monkeypatch, 4, value)
    tiny, outcome = run("ga", steps=8, checkpoint_every=5)
    assert f"the loss was {value} at step 4" in outcome.stopped
    assert_same(trained(tiny), exact)
    assert all(p.grad is None for p in tiny.model.parameters())


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
@pytest.mark.parametrize(
    "damaged, first", [("", 4), (trainer.WHOLE, 2), ("optimizer.pt", 2), ("trainer_state.json", 2)]
)
def test_an_interrupted_run_ends_as_an_undisturbed_one(
    damaged: str, first: int, lora: Any, run: Any, tmp_path: Path
) -> None:
    """A checkpoint that was not written to its end, or was altered since, is passed over."""
    undisturbed, expected = run(**RESUMED, lora=lora)
    with pytest.raises(Interrupted):
        run(**RESUMED, lora=lora, on_step=interrupt_at(5))
    if damaged:
        (tmp_path / "checkpoints" / "checkpoint-4" / damaged).write_text("")
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
        (tmp_path / f"checkpoint-{step}" / trainer.WHOLE).write_text("{}")
    assert trainer.last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("every", [2, 50])
def test_only_what_training_wrote_is_removed(every: int, run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "thesis.txt").write_text("six years of work")
    (folder / "checkpoint.txt").write_text("a note")
    run("ga", steps=8, checkpoint_every=every)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        str(Path("mine", "thesis.txt")),
        "checkpoint.txt",
    }


def test_a_folder_with_checkpoints_of_another_program_is_refused(run: Any, tmp_path: Path) -> None:
    """Trainer would delete them to make room for its own."""
    other = tmp_path / "checkpoints" / "checkpoint-500"
    other.mkdir(parents=True)
    (other / "model.safetensors").write_text("weights")
    with pytest.raises(CompanionError, match="checkpoint-500 is no checkpoint of this package"):
        run("ga", steps=8, checkpoint_every=2)
    assert (other / "model.safetensors").read_text() == "weights"


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
    with pytest.raises(CompanionError, match="too short for a passage"):
        settings = MemoriseSettings(epochs=1, learning_rate=1e-3)
        memorise(load_tiny("opt", seed=0), [[]], [], settings, 0, tmp_path / "m")
    with pytest.raises(CompanionError, match="diverged"):
        learn(lora=None, learning_rate=1e6, gradient_clip=0.0)
