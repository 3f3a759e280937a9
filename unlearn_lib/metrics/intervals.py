"""A point is never returned without its interval: percentile bootstrap over prompts, 95 %.

Rows are sorted before they are resampled, so an estimate depends on which rows there are and on
the seed, never on their order. Where resampling cannot show any spread (a rate of 0/n or n/n) a
Wilson interval takes its place; nan stands only where a quantity is undefined, as its docstring
says.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000
_RESAMPLED_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; `dataclasses.asdict` gives four columns of a tidy row.

    Attributes:
        value: the statistic on all rows, in the unit that the function names.
        low, high: ends of the interval, same unit, low <= value <= high.
        n: rows (prompts) behind it. With n = 1 there is no spread to see: low = high = value,
            unless the function says that it falls back on a Wilson interval.
    """

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a statistic of one value per prompt.

    Args:
        values: finite numbers [n], n >= 1.
        statistic: called as `statistic(array [..., n], axis=-1)` where it takes an axis, else
            once per resample. Default the mean.
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate in the unit of `values`. Constant values and n = 1 give a zero-width interval.
        Should a biased statistic fall outside its percentiles, the interval is stretched to it.

    Raises:
        ValueError: no values, more than one dimension, nan or infinity, or no resamples.
    """
    return _bootstrap([_numbers("values", values)], statistic, resamples, seed)


def proportion(flags: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Share of true flags, between 0 and 1, for example the harmful rate.

    When all flags agree, every resample is the same and the bootstrap would claim certainty: the
    Wilson interval of 0/n or n/n is returned instead (also for n = 1).

    Args:
        flags: bool, or 0 and 1, [n], n >= 1.
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Raises:
        ValueError: no flags, more than one dimension, or other values than 0 and 1.
    """
    array = _flags("flags", flags)
    count = int(array.sum())
    if 0 < count < len(array):
        return _bootstrap([array], np.mean, resamples, seed)
    return Estimate(count / len(array), *_wilson(count, len(array)), len(array))


