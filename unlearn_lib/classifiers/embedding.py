"""The laptop's judge: logistic regression on sentence embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from unlearn_lib.classifiers.base import (
    HarmClassifier,
    check_classes,
    check_pairs,
    describe,
    flags,
    joined,
)

_WEIGHTS = "regression.safetensors"

Encoder = Callable[[list[str]], np.ndarray]
"""From n texts to their embeddings, float [n, d]."""


@dataclass(frozen=True, eq=False)
class EmbeddingClassifier(HarmClassifier):
    """Logistic regression on embeddings of the answer and of "prompt answer", side by side.

    Attributes:
        encoder: the one that it was fitted with; it is not saved.
        coefficients: float64 [2 d].
        intercept: of the logit.
    """

    encoder: Encoder
    coefficients: np.ndarray
    intercept: float

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        prompts: Sequence[str],
        answers: Sequence[str],
        harmful: ArrayLike,
        seed: int = 0,
        regularisation: float = 1.0,
    ) -> "EmbeddingClassifier":
        """Fit scikit-learn's logistic regression.

        Args:
            prompts, answers: [n] each.
            harmful: the truth, bool [n], both classes present.
            seed: `random_state` of the regression. Default 0.
            regularisation: scikit-learn's C, inverse strength of the L2 penalty. Default 1.

        Raises:
            ValueError: lengths differ, or one class only.
        """
        check_pairs(prompts, answers)
        truth = flags("harmful", harmful, len(answers))
        check_classes(truth)
        regression = LogisticRegression(C=regularisation, max_iter=1000, random_state=seed)
        regression.fit(_features(encoder, prompts, answers), truth)
        return cls(encoder, regression.coef_[0], float(regression.intercept_[0]))

    def probability(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        check_pairs(prompts, answers)
        if not len(answers):
            return np.zeros(0)
        features = _features(self.encoder, prompts, answers)
        if features.shape[1] != len(self.coefficients):
            raise ValueError(
                f"The encoder gives {features.shape[1] // 2} numbers per text, but the classifier "
                f"was fitted on {len(self.coefficients) // 2}: give the encoder of the fit."
            )
        return expit(features @ self.coefficients + self.intercept)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        intercept = np.array([self.intercept])
        save_file({"coefficients": self.coefficients, "intercept": intercept}, folder / _WEIGHTS)
        describe(folder, {"kind": "embedding"})

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> "EmbeddingClassifier":
        """What `save` wrote, with the encoder of its fit; errors as safetensors raises them."""
        arrays = load_file(folder / _WEIGHTS)
        return cls(encoder, arrays["coefficients"], float(arrays["intercept"][0]))


LONGEST = 128
"""Tokens of a text that are read; all-MiniLM-L6-v2 was trained on no more."""


def sentence_encoder(folder: Path, device: str = "cpu", batch_size: int = 32) -> Encoder:
    """Encoder from a local sentence-transformers folder, such as all-MiniLM-L6-v2.

    Args:
        folder: local; nothing is fetched and no code in it is run.
        device: torch's name of a device. Default "cpu".
        batch_size: texts at once. Default 32.

    Returns:
        A function from n texts to float32 [n, d]; no texts give [0, d].

    Raises:
        ValueError: the folder is not there.
    """
    from sentence_transformers import SentenceTransformer  # seconds to import: only when used

    if not folder.is_dir():
        raise ValueError(f"There is no sentence encoder at {folder}: give its folder.")
    model = SentenceTransformer(str(folder), device=device, local_files_only=True)
    model.max_seq_length = min(model.max_seq_length or LONGEST, LONGEST)

    def encode(texts: list[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    return encode


def _features(encoder: Encoder, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    embedded = [encoder(list(answers)), encoder(joined(prompts, answers))]
    return np.concatenate(embedded, axis=1).astype(np.float64)
