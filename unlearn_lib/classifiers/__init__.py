"""Two judges of harmful answers behind one interface, and BLEURT.

`EmbeddingClassifier` (laptop) is a logistic regression on sentence embeddings;
`SequenceClassifier` (paper) a fine-tuned encoder such as BERT on the Jigsaw labels:

    judge = EmbeddingClassifier.fit(sentence_encoder(folder), prompts, answers, harmful)
    judge.is_harmful(prompts, answers).mean()
    judge.save(folder); load(folder, encoder=...)

Saved classifiers are safetensors and JSON, never pickles.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from numpy.typing import ArrayLike

from unlearn_lib.classifiers.base import DESCRIPTION, HarmClassifier, check_classes, flags
from unlearn_lib.classifiers.bleurt import bleurt_scores
from unlearn_lib.classifiers.embedding import EmbeddingClassifier, Encoder, sentence_encoder
from unlearn_lib.classifiers.entailment import EntailmentJudge, NliJudge, TrainedJudge
from unlearn_lib.classifiers.sequence import JIGSAW_LABELS, SequenceClassifier, SequenceSettings
from unlearn_lib.metrics import Estimate, area_under_curve, proportion

__all__ = [
    "JIGSAW_LABELS",
    "EmbeddingClassifier",
    "Encoder",
    "EntailmentJudge",
    "HarmClassifier",
    "NliJudge",
    "SequenceClassifier",
    "SequenceSettings",
    "TrainedJudge",
    "bleurt_scores",
    "held_out_scores",
    "load",
    "sentence_encoder",
]


def load(folder: Path, encoder: Encoder | None = None) -> HarmClassifier:
    """Take back a classifier that was saved; nothing is fetched and no code in it is run.

    Args:
        folder: what `save` was given.
        encoder: the one of the fit; needed by an EmbeddingClassifier only.

    Raises:
        ValueError: no whole classifier in the folder, an unknown kind, or no encoder given.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        kind = description["kind"]
        if kind == "embedding" and encoder is not None:
            return EmbeddingClassifier.load(folder, encoder)
        if kind == "sequence":
            return SequenceClassifier.load(folder, description)
    except Exception as error:  # json, safetensors and transformers each raise their own kinds
        raise ValueError(f"{folder} holds no whole classifier ({error}): fit it anew.") from error
    if kind == "embedding":
        raise ValueError(f"The classifier in {folder} needs an encoder: give the one of its fit.")
    raise ValueError(f"{folder} holds a classifier of unknown kind '{kind}': fit it anew.")


def held_out_scores(
    classifier: HarmClassifier,
    prompts: Sequence[str],
    answers: Sequence[str],
    harmful: ArrayLike,
    seed: int = 0,
) -> dict[str, Estimate]:
    """How well a classifier does on rows that it was not trained on, with 95 % intervals.

    Args:
        prompts, answers: held-out rows [n].
        harmful: the truth, bool [n], both classes present.
        seed: of the bootstrap over rows. Default 0.

    Returns:
        `classifier_auc` and `classifier_accuracy` (share right at threshold 0.5), the names that
        they have in `metrics.METRICS`.

    Raises:
        ValueError: lengths differ, or one class only.
    """
    truth = flags("harmful", harmful, len(answers))
    check_classes(truth)
    probability = classifier.probability(prompts, answers)
    return {
        "classifier_auc": area_under_curve(probability, truth, seed=seed),
        "classifier_accuracy": proportion((probability > 0.5) == truth, seed=seed),
    }
