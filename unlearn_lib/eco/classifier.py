"""Does a prompt ask for what was forgotten? A fine-tuned encoder that reads plain text.

    guard = PromptClassifier.fit(find_model(settings.base).folder, forget, retain, settings)
    guard.probability(prompts) > threshold
    guard.save(folder); PromptClassifier.load(folder)

What it cannot read it refuses to judge, so that a model behind it need not answer.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from unlearn_lib import assets
from unlearn_lib.eco.prompts import check_scripts, check_text, plain, scripts_of
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import PromptClassifierSettings

LABELS = ("retain", "forget")
DESCRIPTION = "guard.json"
VERSION = 1


@dataclass(frozen=True, eq=False)
class PromptClassifier:
    """An encoder with two outputs, retain and forget, in front of a model of any tokenizer.

    Liu et al. 2024 fine-tune RoBERTa on the first 512 tokens. The released trainer does not run:
    it reads an option that it does not define. It would also choose its best checkpoint by errors
    on the forget set; here the last step counts, and a longer prompt is learned and judged in
    windows.

    Attributes:
        model, tokenizer: of transformers.
        settings: of the training, and of how it judges.
        scripts: sorted names of the scripts that it was trained on, such as LATIN.
    """

    model: Any
    tokenizer: Any
    settings: PromptClassifierSettings
    scripts: tuple[str, ...]

    @classmethod
    def fit(
        cls,
        pretrained: Path,
        forget: Sequence[str],
        retain: Sequence[str],
        settings: PromptClassifierSettings,
        seed: int = 0,
        use_cpu: bool = False,
    ) -> "PromptClassifier":
        """Fine-tune a pretrained encoder on `class_weighted_loss`, every window being a row.

        AdamW with the released script's betas (.9, .98) and epsilon 1e-6, no gradient clipping,
        a cosine schedule after the warm-up.

        Args:
            pretrained: local folder with a model (with or without a head) and its tokenizer.
            forget, retain: prompts to be flagged, and prompts to be let by.
            settings: its `base` is not read: `pretrained` stands for it.
            seed: of the new head, the row order and dropout; sets the global generators too.
            use_cpu: leave an accelerator alone. Default False.

        Raises:
            CompanionError: a class without prompts, a blank prompt, a prompt in both classes, no
                such folder, a maximum length beyond the model's positions, a loss not finite.
        """
        forget, retain = _readable("forget", forget), _readable("retain", retain)
        shared = sorted(set(forget) & set(retain))
        if shared:
            raise CompanionError(
                f"{len(shared)} prompts are to be forgotten and to be kept, such as "
                f"'{shared[0]}': leave each in one class."
            )
        set_seed(seed)
        model, tokenizer, _ = _pretrained(pretrained)
        guard = cls(model, tokenizer, settings, scripts_of([*forget, *retain]))
        _train(guard, forget, retain, seed, use_cpu)
        return guard

    def probability(self, prompts: Sequence[str]) -> np.ndarray:
        """How sure the guard is that each prompt asks for what was forgotten: float64 [n], 0 to 1.

        Of a prompt with several windows the highest counts. The rows of a batch touch each other
        in rounding only, about 1e-7. No prompts give an empty array.

        Raises:
            CompanionError: what `check` says of a prompt, after its place.
        """
        for row, prompt in enumerate(prompts):
            try:
                self.check(prompt)
            except CompanionError as error:
                raise CompanionError(f"Prompt {row + 1} of {len(prompts)}: {error}") from error
        windows, owners = self.windows(prompts)
        scores = np.zeros(len(windows))
        order = np.argsort([len(window["input_ids"]) for window in windows], kind="stable")
        self.model.eval()
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            batch = self.tokenizer.pad([windows[row] for row in rows], return_tensors="pt")
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits
            scores[rows] = logits.double().softmax(dim=-1)[:, 1].cpu().numpy()
        highest = np.zeros(len(prompts))
        np.maximum.at(highest, owners, scores)
        return highest

    def check(self, prompt: str) -> None:
        """Refuse a prompt that the guard cannot judge; digits and emoji alone it does judge.

        Raises:
            CompanionError: no text, a blank prompt, half a character, or letters of scripts that
                it was not trained on, as `prompts.check_scripts` finds them.
        """
        check_text("This prompt", prompt, ": it is refused; ask in words.")
        check_scripts(prompt, self.scripts)

    def windows(self, prompts: Sequence[str]) -> tuple[list[dict[str, list[int]]], list[int]]:
        """Token ids and masks of each window, unpadded, and the row of its prompt.

        A window has at most `maximum_length` tokens with its specials, and shares half of them
        with the one before.
        """
        if not len(prompts):
            return [], []
        limit = self.settings.maximum_length
        encoding = self.tokenizer(
            [plain(prompt) for prompt in prompts],
            truncation=True,
            max_length=limit,
            stride=(limit - self.tokenizer.num_special_tokens_to_add()) // 2,
            return_overflowing_tokens=True,
        )
        owners = encoding.pop("overflow_to_sample_mapping")
        rows = range(len(owners))
        return [{name: encoding[name][row] for name in encoding} for row in rows], list(owners)

    def save(self, folder: Path) -> None:
        """Write safetensors and JSON into a folder, made if need be, for `load` to take back."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DESCRIPTION).unlink(missing_ok=True)
        self.model.save_pretrained(folder)
        written = self.tokenizer.save_pretrained(folder)
        names = {Path(name).name for name in written} | {"config.json", "model.safetensors"}
        files = sorted(name for name in names if (folder / name).is_file())
        description = {
            "version": VERSION,
            "settings": self.settings.model_dump(mode="json"),
            "scripts": list(self.scripts),
            "files": files,
            "sha256": assets.folder_sha256([folder / name for name in files], folder),
        }
        text = json.dumps(description, indent=2, sort_keys=True) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "PromptClassifier":
        """What `save` wrote; nothing is fetched and no code in it is run.

        Raises:
            CompanionError: a file is missing, truncated or altered, or of another version.
        """
        try:
            return cls._load(folder)
        except Exception as error:  # json, pydantic, safetensors, transformers: each its own kinds
            reason = " ".join(str(error).split())
            raise CompanionError(
                f"{folder} holds no whole prompt classifier ({reason}): fit and save it anew."
            ) from error

    @classmethod
    def _load(cls, folder: Path) -> "PromptClassifier":
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if description["version"] != VERSION:
            raise ValueError(f"it is of version {description['version']}, not {VERSION}")
        files = [folder / name for name in description["files"]]
        if assets.folder_sha256(files, folder) != description["sha256"]:
            raise ValueError("its files are not those that were saved")
        settings = PromptClassifierSettings.model_validate(description["settings"])
        model, tokenizer, drawn = _pretrained(folder)
        if drawn:
            raise ValueError(f"its weights lack {', '.join(sorted(drawn))}")
        return cls(model, tokenizer, settings, tuple(description["scripts"]))


