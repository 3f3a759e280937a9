"""From items to numbers: `estimate` and `compare` are the only ways.

    items = stored(load_profile("laptop")).items
    estimate(items, "mu", task="authors", method="ga_gd")
    compare(items, "mu", "me_gd", "ga_gd", task="authors")

An item is one question that a model was asked, one value of it. `metrics/catalogue.yaml` says of
each estimate which items it reads and how.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from unlearn_lib.metrics.statistics import (
    STATISTICS,
    Sample,
    Spread,
    Statistic,
    reduction,
    spread,
    wilson,
)
from unlearn_lib.util import CompanionError, nearest

KEYS = ("task", "model", "condition", "method", "seed")
QUESTION = ("split", "cluster", "item")
TEXTS = (
    "task",
    "model",
    "stage",
    "method",
    "split",
    "condition",
    "cluster",
    "item",
    "metric",
    "run",
)
COLUMNS = (*TEXTS[:2], "seed", *TEXTS[2:9], "value", "run")
EXACT = {"book": {"retain_model": "base"}}
"""The base model never saw the book, so that it is the book's retain model."""
NOT_KEPT = ("forget", "holdout")
FIRST, SECOND = "first:", "second:"
BOUNDS = {"share": (0.0, 1.0), "score": (0.0, 1.0), "cosine": (-1.0, 1.0)}


@dataclass(frozen=True)
class Metric:
    """An entry of the catalogue: what an estimate is made of, and what to call it."""

    name: str
    reads: tuple[str, ...]
    how: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    label: str
    definition: str
    splits: tuple[str, ...] = ("forget",)
    against: str | None = None

    @property
    def statistic(self) -> Statistic:
        """The function and the kind of its interval."""
        return STATISTICS[self.how]


