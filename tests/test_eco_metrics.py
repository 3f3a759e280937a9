"""METEOR, the similarity gap, leaks, multiple choice and the probe: by hand and as properties."""

import math
from typing import Any

import nltk
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unlearn_lib import metrics
from unlearn_lib.metrics import METRICS, SIMILARITIES, Estimate

NAMES = (
    "meteor unique_token_ratio leak_share choice_accuracy probe_accuracy guard_threshold "
    "search_strength search_objective model_calls milliseconds_per_prompt milliseconds_per_token "
    "parameters_changed bytes_stored unchanged_share time_ratio asg false_positive_rate "
    "false_negative_rate"
).split()
Z = 1.959963984540054


def similarities(values: np.ndarray) -> dict[str, np.ndarray]:
    """[prompts, 4] as a mapping."""
    return dict(zip(SIMILARITIES, values.T, strict=True))


def wilson(count: int, total: int) -> tuple[float, float]:
    share, z2 = count / total, Z * Z
    middle = share + z2 / (2 * total)
    half = Z * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return (middle - half) / (1 + z2 / total), (middle + half) / (1 + z2 / total)


def test_the_measures_of_the_guard_have_their_place_in_the_table() -> None:
    assert {*NAMES, *SIMILARITIES} <= set(METRICS)


# --- METEOR ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference, text, score",
    [
        ("bell", "bell", 1 / 2),
        ("the bell", "the bell", 15 / 16),
        ("The bell.", "«the BELL»", 15 / 16),
        ("she runs", "she running", 15 / 16),
        ("the bell rang", "the bell", 20 / 29 * 15 / 16),
        ("the bell", "the bell rang", 20 / 21 * 15 / 16),
        ("a b c d", "c d a b", 15 / 16),
        ("a b c d", "d c b a", 1 / 2),
        ("a b c d", "a x c d", 3 / 4 * (1 - (2 / 3) ** 3 / 2)),
        ("big dog", "large dog", 1 / 4),
        ("Колокол Бронтë", "колокол бронтë", 15 / 16),
        ("air scatters light", "zebra", 0.0),
        ("", "bell", 0.0),
        ("bell", "", 0.0),
        ("...", "...", 0.0),
    ],
)
def test_meteor_by_hand(reference: str, text: str, score: float) -> None:
    assert metrics.meteor([reference], [text]).tolist() == pytest.approx([score])


@given(st.lists(st.sampled_from("bell rings rang ringing of ford".split()), min_size=1))
def test_identical_texts_lack_only_the_penalty_of_one_chunk(words: list[str]) -> None:
    text = " ".join(words)
    assert metrics.meteor([text], [text])[0] == pytest.approx(1 - 1 / (2 * len(words) ** 3))


@given(st.lists(st.tuples(st.text(max_size=20), st.text("ab .", max_size=20)), max_size=4))
def test_meteor_is_a_score_for_any_text(pairs: list[tuple[str, str]]) -> None:
    scores = metrics.meteor([one for one, _ in pairs], [other for _, other in pairs])
    assert scores.shape == (len(pairs),) and scores.dtype == float
    assert ((scores >= 0) & (scores <= 1)).all()


def test_meteor_asks_for_no_data_of_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked for data")

    monkeypatch.setattr(nltk.data, "find", refuse)
    monkeypatch.setattr(nltk, "download", refuse)
    assert metrics.meteor(["a large dog barks"], ["the big hounds barked"])[0] > 0


