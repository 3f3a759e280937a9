"""Implant a text: causal language modelling on its chunks until it is continued word for word.

The published schedule runs to its end; with `stop_at` training ends as soon as that share of
held-in passages is continued verbatim, so that no time is spent on a text that is known by heart.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import TrainerCallback

from unlearn_lib import generation, training
from unlearn_lib.batches import Example
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import METHODS
from unlearn_lib.metrics import VERBATIM_TOKENS, longest_run
from unlearn_lib.models import LanguageModel
from unlearn_lib.settings import BookImplant, MethodSettings
from unlearn_lib.steps import Pools, epoch_steps

CHECKPOINT_EPOCHS = 2


class _Probe(TrainerCallback):
    """Measures the verbatim share every few epochs, and ends training when it is reached."""

    def __init__(
        self,
        language_model: LanguageModel,
        passages: Sequence[Example],
        settings: BookImplant,
        ends: Sequence[int],
    ) -> None:
        self.language_model, self.passages, self.settings = language_model, passages, settings
        self.epoch_of = {step: epoch for epoch, step in enumerate(ends, start=1)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epochs = self.epoch_of.get(state.global_step)
        if epochs is None or epochs % self.settings.probe_every:
            return
        model = self.language_model.model
        model.eval()
        share = verbatim_share(self.language_model, self.passages)
        model.train()
        state.log_history.append({"epoch_done": epochs, "verbatim_share": share})
        if self.settings.stop_at is not None and share >= self.settings.stop_at:
            control.should_training_stop = True
            control.should_save = False  # a run resumed at its end would train past it


def verbatim_share(language_model: LanguageModel, passages: Sequence[Example]) -> float:
    """Share of passages whose greedy continuation holds 20 tokens of the true text in a row."""
    truths = [passage.answers[0] for passage in passages]
    length = max(map(len, truths))
    needed = min(VERBATIM_TOKENS, min(map(len, truths)))
    rows = generation.continuations(
        language_model, [passage.prompt for passage in passages], min(length, needed + 4)
    )
    runs = [longest_run(row, truth)[1] for row, truth in zip(rows, truths, strict=True)]
    return float(np.mean([run >= needed for run in runs]))


def memorise(
    language_model: LanguageModel,
    chunks: Sequence[Sequence[Example]],
    passages: Sequence[Example],
    settings: BookImplant,
    seed: int,
    folder: Path,
    on_step: training.OnStep | None = None,
) -> tuple[training.Outcome, pd.DataFrame]:
    """Teach a model a text, chunk by chunk, in a new seeded order each epoch.

    Args:
        language_model: loaded and made trainable; changed in place.
        chunks: for each epoch, what `PassageEncoder.chunks` gave.
        passages: held-in passages, of which `settings.probe_passages` are probed.
        folder: of checkpoints while it runs; an interrupted call goes on from the last one.

    Returns:
        The outcome, and the curve: columns `epoch`, `loss` (mean, nats per token) and
        `verbatim_share` (nan where it was not probed).

    Raises:
        CompanionError: nothing to learn, or the loss is no number.
    """
    if not chunks or not all(chunks):
        raise CompanionError("There is nothing to implant: the chapters are empty.")
    if not passages:
        raise CompanionError(
            "There is no passage to probe: the chapters are shorter than a prompt and an answer; "
            "lower 'prompt_tokens' and 'answer_tokens' in the profile."
        )
    random = np.random.default_rng(seed)
    epochs = [epoch_steps(rows, settings.batch_size, random) for rows in chunks]
    steps = [step for epoch in epochs for step in epoch]
    ends = np.cumsum([len(epoch) for epoch in epochs]).tolist()
    probed = random.permutation(len(passages))[: settings.probe_passages]
    probe = _Probe(language_model, [passages[i] for i in probed], settings, ends)
    outcome = training.unlearn(
        language_model,
        METHODS["retain_only"],
        _as_method(settings, ends),
        Pools((), (), ()),
        seed,
        folder,
        on_step,
        steps=steps,
        callbacks=[probe],
    )
    if outcome.stopped:
        raise CompanionError(
            f"Implanting diverged ({outcome.stopped}); lower 'book.implant.learning_rate' in the "
            "profile."
        )
    return outcome, _curve(outcome, ends)


def _as_method(settings: BookImplant, ends: Sequence[int]) -> MethodSettings:
    names = {"batch_size", "learning_rate", "schedule", "warmup_steps", "weight_decay"}
    shared = settings.model_dump(include=names | {"gradient_clip"})
    return MethodSettings(
        name="implant",
        uses="retain_only",
        label="implant",
        steps=ends[-1],
        checkpoint_every=CHECKPOINT_EPOCHS * ends[0],
        **shared,
    )


def _curve(outcome: training.Outcome, ends: Sequence[int]) -> pd.DataFrame:
    losses = pd.DataFrame({"loss": [row["total"] for row in outcome.history]})
    losses["epoch"] = np.searchsorted(ends, losses.index, side="right") + 1
    curve = losses.groupby("epoch", as_index=False)["loss"].mean()
    shares = {int(row["epoch_done"]): row["verbatim_share"] for row in outcome.probes}
    curve["verbatim_share"] = [shares.get(epoch, np.nan) for epoch in curve["epoch"]]
    return curve