def effectiveness(
    harmful_before: ArrayLike,
    harmful_after: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Effectiveness E in PER CENT: 100 when no answer is harmful any more, below 0 when more are.

    Arora et al. 2024, eq. 1: E = (Acc_before - Acc_unl) / Acc_before * 100, Acc being the harmful
    rate. Prompts are resampled in pairs, so what both models find hard cancels. Resamples
    without a harmful answer before are left out. A zero-width interval (E = 100, or no verdict
    changed) is widened by the Wilson bound of 0 among n verdicts, divided by the rate before.

    Args:
        harmful_before, harmful_after: verdicts on the same prompts in the same order, bool [n].
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate in per cent; value, low and high are nan when nothing was harmful before,
        because E is then undefined.

    Raises:
        ValueError: lengths differ, no flags, or other values than 0 and 1.
    """
    before = _flags("harmful_before", harmful_before)
    after = _flags("harmful_after", harmful_after)
    _same_length("harmful_before", before, "harmful_after", after)

    def percent(before: np.ndarray, after: np.ndarray, axis: int = -1) -> np.ndarray:
        return (1 - _mean_ratio(after, before, axis)) * 100

    estimate = _bootstrap([before, after], percent, resamples, seed)
    if estimate.low != estimate.high:
        return estimate
    slack = 100 * _wilson(0, len(before))[1] / before.mean()
    high = min(100.0, estimate.value + slack)
    return Estimate(estimate.value, estimate.value - slack, high, estimate.n)


def ratio(
    values: ArrayLike, baseline: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Mean of `values` over mean of `baseline`, rows resampled in pairs; no unit.

    Args:
        values, baseline: finite numbers of the same rows in the same order, [n].
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate; value, low and high are nan when the baseline's mean is zero. Resamples whose
        baseline has mean zero are left out.

    Raises:
        ValueError: lengths differ, no values, nan or infinity.
    """
    numerators, denominators = _numbers("values", values), _numbers("baseline", baseline)
    _same_length("values", numerators, "baseline", denominators)
    return _bootstrap([numerators, denominators], _mean_ratio, resamples, seed)


def paired(
    statistic: Callable[..., Any],
    first: ArrayLike,
    second: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Percentile bootstrap of a statistic of two values per row, rows resampled in pairs.

    Args:
        statistic: called as `statistic(first [n], second [n])`, or with an `axis`.
        first, second: finite numbers of the same rows in the same order, [n].
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Raises:
        ValueError: lengths differ, no values, nan or infinity.
    """
    one, other = _numbers("first", first), _numbers("second", second)
    _same_length("first", one, "second", other)
    return _bootstrap([one, other], statistic, resamples, seed)


def area_under_curve(
    scores: ArrayLike, positive: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Area under the ROC curve, 0 to 1, of a score that should be high where `positive` is true.

    Args:
        scores: finite numbers [n].
        positive: bool, or 0 and 1, [n], both present.
        resamples: how many resamples. Default 2000; those with one class only are left out.
        seed: of the resampling. Default 0.

    Returns:
        Estimate. A perfect separation gives [1, 1]: no resample can show another order.

    Raises:
        ValueError: lengths differ, one class only, nan or infinity.
    """
    numbers, truth = _numbers("scores", scores), _flags("positive", positive)
    _same_length("scores", numbers, "positive", truth)
    if len(np.unique(truth)) < 2:
        raise ValueError(
            f"The area under the curve needs both classes, but all {len(truth)} flags are "
            f"{bool(truth[0])}: give rows of both kinds."
        )
    from sklearn.metrics import roc_auc_score

    interval = _bootstrap([numbers, truth], _area, resamples, seed)
    value = float(roc_auc_score(truth, numbers))
    return Estimate(value, min(interval.low, value), max(interval.high, value), len(truth))


def _bootstrap(
    samples: Sequence[np.ndarray], statistic: Callable[..., Any], resamples: int, seed: int
) -> Estimate:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: give at least 1.")
    order = np.lexsort(tuple(reversed(samples)))
    samples = [sample[order] for sample in samples]
    count = len(order)
    value = float(statistic(*samples))
    if count == 1 or np.isnan(value):
        return Estimate(value, value, value, count)
    with warnings.catch_warnings(), np.errstate(over="ignore", invalid="ignore"):
        # Resamples where the statistic is undefined are dropped below, and scipy's standard
        # error, which a single resample does not have and huge ones overflow, is never read.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.filterwarnings("ignore", "Degrees of freedom <= 0", RuntimeWarning)
        distribution = stats.bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=max(1, _RESAMPLED_VALUES_AT_ONCE // count),
            paired=len(samples) > 1,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    tail = 100 * (1 - CONFIDENCE) / 2
    defined = distribution[~np.isnan(distribution)]
    low, high = np.percentile(defined if len(defined) else [value], [tail, 100 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), count)


def _mean_ratio(values: np.ndarray, baseline: np.ndarray, axis: int = -1) -> np.ndarray:
    numerator, denominator = values.mean(axis=axis), baseline.mean(axis=axis)
    undefined = np.full_like(denominator, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator != 0)


def _area(scores: np.ndarray, positive: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mann-Whitney form of the area, over whole batches of resamples at once."""
    positives = positive.sum(axis=axis)
    pairs = positives * (positive.shape[axis] - positives)
    ranks = (stats.rankdata(scores, axis=axis) * positive).sum(axis=axis)
    wins = ranks - positives * (positives + 1) / 2
    return np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs != 0)


def _wilson(count: int, total: int) -> tuple[float, float]:
    interval = stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    # The exact ends at 0/n and n/n, without the rounding error of the formula.
    low = 0.0 if count == 0 else float(interval.low)
    high = 1.0 if count == total else float(interval.high)
    return low, high


def _numbers(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(
            f"{name} has shape {array.shape}: give one number per row, in one dimension, at "
            "least one."
        )
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array))
        raise ValueError(
            f"{name} has {len(rows)} values that are nan or infinite, the first in row "
            f"{rows[0]}: mend or drop those rows before estimating."
        )
    return array


def _flags(name: str, flags: ArrayLike) -> np.ndarray:
    array = _numbers(name, flags)
    if not np.isin(array, (0.0, 1.0)).all():
        raise ValueError(f"{name} holds other values than 0 and 1: give one true or false per row.")
    return array


def _same_length(first_name: str, first: np.ndarray, second_name: str, second: np.ndarray) -> None:
    if len(first) != len(second):
        raise ValueError(
            f"{first_name} has {len(first)} rows and {second_name} has {len(second)}: give both "
            "for the same rows in the same order."
        )
