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
from contextlib import suppress
from dataclasses import dataclass
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
from unlearn_lib.model.loading import LanguageModel, save
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MemoriseSettings, MethodSettings, TeachSettings
from unlearn_lib.unlearn.methods import GD, Method
from unlearn_lib.unlearn.steps import Pools, Step, draw_steps, epoch_steps, rescored, step_terms
from unlearn_lib.util import CompanionError, file_digests, flush, one_device, say, write_text

TEACH = Method("teach", "cross-entropy on the answers", **GD)
LAST_GOOD, WHOLE = "last_good.safetensors", "whole.json"
CHECKPOINT_EPOCHS = 2
VERBATIM_TOKENS = 20
"""A continuation that shares a run of so many tokens with the true text is verbatim."""
OnStep = Callable[[dict[str, float]], None]


@dataclass
class Outcome:
    """What training did: one row per step, why it ended early, if it did, and on what it ran."""

    history: list[dict[str, float]]
    stopped: str | None
    hardware: dict[str, str]


def keep(language_model: LanguageModel, outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write what was trained as `model` and its history as `history.csv`; return what it cost."""
    model, history = language_model.model, outcome.history
    save(model, language_model.tokenizer, folder / "model")
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    costs: dict[str, Any] = {key: sum(row[key] for row in history) for key in ("seconds", "tokens")}
    costs["parameters_changed"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    costs |= {"stopped": outcome.stopped, "hardware": outcome.hardware, "steps": len(history)}
    return costs


class _StopTraining(Exception):
    """The reason why training ends at a step whose weights must not be kept."""


class UnlearnTrainer(Trainer):
    """A Trainer whose loss is a method's weighted sum over a step's rows, packed part by part."""

    terms: Callable[[Step, MethodSettings], tuple[torch.Tensor, dict[str, float]]]
    settings: MethodSettings
    on_step: OnStep | None
    good: dict[str, torch.Tensor]

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        """Add up the gradients of a step's parts, log its terms, stop when a limit is passed."""
        number, step, loss = self.state.global_step, inputs["step"], torch.zeros(())
        if step is not self.train_dataset[number]:
            raise CompanionError(f"Step {number} got the rows of another: start one process alone.")
        self.report: dict[str, float] = {}
        for part in step.parts(self.settings):
            loss = super().training_step(model, {"part": part}, *rest) + loss
        report, cap = self.report, self.settings.forget_loss_cap
        if not math.isfinite(report["total"]):
            raise _StopTraining(f"the loss was {report['total']} at step {number}")
        if report.get("forget_nll", 0.0) > cap:
            raise _StopTraining(f"the forget loss passed the cap {cap:g} at step {number}")
        self.remember()
        report["step"] = number
        self.state.log_history.append(report)
        if self.on_step:
            self.on_step(report)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        """Compute the loss of a part of a step, and add its terms to the step's report."""
        part, settings, shares = inputs["part"]
        loss, report = self.terms(part, settings)
        for key, value in report.items():
            self.report[key] = self.report.get(key, 0) + value * shares.get(key, 1)
        return loss

    def remember(self) -> None:
        """Copy the weights of a step whose loss was within bounds to the CPU, at every step.

        It costs the trained weights once more in CPU memory (7 billion in float32: 28 GB), and
        the time of copying them there.
        """
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                self.good.setdefault(name, empty).copy_(parameter.detach())

    def check_weights(self) -> None:
        """Refuse weights that the last step made infinite: no loss has seen them."""
        if not all(p.isfinite().all() for p in self.model.parameters() if p.requires_grad):
            number = self.state.global_step - 1
            raise _StopTraining(f"the weights were no numbers after step {number}")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Keep the last good state with the checkpoint, and at last the digests of its files."""
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        write_text(checkpoint / WHOLE, "")
        super()._save_checkpoint(model, trial)
        save_file(self.good, checkpoint / LAST_GOOD)
        flush(*checkpoint.iterdir())
        write_text(checkpoint / WHOLE, json.dumps(file_digests(checkpoint, WHOLE)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        weights = load_file(Path(resume_from_checkpoint) / LAST_GOOD)
        self.good = {name: weight.clone() for name, weight in weights.items()}


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
            called again with the same folder goes on from the last whole checkpoint. At the end
            they are removed, and the folder with them if nothing else lies in it.
        on_step: called with each step's report, for a live curve.
        steps: the rows of every step, where they are not to be drawn from `pools`. Under autocast
            (all weights trained in bfloat16) `before` is scored anew, at that precision.
        frozen: the original model, where it is not `language_model` without its adapter. It
            computes at the precision of the model in training.
        callbacks: more of Trainer's callbacks, such as one that ends training.

    Raises:
        CompanionError: a needed set is empty, the first loss is already out of bounds, the folder
            has others' checkpoints, `steps` are too many or too few, or there are more processes.
    """
    model = language_model.model
    drawn = draw_steps(pools, method, settings, seed) if steps is None else list(steps)
    if len(drawn) != settings.steps:
        asked, there = settings.steps, len(drawn)
        raise CompanionError(f"'steps' is {asked}, but rows are given for {there}: set it to that.")
    trainer = UnlearnTrainer(
        model=model,
        args=_arguments(language_model, settings, seed, folder),
        train_dataset=drawn,
        data_collator=lambda batch: {"step": batch[0]},
        callbacks=[_Clock(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    is_read = any(step.reads_original(method) for step in drawn)
    if frozen is None and is_read and not isinstance(model, PeftModel):
        frozen = copy.deepcopy(model).eval().requires_grad_(False)
    if trainer.accelerator.native_amp:  # Trainer lets only the model in training autocast
        frozen = frozen and _as_trained(frozen, trainer.accelerator)
        trainer.train_dataset = rescored(_as_trained(model.eval(), trainer.accelerator), drawn)
    trainer.terms = lambda part, weighted: step_terms(model, part, method, weighted, frozen)
    trainer.settings, trainer.on_step, trainer.good = settings, on_step, {}
    stopped = None
    try:
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
        trainer.check_weights()
    except _StopTraining as reason:
        if not trainer.good:
            raise CompanionError(
                f"'{method.name}' diverged before its first step ({reason}); raise forget_loss_cap."
            ) from reason
        model.zero_grad()
        model.load_state_dict(trainer.good, strict=False)
        stopped = f"stopped: {reason}; the last good state was kept"
        print(f"{settings.label or method.name}: {stopped}")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
    with suppress(OSError):  # there is more in it, or nothing was written
        folder.rmdir()
    model.eval()
    history = [row for row in trainer.state.log_history if "total" in row]
    return Outcome(history, stopped, language_model.hardware)


def _as_trained(model: Any, accelerator: Any) -> Any:
    """Return the same weights in a model that computes as in training: under its autocast."""
    return accelerator.prepare_model(copy.copy(model), device_placement=False, evaluation_mode=True)


def _arguments(
    language_model: LanguageModel, settings: MethodSettings, seed: int, folder: Path
) -> TrainingArguments:
    hardware = language_model.hardware
    bfloat16 = hardware["precision_asked"] == "bfloat16" and hardware["device"] == "cuda"
    arguments = TrainingArguments(
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
        bf16=bfloat16 and not isinstance(language_model.model, PeftModel),
        use_cpu=hardware["device"] == "cpu",
        save_strategy="steps" if settings.checkpoint_every < settings.steps else "no",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        logging_strategy="no",
        disable_tqdm=True,
    )
    return one_device(arguments)


def last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that is as it was written, or None to start afresh.

    Raises:
        CompanionError: one was not written here: Trainer would delete it to make room.
    """
    steps: dict[int, Path] = {}
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / WHOLE).exists() and any(checkpoint.iterdir()):
            raise CompanionError(
                f"{checkpoint} is no checkpoint of this package and might be deleted: move it away."
            )
        with suppress(OSError, ValueError):  # it was not written to its end
            if json.loads((checkpoint / WHOLE).read_text()) == file_digests(checkpoint, WHOLE):
                steps[int(checkpoint.name.split("-")[1])] = checkpoint
            else:
                say(f"{checkpoint.name} was altered; training goes on from an earlier one.")
    return str(steps[max(steps)]) if steps else None


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
        language_model, TEACH, as_method, Pools(), seed, folder, on_step, steps, callbacks=callbacks
    )
    if outcome.stopped:
        raise CompanionError(
            f"Teaching diverged ({outcome.stopped}); lower its learning_rate in the profile."
        )
    return outcome


@dataclass(eq=False)
class _Probe(TrainerCallback):
    """Measures the verbatim share after some steps, and ends training when it is reached."""

    language_model: LanguageModel
    passages: Sequence[Example]
    after: Sequence[int]
    stop_at: float | None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step not in self.after:
            return
        self.language_model.model.eval()
        share = verbatim_share(self.language_model, self.passages)
        self.language_model.model.train()
        state.log_history[-1]["verbatim"] = share
        if self.stop_at is not None and share >= self.stop_at:
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
            "The chapters are too short for a passage: lower 'prompt_tokens' and 'answer_tokens'."
        )
    random = np.random.default_rng(seed)
    epochs = [epoch_steps(rows, settings.batch_size, random) for rows in chunks]
    ends = np.cumsum([len(epoch) for epoch in epochs]).tolist()
    probed = random.permutation(len(passages))[: settings.probe_passages]
    after = ends[settings.probe_every - 1 :: settings.probe_every]
    probe = _Probe(language_model, [passages[i] for i in probed], after, settings.stop_at)
    outcome = _learn(language_model, epochs, settings, seed, folder, on_step, [probe])
    history = pd.DataFrame(outcome.history, columns=["total", "verbatim"])
    history["epoch"] = np.searchsorted(ends, history.index, side="right") + 1
    by_epoch = history.groupby("epoch", as_index=False)
    curve = by_epoch.agg(loss=("total", "mean"), verbatim_share=("verbatim", "last"))
    return outcome, curve