def class_weighted_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with a weight per class, averaged over rows: a scalar, float32, in nats.

    With w_c = N / (2 n_c), as `class_weights` gives, the mean over an epoch is the average of the
    two classes' means. The released code weighs by N / n_c; PyTorch's own weighted mean would
    divide by the weights in each batch, so that a row's weight hung on the rows beside it.

    Args:
        logits: [n, 2], any float dtype.
        labels: int64 [n], 0 retain and 1 forget.
        weights: float32 [2].
    """
    losses = F.cross_entropy(logits.float(), labels, reduction="none")
    return (weights.to(losses.device)[labels] * losses).mean()


def class_weights(retain: int, forget: int) -> torch.Tensor:
    """N / (2 n_c) for the numbers of rows in each class, both above 0: float32 [2]."""
    counts = torch.tensor([retain, forget], dtype=torch.float32)
    return counts.sum() / (2 * counts)


def _train(
    guard: PromptClassifier, forget: list[str], retain: list[str], seed: int, use_cpu: bool
) -> None:
    settings = guard.settings
    positions = min(guard.model.config.max_position_embeddings, guard.tokenizer.model_max_length)
    if settings.maximum_length > positions:
        raise CompanionError(
            f"The prompt classifier's maximum_length is {settings.maximum_length} tokens, but its "
            f"base reads only {positions}: lower it."
        )
    windows, owners = guard.windows([*forget, *retain])
    labels = [int(owner < len(forget)) for owner in owners]
    rows = [{**window, "labels": label} for window, label in zip(windows, labels, strict=True)]
    weights = class_weights(labels.count(0), labels.count(1))

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return class_weighted_loss(outputs.logits, labels, weights)

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            guard.model,
            _arguments(settings, scratch, seed, use_cpu),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(guard.tokenizer),
            compute_loss_func=loss,
        )
        trainer.remove_callback(PrinterCallback)
        final = trainer.train().training_loss
    guard.model.eval()
    if not np.isfinite(final):
        raise CompanionError(
            f"The prompt classifier's training loss became {final}: lower its learning_rate, now "
            f"{settings.learning_rate:g}."
        )


def _arguments(
    settings: PromptClassifierSettings, scratch: str, seed: int, use_cpu: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=scratch,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_share,  # below 1 it is a share of all steps
        per_device_train_batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        adam_epsilon=1e-6,
        max_grad_norm=0.0,
        seed=seed,
        use_cpu=use_cpu,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        logging_nan_inf_filter=False,
        train_sampling_strategy="group_by_length",
        dataloader_pin_memory=False,
    )


def _pretrained(folder: Path) -> tuple[Any, Any, set[str]]:
    """Model, tokenizer, and the names of weights that the folder lacks: those are drawn anew."""
    if not folder.is_dir():
        raise CompanionError(f"There is no encoder at {folder}: give a local folder.")
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    drawn = {*report["missing_keys"], *(mismatch[0] for mismatch in report["mismatched_keys"])}
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True), drawn


def _readable(name: str, prompts: Sequence[str]) -> list[str]:
    """The prompts as the guard will read them; CompanionError where there is nothing to read."""
    if not len(prompts):
        raise CompanionError(f"There are no {name} prompts: the guard learns from both classes.")
    for row, prompt in enumerate(prompts):
        check_text(f"{name} prompt {row + 1}", prompt, ": mend or drop it.")
    return [plain(prompt) for prompt in prompts]
