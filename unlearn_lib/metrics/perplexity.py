"""Perplexity of a set of texts, from what a model's scoring pass has already summed."""

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.metrics.intervals import RESAMPLES, Estimate, paired, ratio


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


def perplexity_difference(
    negative_log_likelihoods: ArrayLike,
    baseline: ArrayLike,
    token_counts: ArrayLike,
    seed: int = 0,
) -> Estimate:
    """Perplexity of a model minus that of another one on the same rows, resampled in pairs.

    Args:
        negative_log_likelihoods, baseline: sums over each row's tokens, in nats, float [n].
        token_counts: tokens of each row, the same for both models, [n].
        seed: of the bootstrap over rows. Default 0.

    Raises:
        ValueError: as in `perplexity`, for either model.
    """
    counts = np.asarray(token_counts, dtype=float)
    mine, other = (np.asarray(each, dtype=float) for each in (negative_log_likelihoods, baseline))
    value = perplexity(mine, counts, 1).value - perplexity(other, counts, 1).value
    if not np.isfinite(value):
        return Estimate(value, value, value, len(counts))

    def statistic(rows: np.ndarray, _: np.ndarray) -> float:
        chosen = rows.astype(int)
        total = counts[chosen].sum()
        with np.errstate(over="ignore"):
            first, second = (np.exp(each[chosen].sum() / total) for each in (mine, other))
        return float(np.nan_to_num(first - second, posinf=np.finfo(float).max))

    places = np.arange(len(counts))
    return paired(statistic, places, places, RESAMPLES // 4, seed)
