"""TOFU's metrics by hand and by scipy, the authors' own logs, and every log that must be refused."""

import json
import math
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import Estimate, means, tofu
from unlearn_lib.metrics.logs import OFFICIAL_SETS
from unlearn_lib.metrics.tofu import SetLog, TofuLog

MIRROR = Path(os.environ.get("UNLEARN_MIRROR") or Path(__file__).parents[2] / "shared" / "mirror")
LOGS = MIRROR / "evals"
PUBLISHED = {
    "full": (0.522074, 1.0),
    "retain90": (0.531991, 2.1943e-16),
    "retain95": (0.524959, 6.8666e-13),
    "retain99": (0.518603, 7.3673e-05),
}
SIZES = {"forget": 9, "retain": 8, "real_authors": 7, "world_facts": 6}
Content = dict[str, Any]
losses = st.floats(0, 20)
huge = st.floats(0, 1e6)


def set_log(seed: int, rows: int, wrong: int = 5, name: str = "q") -> SetLog:
    random = np.random.default_rng(seed)
    return SetLog(
        questions=tuple(f"{name} {row}?" for row in range(rows)),
        answer_loss=random.gamma(2, 1, rows),
        paraphrase_loss=random.gamma(2, 1, rows),
        perturbed_loss=random.gamma(3, 1, (rows, wrong)),
        rouge=random.random(rows),
    )


def tofu_log(seed: int = 0, name: str = "ours") -> TofuLog:
    sets = {key: set_log(seed + i, rows) for i, (key, rows) in enumerate(SIZES.items())}
    return TofuLog(name, sets)


def one_set(log: SetLog, **changed: Any) -> TofuLog:
    return TofuLog("m", {"forget": replace(log, **changed)})


def in_order(log: SetLog, order: Any) -> SetLog:
    rows = list(order)
    return SetLog(
        tuple(log.questions[row] for row in rows),
        log.answer_loss[rows],
        log.paraphrase_loss[rows],
        log.perturbed_loss[rows],
        log.rouge[rows],
    )


