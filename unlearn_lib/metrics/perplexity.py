"""Perplexity of a set of texts, from what a model's scoring pass has already summed."""

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.metrics.intervals import RESAMPLES, Estimate, ratio


def perplexity(
    negative_log_likelihoods: ArrayLike,
    token_counts: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """exp(sum of negative log-likelihoods / sum of predicted tokens), rows resampled.

    Every token weighs the same, whatever its row, and padding is never counted. ECO's released
    code (its evaluator/utils.py:83-93) sets padded positions to 0 and then divides each row by
    the padded length, so its values are too low and change with the batch size.

    Args:
        negative_log_likelihoods: sum over each row's predicted tokens, in nats, float [n].
        token_counts: predicted tokens of each row, whole numbers >= 1, [n].
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate, no unit, >= 1 for true likelihoods; infinite where the exponential overflows.

    Raises:
        ValueError: lengths differ, no rows, nan or infinity, or a row without a token.
    """
    counts = np.asarray(token_counts, dtype=float)
    wrong = np.flatnonzero((counts < 1) | (counts != np.round(counts)))
    if len(wrong):
        raise ValueError(
            f"token_counts has {counts.flat[wrong[0]]:g} in row {wrong[0]}: give a whole number "
            "of predicted tokens, and leave rows without one out."
        )
    loss = ratio(negative_log_likelihoods, counts, resamples, seed)
    with np.errstate(over="ignore"):
        value, low, high = np.exp([loss.value, loss.low, loss.high])
    return Estimate(float(value), float(low), float(high), loss.n)
