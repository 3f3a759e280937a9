"""From items to numbers: `estimate` and `compare` are the only ways.

    items = stored(load_profile("laptop")).items
    estimate(items, "mu", task="authors", method="ga_gd")
    compare(items, "mu", "me_gd", "ga_gd", task="authors")

An item is one question that a model was asked, one value of it. `metrics/catalogue.yaml` says of
each estimate which items it reads and how.
"""

import fnmatch
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from unlearn_lib.metrics import statistics
from unlearn_lib.metrics.statistics import Sample, Spread, Statistic
from unlearn_lib.util import CompanionError, nearest

KEYS = ("task", "model", "condition", "method", "seed")
QUESTION = ("split", "cluster", "item")
COLUMNS = tuple(
    "task model seed stage method split condition cluster item metric value run".split()
)
EXACT = {"book": {"retain_model": "base"}}
"""The base model never saw the book, so that it is the book's retain model."""
NOT_KEPT = ("forget", "holdout")
NO_QUESTIONS = pd.DataFrame(index=pd.MultiIndex.from_arrays([[], [], []], names=QUESTION))
BOUNDS = {"share": (0.0, 1.0), "score": (0.0, 1.0), "cosine": (-1.0, 1.0)}


@dataclass(frozen=True)
class Metric:
    """An entry of the catalogue: what an estimate is made of, and what to call it."""

    name: str
    reads: Sequence[str]
    how: str
    unit: str
    better: Literal["higher", "lower", "neither"]
    label: str
    definition: str
    splits: Sequence[str] = ("forget",)
    against: str | None = None

    @property
    def statistic(self) -> Statistic:
        """The function and the kind of its interval."""
        return statistics.STATISTICS[self.how]


@functools.cache
def catalogue() -> dict[str, Metric]:
    """Every estimate, by name."""
    text = (Path(__file__).parent / "metrics" / "catalogue.yaml").read_text(encoding="utf-8")
    return {name: Metric(name=name, **entry) for name, entry in yaml.safe_load(text).items()}


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

    def models(self, task: str) -> list[str]:
        """The language models of a task that have items."""
        return list(dict.fromkeys(key["model"] for key in self.keys(task=task)))

    def model(self, task: str) -> str:
        """The one language model of a task; CompanionError where there are several."""
        models = self.models(task)
        if len(models) != 1:
            raise CompanionError(f"Task '{task}' has the models {models}: name one.")
        return models[0]

    def wide(self, **key: Any) -> pd.DataFrame:
        """The questions of one model and seed, a column per item metric; empty without items."""
        return self._cells.get(tuple(key[name] for name in KEYS), NO_QUESTIONS)


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
    return _estimate(entry, samples) if samples else None


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
            samples.append(_sample(one[seed].loc[shared], _sample(two[seed].loc[shared])))
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
    splits = entry.splits if split is None else [split]
    rival = EXACT.get(key["task"], {}).get(entry.against or "", entry.against)
    tables = {}
    for seed in items.seeds(**key):
        rows = _columns(items.wide(**key, seed=seed), entry)
        if rival:
            other = _columns(items.wide(**{**key, "method": rival}, seed=seed), entry)
            rows = rows.join(other.add_suffix(f"@{rival}"), how="inner")
        asked = rows.index.get_level_values("split")
        rows = rows[~asked.isin(NOT_KEPT) if "kept" in splits else asked.isin(splits)]
        if len(rows) and (len(splits) == 1 or set(splits) <= set(rows.index.unique("split"))):
            tables[seed] = rows
    return tables


def _columns(wide: pd.DataFrame, entry: Metric) -> pd.DataFrame:
    """The columns that a metric reads (`loss_wrong_*`: all numbered ones); no row without one."""
    columns = [fnmatch.filter(wide.columns, name) for name in entry.reads]
    if not all(columns):
        return wide[:0]
    return wide[list(itertools.chain(*columns))].dropna(subset=[entry.reads[0]])


def _sample(rows: pd.DataFrame, other: Sample | None = None) -> Sample:
    values = {str(name): rows[name].to_numpy(float) for name in rows.columns}
    levels = (rows.index.get_level_values(name).to_numpy(str) for name in ("split", "cluster"))
    split, cluster = levels
    return Sample(values, split, cluster, other)


def _estimate(entry: Metric, samples: Sequence[Sample]) -> Estimate:
    of, interval = entry.statistic.of, entry.statistic.interval
    value = float(np.mean(statistics.by_seed(of, samples)))
    n = sum(map(len, samples))
    if interval == "none" or not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, n, len(samples))
    width = statistics.spread(of, samples)
    low, high = value - width.quantile * width.error, value + width.quantile * width.error
    if interval == "rate":
        known = value * (1 - value) / width.error**2 if width.error > 0 else n
        low, high = statistics.wilson(value, known, width.quantile)
    elif interval == "fall":
        high = min(high, 100.0)
        low = value - _slack(samples, n) if width.error == 0 and value == 100 else low
    elif interval == "log":
        with np.errstate(over="ignore"):
            value, low, high = (float(np.exp(each)) for each in (value, low, high))
    least, most = BOUNDS.get(entry.unit, (-np.inf, np.inf))
    low, high = max(low, least), min(high, most)
    return Estimate(value, min(low, value), max(high, value), n, len(samples))


def _slack(samples: Sequence[Sample], n: int) -> float:
    """How much a fall may be smaller where no resample shows it: none of n answers was harmful."""
    before = np.mean([sample.columns[1].mean() for sample in samples])
    return float(100 * statistics.wilson(0.0, n, float(stats.norm.ppf(0.975)))[1] / before)


def _difference(statistic: Statistic, samples: Sequence[Sample]) -> Difference:
    def of(pair: Any, weights: np.ndarray) -> np.ndarray:
        one, two = statistic.of(pair, weights), statistic.of(pair.other, weights)
        return np.exp(one) - np.exp(two) if statistic.interval == "log" else one - two

    value = float(np.mean(statistics.by_seed(of, samples)))
    width = Spread(np.nan, 1) if statistic.interval == "none" else statistics.spread(of, samples)
    if statistic.interval == "rate":
        gaps = [of(sample, np.eye(len(sample))) for sample in samples]
        width = Spread(max(width.error, _discordant_error(np.concatenate(gaps))), width.freedom)
    error, half = width.error, width.quantile * width.error
    p = float(value == 0) if error == 0 else 2 * stats.t.sf(abs(value) / error, width.freedom)
    limits = (value - half, value + half)
    counts = (sum(map(len, samples)), len(samples))
    return Difference(value, *limits, *counts, error, width.freedom, float(p))


def _discordant_error(gaps: np.ndarray) -> float:
    """Standard error of a paired difference of rates that is never 0 (Bonett and Price 2012).

    One more question in each discordant cell, so that 16 of 16 against 0 of 16 is no certainty.

    Args:
        gaps: the difference on each question, [n].
    """
    more, less, n = 1 + np.sum(gaps > 0), 1 + np.sum(gaps < 0), 2 + len(gaps)
    return float(np.sqrt((more + less - (more - less) ** 2 / n) / n**2))
