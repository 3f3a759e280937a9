"""How much of a true text a model gives back, by hand and against second implementations."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu
from scipy import stats

from unlearn_lib import metrics
from unlearn_lib.metrics import Estimate, tidy

T, F = True, False
TEXTS = (
    ("The bell of the ford was cast in the year of the long snow.",
     "The bell of the ford was cast before the year of the snow."),
    ("They beat their wings and ride the wind.", "Birds fly; they beat their wings."),
)  # fmt: skip
tokens = st.lists(st.integers(0, 3), max_size=14)
numbers = st.floats(0, 8, allow_nan=False)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20)


# --- the longest verbatim run ----------------------------------------------------------------


@pytest.mark.parametrize(
    "continuation, truth, found",
    [
        ([1, 2, 3], [1, 2, 3], (0, 3)),
        ([9, 9, 1, 2, 3, 9], [0, 1, 2, 3, 4], (2, 3)),
        ([1, 2, 9, 3, 4, 5], [1, 2, 3, 4, 5], (3, 3)),
        ([1, 9, 2], [2, 7, 1], (0, 1)),
        ([5, 5, 5, 5], [5, 5], (0, 2)),
        ([1, 2], [3, 4], (0, 0)),
        ([], [1], (0, 0)),
        ([1], [], (0, 0)),
    ],
)
def test_longest_run_by_hand(
    continuation: list[int], truth: list[int], found: tuple[int, int]
) -> None:
    assert metrics.longest_run(continuation, truth) == found


@given(tokens, tokens)
def test_longest_run_agrees_with_trying_every_run(
    continuation: list[int], truth: list[int]
) -> None:
    start, length = metrics.longest_run(continuation, truth)

    def within(run: list[int]) -> bool:
        return any(truth[i : i + len(run)] == run for i in range(len(truth) + 1))

    places = range(len(continuation) + 1)
    runs = [continuation[i:j] for i in places for j in places[i:] if within(continuation[i:j])]
    assert length == max(map(len, runs))
    assert within(continuation[start : start + length])
    assert 0 <= start <= start + length <= len(continuation)


def test_a_token_that_is_everywhere_is_no_junk_in_a_long_text() -> None:
    """difflib leaves out what is frequent in texts of 200 and more, unless told not to."""
    assert metrics.longest_run([9] + [7] * 50, [7] * 250) == (1, 50)


# --- extraction strength ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "matches, strength",
    [
        ([T, T], 1.0),
        ([F, T], 0.5),
        ([T, F], 0.0),
        ([F, F], 0.0),
        ([T], 1.0),
        ([F], 0.0),
        ([F, T, F, T, T], 0.4),
    ],
)
def test_extraction_strength_by_hand(matches: list[bool], strength: float) -> None:
    assert metrics.extraction_strength(matches) == pytest.approx(strength)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_extraction_strength_is_the_share_of_right_tokens_at_the_end(matches: list[bool]) -> None:
    right = 0
    while right < len(matches) and matches[-1 - right]:
        right += 1
    assert metrics.extraction_strength(matches) == pytest.approx(right / len(matches))


@pytest.mark.parametrize("matches", [[], [[T, F]], True])
def test_extraction_strength_needs_one_flag_per_token(matches: Any) -> None:
    with pytest.raises(ValueError, match="one flag per answer token"):
        metrics.extraction_strength(matches)


# --- BLEU ------------------------------------------------------------------------------------


def test_bleu_is_sacrebleus_sentence_bleu_over_a_hundred() -> None:
    references, texts = zip(*TEXTS, strict=True)
    expected = [sentence_bleu(text, [truth]).score / 100 for truth, text in TEXTS]
    ours = metrics.bleu(references, texts)
    assert ours.tolist() == pytest.approx(expected)
    assert 0.1 < ours.min() < ours.max() < 0.9
    assert not np.allclose(ours, metrics.bleu(texts, references)), "the reference has its side"


@given(st.lists(st.text("abc .?!", min_size=1, max_size=30), max_size=5))
def test_bleu_is_one_for_identical_texts_and_never_leaves_its_range(drawn: list[str]) -> None:
    texts = ["a" + text for text in drawn]
    assert metrics.bleu(texts, texts).tolist() == pytest.approx([1.0] * len(texts))
    others = metrics.bleu(texts, texts[::-1])
    assert others.shape == (len(texts),)
    assert ((others >= 0) & (others <= 1)).all()


def test_bleu_of_nothing_is_zero() -> None:
    assert metrics.bleu(["Air scatters light."], [""]).tolist() == [0.0]
    assert metrics.bleu(["Air scatters light."], ["Zebra"]).tolist() == [0.0]


def test_bleu_needs_one_reference_per_text() -> None:
    with pytest.raises(ValueError, match="There are 1 references and 2 texts"):
        metrics.bleu(["one"], ["one", "two"])


# --- the Kolmogorov-Smirnov test -------------------------------------------------------------


@given(pairs)
def test_loss_distance_is_scipys_statistic_and_p_value(drawn: list[tuple[float, float]]) -> None:
    first, second = np.array(drawn).T
    distance, p_value = metrics.loss_distance(first, second)
    expected = stats.ks_2samp(first, second)
    assert distance.value == pytest.approx(expected.statistic)
    assert p_value.value == pytest.approx(expected.pvalue)
    assert 0 <= distance.low <= distance.value <= distance.high <= 1
    assert distance.n == p_value.n == len(drawn)
    assert math.isnan(p_value.low) and math.isnan(p_value.high)


def test_loss_distance_of_identical_losses_is_zero() -> None:
    losses = np.random.default_rng(0).random(12)
    distance, p_value = metrics.loss_distance(losses, losses.copy())
    assert distance == Estimate(0.0, 0.0, 0.0, 12)
    assert p_value.value == 1.0


def test_loss_distance_of_separated_losses_is_one() -> None:
    random = np.random.default_rng(0)
    distance, p_value = metrics.loss_distance(random.random(12), 2 + random.random(12))
    assert distance == Estimate(1.0, 1.0, 1.0, 12)
    assert p_value.value < 1e-5


def test_loss_distance_forgets_the_order_of_passages_but_not_the_seed() -> None:
    random = np.random.default_rng(3)
    first, second = random.random((2, 30))
    order = random.permutation(30)
    ours = metrics.loss_distance(first, second, seed=1)[0]
    assert metrics.loss_distance(first[order], second[order], seed=1)[0] == ours
    assert metrics.loss_distance(first, second, seed=2)[0] != ours


def test_loss_distance_needs_the_same_passages() -> None:
    with pytest.raises(ValueError, match="first has 2 rows and second has 1"):
        metrics.loss_distance([1.0, 2.0], [1.0])


# --- differences on the same rows ------------------------------------------------------------


def test_difference_by_hand() -> None:
    estimate = metrics.difference([0.5, 1.0, 0.0], [0.0, 0.5, 0.25])
    assert estimate.value == pytest.approx(0.25)
    assert -0.25 <= estimate.low <= estimate.value <= estimate.high <= 0.5
    assert estimate.n == 3


def test_difference_is_paired() -> None:
    base = np.arange(50.0)
    assert metrics.difference(base + 1, base) == Estimate(1.0, 1.0, 1.0, 50)


def test_difference_takes_flags() -> None:
    estimate = metrics.difference([T, T, F, F], [F, F, F, F])
    assert estimate.value == 0.5


@pytest.mark.parametrize("baseline", [[1.0], [[1.0, 2.0]], []])
def test_difference_needs_the_same_rows(baseline: list[Any]) -> None:
    with pytest.raises(ValueError, match="give the same"):
        metrics.difference([1.0, 2.0], baseline)


@given(pairs)
def test_paired_gives_a_value_within_its_interval(drawn: list[tuple[float, float]]) -> None:
    first, second = np.array(drawn).T

    def gap(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return one.mean(axis=axis) - other.mean(axis=axis)

    estimate = metrics.paired(gap, first, second, resamples=50)
    assert estimate.value == pytest.approx(first.mean() - second.mean())
    assert estimate.low <= estimate.value <= estimate.high


def test_paired_keeps_the_two_values_of_a_row_together() -> None:
    def broken(one: np.ndarray, other: np.ndarray) -> float:
        return float((one != 2 * other).sum())

    values = np.arange(20.0)
    assert metrics.paired(broken, 2 * values, values, 50) == Estimate(0.0, 0.0, 0.0, 20)


@pytest.mark.parametrize(
    "first, second, said",
    [([1.0], [1.0, 2.0], "same rows"), ([], [], "at least one"), ([1.0], [math.nan], "row 0")],
)
def test_paired_refuses_bad_rows(first: list[float], second: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        metrics.paired(np.subtract, first, second)


# --- perplexity of two models ----------------------------------------------------------------


def test_perplexity_difference_by_hand() -> None:
    # Five tokens each: exp(5 log 3 / 5) - exp(5 log 2 / 5)
    mine, base = [2 * math.log(3), 3 * math.log(3)], [4 * math.log(2), math.log(2)]
    estimate = metrics.perplexity_difference(mine, base, [2, 3])
    assert estimate.value == pytest.approx(1.0)
    assert estimate.n == 2
    # Of the four resamples the extremes are one row twice: 3 - 2^2, and 3 - 2^(1/3).
    assert estimate.low == pytest.approx(3 - 4)
    assert estimate.high == pytest.approx(3 - 2 ** (1 / 3))


def test_perplexity_difference_of_equal_models_is_zero() -> None:
    sums, counts = [3.0, 5.0, 1.0], [2, 3, 1]
    assert metrics.perplexity_difference(sums, sums, counts) == Estimate(0.0, 0.0, 0.0, 3)


@given(st.lists(st.tuples(numbers, numbers, st.integers(1, 9)), min_size=1, max_size=12))
def test_perplexity_difference_is_that_of_two_perplexities(
    drawn: list[tuple[float, float, int]],
) -> None:
    mine, base, counts = np.array(drawn).T
    estimate = metrics.perplexity_difference(mine, base, counts)
    expected = metrics.perplexity(mine, counts).value - metrics.perplexity(base, counts).value
    assert estimate.value == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert estimate.low <= estimate.value <= estimate.high


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    estimate = metrics.perplexity_difference([2000.0, 3000.0], [1.0, 1.0], [1, 1])
    assert estimate.value == math.inf


@pytest.mark.parametrize(
    "mine, base, counts, said",
    [
        ([1.0], [1.0, 2.0], [1, 1], "rows"),
        ([1.0, 2.0], [1.0], [1, 1], "rows"),
        ([1.0], [1.0], [0], "whole number"),
        ([1.0], [1.0], [1.5], "whole number"),
        ([math.nan], [1.0], [1], "nan"),
    ],
)
def test_perplexity_difference_refuses_bad_rows(
    mine: list[float], base: list[float], counts: list[float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        metrics.perplexity_difference(mine, base, counts)


# --- quiet -----------------------------------------------------------------------------------

CALLS: dict[str, Callable[[], Any]] = {
    "one resample": lambda: metrics.bootstrap([1.0, 2.0], resamples=1),
    "constant": lambda: metrics.difference([1.0, 1.0], [0.0, 0.0]),
    "one row": lambda: metrics.difference([1.0], [0.0]),
    "two rows": lambda: metrics.perplexity_difference([2.0, 3.0], [1.0, 2.0], [2, 2]),
    "one text": lambda: metrics.perplexity_difference([2.0], [1.0], [2]),
    "equal": lambda: metrics.perplexity_difference([2.0, 2.0], [2.0, 2.0], [2, 2]),
    "overflow": lambda: metrics.perplexity_difference([2.0, 2000.0], [1.0, 2.0], [1, 1]),
    "overflow in resamples": lambda: metrics.perplexity_difference([2.0, 1000.0], [1, 2], [1, 1]),
    "both overflow": lambda: metrics.perplexity_difference([2000.0, 9.0], [9, 2000.0], [1, 1]),
    "each in resamples": lambda: metrics.perplexity_difference([1000.0, 9], [9, 1000.0], [1, 1]),
    "identical": lambda: metrics.loss_distance([1.0, 1.0], [1.0, 1.0]),
    "one passage": lambda: metrics.loss_distance([1.0], [2.0]),
    "separated": lambda: metrics.loss_distance([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]),
    "undefined resamples": lambda: metrics.ratio([1.0, 2.0], [0.0, 1.0]),
    "effectiveness": lambda: metrics.effectiveness([1, 0, 0], [0, 0, 0]),
    "area": lambda: metrics.area_under_curve([1.0, 2.0], [0, 1]),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_warning_escapes_and_no_interval_is_crossed(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = CALLS[name]()
    estimate = found[0] if isinstance(found, tuple) else found
    assert not (estimate.low > estimate.value or estimate.value > estimate.high)


def test_a_warning_of_the_statistic_itself_is_not_hushed() -> None:
    def noisy(sample: np.ndarray) -> float:
        warnings.warn("look here", RuntimeWarning, stacklevel=2)
        return float(sample.mean())

    with pytest.warns(RuntimeWarning, match="look here"):
        metrics.bootstrap([1.0, 2.0], noisy, resamples=3)


def test_the_measures_of_a_book_have_their_place_in_the_table() -> None:
    names = {"bleu", "extraction_strength", "verbatim_run", "verbatim_share", "ks_distance"}
    assert names | {"ks_p_value"} <= set(tidy.METRICS)