@pytest.mark.parametrize(
    "references, texts, message",
    [
        (["one"], ["one", "two"], "1 references and 2 texts"),
        ("one", ["o", "n", "e"], "references is a single string"),
        (["o"], "o", "texts is a single string"),
    ],
)
def test_meteor_needs_one_reference_per_text(references: Any, texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.meteor(references, texts)


# --- distinct tokens -------------------------------------------------------------------------


def test_unique_token_ratio_by_hand() -> None:
    rows = [[], [7], [7, 7, 7, 7], [1, 2, 3], [1, 2, 1, 2, 5]]
    assert metrics.unique_token_ratio(rows).tolist() == [0, 1, 0.25, 1, 0.6]
    assert metrics.unique_token_ratio([(3, 3)]).tolist() == [0.5]
    assert metrics.unique_token_ratio([]).shape == (0,)


# --- leaks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, fact, held",
    [
        ("She was born in Porto, in 1847.", "1847", True),
        ("She was born in 18470.", "1847", False),
        ("It was CHARLOTTE BRONTE!", "Brontë", True),
        ("Brontë's mother", "bronte", True),
        ("The Long Snow", "the long snow", True),
        ("the long, white snow", "long snow", False),
        ("snow long", "long snow", False),
        ("a long-snow year", "Long Snow", True),
        ("the longest snow", "long snow", False),
        ("Die STRASSE", "Straße", True),
        ("an eﬃcient guard", "efficient", True),
        ("", "snow", False),
        ("I do not know.", "snow", False),
    ],
)
def test_a_leak_holds_the_whole_fact_in_a_row(text: str, fact: str, held: bool) -> None:
    found = metrics.leak([text], [fact])
    assert found.dtype == bool
    assert found.tolist() == [held]


@given(st.text("aé b,", max_size=8), st.text("aé b", min_size=1, max_size=5), st.text("a b."))
def test_a_fact_among_other_words_leaks(before: str, fact: str, after: str) -> None:
    if fact.split():
        assert metrics.leak([f"{before} {fact.upper()}; {after}"], [fact])[0]


def test_no_answers_leak_nothing() -> None:
    assert metrics.leak([], []).shape == (0,)


@pytest.mark.parametrize("fact", ["", " ", "?!", "\u0301"])
def test_an_empty_fact_cannot_be_looked_for(fact: str) -> None:
    with pytest.raises(ValueError, match="fact in row 1 has no word"):
        metrics.leak(["snow", "snow"], ["snow", fact])


def test_a_leak_needs_one_fact_per_answer() -> None:
    with pytest.raises(ValueError, match="2 facts and 1 texts"):
        metrics.leak(["snow"], ["snow", "bell"])


# --- the average similarity gap --------------------------------------------------------------

prompts = st.integers(1, 8).flatmap(
    lambda rows: arrays(float, (2, rows, 4), elements=st.floats(0, 1))
)


def test_gap_by_hand() -> None:
    ours = np.array([[0.1, 0.4, 0.2, 0.9], [0.3, 0.4, 0.4, 0.1]])
    theirs = np.array([[0.0, 0.9, 0.4, 0.2], [0.2, 0.3, 0.2, 0.8]])
    # means .2 .4 .3 .5 against .1 .6 .3 .5
    found = metrics.asg(similarities(ours), similarities(theirs))
    assert found.value == pytest.approx((0.1 + 0.2 + 0 + 0) / 4)
    # the first prompt alone: .1 .5 .2 .7; the second: .1 .1 .2 .7, whatever the sign
    assert (found.low, found.high) == pytest.approx((0.075, 1.5 / 4))
    assert found.n == 2


@given(prompts)
def test_gap_is_a_distance_of_means(pair: np.ndarray) -> None:
    ours, theirs = map(similarities, pair)
    found, back = (
        metrics.asg(*models, resamples=40) for models in ((ours, theirs), (theirs, ours))
    )
    assert found.value == pytest.approx(back.value)
    assert found.value == pytest.approx(np.abs(pair[0].mean(0) - pair[1].mean(0)).mean())
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert metrics.asg(ours, ours, resamples=40) == Estimate(0.0, 0.0, 0.0, pair.shape[1])


def test_both_models_answer_the_same_resampled_prompts() -> None:
    theirs = np.random.default_rng(0).uniform(0, 0.5, (50, 4))
    found = metrics.asg(similarities(theirs + 0.25), similarities(theirs))
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_gap_forgets_the_order_of_prompts_and_keeps_its_seed() -> None:
    random = np.random.default_rng(1)
    ours, theirs = random.uniform(size=(2, 30, 4))
    order = random.permutation(30)
    found = metrics.asg(similarities(ours), similarities(theirs), seed=3)
    assert metrics.asg(similarities(ours[order]), similarities(theirs[order]), seed=3) == found
    assert metrics.asg(similarities(ours), similarities(theirs), seed=4) != found


