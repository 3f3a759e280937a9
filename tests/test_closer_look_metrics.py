"""The metrics of A Closer Look by hand and against second implementations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity as sklearn_cosine

from unlearn_lib import metrics
from unlearn_lib.metrics import METRICS
from unlearn_lib.metrics.closer_look import FORGET_MEASURES, MEASURES, SETS

Parts = dict[str, dict[str, np.ndarray]]
TOFU_SETS = SETS["fictitious"]
tokens = st.lists(st.integers(0, 4), max_size=20)
shares = st.floats(0, 1)


def measured(seed: int, rows: int, names: tuple[str, ...] = MEASURES) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.uniform(0.1, 1, rows) for name in names}


def parts(seed: int = 0, sets: tuple[str, ...] = TOFU_SETS) -> Parts:
    return {name: measured(seed + i, 5 + i) for i, name in enumerate(sets)}


# --- token entropy ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, entropy",
    [
        ([], 0.0),
        ([7], 0.0),
        ([7, 7, 7], 0.0),
        ([1, 2], 1.0),
        ([1, 2, 3, 4, 5], 1.0),
        ([1, 1, 2, 2], 0.5),
        ([1, 1, 1, 2], (2 - 0.75 * math.log2(3)) / 2),
    ],
)
def test_token_entropy_by_hand(row: list[int], entropy: float) -> None:
    assert metrics.token_entropy([row]).tolist() == pytest.approx([entropy])


@given(st.lists(tokens, min_size=1, max_size=6))
def test_token_entropy_is_scipys_over_the_log_of_the_length(rows: list[list[int]]) -> None:
    found = metrics.token_entropy(rows)
    assert ((found >= 0) & (found <= 1)).all()
    for row, value in zip(rows, found, strict=True):
        if len(row) > 1:
            counts = np.unique(row, return_counts=True)[1]
            assert value == pytest.approx(stats.entropy(counts, base=2) / math.log2(len(row)))


@given(tokens, st.permutations(range(5)), st.randoms(use_true_random=False))
def test_token_entropy_minds_neither_order_nor_names(
    row: list[int], names: list[int], random: Any
) -> None:
    moved = [names[token] for token in row]
    random.shuffle(moved)
    assert metrics.token_entropy([row]) == pytest.approx(metrics.token_entropy([moved]))


def test_no_answers_have_no_entropy() -> None:
    assert metrics.token_entropy([]).shape == (0,)


# --- cosine and entailment -------------------------------------------------------------------


@given(arrays(float, (2, 4, 3), elements=st.floats(-5, 5).map(lambda x: round(x, 3))))
def test_cosine_is_sklearns_clipped_at_zero(pair: np.ndarray) -> None:
    expected = np.maximum(np.diag(sklearn_cosine(pair[0], pair[1])), 0)
    assert metrics.cosine_similarity(pair[0], pair[1]) == pytest.approx(expected)


def test_opposite_answers_are_as_unlike_as_unrelated_ones() -> None:
    assert metrics.cosine_similarity([[1.0, 0.0]] * 2, [[-1.0, 0.0], [0.0, 1.0]]).tolist() == [0, 0]


@pytest.mark.parametrize("scenario", ["fictitious", "continual"])
def test_direction_of_entailment_on_invented_authors(scenario: str) -> None:
    found = [metrics.entailment_premise(name, scenario) for name in TOFU_SETS]
    assert found == ["generated", "truth", "truth", "truth"]


@pytest.mark.parametrize("name", SETS["real_world"])
def test_direction_of_entailment_in_the_real_world(name: str) -> None:
    assert metrics.entailment_premise(name, "real_world") == "generated"


@pytest.mark.parametrize(
    "name, scenario, message",
    [
        ("forget", "realworld", "did you mean 'real_world'"),
        ("neighbour", "real_world", "did you mean 'neighbours'"),
        ("neighbours", "continual", "has no set 'neighbours'"),
    ],
)
def test_unknown_sets_have_no_direction(name: str, scenario: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.entailment_premise(name, scenario)


def test_entailment_by_hand() -> None:
    scores, rouge = [0.9, 0.5, 0.49, 1.0, 1.0], [0.5, 0.5, 0.9, 0.099, 0.1]
    assert metrics.entailed(scores, rouge).tolist() == [1, 1, 0, 0, 1]
    assert metrics.entailed(scores, rouge, threshold=0.95).tolist() == [0, 0, 0, 0, 1]
    assert metrics.entailed([True, False], [1.0, 1.0]).tolist() == [1, 0]


@pytest.mark.parametrize(
    "scores, rouge, message",
    [
        ([0.5], [0.5, 0.5], "one of each"),
        ([[0.5]], [[0.5]], "one of each"),
        ([0.5, math.nan], [0.5, 0.5], "score in row 1"),
        ([0.5, 2.0], [0.5, 0.5], "score in row 1"),
        ([0.5, 0.5], [-0.1, 0.5], "ROUGE in row 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores: Any, rouge: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.entailed(scores, rouge)


# --- MU and FE -------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario, count", [("fictitious", 18), ("real_world", 6)])
def test_mu_is_the_harmonic_mean_of_all_means_off_the_forget_set(scenario: str, count: int) -> None:
    drawn = parts(sets=SETS[scenario])
    values = [v.mean() for name, part in drawn.items() if name != "forget" for v in part.values()]
    assert len(values) == count
    found = metrics.mu(drawn)
    assert found.value == pytest.approx(stats.hmean(values))
    assert found.low < found.value < found.high
    assert found.n == sum(5 + i for i in range(1, len(drawn)))


def test_mu_is_zero_where_one_measure_is() -> None:
    drawn = parts()
    drawn["retain"]["entailment"] = np.zeros(6)
    found = metrics.mu(drawn)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_fe_by_hand_turns_the_truth_ratio_round() -> None:
    forget = {
        "rougeL_recall": np.array([0.2, 0.4]),
        "probability": np.array([0.1, 0.1]),
        "truth_ratio": np.array([1.0, 0.8]),
        "cosine_similarity": np.array([0.5, 0.5]),
        "entailment": np.array([0.0, 1.0]),
    }
    expected = 1 - (0.3 + 0.1 + (1 - 0.9) + 0.5 + 0.5) / 5
    assert metrics.fe(forget).value == pytest.approx(expected)
    with_entropy = {**forget, "token_entropy": np.array([0.9, 0.1])}
    assert metrics.fe(with_entropy) == metrics.fe(forget)


@pytest.mark.parametrize("answer, efficacy", [(0.0, 1.0), (1.0, 0.0)])
def test_fe_of_the_perfect_and_of_the_worst_model(answer: float, efficacy: float) -> None:
    forget = {name: np.full(4, answer) for name in FORGET_MEASURES}
    forget["truth_ratio"] = np.full(4, 1 - answer)
    assert metrics.fe(forget).value == pytest.approx(efficacy)


def test_the_interval_of_fe_is_that_of_its_mean_per_question() -> None:
    forget = measured(3, 60, FORGET_MEASURES)
    turned = {**forget, "truth_ratio": 1 - forget["truth_ratio"]}
    rows = 1 - np.mean(list(turned.values()), axis=0)
    expected = stats.bootstrap([rows], np.mean, method="percentile", rng=1).confidence_interval
    found = metrics.fe(forget, resamples=9000)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.005)


@given(st.data())
def test_row_order_changes_neither(data: st.DataObject) -> None:
    drawn, moved = parts(), {}
    for name, part in drawn.items():
        order = data.draw(st.permutations(range(len(part["entailment"]))))
        moved[name] = {key: values[list(order)] for key, values in part.items()}
    assert metrics.mu(moved, 40) == metrics.mu(drawn, 40)
    assert metrics.fe(moved["forget"], 40) == metrics.fe(drawn["forget"], 40)


@given(arrays(float, (6, 7), elements=shares))
def test_both_stay_between_zero_and_one(values: np.ndarray) -> None:
    part = dict(zip(MEASURES, values, strict=True))
    for found in (metrics.mu({"retain": part}, 40), metrics.fe(part, 40)):
        assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12


# --- differences of two models ---------------------------------------------------------------


def test_differences_are_those_of_the_two_values() -> None:
    first, second = parts(0), parts(100)
    found = metrics.paired_mu_difference(first, second)
    assert found.value == pytest.approx(metrics.mu(first).value - metrics.mu(second).value)
    assert found.low <= found.value <= found.high
    one, other = first["forget"], second["forget"]
    found = metrics.paired_fe_difference(one, other)
    assert found.value == pytest.approx(metrics.fe(one).value - metrics.fe(other).value)


def test_a_model_differs_from_itself_by_nothing() -> None:
    drawn = parts()
    for found in (
        metrics.paired_mu_difference(drawn, drawn),
        metrics.paired_fe_difference(drawn["forget"], drawn["forget"]),
    ):
        assert (found.value, found.low, found.high) == (0, 0, 0)


def test_pairing_tells_apart_what_single_intervals_do_not() -> None:
    """Questions differ far more than models: only pairs show that the first is always better."""
    base = measured(5, 30, FORGET_MEASURES)
    base["truth_ratio"] = 0.4 * base["truth_ratio"]
    worse = {**base, "probability": np.minimum(1, base["probability"] + 0.05)}
    found = metrics.paired_fe_difference(base, worse)
    assert 0 < found.low <= found.value
    assert metrics.fe(base).low < metrics.fe(worse).high


@given(st.permutations(range(6)))
def test_row_order_changes_no_difference(order: list[int]) -> None:
    first, second = measured(0, 6), measured(9, 6)
    moved = [{key: values[order] for key, values in part.items()} for part in (first, second)]
    found = metrics.paired_mu_difference({"retain": moved[0]}, {"retain": moved[1]}, 40)
    assert found == metrics.paired_mu_difference({"retain": first}, {"retain": second}, 40)


# --- bad input -------------------------------------------------------------------------------


def without(part: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: values for key, values in part.items() if key != name}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p: metrics.mu({"forget": p["forget"]}), "no set"),
        (lambda p: metrics.mu({"retain": without(p["retain"], "token_entropy")}), "token_entropy"),
        (lambda p: metrics.mu({"retain": {**p["retain"], "bleu": np.ones(6)}}), "'bleu'"),
        (lambda p: metrics.mu({"retain": {**p["retain"], "entailment": np.ones(5)}}), "entailment"),
        (
            lambda p: metrics.mu({"retain": {**p["retain"], "entailment": np.full(6, np.nan)}}),
            "nan",
        ),
        (lambda p: metrics.fe(without(p["forget"], "truth_ratio")), "lacks .*truth_ratio"),
        (lambda p: metrics.fe({**p["forget"], "truth_ratio": np.full(5, 1.5)}), "truth_ratio"),
        (lambda p: metrics.paired_mu_difference(p, {"retain": p["retain"]}), "same of both"),
        (lambda p: metrics.paired_fe_difference(p["forget"], measured(1, 4)), "same rows"),
    ],
)
def test_incomplete_measures_are_refused(call: Callable[[Parts], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(parts())


def test_measures_are_names_of_the_table() -> None:
    assert {*MEASURES, "mu", "fe", "judge_accuracy", "judge_auc"} <= set(METRICS)
