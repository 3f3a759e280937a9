"""Membership inference and memorisation by hand and against second implementations."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from unlearn_lib import metrics
from unlearn_lib.metrics import METRICS

T, F = True, False
ROW = [-0.1, -3.0, -0.5, -2.0, -0.4]
log_probabilities = st.lists(st.floats(-30, 0), min_size=1, max_size=12)
answers = st.lists(log_probabilities, min_size=1, max_size=5)
scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=8)


# --- memorisation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matches, share", [([T], 1.0), ([F], 0.0), ([T, F, T, T], 0.75), ([F, F, T, T], 0.5)]
)
def test_exact_memorisation_by_hand(matches: list[bool], share: float) -> None:
    assert metrics.exact_memorisation(matches) == share


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_exact_memorisation_is_a_share_and_at_least_what_can_be_extracted(
    matches: list[bool],
) -> None:
    found = metrics.exact_memorisation(matches)
    assert found == pytest.approx(sum(matches) / len(matches))
    assert found == metrics.exact_memorisation(matches[::-1])
    assert found >= metrics.extraction_strength(matches) - 1e-12


@pytest.mark.parametrize("matches", [[], [[T, F]], True])
def test_exact_memorisation_needs_one_flag_per_token(matches: Any) -> None:
    with pytest.raises(ValueError, match="one flag per answer token"):
        metrics.exact_memorisation(matches)


# --- scores ----------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    assert metrics.loss_score([ROW, [-1.0]]).tolist() == pytest.approx([-1.2, -1.0])
    assert metrics.min_k_score([ROW, [-1.0]], k=0.4).tolist() == pytest.approx([-2.5, -1.0])
    assert metrics.min_k_score([ROW]).tolist() == [-3.0]
    assert metrics.min_k_score([ROW], k=0.01).tolist() == [-3.0], "at least one token"
    size = len(zlib.compress(b"aaaa"))
    assert metrics.zlib_score([ROW], ["aaaa"]).tolist() == pytest.approx([-1.2 / size])


def test_min_k_plus_plus_by_hand() -> None:
    found = metrics.min_k_plus_plus_score([[-1.0, -2.0]], [[-2.0, -2.0]], [[0.5, 0.5]], k=1.0)
    assert found.tolist() == [1.0]
    lowest = metrics.min_k_plus_plus_score([[-1.0, -5.0]], [[-2.0, -2.0]], [[0.5, 1.5]], k=0.5)
    assert lowest.tolist() == [-2.0]


def test_min_k_plus_plus_standardises_over_the_vocabulary() -> None:
    """A vocabulary of seven: the mean over it of the standardised score is 0, its variance 1."""
    logits = np.random.default_rng(0).normal(size=7)
    log_p = logits - np.logaddexp.reduce(logits)
    mean = (np.exp(log_p) * log_p).sum()
    deviation = math.sqrt((np.exp(log_p) * (log_p - mean) ** 2).sum())
    each = metrics.min_k_plus_plus_score([[x] for x in log_p], [[mean]] * 7, [[deviation]] * 7)
    assert (np.exp(log_p) * each).sum() == pytest.approx(0, abs=1e-12)
    assert (np.exp(log_p) * each**2).sum() == pytest.approx(1)


def test_a_flat_distribution_has_no_surprise() -> None:
    flat = -math.log(7)
    assert metrics.min_k_plus_plus_score([[flat]], [[flat]], [[0.0]]).tolist() == [0.0]


@given(answers, st.floats(0.01, 1))
def test_min_k_is_the_mean_of_the_lowest(rows: list[list[float]], k: float) -> None:
    found = metrics.min_k_score(rows, k)
    for row, value in zip(rows, found, strict=True):
        count = max(1, math.floor(k * len(row)))
        assert value == pytest.approx(np.partition(row, count - 1)[:count].mean())
    assert (found <= metrics.loss_score(rows) + 1e-9).all()


@given(answers)
def test_all_tokens_are_the_loss(rows: list[list[float]]) -> None:
    assert metrics.min_k_score(rows, 1.0) == pytest.approx(metrics.loss_score(rows))
    means, deviations = [np.zeros(len(r)) for r in rows], [np.ones(len(r)) for r in rows]
    found = metrics.min_k_plus_plus_score(rows, means, deviations, 0.3)
    assert found == pytest.approx(metrics.min_k_score(rows, 0.3))


@given(answers, st.data())
def test_order_of_answers_and_of_tokens_changes_no_score(
    rows: list[list[float]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    moved = [data.draw(st.permutations(rows[i])) for i in order]
    for score in (metrics.loss_score, metrics.min_k_score):
        assert score(moved) == pytest.approx(score(rows)[list(order)])


# --- the attack ------------------------------------------------------------------------------


@given(scores, scores)
def test_the_area_is_sklearns_and_mann_whitneys(members: list[float], others: list[float]) -> None:
    found = metrics.attack_auc(members, others, resamples=20)
    flags = [1] * len(members) + [0] * len(others)
    assert found.value == pytest.approx(roc_auc_score(flags, members + others))
    wins = stats.mannwhitneyu(members, others, method="asymptotic").statistic
    assert found.value == pytest.approx(wins / (len(members) * len(others)))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert metrics.attack_auc(members[::-1], others[::-1], resamples=20) == found


def test_what_was_trained_on_scores_higher() -> None:
    assert metrics.attack_auc([-0.1, -0.2], [-2.0, -3.0]).value == 1


# --- privacy leakage -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "auc, reference, leakage",
    [(0.5, 0.5, 0), (1.0, 0.5, -100), (0.0, 0.5, 100), (0.7, 0.6, -25), (0.4, 0.2, -25)],
)
def test_privleak_by_hand(auc: float, reference: float, leakage: float) -> None:
    assert metrics.privleak(auc, reference) == pytest.approx(leakage)


@given(scores, scores, st.data())
def test_privleak_is_muses_with_non_members_positive(
    members: list[float], others: list[float], data: st.DataObject
) -> None:
    def same(rows: list[float]) -> list[float]:
        drawn = st.lists(st.integers(-4, 4), min_size=len(rows), max_size=len(rows))
        return list(map(float, data.draw(drawn)))

    references = same(members), same(others)
    flags = [0] * len(members) + [1] * len(others)
    area, reference = (
        roc_auc_score(flags, [-score for score in inside + outside])
        for inside, outside in ((members, others), references)
    )
    assume(reference < 1)
    muse = [
        roc_auc_score(flags, inside + outside)
        for inside, outside in ((members, others), references)
    ]
    assert [1 - area, 1 - reference] == pytest.approx(muse)
    found = metrics.privleak_estimate(members, others, *references, resamples=50)
    assert found.value == pytest.approx(100 * (muse[0] - muse[1]) / muse[1])
    assert found.low <= found.value <= found.high
    turned = references[0][::-1], references[1][::-1]
    again = metrics.privleak_estimate(members[::-1], others[::-1], *turned, resamples=50)
    assert again == found


def test_the_retained_model_leaks_nothing() -> None:
    random = np.random.default_rng(0)
    members, others = random.normal(size=20), random.normal(size=30)
    found = metrics.privleak_estimate(members, others, members, others)
    assert (found.value, found.low, found.high, found.n) == (0, 0, 0, 50)


def test_a_reference_that_tells_all_apart_in_every_resample_gives_no_width() -> None:
    found = metrics.privleak_estimate([0.0, 1.0], [0.5], [0.0, 1.0], [0.5], resamples=1)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_the_interval_of_leakage_is_that_of_a_plain_bootstrap() -> None:
    random = np.random.default_rng(0)
    ours = random.normal(0.5, 1, 30), random.normal(0, 1, 40)
    theirs = ours[0] + random.normal(-0.5, 0.5, 30), ours[1] + random.normal(0, 0.5, 40)
    leakages = []
    for _ in range(1500):
        rows, columns = random.integers(30, size=30), random.integers(40, size=40)
        areas = [
            float((inside[rows][:, None] > outside[columns]).mean())
            for inside, outside in (ours, theirs)
        ]
        leakages.append(metrics.privleak(*areas))
    found = metrics.privleak_estimate(*ours, *theirs)
    expected = np.percentile(leakages, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=6)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.loss_score([[-1.0], []]), "answer 1"),
        (lambda: metrics.loss_score([[[-1.0]]]), "answer 0"),
        (lambda: metrics.loss_score([[-1.0, math.nan]]), "nan or infinite in answer 0"),
        (lambda: metrics.min_k_score([[-1.0], [-math.inf]]), "nan or infinite in answer 1"),
        (lambda: metrics.loss_score([[-1.0], [0.7]]), "0.7 in answer 1: give logarithms"),
        (lambda: metrics.min_k_score([ROW], k=0.0), "k is 0.0"),
        (lambda: metrics.min_k_score([ROW], k=40), "k is 40"),
        (lambda: metrics.zlib_score([ROW], []), "1 answers and 0 texts"),
        (lambda: metrics.min_k_plus_plus_score([ROW], [], [ROW]), "0 means"),
        (lambda: metrics.min_k_plus_plus_score([ROW], [ROW], []), "0 deviations"),
        (lambda: metrics.min_k_plus_plus_score([ROW], [ROW[1:]], [ROW]), "Answer 0 has 5"),
        (lambda: metrics.min_k_plus_plus_score([[-1.0]], [[-1.0]], [[-1.0]]), "deviation below 0"),
        (lambda: metrics.attack_auc([], [1.0]), "members has shape"),
        (lambda: metrics.attack_auc([1.0], []), "non_members has shape"),
        (lambda: metrics.attack_auc([1.0, math.nan], [1.0]), "members is nan or infinite in row 1"),
        (lambda: metrics.privleak(1.2, 0.5), "auc is 1.2"),
        (lambda: metrics.privleak(0.5, math.nan), "reference_auc is nan"),
        (lambda: metrics.privleak(0.5, 1.0), "undefined"),
        (lambda: metrics.privleak_estimate([1.0], [0.0], [1.0], [0.0]), "undefined"),
        (lambda: metrics.privleak_estimate([1.0], [0.0], [1.0, 2.0], [0.0]), "reference_members"),
        (lambda: metrics.privleak_estimate([1.0], [0.0], [0.0], [1.0], 0), "at least 1"),
    ],
)
def test_degenerate_input_is_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_names_of_the_table() -> None:
    areas = {f"mia_auc_{attack}" for attack in ("loss", "zlib", "min_k", "min_k_plus_plus")}
    assert areas | {"privleak", "exact_memorisation"} <= set(METRICS)