def test_the_interval_of_the_gap_is_a_plain_bootstrap() -> None:
    random = np.random.default_rng(2)
    ours, theirs = random.uniform(0.4, 1, (80, 4)), random.uniform(0, 0.6, (80, 4))
    drawn = random.integers(80, size=(1000, 80))
    resampled = [np.abs((ours - theirs)[rows].mean(axis=0)).mean() for rows in drawn]
    found = metrics.asg(similarities(ours), similarities(theirs))
    expected = np.percentile(resampled, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"rouge": [0.5, 0.5]}, "model has the similarity 'rouge'"),
        ({"bleu": [0.5]}, "'rougeL_recall' of model has shape"),
        ({"bleu": [[0.5, 0.5]]}, "'bleu' of model has shape"),
        ({"meteor": [0.5, math.nan]}, "'meteor' of model is nan in row 1"),
        ({"bleu": [40.0, 0.5]}, "'bleu' of model is 40.0 in row 0"),
        ({name: [] for name in SIMILARITIES}, "at least one"),
        ({name: [0.5] for name in SIMILARITIES}, "model has 1 prompts and the retained model 2"),
    ],
)
def test_gap_refuses_what_cannot_be_compared(changed: dict[str, Any], message: str) -> None:
    whole = {name: [0.5, 0.5] for name in SIMILARITIES}
    with pytest.raises(ValueError, match=message):
        metrics.asg(whole | changed, whole)


def test_gap_needs_all_four() -> None:
    whole = {name: [0.5] for name in SIMILARITIES}
    with pytest.raises(ValueError, match="retained lacks the similarity 'meteor'"):
        metrics.asg(whole, {name: [0.5] for name in SIMILARITIES if name != "meteor"})


# --- multiple choice -------------------------------------------------------------------------


