"""Estimates and comparisons: closed forms, coverage by simulation, pairing."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from unlearn_lib.metrics.statistics import STATISTICS, Sample, spread, wilson
from unlearn_lib.results import COLUMNS, Items, catalogue, compare, estimate, table
from unlearn_lib.util import CompanionError


def items_of(values: dict[tuple[str, str, str], Any], seed: int = 1, clusters: Any = None) -> Items:
    """Items of task authors: (method, split, metric) -> values."""
    rows = []
    for (method, split, metric), column in values.items():
        for i, value in enumerate(column):
            cluster = f"c{clusters[i]}" if clusters is not None else f"q{i}"
            place = ("authors", "m", seed, "unlearned", method, split, "", cluster, f"q{i}")
            rows.append((*place, metric, float(value), "run"))
    return Items(pd.DataFrame(rows, columns=list(COLUMNS)))


def test_rate_is_the_mean_with_wilsons_interval() -> None:
    items = items_of({("ga", "forget", "leak"): [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]})
    rate = estimate(items, "leak_share", task="authors", method="ga")
    assert rate is not None
    assert (rate.value, rate.n, rate.seeds) == (0.25, 12, 1)
    assert 0.05 < rate.low < 0.12
    assert 0.5 < rate.high < 0.6


@pytest.mark.parametrize("flag", [0, 1])
def test_rate_of_equal_flags_claims_no_certainty(flag: int) -> None:
    items = items_of({("ga", "forget", "leak"): [flag] * 10})
    rate = estimate(items, "leak_share", task="authors", method="ga")
    assert rate is not None
    assert rate.value == flag
    assert rate.high - rate.low == pytest.approx(0.3, abs=0.05)


def test_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 40)
    items = items_of({("ga", "forget", "rougeL_recall"): values})
    mean = estimate(items, "rougeL_recall", task="authors", method="ga")
    exact = stats.ttest_1samp(values, 0).confidence_interval()
    assert mean is not None
    assert mean.value == pytest.approx(values.mean())
    assert (mean.low, mean.high) == pytest.approx((exact.low, exact.high), rel=0.01)


def test_perplexity_weighs_tokens_alike() -> None:
    values = {("ga", "forget", "loss_text"): [2.0, 30.0], ("ga", "forget", "tokens_text"): [1, 10]}
    number = estimate(items_of(values), "perplexity_text", task="authors", method="ga")
    assert number is not None
    assert number.value == pytest.approx(np.exp(32 / 11))
    assert number.low < number.value < number.high


def test_paired_difference_is_that_of_the_differences() -> None:
    random = np.random.default_rng(1)
    hard = random.normal(0.5, 0.3, 30)
    first, second = hard + random.normal(0.05, 0.02, 30), hard
    items = items_of(
        {("a", "forget", "rougeL_recall"): first, ("b", "forget", "rougeL_recall"): second}
    )
    gap = compare(items, "rougeL_recall", "a", "b", task="authors")
    exact = stats.ttest_rel(first, second)
    assert gap is not None
    assert gap.value == pytest.approx((first - second).mean())
    assert gap.p == pytest.approx(exact.pvalue, rel=0.5)
    assert gap.interval(0.9)[0] > gap.low


def test_opposite_flags_are_told_apart_without_certainty() -> None:
    items = items_of({("a", "forget", "leak"): [1] * 16, ("b", "forget", "leak"): [0] * 16})
    gap = compare(items, "leak_share", "a", "b", task="authors")
    assert gap is not None
    assert gap.value == 1
    assert gap.low < 1
    assert gap.p < 0.001


def test_only_shared_questions_are_compared() -> None:
    values = {("a", "forget", "rougeL_recall"): [1, 2, 3], ("b", "forget", "rougeL_recall"): [1, 2]}
    gap = compare(items_of(values), "rougeL_recall", "a", "b", task="authors")
    assert gap is not None
    assert (gap.value, gap.n) == (0, 2)


def test_clusters_widen_the_interval() -> None:
    values = np.repeat([0.2, 0.8, 0.3, 0.9], 10) + np.random.default_rng(0).normal(0, 0.01, 40)
    alone = estimate(
        items_of({("a", "forget", "rougeL_recall"): values}),
        "rougeL_recall",
        task="authors",
        method="a",
    )
    joined = estimate(
        items_of({("a", "forget", "rougeL_recall"): values}, clusters=np.repeat(range(4), 10)),
        "rougeL_recall",
        task="authors",
        method="a",
    )
    assert alone is not None
    assert joined is not None
    assert joined.high - joined.low > 3 * (alone.high - alone.low)


def drawn(n: int, groups: int, correlation: float, random: np.random.Generator) -> Sample:
    clusters = np.repeat(np.arange(groups), n // groups)
    if correlation:
        a, b = (p * (1 - correlation) / correlation for p in (0.3, 0.7))
        chance = random.beta(a, b, groups)[clusters]
    else:
        chance = np.full(n, 0.3)
    flags = (random.random(n) < chance).astype(float)
    return Sample({"x": flags}, np.full(n, "forget"), clusters.astype(str))


@pytest.mark.parametrize("n, groups, correlation", [
    (12, 12, 0.0), (12, 4, 0.2), (60, 60, 0.0), (60, 10, 0.2), (300, 300, 0.0), (300, 50, 0.2),
])  # fmt: skip
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover(n: int, groups: int, correlation: float, seeds: int) -> None:
    random, hits, trials = np.random.default_rng(0), 0, 200
    statistic = STATISTICS["rate"]
    for _ in range(trials):
        samples = [drawn(n, groups, correlation, random) for _ in range(seeds)]
        width = spread(statistic.of, samples)
        share = float(np.mean([sample.values["x"].mean() for sample in samples]))
        count = share * (1 - share) / width.error**2 if width.error else n * seeds
        low, high = wilson(share, count, width.quantile)
        hits += low <= 0.3 <= high
    assert 0.90 <= hits / trials <= 0.995


def test_more_seeds_give_more_power() -> None:
    random = np.random.default_rng(0)

    def shown(seeds: int) -> float:
        hits = 0
        for _ in range(30):
            flags = [
                [(random.random(16) < p).astype(float) for p in (0.85, 0.31)] for _ in range(seeds)
            ]
            frames = [
                items_of({("a", "forget", "leak"): one, ("b", "forget", "leak"): two}, seed).frame
                for seed, (one, two) in enumerate(flags)
            ]
            gap = compare(Items(pd.concat(frames)), "leak_share", "a", "b", task="authors")
            assert gap is not None
            hits += gap.low > 0
        return hits / 30

    assert 0.6 < shown(1) <= shown(3) <= shown(10)
    assert shown(10) > 0.95


def test_every_metric_has_a_statistic_and_a_label() -> None:
    for metric in catalogue().values():
        assert metric.statistic
        assert metric.label
        assert metric.definition.endswith(".")
        assert metric.better in ("higher", "lower", "neither")


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(CompanionError, match="leak_share"):
        estimate(items_of({("a", "forget", "leak"): [1]}), "leak_shar", task="authors", method="a")


def test_table_has_a_row_per_method_and_metric() -> None:
    values = {("a", "forget", "leak"): [1, 0], ("b", "forget", "leak"): [0, 0]}
    rows = table(items_of(values), ["leak_share", "asg"], task="authors")
    assert list(rows["method"]) == ["a", "b"]
    assert list(rows["value"]) == [0.5, 0.0]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 100))
def test_order_of_questions_changes_nothing(values: list[float], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(values))
    items = items_of({("a", "forget", "rougeL_recall"): values})
    shuffled = Items(items.frame.iloc[order])
    results = [
        estimate(each, "rougeL_recall", task="authors", method="a") for each in (items, shuffled)
    ]
    assert results[0] == results[1]


def test_effectiveness_is_the_fall_in_per_cent_and_no_more_than_all() -> None:
    values = {("base", "forget", "harmful"): [1] * 8 + [0] * 8}
    values |= {
        ("ga", "forget", "harmful"): [1] * 2 + [0] * 14,
        ("no", "forget", "harmful"): [0] * 16,
    }
    items = items_of(values)
    fall, whole, none = (
        estimate(items, "effectiveness", task="authors", method=name)
        for name in ("ga", "no", "base")
    )
    assert fall is not None
    assert whole is not None
    assert none is not None
    assert (fall.value, fall.high <= 100) == (75, True)
    assert whole.value == 100
    assert whole.low < 70
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_mu_takes_sets_with_different_numbers_of_wrong_answers() -> None:
    values: dict[tuple[str, str, str], Any] = {}
    for split, wrong in (("retain", 3), ("world_facts", 1)):
        for name in ("rougeL_recall", "token_entropy", "entailment", "cosine"):
            values["a", split, name] = [1.0, 1.0]
        values["a", split, "truth_ratio"] = [2.0, 2.0]
        for name in ("loss_answer", *(f"loss_wrong_{i + 1}" for i in range(wrong))):
            values["a", split, name] = [0.0, 0.0]
    utility = estimate(items_of(values), "mu", task="authors", method="a")
    means = [1, 1, 1, 1, 1, 0.5, 1, 1, 1, 1, 0.5, 0.5]
    assert utility is not None
    assert utility.value == pytest.approx(stats.hmean(means))
