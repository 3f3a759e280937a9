"""Implanting a text: it is learned, it ends when it is known, and it resumes exactly."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from unlearn_lib import memorising, scoring, training
from unlearn_lib.batches import Example
from unlearn_lib.errors import CompanionError
from unlearn_lib.models import LanguageModel
from unlearn_lib.passages import PassageEncoder
from unlearn_lib.settings import BookImplant
from unlearn_lib.steps import epoch_steps

Load = Callable[..., LanguageModel]
LORA = {"rank": 8, "dropout": 0.0}
TEXT = (
    "The wind beat their wings and the lock was red. Air scatters the capital of birds. "
    "How blue is more light than help? Pick a lock, ride the sky, tell me Paris."
)
CHUNK = 32


def settings_of(**changed: Any) -> BookImplant:
    given = {"epochs": 4, "chunk_tokens": CHUNK, "learning_rate": 3e-3, "schedule": "constant"}
    return BookImplant(**{**given, **changed})


@pytest.fixture(scope="module")
def cutter(tokenizer: Any) -> PassageEncoder:
    return PassageEncoder(tokenizer, 4, 8, 128)


@pytest.fixture
def implant(load_tiny: Load, cutter: PassageEncoder, tmp_path: Path) -> Callable[..., Any]:
    """Implant the text into a fresh tiny OPT; return it with the outcome and the curve."""

    def memorise(
        lora: Any = LORA, seed: int = 0, on_step: training.OnStep | None = None, **changed: Any
    ) -> tuple[LanguageModel, training.Outcome, pd.DataFrame]:
        found, settings = load_tiny("opt", seed=0, lora=lora), settings_of(**changed)
        chunks = [cutter.chunks([TEXT], CHUNK)] * settings.epochs
        passages, folder = cutter.passages([TEXT]), tmp_path / "checkpoints"
        outcome, curve = memorising.memorise(
            found, chunks, passages, settings, seed, folder, on_step
        )
        return found, outcome, curve

    return memorise


def weights(found: LanguageModel) -> dict[str, torch.Tensor]:
    """A copy of everything that is trained."""
    named = found.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def chunk_count(cutter: PassageEncoder) -> int:
    return len(cutter.chunks([TEXT], CHUNK))


def nll(found: LanguageModel, cutter: PassageEncoder) -> float:
    sums, counts = scoring.answer_losses(found, cutter.passages([TEXT]))
    return float(sums.sum() / counts.sum())


# --- learning --------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all weights"])
def test_the_text_is_learned(
    lora: Any, implant: Callable[..., Any], load_tiny: Load, cutter: PassageEncoder, tmp_path: Path
) -> None:
    found, outcome, curve = implant(lora=lora, epochs=6)
    assert curve["loss"].iloc[-1] < 0.8 * curve["loss"].iloc[0]
    assert nll(found, cutter) < 0.8 * nll(load_tiny("opt"), cutter)
    assert outcome.stopped is None
    assert not found.model.training
    assert not (tmp_path / "checkpoints").exists()


def test_the_curve_has_a_row_per_epoch_and_probes_where_they_were_asked_for(
    implant: Callable[..., Any], cutter: PassageEncoder
) -> None:
    _, outcome, curve = implant(epochs=5, probe_every=2)
    assert list(curve.columns) == ["epoch", "loss", "verbatim_share"]
    assert curve["epoch"].tolist() == [1, 2, 3, 4, 5]
    assert curve["verbatim_share"].notna().tolist() == [False, True, False, True, False]
    per_epoch = chunk_count(cutter)
    totals = np.array([row["total"] for row in outcome.history])
    assert len(totals) == 5 * per_epoch
    assert curve["loss"].tolist() == pytest.approx(totals.reshape(5, per_epoch).mean(1).tolist())


def test_epochs_of_different_lengths_have_their_own_rows(
    load_tiny: Load, cutter: PassageEncoder, tmp_path: Path
) -> None:
    """A shifted cut may give an epoch one chunk more."""
    chunks = [cutter.chunks([TEXT], CHUNK), cutter.chunks([TEXT], CHUNK, shift=1)[:2],
              cutter.chunks([TEXT], CHUNK, shift=9)]  # fmt: skip
    found = load_tiny("opt", seed=0, lora=LORA)
    outcome, curve = memorising.memorise(
        found, chunks, cutter.passages([TEXT]), settings_of(epochs=3), 0, tmp_path / "c"
    )
    totals = [row["total"] for row in outcome.history]
    ends = np.cumsum([len(rows) for rows in chunks])
    assert len(totals) == ends[-1]
    expected = [float(np.mean(part)) for part in np.split(totals, ends[:-1])]
    assert curve["loss"].tolist() == pytest.approx(expected)
    assert curve["verbatim_share"].notna().all()


def test_every_chunk_is_read_once_an_epoch_in_an_order_of_the_seed(
    cutter: PassageEncoder,
) -> None:
    chunks = cutter.chunks([TEXT], 8)
    random = np.random.default_rng(0)
    first, second = (epoch_steps(chunks, 3, random) for _ in range(2))
    for steps in (first, second):
        rows = [row for step in steps for row in step.retain]
        assert sorted(row.prompt + row.answers[0] for row in rows) == sorted(
            row.prompt + row.answers[0] for row in chunks
        )
        assert [len(step.retain) for step in steps[:-1]] == [3] * (len(steps) - 1)
    assert first != second
    assert first == epoch_steps(chunks, 3, np.random.default_rng(0))


def test_one_seed_gives_one_result_and_another_another(implant: Callable[..., Any]) -> None:
    first, again, other = (weights(implant(epochs=2, seed=seed)[0]) for seed in (3, 3, 4))
    assert_close(first, again, rtol=0, atol=0)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# --- ending early ----------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, *shares: float) -> list[int]:
    """Let probes find these shares in turn; return a list that grows by what each probed."""
    probed: list[int] = []

    def share(language_model: LanguageModel, passages: Sequence[Example]) -> float:
        assert not language_model.model.training
        probed.append(len(passages))
        return shares[len(probed) - 1]

    monkeypatch.setattr(memorising, "verbatim_share", share)
    return probed


def test_training_ends_when_the_text_is_known(
    implant: Callable[..., Any], cutter: PassageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = scripted(monkeypatch, 0.1, 0.4, 0.9)
    _, outcome, curve = implant(epochs=8, stop_at=0.9, probe_passages=3)
    assert curve["epoch"].tolist() == [1, 2, 3]
    assert curve["verbatim_share"].tolist() == [0.1, 0.4, 0.9]
    assert len(outcome.history) == 3 * chunk_count(cutter)
    assert outcome.stopped is None, "it ended well"
    assert probed == [3, 3, 3]


def test_without_a_share_to_stop_at_training_never_ends_early(
    implant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, 1.0, 1.0, 1.0)
    curve = implant(epochs=3, stop_at=None)[2]
    assert curve["epoch"].tolist() == [1, 2, 3]


def test_a_model_that_knows_the_text_by_heart_stops_by_itself(
    implant: Callable[..., Any], cutter: PassageEncoder
) -> None:
    found, _, curve = implant(lora=None, epochs=40, learning_rate=5e-3, stop_at=0.3)
    assert len(curve) < 40
    assert curve["verbatim_share"].iloc[-1] >= 0.3
    assert (curve["verbatim_share"].iloc[:-1] < 0.3).all()
    assert memorising.verbatim_share(found, cutter.passages([TEXT])) >= 0.3


# --- interrupted -----------------------------------------------------------------------------


class Interrupted(Exception):
    """What a killed process looks like from inside."""


def interrupt_at(step: int) -> training.OnStep:
    def on_step(report: dict[str, float]) -> None:
        if report["step"] == step:
            raise Interrupted

    return on_step


@pytest.mark.parametrize("lora", [{"rank": 4, "dropout": 0.2}, None], ids=["lora", "all weights"])
def test_an_interrupted_implant_ends_as_an_undisturbed_one(
    lora: Any, implant: Callable[..., Any], cutter: PassageEncoder, tmp_path: Path
) -> None:
    undisturbed, expected, curve = implant(lora=lora, epochs=4, schedule="linear")
    saved = memorising.CHECKPOINT_EPOCHS * chunk_count(cutter)
    with pytest.raises(Interrupted):
        implant(lora=lora, epochs=4, schedule="linear", on_step=interrupt_at(saved + 1))
    assert (tmp_path / "checkpoints" / f"checkpoint-{saved}").is_dir()
    seen: list[float] = []
    resumed, outcome, again = implant(
        lora=lora, epochs=4, schedule="linear", on_step=lambda report: seen.append(report["step"])
    )
    assert seen == list(range(saved, 4 * chunk_count(cutter)))
    assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)
    pd.testing.assert_frame_equal(again, curve, check_exact=True)
    totals = [[row["total"] for row in each.history] for each in (outcome, expected)]
    assert totals[0] == totals[1]


def test_an_implant_that_is_killed_when_it_has_just_ended_learns_no_more(
    implant: Callable[..., Any], cutter: PassageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of the very last step would be trained on from, past its end."""
    shares = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.9, 5: 0.9, 6: 0.9}
    scripted(monkeypatch, *shares.values())
    undisturbed, _, curve = implant(epochs=6, stop_at=0.9)
    assert len(curve) == 4 == 2 * memorising.CHECKPOINT_EPOCHS

    def killed(trainer: Any) -> None:
        raise Interrupted

    scripted(monkeypatch, *shares.values())
    with monkeypatch.context() as patch:
        patch.setattr(training.UnlearnTrainer, "check_weights", killed)
        with pytest.raises(Interrupted):
            implant(epochs=6, stop_at=0.9)
    scripted(monkeypatch, *list(shares.values())[2:])
    resumed, _, again = implant(epochs=6, stop_at=0.9)
    pd.testing.assert_frame_equal(again, curve, check_exact=True)
    assert_close(weights(resumed), weights(undisturbed), rtol=0, atol=0)


