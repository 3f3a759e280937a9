"""One trainer of a transformer text classifier, for the guard and for the judge of harm.

classifier = TextClassifier.fit(folder, texts, truth, settings)
classifier.probability(texts) > threshold
classifier.save(folder); TextClassifier.load(folder)
"""

import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as hf
from numpy.typing import ArrayLike

from unlearn_lib.settings import TextClassifierSettings
from unlearn_lib.util import CompanionError, one_device

MULTI_LABEL = "multi_label_classification"
Rows = list[dict[str, list[int]]]
"""Token ids and masks of texts, unpadded, by the names that a tokenizer gives them."""
ECO_OPTIMISER = {
    "lr_scheduler_type": "cosine",
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "group_by_length",
}
"""As in ECO's released script; Arora et al. 2024 train on labels with the Trainer's defaults."""


def plain(text: str) -> str:
    """Return the text with plain letters (NFKC), no invisible marks and single spaces."""
    normal = unicodedata.normalize("NFKC", text)
    visible = (letter for letter in normal if unicodedata.category(letter) != "Cf")
    return " ".join("".join(visible).split())


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """An encoder fine-tuned on two classes (softmax) or on several labels (sigmoids).

    A text longer than `maximum_length` tokens is learned and judged in windows, each sharing half
    of its tokens with the one before; in training each has the truth of its text. Liu et al. 2024
    and Arora et al. 2024 cut a text instead. ECO's released trainer does not run: it reads an
    option that it does not define. It would also choose the checkpoint by errors on the forget
    set; here the last step counts.

    Attributes:
        model, tokenizer: of transformers.
        settings: of the training; batch size and maximum length apply to judging too.
    """

    model: Any
    tokenizer: Any
    settings: TextClassifierSettings

    @classmethod
    def fit(
        cls,
        pretrained: Path,
        texts: Sequence[str],
        truth: ArrayLike,
        settings: TextClassifierSettings,
        seed: int = 0,
        use_cpu: bool = False,
    ) -> "TextClassifier":
        """Fine-tune a pretrained encoder by AdamW, a window a row.

        Args:
            pretrained: local folder with a model (with or without a head) and its tokenizer.
            texts: [n].
            truth: bool [n] for two classes, weighted by their number of windows; or bool [n, k]
                for k labels, each with an unweighted binary cross-entropy.
            settings: its `base` is not read: `pretrained` stands for it.
            seed: of the new head, the order of rows and dropout; sets the global generators too.
            use_cpu: ignore an accelerator. Default False.

        Raises:
            CompanionError: a maximum length beyond the encoder's positions, a loss not finite.
        """
        targets = np.asarray(truth, dtype=bool)
        multi_label = targets.ndim == 2
        hf.set_seed(seed)
        outputs = targets.shape[1] if multi_label else 2
        problem = MULTI_LABEL if multi_label else "single_label_classification"
        head = {"problem_type": problem, "num_labels": outputs, "ignore_mismatched_sizes": True}
        model, tokenizer = load_classifier(pretrained, **head)
        if settings.maximum_length > tokenizer.model_max_length:
            raise CompanionError(
                f"The base reads {tokenizer.model_max_length} tokens: lower 'maximum_length'."
            )
        classifier = cls(model, tokenizer, settings)
        windows, owners = classifier.windows(texts)
        labels = targets[owners].astype(np.float32 if multi_label else np.int64)
        rows = [{**window, "labels": row} for window, row in zip(windows, labels.tolist())]
        with tempfile.TemporaryDirectory() as scratch:
            arguments = hf.TrainingArguments(
                output_dir=scratch,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                warmup_steps=settings.warmup_share,  # below 1 it is a share of all steps
                per_device_train_batch_size=settings.batch_size,
                weight_decay=settings.weight_decay,
                seed=seed,
                use_cpu=use_cpu,
                disable_tqdm=True,
                save_strategy="no",
                logging_nan_inf_filter=False,
                dataloader_pin_memory=False,
                **({} if multi_label else ECO_OPTIMISER),
            )
            loss = None if multi_label else class_weighted_loss(labels)
            inputs = {"train_dataset": rows, "processing_class": tokenizer}
            trainer = hf.Trainer(model, one_device(arguments), compute_loss_func=loss, **inputs)
            trainer.remove_callback(hf.PrinterCallback)
            final = trainer.train().training_loss
        if not np.isfinite(final):
            raise CompanionError(
                f"The text classifier's training loss became {final}: lower its learning_rate."
            )
        return classifier

    def probability(self, texts: Sequence[str]) -> np.ndarray:
        """Return how sure the classifier is of each text: float64 [n], 0 to 1.

        It is the second class's softmax or the highest sigmoid; of several windows the highest
        counts. The texts of a batch change each other by rounding only, about 1e-7.
        """
        if not len(texts):
            return np.zeros(0)
        windows, owners = self.windows(texts)
        logits = forward(self.model, self.tokenizer, windows, self.settings.batch_size)
        multi_label = self.model.config.problem_type == MULTI_LABEL
        scores = logits.sigmoid().amax(dim=1) if multi_label else logits.softmax(dim=1)[:, 1]
        highest = np.zeros(len(texts))
        np.maximum.at(highest, owners, scores.numpy())
        return highest

    def to(self, device: torch.device) -> None:
        """Move the model to a device, in place."""
        if self.model.device != device:
            self.model.to(device)

    def windows(self, texts: Sequence[str]) -> tuple[Rows, list[int]]:
        """Return each window's token ids and masks, unpadded, and the row of its text."""
        limit = self.settings.maximum_length
        stride = (limit - self.tokenizer.num_special_tokens_to_add()) // 2
        options = {"max_length": limit, "stride": stride, "return_overflowing_tokens": True}
        encoding = self.tokenizer(list(map(plain, texts)), truncation=True, **options)
        owners = encoding.pop("overflow_to_sample_mapping")
        return rows_of(encoding), owners

    def save(self, folder: Path | str) -> None:
        """Write safetensors and JSON into a folder, which is created if need be."""
        self.model.config.training = self.settings.model_dump(mode="json")
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "TextClassifier":
        """Load what `save` wrote; errors as `load_classifier` raises them."""
        model, tokenizer = load_classifier(folder)
        return cls(model, tokenizer, TextClassifierSettings(**model.config.training))


