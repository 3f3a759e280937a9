"""`unlearn()`, `teach()` and `memorise()` on `transformers.Trainer`.

The rows of each step are drawn beforehand (`steps.py`). The stop rule fires, unlike that of the
released code of Arora et al., which compares a negated loss with its cap: training ends at the
last state whose loss was within bounds.

Trainer's own checkpoints (optimiser and random state, read back with `weights_only`) live only
while a run is under way; what a run leaves is safetensors and JSON.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from unlearn_lib.model.generate import continuations
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MemoriseSettings, MethodSettings, TeachSettings
from unlearn_lib.unlearn.losses import gradient_descent
from unlearn_lib.unlearn.methods import NEEDS_REFERENCE, Method
from unlearn_lib.unlearn.steps import Pools, Step, draw_steps, epoch_steps, step_terms
from unlearn_lib.util import CompanionError

TEACH = Method("teach", "cross-entropy on the answers", retain=gradient_descent)
SNAPSHOT_EVERY_STEP_BELOW = 50_000_000
LAST_GOOD = "last_good.safetensors"
CHECKPOINT_EPOCHS = 2
VERBATIM_TOKENS = 20
"""A continuation that shares a run of so many tokens with the true text is verbatim."""
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


def keep(outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write a training's history as `history.csv`; return the rest and the number of `steps`."""
    pd.DataFrame(outcome.history).to_csv(folder / "history.csv", index=False)
    record = asdict(outcome)
    del record["history"]
    return record | {"steps": len(outcome.history)}


class _StopTraining(Exception):
    """Raised inside a step whose weights must not be kept."""


class UnlearnTrainer(Trainer):
    """A Trainer whose loss is a method's weighted sum over one packed row per step."""

    method: Method
    settings: MethodSettings
    frozen: Any = None
    on_step: OnStep | None = None
    stopped: str | None = None
    good: dict[str, torch.Tensor] | None = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        """Compute one step's loss, log its terms, and stop when a limit is passed."""
        bare, number = self.accelerator.unwrap_model(model), self.state.global_step
        loss, report = step_terms(bare, inputs["step"], self.method, self.settings, self.frozen)
        cap = self.settings.forget_loss_cap
        if not math.isfinite(report["total"]):
            self.stop(f"the loss was {report['total']} at step {number}")
        if report.get("forget_nll", 0.0) > cap:
            self.stop(f"the forget loss passed the cap {cap:g} at step {number}")
        self.remember()
        report["step"] = number
        self.state.log_history.append(report)
        if self.on_step:
            self.on_step(report)
        return loss

    def stop(self, reason: str) -> None:
        """End training; the weights of this step are not kept."""
        self.stopped = reason
        raise _StopTraining

    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that is trained, by name."""
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def remember(self) -> None:
        """Copy the weights of a step whose loss was within bounds; of large models, not of all."""
        trained = self.trained()
        small = sum(p.numel() for p in trained.values()) < SNAPSHOT_EVERY_STEP_BELOW
        every = 1 if small else self.settings.checkpoint_every
        if self.good is None or self.state.global_step % every == 0:
            self.good = {
                name: parameter.detach().to("cpu", copy=True).contiguous()
                for name, parameter in trained.items()
            }

    def check_weights(self) -> None:
        """Refuse weights that the last step made infinite: no loss has seen them."""
        if not all(bool(parameter.isfinite().all()) for parameter in self.trained().values()):
            self.stop(f"the weights were no numbers after step {self.state.global_step - 1}")

    def restore_last_good(self) -> None:
        """Put the remembered weights back.

        Raises:
            CompanionError: the very first loss was out of bounds.
        """
        if self.good is None:
            raise CompanionError(
                f"Method '{self.method.name}' diverged before its first step ({self.stopped}); "
                "lower its learning_rate, or raise forget_loss_cap in the profile."
            )
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(self.good[name])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Keep the last good state with the checkpoint: the next loss may be out of bounds."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        save_file(self.good or {}, checkpoint / LAST_GOOD)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.good = load_file(Path(resume_from_checkpoint) / LAST_GOOD)


class _Clock(TrainerCallback):
    """Wall time of each optimisation step, put into that step's log row."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.log_history[-1]["seconds"] = time.perf_counter() - self.began