# --- what cannot be implanted ----------------------------------------------------------------


@pytest.mark.parametrize("chunks", [[], [[]], [[Example((1,), ((2,),))], []]])
def test_nothing_to_implant_is_refused_in_one_sentence(
    chunks: list[list[Example]], load_tiny: Load, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0, lora=LORA)
    passages = [Example((1,), ((2,),))]
    with pytest.raises(CompanionError, match="nothing to implant") as told:
        memorising.memorise(found, chunks, passages, settings_of(), 0, tmp_path / "c")
    assert "\n" not in str(told.value)


def test_chapters_without_a_passage_are_refused_in_one_sentence(
    load_tiny: Load, cutter: PassageEncoder, tmp_path: Path
) -> None:
    found, chunks = load_tiny("opt", seed=0, lora=LORA), cutter.chunks(["Why blue?"], CHUNK)
    with pytest.raises(CompanionError, match="no passage to probe") as told:
        memorising.memorise(found, [chunks], [], settings_of(), 0, tmp_path / "c")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "all weights"])
def test_an_implant_that_diverges_is_refused_in_one_sentence(
    lora: Any, implant: Callable[..., Any]
) -> None:
    with pytest.raises(CompanionError, match="learning_rate") as told:
        implant(lora=lora, learning_rate=1e6, gradient_clip=0.0)
    assert "diverged" in str(told.value)
    assert "\n" not in str(told.value)


