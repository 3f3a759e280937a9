"""`unlearn()` and `implant()` on `transformers.Trainer`.

The rows of each step are drawn beforehand (`steps.py`). The stop rule fires, unlike that of the
released code of Arora et al., which compares a negated loss with its cap: training ends at the
last state whose loss was within bounds.

Trainer's own checkpoints (optimiser and random state, read back with `weights_only`) live only
while a run is under way; what a run leaves is safetensors and JSON.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from unlearn_lib import models
from unlearn_lib.batches import Example
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import METHODS, NEEDS_REFERENCE, Method
from unlearn_lib.settings import ImplantSettings, MethodSettings
from unlearn_lib.steps import Pools, Step, draw_steps, epoch_steps, step_terms

SNAPSHOT_EVERY_STEP_BELOW = 50_000_000
LAST_GOOD = "last_good.safetensors"
OnStep = Callable[[dict[str, float]], None]


@dataclass
class Outcome:
    """What training did: one row per step, why it ended early, if it did, and probes on the way."""

    history: list[dict[str, float]]
    stopped: str | None
    seconds: float
    tokens: int
    hardware: dict[str, str] = field(default_factory=dict)
    probes: list[dict[str, float]] = field(default_factory=list)


class _StopTraining(Exception):
    """Raised inside a step whose weights must not be kept."""


class UnlearnTrainer(Trainer):
    """A Trainer whose loss is a method's weighted sum over one packed row per step."""

    method: Method
    settings: MethodSettings
    frozen: Any = None
    on_step: OnStep | None = None
    stopped: str | None = None
    _good: dict[str, torch.Tensor] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        """Keep the drawn order: the steps are shuffled already."""
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Compute one step's loss, log its terms, and stop when a limit is passed."""
        began = time.perf_counter()
        bare = self.accelerator.unwrap_model(model)
        loss, report = step_terms(bare, inputs["step"], self.method, self.settings, self.frozen)
        self._check(report)
        self._keep(bare)
        report["forward_seconds"] = time.perf_counter() - began
        report["step"] = self.state.global_step
        self.state.log_history.append(report)
        if self.on_step:
            self.on_step(report)
        return loss

    def _check(self, report: dict[str, float]) -> None:
        step, cap = self.state.global_step, self.settings.forget_loss_cap
        if not math.isfinite(report["total"]):
            self.stopped = f"the loss was {report['total']} at step {step}"
        elif report.get("forget_nll", 0.0) > cap:
            self.stopped = f"the forget loss passed the cap {cap:g} at step {step}"
        if self.stopped:
            raise _StopTraining

    def _keep(self, model: Any) -> None:
        """Remember the weights of the last step whose loss was within bounds."""
        trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
        size = sum(p.numel() for p in trainable.values())
        every = 1 if size < SNAPSHOT_EVERY_STEP_BELOW else self.settings.checkpoint_every
        if self._good is None or self.state.global_step % every == 0:
            self._good = {
                n: p.detach().to("cpu", copy=True).contiguous() for n, p in trainable.items()
            }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Keep the last good state with the checkpoint: the next loss may be out of bounds."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(self._good or {}, checkpoint / LAST_GOOD)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._good = load_file(Path(resume_from_checkpoint) / LAST_GOOD)

    def check_weights(self) -> None:
        """Refuse weights that the last step made infinite: no loss has seen them."""
        trained = (p for p in self.model.parameters() if p.requires_grad)
        if not all(bool(parameter.isfinite().all()) for parameter in trained):
            self.stopped = f"the weights were no numbers after step {self.state.global_step - 1}"
            raise _StopTraining

    def restore_last_good(self) -> None:
        """Put the remembered weights back.

        Raises:
            CompanionError: the very first loss was out of bounds.
        """
        if self._good is None:
            raise CompanionError(
                f"Method '{self.settings.name}' diverged before its first step: {self.stopped}; "
                "lower its learning_rate, or raise forget_loss_cap in the profile."
            )
        with torch.no_grad():
            for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
                if name in self._good:
                    parameter.copy_(self._good[name])