def unlearn(
    language_model: LanguageModel,
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
    needs_original = {method.retain, method.forget, method.keep} & NEEDS_REFERENCE
    if frozen is None and needs_original and not isinstance(language_model.model, PeftModel):
        frozen = copy.deepcopy(language_model.model).eval().requires_grad_(False)
    trainer.method, trainer.settings = method, settings
    trainer.frozen, trainer.on_step = frozen, on_step
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
        trainer.check_weights()
    except _StopTraining:
        trainer.restore_last_good()
        trainer.stopped = f"stopped: {trainer.stopped}; the last good state was kept"
        print(f"{settings.label or method.name}: {trainer.stopped}")
    shutil.rmtree(folder, ignore_errors=True)
    language_model.model.eval()
    history = [row for row in trainer.state.log_history if "total" in row]
    return Outcome(
        history,
        trainer.stopped,
        seconds=sum(row.get("seconds", 0.0) for row in history),
        tokens=int(sum(row["tokens"] for row in history)),
        hardware=language_model.hardware,
        probes=[row for row in trainer.state.log_history if "epoch_done" in row],
    )


def _arguments(
    language_model: LanguageModel, settings: MethodSettings, seed: int, folder: Path
) -> TrainingArguments:
    model, hardware = language_model.model, language_model.hardware
    bfloat16 = hardware["precision_asked"] == "bfloat16" and hardware["device"] == "cuda"
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.gradient_clip,
        seed=seed,
        bf16=bfloat16 and not isinstance(model, PeftModel),
        use_cpu=hardware["device"] == "cpu",
        activation_checkpointing=bool(getattr(model, "is_activation_checkpointing", False)),
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


def teach(
    language_model: LanguageModel,
    examples: Sequence[Example],
    settings: TeachSettings,
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
        raise CompanionError("There is nothing to teach: the set is empty.")
    random = np.random.default_rng(seed)
    epochs = [epoch_steps(examples, settings.batch_size, random) for _ in range(settings.epochs)]
    return _learn(language_model, epochs, settings, seed, folder, on_step)


def _learn(
    language_model: LanguageModel,
    epochs: Sequence[Sequence[Step]],
    settings: TeachSettings | MemoriseSettings,
    seed: int,
    folder: Path,
    on_step: OnStep | None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Outcome:
    steps = [step for epoch in epochs for step in epoch]
    shared = {"gradient_clip": 1.0, "checkpoint_every": CHECKPOINT_EPOCHS * len(epochs[0])}
    shared |= settings.model_dump(include=set(MethodSettings.model_fields))
    as_method = MethodSettings(steps=len(steps), **shared)
    outcome = unlearn(
        language_model,
        TEACH,
        as_method,
        Pools(),
        seed,
        folder,
        on_step,
        steps=steps,
        callbacks=callbacks,
    )
    if outcome.stopped:
        raise CompanionError(
            f"Teaching diverged ({outcome.stopped}); lower its learning_rate in the profile."
        )
    return outcome


@dataclass(eq=False)
class _Probe(TrainerCallback):
    """Measures the verbatim share every few epochs, and ends training when it is reached."""

    language_model: LanguageModel
    passages: Sequence[Example]
    settings: MemoriseSettings
    ends: list[int]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        epochs = self.ends.index(state.global_step) + 1 if state.global_step in self.ends else 0
        if epochs == 0 or epochs % self.settings.probe_every:
            return
        self.language_model.model.eval()
        share = verbatim_share(self.language_model, self.passages)
        self.language_model.model.train()
        state.log_history.append({"epoch_done": epochs, "verbatim_share": share})
        if self.settings.stop_at is not None and share >= self.settings.stop_at:
            control.should_training_stop = True
            control.should_save = False  # a run resumed at its end would train past it


def verbatim_share(language_model: LanguageModel, passages: Sequence[Example]) -> float:
    """Share of passages whose greedy continuation holds 20 tokens of the true text in a row."""
    truths = [passage.answers[0] for passage in passages]
    needed = min(VERBATIM_TOKENS, *map(len, truths))
    length = min(max(map(len, truths)), needed + 4)
    rows = continuations(language_model, [passage.prompt for passage in passages], length)
    matchers = (SequenceMatcher(None, *pair, autojunk=False) for pair in zip(rows, truths))
    return float(np.mean([m.find_longest_match().size >= needed for m in matchers]))


def memorise(
    language_model: LanguageModel,
    chunks: Sequence[Sequence[Example]],
    passages: Sequence[Example],
    settings: MemoriseSettings,
    seed: int,
    folder: Path,
    on_step: OnStep | None = None,
) -> tuple[Outcome, pd.DataFrame]:
    """Teach a model a text, chunk by chunk, in a new seeded order each epoch.

    The published schedule runs to its end; with `stop_at` training ends as soon as that share of
    held-in passages is continued verbatim, so no time is spent on a text that is known by heart.

    Args:
        language_model: loaded and made trainable; changed in place.
        chunks: for each epoch, what `PassageEncoder.chunks` returned.
        passages: held-in passages, of which `settings.probe_passages` are probed.
        seed, folder, on_step: as in `unlearn`.

    Returns:
        The outcome, and the curve: columns `epoch`, `loss` (mean, nats per token) and
        `verbatim_share` (nan where it was not probed).

    Raises:
        CompanionError: nothing to learn, or the loss is no number.
    """
    if not passages:
        raise CompanionError(
            "There is no passage to memorise: the chapters are empty, or shorter than a prompt "
            "and an answer; lower 'prompt_tokens' and 'answer_tokens' in the profile."
        )
    random = np.random.default_rng(seed)
    epochs = [epoch_steps(rows, settings.batch_size, random) for rows in chunks]
    ends = np.cumsum([len(epoch) for epoch in epochs]).tolist()
    probed = random.permutation(len(passages))[: settings.probe_passages]
    probe = _Probe(language_model, [passages[i] for i in probed], settings, ends)
    outcome = _learn(language_model, epochs, settings, seed, folder, on_step, [probe])
    losses = pd.DataFrame({"loss": [row["total"] for row in outcome.history]})
    losses["epoch"] = np.searchsorted(ends, losses.index, side="right") + 1
    curve = losses.groupby("epoch", as_index=False)["loss"].mean()
    shares = {int(row["epoch_done"]): row["verbatim_share"] for row in outcome.probes}
    curve["verbatim_share"] = [shares.get(epoch, np.nan) for epoch in curve["epoch"]]
    return outcome, curve