def class_weighted_loss(truth: np.ndarray) -> Callable[..., torch.Tensor]:
    """Return a loss: cross-entropy with a weight per class, averaged over rows, in nats.

    With weights N / (2 n_c) the mean over an epoch is the average of the two classes' means. The
    released code weighs by N / n_c; PyTorch's own weighted mean divides by the weights in each
    batch, so that a row's weight depends on the rows beside it.

    Args:
        truth: of all rows, int64 [N] of 0 and 1.

    Returns:
        A function of outputs, whose `logits` are [n, 2], and labels, int64 [n]: a scalar.
    """
    counts = torch.tensor(np.bincount(truth, minlength=2), dtype=torch.float32)
    weights = counts.sum() / (2 * counts)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> Any:
        losses = F.cross_entropy(outputs.logits.float(), labels, reduction="none")
        return (weights.to(losses.device)[labels] * losses).mean()

    return loss


def rows_of(encoding: Any) -> Rows:
    """Return a tokenizer's output row by row."""
    return [dict(zip(encoding, row)) for row in zip(*encoding.values())]


@torch.inference_mode()
def forward(model: Any, tokenizer: Any, rows: Rows, batch_size: int) -> torch.Tensor:
    """Return the outputs of a sequence classifier for each row: float64 [n, outputs], CPU."""
    logits = torch.zeros((len(rows), model.config.num_labels), dtype=torch.float64)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    model.eval()
    for places in lengths.argsort(stable=True).split(batch_size):
        batch = tokenizer.pad([rows[place] for place in places], return_tensors="pt")
        logits[places] = model(**batch.to(model.device)).logits.double().cpu()
    return logits


def load_classifier(
    folder: Path | str, loader: Any = hf.AutoModelForSequenceClassification, **head: Any
) -> tuple[Any, Any]:
    """Return the model of a local folder, in float32, and its tokenizer.

    Nothing is fetched and no code in the folder is run. The tokenizer's `model_max_length` is at
    most the model's number of positions.

    Args:
        loader: a class of transformers.
        head: configuration of a new head, which is then drawn where the folder lacks it; none: the
            folder's own head, trained.

    Raises:
        CompanionError: no such model, damaged weights, or a head that was never trained.
    """
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, report = loader.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, **local, **head
        )
        tokenizer = hf.AutoTokenizer.from_pretrained(folder, **local)
        lacking = sorted(report["missing_keys"])
        if head:  # which is new; a pooler is not read by all
            body = f"{model.base_model_prefix}."
            lacking = [name for name in lacking if name.startswith(body) and "pooler" not in name]
        if lacking:
            raise ValueError(f"its weights lack {', '.join(lacking)}")
    except Exception as error:  # json, safetensors and transformers each raise their own kinds
        reason = f"{folder} holds no trained model that {loader.__name__} can load ({error!r})."
        raise CompanionError(reason) from error
    positions = model.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return model, tokenizer