def official_content(log: TofuLog, start: str = "Question: ", end: str = "\n") -> Content:
    """A log as TOFU's authors write it: every field a table from row to value."""

    def table(values: Any) -> Content:
        return {str(row): value for row, value in enumerate(values)}

    return {
        OFFICIAL_SETS[name]: {
            "avg_gt_loss": table(part.answer_loss.tolist()),
            "avg_paraphrased_loss": table(part.paraphrase_loss.tolist()),
            "average_perturb_loss": table(part.perturbed_loss.tolist()),
            "rougeL_recall": table(part.rouge.tolist()),
            "generated_text": table(
                [start + q + end, "an answer", "truth"] for q in part.questions
            ),
            "truth_ratio": table([0.0] * len(part.questions)),
        }
        for name, part in log.sets.items()
    }


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any, name: str = "official") -> Path:
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(CompanionError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- values by hand --------------------------------------------------------------------------


def test_truth_ratio_by_hand() -> None:
    log = SetLog(
        ("a", "b"),
        np.zeros(2),
        np.array([1.0, 2.0]),
        np.array([[2.0, 4.0], [1.0, 1.0]]),
        np.ones(2),
    )
    assert tofu.truth_ratios(log).tolist() == pytest.approx([math.exp(2), math.exp(-1)])


def test_truth_ratio_is_a_probability_over_a_geometric_mean() -> None:
    log = set_log(3, 6)
    wrong = stats.gmean(np.exp(-log.perturbed_loss), axis=1)
    assert tofu.truth_ratios(log) == pytest.approx(np.exp(-log.paraphrase_loss) / wrong)


def test_folding_by_hand() -> None:
    raw = [0.25, 1.0, 4.0]
    assert tofu.folded_truth_ratio(raw, forget=True).tolist() == [0.25, 1.0, 0.25]
    assert tofu.folded_truth_ratio(raw, forget=False).tolist() == [0.0, 0.0, 0.75]


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_folding_refuses_what_is_no_ratio(bad: float) -> None:
    with pytest.raises(ValueError, match="row 1"):
        tofu.folded_truth_ratio([1.0, bad], forget=True)


def test_probability_by_hand_with_and_without_options() -> None:
    log = SetLog(("a",), np.log([2.0]), np.zeros(1), np.log([[4.0, 4.0]]), np.ones(1))
    assert tofu.probabilities(log, options=False).tolist() == pytest.approx([0.5])
    assert tofu.probabilities(log, options=True).tolist() == pytest.approx([0.5])
    even = replace(log, answer_loss=np.log([4.0]))
    assert tofu.probabilities(even, options=True).tolist() == pytest.approx([1 / 3])


def test_options_are_weighed_where_every_probability_is_too_small_for_a_float() -> None:
    log = SetLog(("a",), np.array([5000.0]), np.zeros(1), np.array([[5000.0]]), np.ones(1))
    assert tofu.probabilities(log, options=True).tolist() == [0.5]


def test_model_utility_is_the_harmonic_mean_of_nine() -> None:
    log = tofu_log()
    nine = []
    for name in ("retain", "real_authors", "world_facts"):
        part = log.sets[name]
        p, wrong = np.exp(-part.answer_loss), np.exp(-part.perturbed_loss)
        share = p if name == "retain" else p / (p + wrong.sum(axis=1))
        ratio = np.exp(part.paraphrase_loss - part.perturbed_loss.mean(axis=1))
        nine += [part.rouge.mean(), share.mean(), np.maximum(0, 1 - ratio).mean()]
    found = tofu.model_utility(log)
    assert found.value == pytest.approx(9 / sum(1 / value for value in nine), rel=1e-12)
    assert found.low < found.value < found.high
    assert found.n == 8 + 7 + 6


def test_measures_of_forget_are_folded_the_other_way() -> None:
    log = tofu_log()
    found = tofu.measures(log, "forget")["truth_ratio"]
    assert found == pytest.approx(
        tofu.folded_truth_ratio(tofu.truth_ratios(log.sets["forget"]), True)
    )


def test_utility_is_zero_where_one_of_nine_is() -> None:
    log = tofu_log()
    dumb = {**log.sets, "retain": replace(log.sets["retain"], rouge=np.zeros(8))}
    found = tofu.model_utility(TofuLog("dumb", dumb))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_forget_quality_is_scipys_p_value_of_the_raw_ratios() -> None:
    log, reference = tofu_log(0), tofu_log(50, "reference")
    raw = [tofu.truth_ratios(each.sets["forget"]) for each in (log, reference)]
    expected = stats.ks_2samp(*raw)
    found, distance = tofu.forget_quality(log, reference), tofu.forget_distance(log, reference)
    assert found.value == pytest.approx(expected.pvalue)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert distance.value == pytest.approx(expected.statistic)
    assert distance.low <= distance.value <= distance.high
    assert found.n == distance.n == 9


def test_the_reference_against_itself_is_of_quality_one() -> None:
    log = tofu_log()
    assert tofu.forget_quality(log, log).value == 1.0
    assert tofu.forget_distance(log, log) == Estimate(0.0, 0.0, 0.0, 9)


# --- properties ------------------------------------------------------------------------------


@given(st.lists(st.tuples(huge, huge, huge, huge), min_size=1, max_size=8))
def test_huge_losses_leave_every_measure_in_its_bounds(rows: list[tuple[float, ...]]) -> None:
    table = np.array(rows)
    names = tuple(f"q{row}" for row in range(len(table)))
    part = SetLog(names, table[:, 0], table[:, 1], table[:, 2:], np.ones(len(table)))
    log = TofuLog("m", dict.fromkeys(SIZES, part))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in SIZES:
            for values in tofu.measures(log, name).values():
                assert ((values >= 0) & (values <= 1)).all()
        utility = tofu.model_utility(log, resamples=20)
        quality = tofu.forget_quality(log, log)
    assert 0 <= utility.low <= utility.value <= utility.high <= 1
    assert quality.value == 1


@given(st.data())
@settings(max_examples=25)
def test_row_order_changes_nothing(data: st.DataObject) -> None:
    log, reference = tofu_log(0), tofu_log(50, "reference")

    def shuffled(log: TofuLog) -> TofuLog:
        orders = {key: data.draw(st.permutations(range(SIZES[key]))) for key in SIZES}
        return TofuLog(log.name, {k: in_order(part, orders[k]) for k, part in log.sets.items()})

    moved, other = shuffled(log), shuffled(reference)
    assert tofu.model_utility(moved, 50) == tofu.model_utility(log, 50)
    assert tofu.forget_quality(moved, other).value == tofu.forget_quality(log, reference).value
    assert tofu.forget_distance(moved, other, 20) == tofu.forget_distance(log, reference, 20)


@given(st.lists(losses, min_size=2, max_size=10), st.floats(-5, 5))
def test_forget_quality_does_not_mind_the_ratio_upside_down(
    drawn: list[float], shift: float
) -> None:
    raw = np.exp(np.array(drawn) - 10)
    found = stats.ks_2samp(raw, raw * math.exp(shift)).pvalue
    assert found == pytest.approx(stats.ks_2samp(1 / raw, 1 / (raw * math.exp(shift))).pvalue)


# --- the estimate of many means --------------------------------------------------------------


def test_rows_are_resampled_within_their_set_and_their_measures_together() -> None:
    """One measure is 1 where the other is 0: their sum never moves, in any resample."""
    flags = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    sets = {"a": {"x": flags, "y": 1 - flags}, "b": {"x": np.full(3, 0.25)}}
    found = means.of_means(lambda values: values.sum(axis=-1), sets)
    assert (found.value, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))
    assert found.n == 8


