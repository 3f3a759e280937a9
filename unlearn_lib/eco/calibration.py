"""Where a guard's threshold lies, so that it flags no more than a stated share of other prompts."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import Estimate, proportion


def conformal_threshold(retain_scores: ArrayLike, false_positive_rate: float = 0.01) -> float:
    """Split-conformal threshold of a guard: the k-th smallest score, k = ceil((n + 1)(1 - α)).

    A new retain prompt that is exchangeable with the n held-out ones is then `flagged` with a
    probability of at most α, whatever the classifier and however its scores are spread; exactly
    (n + 1 - k) / (n + 1) without ties. The probability is over the held-out prompts too: the rate
    of one calibration may be above α. Liu et al. 2024 set .99 to .9999 by hand instead.

    Args:
        retain_scores: probabilities of held-out retain prompts, never trained on, [n].
        false_positive_rate: α, above 0 and below 1, read as the decimal that it prints. Default
            0.01, which needs n >= 99.

    Raises:
        CompanionError: too few scores for α, or a threshold of 1, above which no score can lie.
        ValueError: scores that are nan or outside 0 to 1, or α outside its range.
    """
    if not 0 < false_positive_rate < 1:
        raise ValueError(
            f"The false-positive rate is {false_positive_rate}: give one between 0 and 1."
        )
    scores = np.sort(_scores("retain_scores", retain_scores))
    alpha = Fraction(str(float(false_positive_rate)))
    k = math.ceil((len(scores) + 1) * (1 - alpha))
    if k > len(scores):
        raise CompanionError(
            f"A false-positive rate of {false_positive_rate:g} needs at least "
            f"{math.ceil(1 / alpha) - 1:,} held-out retain prompts, and there are {len(scores):,}: "
            "give more of them or allow a higher rate."
        )
    threshold = float(scores[k - 1])
    if threshold == 1:
        raise CompanionError(
            f"{len(scores) - k + 1:,} of {len(scores):,} held-out retain prompts score 1, so that "
            "no threshold would flag anything and the guard would let all by: train the classifier "
            "on more retain prompts of their kind, or allow a higher false-positive rate."
        )
    return threshold


def flagged(scores: ArrayLike, threshold: float) -> np.ndarray:
    """Which prompts the guard acts on, bool [n]: those that score above the threshold, strictly.

    Raises:
        CompanionError: a threshold outside 0 to 1.
        ValueError: scores that are nan or outside 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise CompanionError(
            f"The guard's threshold is {threshold}: give a probability from 0 to 1."
        )
    return _scores("scores", scores) > threshold


def rates(
    forget_scores: ArrayLike, retain_scores: ArrayLike, threshold: float
) -> dict[str, Estimate]:
    """How often the guard errs on held-out prompts, with 95 % intervals.

    Args:
        forget_scores, retain_scores: probabilities of held-out prompts, at least one of each. An
            interval of the false-positive rate means what it says on retain prompts only that
            the threshold was not calibrated on.
        threshold: from 0 to 1.

    Returns:
        `false_positive_rate`, the share of retain prompts that are flagged, and
        `false_negative_rate`, the share of forget prompts that are not.

    Raises:
        CompanionError, ValueError: as `flagged`; no scores of a class.
    """
    for name, scores in (("forget_scores", forget_scores), ("retain_scores", retain_scores)):
        if not np.size(scores):
            raise ValueError(f"There are no {name}: give those of held-out prompts of both kinds.")
    return {
        "false_positive_rate": proportion(flagged(retain_scores, threshold)),
        "false_negative_rate": proportion(~flagged(forget_scores, threshold)),
    }


def _scores(name: str, scores: ArrayLike) -> np.ndarray:
    array = np.asarray(scores, dtype=float)
    wrong = ~((array >= 0) & (array <= 1))
    if array.ndim != 1 or wrong.any():
        first = f", the first in row {np.argmax(wrong)}" if array.ndim == 1 else ""
        raise ValueError(
            f"{name} has shape {array.shape} and {int(wrong.sum())} values that are nan or outside "
            f"0 to 1{first}: give one probability per prompt."
        )
    return array
