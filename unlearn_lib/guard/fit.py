"""Train a guard: its classifier, and the threshold above which a prompt is flagged."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.guard.model import Guard
from unlearn_lib.guard.prompts import scripts_of
from unlearn_lib.settings import GuardSettings
from unlearn_lib.text_classifier import TextClassifier
from unlearn_lib.util import CompanionError


def fit_guard(
    task: str,
    base: Path,
    forget: Sequence[str],
    retain: Sequence[str],
    calibration: Sequence[str],
    settings: GuardSettings,
    seed: int = 0,
    use_cpu: bool = False,
) -> Guard:
    """Train the classifier on two classes of prompts and set the threshold on a third set.

    Args:
        task: what the guard is for.
        base: local folder of the encoder to fine-tune.
        forget, retain: prompts to be flagged, and prompts to be let through.
        calibration: other retain prompts, for the threshold where the settings give none.
        settings: a strength that is to be searched is 0 at first.
        seed: of the training, and of the corruption's noise.
        use_cpu: ignore an accelerator. Default False.

    Raises:
        CompanionError: as `TextClassifier.fit` and `conformal_threshold`.
    """
    texts, truth = [*forget, *retain], [True] * len(forget) + [False] * len(retain)
    classifier = TextClassifier.fit(base, texts, truth, settings.classifier, seed, use_cpu)
    strength, scripts = settings.strength or 0.0, scripts_of(texts)
    guard = Guard(task, classifier, 1.0, settings.corruption, strength, scripts, seed)
    threshold = settings.threshold
    if threshold is None:
        threshold = conformal_threshold(guard.scores(calibration), settings.false_positive_rate)
    return replace(guard, threshold=threshold)


def conformal_threshold(scores: ArrayLike, false_positive_rate: float = 0.01) -> float:
    """Return the split-conformal threshold: the k-th smallest score, k = ceil((n + 1)(1 - α)).

    A new retain prompt that is exchangeable with the n held-out ones is then flagged with a
    probability of at most α, whatever the classifier and however its scores are spread; exactly
    (n + 1 - k) / (n + 1) without ties. The probability is over the held-out prompts too: the rate
    of one calibration may be above α. Liu et al. 2024 set .99 to .9999 by hand instead.

    Args:
        scores: probabilities of held-out retain prompts, never trained on, [n].
        false_positive_rate: α, above 0 and below 1, read as the decimal that it prints. Default
            0.01, which needs n >= 99.

    Raises:
        CompanionError: too few scores for α, or a threshold of 1, above which no score can lie.
    """
    alpha, n = Fraction(str(float(false_positive_rate))), np.size(scores)
    if n < 1 / alpha - 1:
        raise CompanionError(
            f"A false-positive rate of {false_positive_rate:g} needs {math.ceil(1 / alpha) - 1:,} "
            f"held-out retain prompts, and there are {n:,}: give more, or allow a higher rate."
        )
    threshold = float(np.sort(scores)[math.ceil((n + 1) * (1 - alpha)) - 1])
    if threshold == 1:
        raise CompanionError(
            "So many held-out retain prompts score 1 that no threshold flags anything: train the "
            "classifier on more prompts of their kind, or allow a higher false-positive rate."
        )
    return threshold