def test_the_interval_of_one_mean_is_the_percentile_bootstraps() -> None:
    values = np.random.default_rng(1).random(40)
    found = means.of_means(lambda m: m[..., 0], {"a": {"x": values}}, resamples=9000)
    expected = stats.bootstrap([values], np.mean, method="percentile", rng=2).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01)
    assert found.value == pytest.approx(values.mean())


def test_order_of_sets_and_measures_changes_nothing() -> None:
    random = np.random.default_rng(0)
    sets = {name: {key: random.random(6) for key in "xyz"} for name in "ab"}
    turned = {name: dict(reversed(sets[name].items())) for name in reversed(sets)}
    assert means.of_means(means.harmonic_mean, sets) == means.of_means(means.harmonic_mean, turned)


@pytest.mark.parametrize(
    "sets, baseline, message",
    [
        ({}, None, "no set"),
        ({"a": {}}, None, "no measure"),
        ({"a": {"x": []}}, None, "one number per row"),
        ({"a": {"x": [1.0], "y": [1.0, 1.0]}}, None, "one number per row"),
        ({"a": {"x": [1.0, math.nan]}}, None, "nan in row 1"),
        ({"a": {"x": [-1.0]}}, None, "not negative"),
        ({"a": {"x": [1.0]}}, {"b": {"x": [1.0]}}, "same of both"),
        ({"a": {"x": [1.0]}}, {"a": {"y": [1.0]}}, "same of both"),
        ({"a": {"x": [1.0]}}, {"a": {"x": [1.0, 1.0]}}, "same rows"),
    ],
)
def test_what_has_no_mean_is_refused(sets: Any, baseline: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        means.of_means(means.harmonic_mean, sets, baseline)


@pytest.mark.parametrize(
    "call", [tofu.model_utility, lambda log, n: tofu.forget_distance(log, log, n)]
)
def test_no_resamples_are_refused(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        call(tofu_log(), 0)


# --- logs ------------------------------------------------------------------------------------


def test_a_stored_log_comes_back_the_same() -> None:
    log = tofu_log(7)
    read = TofuLog.from_json(log.to_json())
    assert (read.name, read.official, list(read.sets)) == ("ours", False, list(SIZES))
    assert tofu.model_utility(read) == tofu.model_utility(log)
    for name, part in log.sets.items():
        assert read.sets[name].questions == part.questions
        for field in ("answer_loss", "paraphrase_loss", "perturbed_loss", "rouge"):
            assert np.array_equal(getattr(read.sets[name], field), getattr(part, field))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"name": "m", "sets": {"forget": {}}}']
)
def test_what_is_no_stored_log_is_refused(text: str) -> None:
    assert "no stored log" in refusal(lambda: TofuLog.from_json(text))


@pytest.mark.parametrize("start, end", [("Question: ", "\n"), ("[INST] ", " [/INST]")])
def test_official_logs_are_read(put: Callable[..., Path], start: str, end: str) -> None:
    log = tofu_log(3)
    read = tofu.official_log(put(official_content(log, start, end)), log.sets["forget"].questions)
    assert (read.name, read.official) == ("official", True)
    for name, part in log.sets.items():
        assert read.sets[name].questions == part.questions
        assert np.array_equal(read.sets[name].perturbed_loss, part.perturbed_loss)
    assert tofu.model_utility(read) == tofu.model_utility(log)
    assert tofu.forget_quality(read, log).value == 1