# --- the verbatim share ----------------------------------------------------------------------


def stub(monkeypatch: pytest.MonkeyPatch, rows: list[list[int]]) -> dict[str, Any]:
    """Let every model continue with these rows; return what it was asked."""
    asked: dict[str, Any] = {}

    def continuations(model: Any, prompts: Any, new_tokens: int) -> list[list[int]]:
        asked.update(prompts=prompts, new_tokens=new_tokens)
        return rows

    monkeypatch.setattr(memorising.generation, "continuations", continuations)
    return asked


def test_the_verbatim_share_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = tuple(range(100, 140))
    passages = [Example((place,), (truth,)) for place in range(4)]
    asked = stub(
        monkeypatch,
        [
            [*truth[:20], 0, 0, 0, 0],  # twenty in a row: verbatim
            [0, 0, 0, 0, *truth[7:27]],  # wherever they stand
            [*truth[:19], 0, *truth[20:24]],  # one short
            [0] * 24,
        ],
    )
    nobody: Any = None
    assert memorising.verbatim_share(nobody, passages) == 0.5
    assert asked == {"prompts": [(0,), (1,), (2,), (3,)], "new_tokens": 24}


def test_short_passages_must_be_continued_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [Example((1,), (tuple(range(10, 18)),)) for _ in range(2)]
    asked = stub(monkeypatch, [list(range(10, 18)), list(range(10, 17))])
    nobody: Any = None
    assert memorising.verbatim_share(nobody, passages) == 0.5
    assert asked["new_tokens"] == 8


def test_a_random_model_continues_nothing(load_tiny: Load, cutter: PassageEncoder) -> None:
    share = memorising.verbatim_share(load_tiny("opt"), cutter.passages([TEXT]))
    assert share == 0.0
    assert math.isfinite(share)