@functools.cache
def catalogue() -> dict[str, Metric]:
    """Every estimate, by name."""
    text = (Path(__file__).parent / "metrics" / "catalogue.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    for entry in entries.values():
        entry |= {key: tuple(entry[key]) for key in ("reads", "splits") if key in entry}
    return {name: Metric(name=name, **entry) for name, entry in entries.items()}


def metric_of(name: str) -> Metric:
    """Return an entry of the catalogue; CompanionError names the nearest one."""
    if name not in catalogue():
        raise CompanionError(f"There is no metric '{name}'{nearest(name, catalogue())}.")
    return catalogue()[name]


class Items:
    """The item table, indexed by model: `frame` has COLUMNS, a row per question and metric."""

    def __init__(self, frame: pd.DataFrame) -> None:
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise CompanionError(f"The table of items lacks the columns {', '.join(missing)}.")
        self.frame = frame[list(COLUMNS)]

    @functools.cached_property
    def _cells(self) -> dict[tuple[Any, ...], pd.DataFrame]:
        """One wide table per task, model, condition, method and seed: a row per question."""
        cells = {}
        for key, rows in self.frame.groupby(list(KEYS), sort=False, observed=True):
            wide = rows.set_index([*QUESTION, "metric"])["value"]
            if wide.index.has_duplicates:
                twice = wide.index[wide.index.duplicated()][0]
                raise CompanionError(f"Two items of {key} are the same: {twice}.")
            cells[key] = wide.unstack("metric").sort_index()
        return cells

    def keys(self, **where: Any) -> list[dict[str, Any]]:
        """The tasks, models, conditions, methods and seeds that have items, narrowed by `where`."""
        every = [dict(zip(KEYS, key, strict=True)) for key in self._cells]
        return [key for key in every if all(key[name] == value for name, value in where.items())]

    def methods(self, **where: Any) -> list[str]:
        """Names of the models before and after unlearning that have items, in order."""
        return list(dict.fromkeys(key["method"] for key in self.keys(**where)))

    def seeds(self, **where: Any) -> list[int]:
        """The seeds that have items."""
        return sorted({key["seed"] for key in self.keys(**where)})

    def model(self, task: str) -> str:
        """The one language model of a task; CompanionError where there are several."""
        models = list(dict.fromkeys(key["model"] for key in self.keys(task=task)))
        if len(models) != 1:
            raise CompanionError(f"Task '{task}' has the models {models}: name one.")
        return models[0]

    def wide(self, **key: Any) -> pd.DataFrame | None:
        """The questions of one model and seed, a column per item metric; None without items."""
        return self._cells.get(tuple(key[name] for name in KEYS))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: mean over seeds, in the metric's unit; low, high: nan where there is no interval.
        n: questions behind it, all seeds together. seeds: how many.
    """

    value: float
    low: float
    high: float
    n: int
    seeds: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference, first minus second, with the standard error and p-value of no change."""

    error: float
    freedom: float
    p: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """The interval at another confidence, such as .9 for a test of equivalence."""
        half = float(stats.t.ppf((1 + confidence) / 2, self.freedom)) * self.error
        return self.value - half, self.value + half


def estimate(
    items: Items,
    metric: str,
    *,
    task: str,
    method: str,
    split: str | None = None,
    condition: str = "",
    model: str | None = None,
) -> Estimate | None:
    """Estimate a metric of a model from its items; None where it was not asked that.

    Args:
        metric: a name in the catalogue.
        method: of unlearning, or `base`, `target`, `retain_model`.
        split: whose questions; default: those that the catalogue names (`kept`: all to be kept).
        condition: an attack, a step, a part of the continual task; default: none.
        model: the language model; default: the task's only one.
    """
    entry = metric_of(metric)
    key = {"task": task, "model": model or items.model(task), "condition": condition}
    rows = _questions(items, entry, split, key | {"method": method})
    samples = [_sample(each) for each in rows.values()]
    return _estimate(entry.statistic, BOUNDS.get(entry.unit), samples) if samples else None


def compare(
    items: Items,
    metric: str,
    first: str,
    second: str,
    *,
    task: str,
    split: str | None = None,
    condition: str = "",
    other_condition: str | None = None,
    model: str | None = None,
) -> Difference | None:
    """Estimate a metric of one model minus another's on the same seeds and questions, in pairs.

    Arguments as in `estimate`; `other_condition`: of the second model, where it differs. None
    where either was not asked. Questions that only one of them was asked are left out.
    """
    entry = metric_of(metric)
    key = {"task": task, "model": model or items.model(task)}
    other = condition if other_condition is None else other_condition
    one = _questions(items, entry, split, key | {"method": first, "condition": condition})
    two = _questions(items, entry, split, key | {"method": second, "condition": other})
    samples = []
    for seed in sorted(set(one) & set(two)):
        shared = one[seed].index.intersection(two[seed].index)
        if len(shared):
            sides = [one[seed].loc[shared].add_prefix(FIRST), two[seed].loc[shared]]
            samples.append(_sample(sides[0].join(sides[1].add_prefix(SECOND))))
    return _difference(entry.statistic, samples) if samples else None


def table(
    items: Items, metrics: Iterable[str], methods: Sequence[str] | None = None, **where: Any
) -> pd.DataFrame:
    """Estimates as a table: a row per method and metric, with value, low, high, n, seeds.

    Args:
        methods: default: all that have items.
        where: task and, where needed, split, condition and model, as in `estimate`.
    """
    place = {key: value for key, value in where.items() if key in KEYS}
    names = items.methods(**place) if methods is None else methods
    rows = []
    for method in names:
        for metric in metrics:
            number = estimate(items, metric, method=method, **where)
            if number is not None:
                rows.append({"method": method, "metric": metric, **vars(number)})
    return pd.DataFrame(rows, columns=["method", "metric", "value", "low", "high", "n", "seeds"])


def _questions(
    items: Items, entry: Metric, split: str | None, key: Mapping[str, Any]
) -> dict[int, pd.DataFrame]:
    """For each seed the questions that a metric reads, a column per item metric.

    Columns of the model that it is compared with carry `@<model>`.
    """
    splits = entry.splits if split is None else (split,)
    tables = {}
    for seed in items.seeds(**key):
        rows = _columns(items.wide(**key, seed=seed), entry)
        rival = EXACT.get(key["task"], {}).get(entry.against or "", entry.against)
        if rows is not None and rival:
            other = _columns(items.wide(**{**key, "method": rival}, seed=seed), entry)
            rows = None if other is None else rows.join(other.add_suffix(f"@{rival}"), how="inner")
        if rows is None:
            continue
        asked = rows.index.get_level_values("split")
        rows = rows[~asked.isin(NOT_KEPT) if splits == ("kept",) else asked.isin(splits)]
        if len(rows) and (len(splits) == 1 or set(splits) <= set(rows.index.unique("split"))):
            tables[seed] = rows
    return tables


def _columns(wide: pd.DataFrame | None, entry: Metric) -> pd.DataFrame | None:
    """The columns that a metric reads (`loss_wrong_*`: all numbered ones); None without one."""
    if wide is None:
        return None
    names: list[str] = []
    for name in entry.reads:
        start = name.removesuffix("*")
        matching = [c for c in wide.columns if c == name or start != name and c.startswith(start)]
        if not matching:
            return None
        names += matching
    return wide[names].dropna(subset=[entry.reads[0]])


def _sample(rows: pd.DataFrame) -> Sample:
    return Sample(
        {str(name): rows[name].to_numpy(float) for name in rows.columns},
        rows.index.get_level_values("split").to_numpy(str),
        rows.index.get_level_values("cluster").to_numpy(str),
    )


def _pooled(statistic: Statistic, samples: Sequence[Sample]) -> float:
    """The mean over seeds of a statistic of all questions."""
    values = [float(statistic.of(sample, np.ones((1, len(sample))))[0]) for sample in samples]
    return float(np.mean(values))


def _estimate(
    statistic: Statistic, bounds: tuple[float, float] | None, samples: Sequence[Sample]
) -> Estimate:
    value, n = _pooled(statistic, samples), sum(map(len, samples))
    if statistic.interval == "none" or not np.isfinite(value):
        with np.errstate(over="ignore"):
            value = float(np.exp(value)) if statistic.interval == "log" else value
        return Estimate(value, np.nan, np.nan, n, len(samples))
    width = spread(statistic.of, samples)
    low, high = value - width.quantile * width.error, value + width.quantile * width.error
    if statistic.interval == "rate":
        known = value * (1 - value) / width.error**2 if width.error > 0 else n
        low, high = wilson(value, known, width.quantile)
    elif statistic.of is reduction:
        high = min(high, 100.0)
        low = value - _reduction_slack(samples, n) if width.error == 0 and value == 100 else low
    if statistic.interval == "log":
        with np.errstate(over="ignore"):
            value, low, high = (float(np.exp(each)) for each in (value, low, high))
    elif bounds:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(value, min(low, value), max(high, value), n, len(samples))


def _reduction_slack(samples: Sequence[Sample], n: int) -> float:
    """How much a fall may be smaller where no resample shows it: none of n answers was harmful."""
    before = np.mean([list(sample.values.values())[1].mean() for sample in samples])
    return float(100 * wilson(0.0, n, float(stats.norm.ppf(0.975)))[1] / before)


def _difference(statistic: Statistic, samples: Sequence[Sample]) -> Difference:
    def of(sample: Sample, weights: np.ndarray) -> np.ndarray:
        first, second = (_side(sample, prefix) for prefix in (FIRST, SECOND))
        one, two = statistic.of(first, weights), statistic.of(second, weights)
        return np.exp(one) - np.exp(two) if statistic.interval == "log" else one - two

    value, n = _pooled(Statistic(of), samples), sum(map(len, samples))
    width = Spread(np.nan, 1) if statistic.interval == "none" else spread(of, samples)
    if statistic.interval == "rate":
        least = _discordant_error(statistic, samples)
        width = Spread(max(width.error, least), width.freedom)
    half = width.quantile * width.error
    p = (
        float(2 * stats.t.sf(abs(value) / width.error, width.freedom))
        if width.error > 0
        else np.nan
    )
    p = float(value == 0) if width.error == 0 else p
    return Difference(
        value, value - half, value + half, n, len(samples), width.error, width.freedom, p
    )


def _side(sample: Sample, prefix: str) -> Sample:
    values = {
        name[len(prefix) :]: v for name, v in sample.values.items() if name.startswith(prefix)
    }
    return Sample(values, sample.split, sample.cluster)


def _discordant_error(statistic: Statistic, samples: Sequence[Sample]) -> float:
    """Standard error of a paired difference of rates that is never 0 (Bonett and Price 2012).

    One more question in each discordant cell, so that 16 of 16 against 0 of 16 is no certainty.
    """
    more, less, n = 1.0, 1.0, 2.0
    for sample in samples:
        sides = [_side(sample, prefix) for prefix in (FIRST, SECOND)]
        each = np.eye(len(sample))
        gap = statistic.of(sides[0], each) - statistic.of(sides[1], each)
        more, less, n = more + np.sum(gap > 0), less + np.sum(gap < 0), n + len(gap)
    return float(np.sqrt((more + less - (more - less) ** 2 / n) / n**2))