class _Clock(TrainerCallback):
    """Wall time of each optimisation step, put into that step's log row."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = time.perf_counter() - self.began


def unlearn(
    language_model: models.LanguageModel,
    method: Method,
    settings: MethodSettings,
    pools: Pools,
    seed: int,
    folder: Path,
    on_step: OnStep | None = None,
    steps: Sequence[Step] | None = None,
    frozen: Any = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Outcome:
    """Train a model to forget, by the method's weighted sum of losses.

    θ ← θ - ∇(ε1·L_fgt + ε2·L_rdn + ε3·L_nor), Arora et al. 2024, with AdamW.

    Args:
        language_model: loaded and made trainable; changed in place.
        pools: tokenised rows.
        seed: decides the rows of every step and the dropout.
        folder: where checkpoints lie while the run is under way; an interrupted run that is
            called again with the same folder goes on from the last whole checkpoint.
        on_step: called with each step's report, for a live curve.
        steps: the rows of every step, where they are not to be drawn from `pools`.
        frozen: the original model, where it is not `language_model` without its adapter.
        callbacks: more of Trainer's callbacks, such as one that ends training.

    Raises:
        CompanionError: a needed set is empty, or the first loss is already out of bounds.
    """
    steps = draw_steps(pools, method, settings, seed) if steps is None else steps
    trainer = UnlearnTrainer(
        model=language_model.model,
        args=_arguments(language_model, settings, seed, folder),
        train_dataset=[{"step": step} for step in steps],
        data_collator=lambda items: items[0],
        callbacks=[_Clock(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.method, trainer.settings, trainer.on_step = method, settings, on_step
    trainer.frozen = frozen
    if frozen is None and {method.retain, method.forget, method.keep} & set(NEEDS_REFERENCE):
        trainer.frozen = models.freeze_copy(language_model.model)
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
        trainer.check_weights()
    except _StopTraining:
        trainer.restore_last_good()
        trainer.stopped = f"stopped: {trainer.stopped}; the last good state was kept"
        print(f"{settings.label}: {trainer.stopped}")
    shutil.rmtree(folder, ignore_errors=True)
    return _outcome(trainer, trainer.stopped, language_model)


def _outcome(
    trainer: Trainer, stopped: str | None, language_model: models.LanguageModel
) -> Outcome:
    language_model.model.eval()
    history = [row for row in trainer.state.log_history if "total" in row]
    return Outcome(
        history,
        stopped,
        seconds=sum(row.get("seconds", 0.0) for row in history),
        tokens=int(sum(row.get("tokens", 0) for row in history)),
        hardware=language_model.hardware,
        probes=[row for row in trainer.state.log_history if "epoch_done" in row],
    )


def _arguments(
    language_model: models.LanguageModel, settings: MethodSettings, seed: int, folder: Path
) -> TrainingArguments:
    got = language_model.hardware
    all_weights = not hasattr(language_model.model, "peft_config")
    checkpointing = bool(getattr(language_model.model, "is_activation_checkpointing", False))
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.gradient_clip,
        seed=seed,
        data_seed=seed,
        bf16=all_weights and got["precision_asked"] == "bfloat16" and got["device"] == "cuda",
        use_cpu=got["device"] == "cpu",
        activation_checkpointing=checkpointing,
        save_strategy="steps" if settings.checkpoint_every < settings.steps else "no",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )


def last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end, or None to start afresh.

    Trainer writes `trainer_state.json` last; a checkpoint without a readable one is deleted.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for checkpoint in reversed(checkpoints):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def implant(
    language_model: models.LanguageModel,
    examples: Sequence[Example],
    settings: ImplantSettings,
    seed: int,
    folder: Path,
    on_step: OnStep | None = None,
) -> Outcome:
    """Teach a model its examples by cross-entropy on the answers.

    Args:
        language_model: loaded and made trainable; changed in place.
        examples: one answer each; every epoch deals all of them in a new order.
        seed, folder, on_step: as in `unlearn`.

    Raises:
        CompanionError: nothing to learn, or the loss is no number.
    """
    if not examples:
        raise CompanionError("There is nothing to implant: the set is empty.")
    random = np.random.default_rng(seed)
    epochs = [epoch_steps(examples, settings.batch_size, random) for _ in range(settings.epochs)]
    steps = [step for epoch in epochs for step in epoch]
    as_method = MethodSettings(
        name="implant",
        uses="retain_only",
        label="implant",
        steps=len(steps),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        gradient_clip=1.0,
        checkpoint_every=2 * len(epochs[0]),
    )
    method, none = METHODS["retain_only"], Pools((), (), ())
    outcome = unlearn(language_model, method, as_method, none, seed, folder, on_step, steps)
    if outcome.stopped:
        raise CompanionError(
            f"Implanting diverged ({outcome.stopped}); lower 'implant.learning_rate' in the "
            "profile."
        )
    return outcome