def test_rows_of_an_official_log_may_stand_in_any_order(put: Callable[..., Path]) -> None:
    log = tofu_log(3)
    content = official_content(log)
    part = content[OFFICIAL_SETS["forget"]]
    part["avg_paraphrased_loss"] = dict(reversed(part["avg_paraphrased_loss"].items()))
    read = tofu.official_log(put(content))
    assert np.array_equal(read.sets["forget"].paraphrase_loss, log.sets["forget"].paraphrase_loss)


FIELDS = ["avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall"]


@pytest.mark.parametrize("name", OFFICIAL_SETS)
def test_a_missing_set_is_named(put: Callable[..., Path], name: str) -> None:
    content = official_content(tofu_log())
    del content[OFFICIAL_SETS[name]]
    message = refusal(lambda: tofu.official_log(put(content)))
    assert f"'{name}'" in message
    assert OFFICIAL_SETS[name] in message


@pytest.mark.parametrize("field", [*FIELDS, "generated_text"])
def test_a_missing_field_and_a_missing_row_are_named(put: Callable[..., Path], field: str) -> None:
    content = official_content(tofu_log())
    del content[OFFICIAL_SETS["world_facts"]][field]["4"]
    message = refusal(lambda: tofu.official_log(put(content)))
    assert all(part in message for part in ("'world_facts'", f"'{field}'", "row 4"))
    del content[OFFICIAL_SETS["world_facts"]][field]
    message = refusal(lambda: tofu.official_log(put(content)))
    assert all(part in message for part in ("'world_facts'", f"'{field}'"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "0.5", True, {}])
@pytest.mark.parametrize("field", FIELDS)
def test_what_is_no_finite_number_is_named(put: Callable[..., Path], field: str, bad: Any) -> None:
    content = official_content(tofu_log())
    rows = content[OFFICIAL_SETS["forget"]][field]
    rows["2"] = [bad, *rows["2"][1:]] if field == "average_perturb_loss" else bad
    message = refusal(lambda: tofu.official_log(put(content)))
    assert "'forget'" in message
    assert "row 2" in message


def test_unequal_numbers_of_wrong_answers_are_named(put: Callable[..., Path]) -> None:
    content = official_content(tofu_log())
    content[OFFICIAL_SETS["retain"]]["average_perturb_loss"]["6"].pop()
    message = refusal(lambda: tofu.official_log(put(content)))
    assert all(part in message for part in ("'retain'", "row 6", "4 numbers", "5"))


@pytest.mark.parametrize("content", ["", "{", "not json", "[1]", "null", "3"])
def test_files_that_are_no_logs_are_named(put: Callable[..., Path], content: str) -> None:
    assert "official.json" in refusal(lambda: tofu.official_log(put(content)))


@pytest.mark.parametrize("kept", [1, 0.5, 0.99])
def test_truncated_files_are_named(put: Callable[..., Path], kept: float) -> None:
    text = json.dumps(official_content(tofu_log()))
    cut = text[: int(kept * len(text)) if kept < 1 else 1]
    assert "not JSON" in refusal(lambda: tofu.official_log(put(cut)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "gone.json" in refusal(lambda: tofu.official_log(tmp_path / "gone.json"))
    assert str(tmp_path) in refusal(lambda: tofu.official_log(tmp_path))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"answer_loss": np.ones(8)}, "row 8"),
        ({"perturbed_loss": np.ones((10, 5))}, "row 9"),
        ({"perturbed_loss": np.ones(9)}, "wrong answers"),
        ({"perturbed_loss": np.ones((9, 0))}, "wrong answers"),
        ({"rouge": np.full(9, 1.5)}, "rouge of row 0"),
        ({"rouge": np.ones((9, 1))}, "one number"),
        ({"paraphrase_loss": np.r_[np.ones(5), np.nan, np.ones(3)]}, "row 5, 'q 5[?]', is nan"),
        ({"questions": ()}, "no question"),
    ],
)
def test_our_own_logs_are_checked_too(changed: dict[str, Any], message: str) -> None:
    found = refusal(lambda: one_set(set_log(0, 9), **changed))
    assert re.search(message, found)
    assert "'forget' of m" in found