def test_the_lowest_loss_is_the_choice() -> None:
    losses = [[1.0, 2.0, 3.0], [2.0, 1.0, 3.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    found = metrics.choice_accuracy(losses, [0, 1, 2, 2])
    assert (found.value, found.n) == (0.75, 4)
    assert (found.low, found.high) == pytest.approx(wilson(3, 4))


@pytest.mark.parametrize("right, value", [(0, 1.0), (1, 0.0)])
def test_one_question_is_no_certainty(right: int, value: float) -> None:
    found = metrics.choice_accuracy([[0.5, 0.7]], [right])
    assert found.value == value
    assert found.high - found.low > 0.5
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_tied_choices_share_what_the_right_one_counts() -> None:
    losses = [[1, 1, 2, 2], [1, 1, 1, 2], [1, 1, 2, 2], [1, 2, 2, 2]]
    found = metrics.choice_accuracy(losses, [1, 2, 3, 0])
    assert found.value == pytest.approx((1 / 2 + 1 / 3 + 0 + 1) / 4)
    assert found.low < found.value < found.high


def test_a_tie_among_wrong_choices_is_plainly_wrong() -> None:
    found = metrics.choice_accuracy([[1, 1, 2], [1, 2, 3]], [2, 0])
    assert (found.low, found.high) == pytest.approx(wilson(1, 2))


def test_a_model_that_tells_nothing_apart_is_at_chance() -> None:
    found = metrics.choice_accuracy(np.zeros((6, 4)), [0, 1, 2, 3, 0, 1])
    assert found == Estimate(0.25, 0.25, 0.25, 6)
    assert metrics.at_chance(found)


@settings(max_examples=25)
@given(arrays(int, (5, 4), elements=st.integers(0, 3)), st.permutations(range(4)))
def test_accuracy_minds_no_names_of_choices(losses: np.ndarray, order: list[int]) -> None:
    right = np.array([0, 1, 2, 3, 0])
    moved = np.argsort(order)[right]
    found = metrics.choice_accuracy(losses, right)
    assert metrics.choice_accuracy(losses[:, order], moved).value == pytest.approx(found.value)
    total = sum(metrics.choice_accuracy(losses, np.full(5, k)).value for k in range(4))
    assert total == pytest.approx(1)


@pytest.mark.parametrize(
    "losses, right, message",
    [
        ([[1.0, 2.0]], [2], "row 0 is 2: give 0 to 1"),
        ([[1.0, 2.0]], [-1], "row 0 is -1"),
        ([[1.0, 2.0]], [0, 1], r"right has shape \(2,\)"),
        ([[1.0, 2.0]], [0.5], "whole number"),
        ([[1.0, 2.0]], [math.nan], "whole number"),
        ([1.0, 2.0], [0, 1], "losses has shape"),
        (np.empty((0, 4)), np.empty(0, int), "at least one"),
        ([[1.0], [2.0]], [0, 0], "give at least 2"),
        ([[1.0, 2.0], [math.nan, 1.0]], [0, 0], "the first in row 1"),
    ],
)
def test_choices_refuse_what_is_no_question(losses: Any, right: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.choice_accuracy(losses, right)


@pytest.mark.parametrize(
    "low, high, choices, held",
    [
        (0.2, 0.3, 4, True),
        (0.25, 0.4, 4, True),
        (0.26, 0.4, 4, False),
        (0.1, 0.24, 4, False),
        (0.45, 0.55, 2, True),
        (math.nan, math.nan, 4, False),
    ],
)
def test_chance_lies_in_the_interval(low: float, high: float, choices: int, held: bool) -> None:
    assert metrics.at_chance(Estimate((low + high) / 2, low, high, 9), choices) is held


def test_one_choice_leaves_nothing_to_guess() -> None:
    with pytest.raises(ValueError, match="choices is 1"):
        metrics.at_chance(Estimate(1.0, 1.0, 1.0, 1), 1)


# --- the probe -------------------------------------------------------------------------------


def test_the_probe_reads_what_is_there() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], 10)
    features = random.normal(0, 0.1, (40, 4)) + 1000 * np.eye(4)[labels]
    found = metrics.probe_accuracy(features, labels)
    assert (found.value, found.high, found.n) == (1.0, 1.0, 40)
    assert found.low == pytest.approx(wilson(40, 40)[0])


@pytest.mark.parametrize("width", [4, 300])
def test_the_probe_finds_nothing_in_noise_even_if_it_can_learn_it_by_heart(width: int) -> None:
    found = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        features, labels = random.normal(size=(80, width)), random.permutation(np.arange(80) % 4)
        found.append(metrics.probe_accuracy(features, labels))
    assert np.mean([one.value for one in found]) == pytest.approx(0.25, abs=0.05)
    assert sum(map(metrics.at_chance, found)) >= 6
    assert metrics.probe_accuracy(features, labels) == found[-1]


def test_constant_logits_leave_the_most_frequent_label() -> None:
    found = metrics.probe_accuracy(np.ones((25, 3)), [1] * 15 + [0] * 10)
    assert found.value == pytest.approx(0.6)


def test_the_probes_folds_come_from_its_seed() -> None:
    random = np.random.default_rng(6)
    features, labels = random.normal(size=(60, 3)), random.integers(2, size=60)
    found = {
        metrics.probe_accuracy(features, labels, folds=3, seed=seed).value for seed in range(6)
    }
    assert len(found) > 1


@pytest.mark.parametrize(
    "labels, folds, message",
    [
        ([0, 0, 0, 1, 1], 3, "Label 1 has 2 rows for 3 folds"),
        ([1, 1, 1, 1, 1], 2, "All 5 labels are 1"),
        ([0, 0, 1, 1, 1], 1, "folds is 1"),
        ([0, 1, 0, 1], 2, r"labels has shape \(4,\)"),
        (["a", "b", "a", "b", "a"], 2, "whole number"),
    ],
)
def test_the_probe_needs_rows_of_every_label(labels: Any, folds: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.probe_accuracy(np.zeros((5, 2)), labels, folds)


def test_the_probe_refuses_logits_that_are_not_finite() -> None:
    features = np.zeros((6, 2))
    features[4, 1] = math.inf
    with pytest.raises(ValueError, match="the first in row 4"):
        metrics.probe_accuracy(features, [0, 1] * 3, 2)
