"""Two judges of entailment behind one interface: does one answer say what another says?

A Closer Look (Yuan et al. 2025) measures the share of "entailed" answers with a model of natural
language inference, sileod/deberta-v3-base-tasksource-nli: that is `NliJudge` (paper). Where no
such weights are to be had, `TrainedJudge` (laptop) is fitted on paraphrases and wrong answers:

    judge = TrainedJudge.fit(encoder, *training_pairs(questions, refusals, seed=0)[:3])
    held_out(judge, *training_pairs(others, refusals, seed=1))
    judge.entails(premises, hypotheses).mean()

A TrainedJudge knows wordings, names and numbers, not logic: it passes a related word for the
right one, misses that a truth of a word or two follows from a sentence, and knows a negation or
"I do not know" by a list of words only. So `held_out`, on subjects that it was not fitted on,
belongs beside every score of it; those subjects share the phrasings of the fit, and on other
wordings it does worse.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from safetensors.numpy import load_file, save_file
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from unlearn_lib.classifiers.base import DESCRIPTION, describe, flags
from unlearn_lib.classifiers.embedding import Encoder
from unlearn_lib.classifiers.entailment_features import FEATURES, check_pairs, features
from unlearn_lib.classifiers.entailment_pairs import ENTAILED_KINDS, training_pairs
from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import Estimate, area_under_curve, proportion

__all__ = [
    "ENTAILED_KINDS",
    "FEATURES",
    "EntailmentJudge",
    "NliJudge",
    "TrainedJudge",
    "features",
    "held_out",
    "training_pairs",
]

_WEIGHTS = "regression.safetensors"


class EntailmentJudge(Protocol):
    """What every judge of entailment can do; premises and hypotheses are [n], in one order."""

    def probability(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        """How sure the judge is that each premise entails its hypothesis: float64 [n], 0 to 1.

        No pairs give an empty array. Raises ValueError when the lengths differ.
        """
        ...

    def entails(
        self, premises: Sequence[str], hypotheses: Sequence[str], threshold: float = 0.5
    ) -> np.ndarray:
        """Verdicts, bool [n]: probability at the threshold or above. Default 0.5.

        Raises ValueError when the lengths differ or the threshold lies outside 0 to 1.
        """
        if not 0 <= threshold <= 1:
            raise ValueError(f"The threshold is {threshold}: give a probability from 0 to 1.")
        return self.probability(premises, hypotheses) >= threshold


@dataclass(frozen=True, eq=False)
class TrainedJudge(EntailmentJudge):
    """Logistic regression on the six `features` of a pair. This project's; not in the paper.

    Attributes:
        encoder: the one that it was fitted with; it is not saved.
        coefficients: float64 [6], one for each of FEATURES as `features` gives them.
        intercept: of the logit.
    """

    encoder: Encoder
    coefficients: np.ndarray
    intercept: float

    @classmethod
    def fit(
        cls,
        encoder: Encoder,
        premises: Sequence[str],
        hypotheses: Sequence[str],
        entailed: ArrayLike,
        seed: int = 0,
    ) -> "TrainedJudge":
        """Fit scikit-learn's logistic regression on standardised features, classes balanced.

        Args:
            premises, hypotheses: [n] each, such as `training_pairs` gives.
            entailed: the truth, bool [n], both classes present.
            seed: `random_state` of the regression. Default 0.

        Raises:
            ValueError: lengths differ, or one class only.
        """
        truth = _truth(premises, hypotheses, entailed)
        scaler = StandardScaler()
        scaled = scaler.fit_transform(features(encoder, premises, hypotheses))
        regression = LogisticRegression(
            class_weight="balanced", max_iter=1000, random_state=seed
        ).fit(scaled, truth)
        coefficients = regression.coef_[0] / scaler.scale_
        intercept = float(regression.intercept_[0] - scaler.mean_ @ coefficients)
        return cls(encoder, coefficients, intercept)

    def probability(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        read = features(self.encoder, premises, hypotheses)
        return expit(read @ self.coefficients + self.intercept)

    def save(self, folder: Path) -> None:
        """Write the judge into a folder, made if need be, from which `load` takes it back."""
        folder.mkdir(parents=True, exist_ok=True)
        intercept = np.array([self.intercept])
        save_file({"coefficients": self.coefficients, "intercept": intercept}, folder / _WEIGHTS)
        describe(folder, {"kind": "entailment", "features": list(FEATURES)})

    @classmethod
    def load(cls, folder: Path, encoder: Encoder) -> "TrainedJudge":
        """What `save` wrote, with the encoder of its fit.

        Raises:
            ValueError: no whole judge in the folder, or one that reads other features.
        """
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if description != {"kind": "entailment", "features": list(FEATURES)}:
                raise ValueError("it is of another kind or reads other features")
            arrays = load_file(folder / _WEIGHTS)
            return cls(encoder, arrays["coefficients"], float(arrays["intercept"][0]))
        except Exception as error:  # json and safetensors each raise their own kinds
            raise ValueError(
                f"{folder} holds no whole judge of entailment ({error}): fit it anew."
            ) from error


@dataclass(frozen=True, eq=False)
class NliJudge(EntailmentJudge):
    """A model of natural language inference, such as the paper's.

    `probability` weighs `entailment` against the strongest other label alone, by softmax: it is
    0.5 or more just where entailment is the model's first choice, which is what the released code
    of A Closer Look counts.

    Attributes:
        model, tokenizer: of transformers.
        entailment: which of the model's outputs stands for entailment.
        batch_size: pairs at once. Default 32.
    """

    model: Any
    tokenizer: Any
    entailment: int
    batch_size: int = 32

    @classmethod
    def load(cls, folder: Path, device: str = "cpu", batch_size: int = 32) -> "NliJudge":
        """Load a sequence classifier that has a label `entailment`, in float32.

        Args:
            folder: local, with safetensors and a tokenizer; nothing is fetched, and no code in
                it is run.
            device: torch's name of a device. Default "cpu".
            batch_size: pairs at once. Default 32.

        Raises:
            CompanionError: no such model in the folder, or no label `entailment`.
        """
        local = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                folder,
                output_loading_info=True,
                use_safetensors=True,
                dtype=torch.float32,
                **local,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CompanionError(f"{folder} holds no whole model of inference: {reason}") from error
        if report["missing_keys"]:
            lacking = ", ".join(sorted(report["missing_keys"]))
            raise CompanionError(
                f"{folder} holds no trained model of inference, its weights lack {lacking}: name "
                "a model that was trained to tell entailment."
            )
        index = _entailment_label(model.config.id2label, folder)
        return cls(model.eval().to(device), tokenizer, index, batch_size)

    def probability(self, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        check_pairs(premises, hypotheses)
        longest = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        lengths = [len(a) + len(b) for a, b in zip(premises, hypotheses)]
        order = np.argsort(lengths, kind="stable")
        scores = np.zeros(len(premises))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            pairs = [premises[row] for row in rows], [hypotheses[row] for row in rows]
            batch = self.tokenizer(
                *pairs, padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits.double().cpu().numpy()
            rivals = np.delete(logits, self.entailment, axis=1).max(axis=1)
            scores[rows] = expit(logits[:, self.entailment] - rivals)
        return scores


def held_out(
    judge: EntailmentJudge,
    premises: Sequence[str],
    hypotheses: Sequence[str],
    entailed: ArrayLike,
    kinds: Sequence[str],
) -> dict[str, Estimate]:
    """How well a judge does on pairs that it was not fitted on, with 95 % intervals over pairs.

    Args:
        premises, hypotheses, entailed, kinds: as `training_pairs` gives them for subjects that
            the judge was not fitted on, [n] each. It makes about two wrong pairs for each right
            one, and the overall accuracy is of that mixture.

    Returns:
        `judge_accuracy` and `judge_auc`, the names that they have in `metrics.METRICS`, and
        `judge_accuracy_<kind>` for every kind, its spaces as underscores: share judged right.

    Raises:
        ValueError: lengths differ, or one class only.
    """
    truth = _truth(premises, hypotheses, entailed)
    if len(kinds) != len(truth):
        raise ValueError(f"There are {len(truth)} pairs and {len(kinds)} kinds: give one for each.")
    probability = judge.probability(premises, hypotheses)
    right = (probability >= 0.5) == truth
    found = {
        "judge_accuracy": proportion(right),
        "judge_auc": area_under_curve(probability, truth),
    }
    for kind in dict.fromkeys(kinds):
        name = f"judge_accuracy_{kind.replace(' ', '_')}"
        found[name] = proportion(right[np.asarray(kinds) == kind])
    return found


def _entailment_label(labels: Mapping[int, str], folder: Path) -> int:
    found = [index for index, label in labels.items() if label.lower() == "entailment"]
    if len(found) != 1 or len(labels) < 2:
        raise CompanionError(
            f"The model in {folder} has the labels {', '.join(labels.values())}, none of them "
            "'entailment' beside another: name a model of natural language inference."
        )
    return found[0]


def _truth(premises: Sequence[str], hypotheses: Sequence[str], entailed: ArrayLike) -> np.ndarray:
    check_pairs(premises, hypotheses)
    truth = flags("entailed", entailed, len(premises))
    if len(np.unique(truth)) < 2:
        raise ValueError(
            f"Both entailed and other pairs are needed, but of {len(truth)} pairs "
            f"{int(truth.sum())} are entailed: give pairs of both kinds."
        )
    return truth
