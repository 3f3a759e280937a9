"""One number from the means of many measures on several sets, with its interval."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unlearn_lib.metrics.intervals import CONFIDENCE, RESAMPLES, Estimate

Measures = Mapping[str, ArrayLike]
"""What was measured on the rows of one set: metric name -> a number per row, [n], same order."""


def harmonic_mean(means: np.ndarray) -> np.ndarray:
    """Harmonic mean along the last axis, of numbers that are not negative; 0 if one of them is."""
    with np.errstate(over="ignore"):
        # The inverse of a mean near the smallest float is infinite, and the result 0, as it should.
        return np.asarray(stats.hmean(means, axis=-1))


def of_means(
    statistic: Callable[[np.ndarray], np.ndarray],
    sets: Mapping[str, Measures],
    baseline: Mapping[str, Measures] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Estimate a statistic of the means of all measures of all sets; percentile bootstrap.

    Rows are resampled within each set, and all measures of a set together: a hard question is
    hard for all of them. Order of rows, of sets and of measures changes nothing.

    Args:
        statistic: of means, [..., M] -> [...], whatever their order, such as `harmonic_mean`.
        sets: set name -> its measures, at least one of each.
        baseline: the same measures of another model on the same rows in the same order; the
            result is then statistic(sets) - statistic(baseline), rows resampled in pairs.
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate with the rows of all sets as n. Its width is zero where no resample differs:
        one row a set, constant measures, or a harmonic mean held at 0 by a measure that is 0
        everywhere.

    Raises:
        ValueError: no set, no measure, no row, lengths that differ within a set, nan, infinity,
            numbers below 0, a baseline with other sets or measures, or no resamples.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: give at least 1.")
    models = [sets] if baseline is None else [sets, baseline]
    tables = [_table(name, [_of(model, name) for model in models]) for name in _names(models)]
    random = np.random.default_rng(seed)
    resampled = np.concatenate([_resampled_means(t, resamples, random) for t in tables], axis=-1)
    means = np.concatenate([table.mean(axis=0) for table in tables], axis=-1)
    count = sum(len(table) for table in tables)
    return between(float(_less(statistic(means))), _less(statistic(resampled)), count)


def between(value: float, resampled: np.ndarray, n: int) -> Estimate:
    """The value of all n rows between the percentiles of its resamples, [R], R >= 1."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


def _less(values: np.ndarray) -> np.ndarray:
    """The first model's values, less the baseline's if there is one: [..., models] -> [...]."""
    return values[..., 0] - values[..., 1] if values.shape[-1] == 2 else values[..., 0]


def _resampled_means(table: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """Means of resampled rows: [rows, models, measures] -> [resamples, models, measures]."""
    rows = len(table)
    offsets = rows * np.arange(resamples)[:, None]
    drawn = (random.integers(rows, size=(resamples, rows)) + offsets).ravel()
    counts = np.bincount(drawn, minlength=resamples * rows).reshape(resamples, rows)
    return (counts @ table.reshape(rows, -1) / rows).reshape(resamples, *table.shape[1:])


def _names(models: list[Mapping[str, Measures]]) -> list[str]:
    names = [sorted(model) for model in models]
    if not names[0]:
        raise ValueError("There is no set: give at least one, with its measures.")
    if names[0] != names[-1]:
        raise ValueError(f"The sets are {names[0]} and {names[-1]}: give the same of both models.")
    return names[0]


def _of(model: Mapping[str, Measures], name: str) -> dict[str, np.ndarray]:
    """The measures of one set, checked, in the order of their names."""
    measures = {key: np.asarray(model[name][key], dtype=float) for key in sorted(model[name])}
    if not measures:
        raise ValueError(f"Set '{name}' has no measure: give at least one.")
    first, *_ = measures.values()
    for key, values in measures.items():
        if values.ndim != 1 or not len(values) or values.shape != first.shape:
            raise ValueError(
                f"'{key}' of set '{name}' has shape {values.shape}, and the set {first.shape}: "
                "give one number per row."
            )
        wrong = np.flatnonzero(~np.isfinite(values) | (values < 0))
        if len(wrong):
            raise ValueError(
                f"'{key}' of set '{name}' is {values[wrong[0]]} in row {wrong[0]}: give finite "
                "numbers that are not negative."
            )
    return measures


def _table(name: str, models: list[dict[str, np.ndarray]]) -> np.ndarray:
    """All models' measures of one set, [rows, models, measures], rows sorted by their values."""
    if list(models[0]) != list(models[-1]):
        raise ValueError(
            f"Set '{name}' has the measures {list(models[0])} and {list(models[-1])}: give the "
            "same of both models."
        )
    columns = [values for model in models for values in model.values()]
    lengths = {len(values) for values in columns}
    if len(lengths) > 1:
        raise ValueError(f"Set '{name}' has {sorted(lengths)} rows: give the same rows of both.")
    order = np.lexsort(columns)
    return np.stack(columns, axis=-1)[order].reshape(len(order), len(models), -1)