def test_a_set_that_was_not_scored_is_named() -> None:
    log = one_set(set_log(0, 9))
    assert "no set 'retain'" in refusal(lambda: tofu.model_utility(log))
    forgetless = TofuLog("m", {"retain": set_log(0, 9)})
    assert "no set 'forget'" in refusal(lambda: tofu.forget_quality(log, forgetless))


# --- logs of other splits --------------------------------------------------------------------


def test_a_log_of_another_split_is_named_with_its_row(put: Callable[..., Path]) -> None:
    path = put(official_content(tofu_log()))
    other = [f"q {row}?" for row in range(3, 12)]
    message = refusal(lambda: tofu.official_log(path, other))
    assert "row 0" in message
    assert "'q 0?'" in message


def test_a_log_of_a_part_of_the_split_is_refused(put: Callable[..., Path]) -> None:
    path = put(official_content(tofu_log()))
    larger = [f"q {row}?" for row in range(400)]
    message = refusal(lambda: tofu.official_log(path, larger))
    assert "row 9" in message
    assert "300" in message


def test_the_first_three_hundred_questions_of_a_split_are_enough(put: Callable[..., Path]) -> None:
    log = tofu_log()
    full = TofuLog("m", {**log.sets, "forget": set_log(0, 300)})
    larger = [f"q {row}?" for row in range(400)]
    assert (
        len(tofu.official_log(put(official_content(full)), larger).sets["forget"].questions) == 300
    )


def test_other_forget_questions_are_refused_unless_both_logs_are_official() -> None:
    forget = set_log(0, 9)
    log, reference = one_set(forget), TofuLog("other", {"forget": set_log(1, 4, name="r")})
    for pair in ((log, reference), (replace(log, official=True), reference)):
        message = refusal(partial(tofu.forget_quality, *pair))
        assert all(part in message for part in ("row 0 of m", "'q 0?'", "9 rows", "4 rows"))
    official = replace(log, official=True), replace(reference, official=True)
    with pytest.warns(UserWarning, match=r"row 0 of m \(9 rows\).*other \(4 rows\)"):
        found = tofu.forget_quality(*official)
    raw = [tofu.truth_ratios(each.sets["forget"]) for each in official]
    assert found.value == pytest.approx(stats.ks_2samp(*raw).pvalue)
    with pytest.warns(UserWarning, match="as TOFU's authors do"):
        distance = tofu.forget_distance(*official)
    assert distance.value == pytest.approx(stats.ks_2samp(*raw).statistic)
    assert distance.low <= distance.value <= distance.high


def test_a_reference_with_further_questions_is_named() -> None:
    message = refusal(
        lambda: tofu.forget_quality(one_set(set_log(0, 4)), TofuLog("r", {"forget": set_log(0, 9)}))
    )
    assert "row 4 of r" in message


# --- the authors' own logs -------------------------------------------------------------------

published = pytest.mark.skipif(not LOGS.is_dir(), reason="no mirror with TOFU's logs")


def read_published(name: str, **options: Any) -> TofuLog:
    return tofu.official_log(LOGS / f"tofu_phi-1.5_{name}_wd0.01.json", **options)


@published
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.filterwarnings("ignore:The forget sets differ")
def test_published_logs_give_the_published_values(name: str) -> None:
    utility, quality = PUBLISHED[name]
    log = read_published(name)
    assert tofu.model_utility(log, 10).value == pytest.approx(utility, rel=1e-4)
    assert tofu.forget_quality(read_published("full"), log).value == pytest.approx(
        quality, rel=1e-4
    )


@published
def test_published_logs_of_one_split_are_compared_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tofu.forget_quality(read_published("full"), read_published("retain90"))


@published
@pytest.mark.parametrize(
    "name, split", [("full", "10"), ("retain90", "10"), ("retain95", "05"), ("retain99", "01")]
)
def test_published_logs_hold_the_questions_of_their_split(name: str, split: str) -> None:
    def questions(split: str) -> list[str]:
        path = MIRROR / "datasets" / "locuslab" / "TOFU" / f"forget{split}.json"
        return [json.loads(line)["question"] for line in path.read_text("utf-8").splitlines()]

    read_published(name, questions=questions(split))
    for other in {"01", "05", "10"} - {split}:
        assert "row" in refusal(partial(read_published, name, questions=questions(other)))
