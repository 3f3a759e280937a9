"""Metrics against hand-computed values, second implementations and properties."""

import math
import subprocess
import sys
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from unlearn_lib.metrics import (
    COLUMNS,
    METRICS,
    Estimate,
    Row,
    area_under_curve,
    bootstrap,
    cosine_rows,
    degenerate,
    effectiveness,
    perplexity,
    proportion,
    ratio,
    rouge_l,
    rouge_l_recall,
    tidy,
    word_counts,
)

FEW = 200  # resamples: enough for properties
numbers = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
verdicts = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def columns(pairs: list) -> tuple[np.ndarray, np.ndarray]:
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)


# --- intervals -------------------------------------------------------------------------------


def test_bootstrap_agrees_with_scipy_and_with_the_normal_interval() -> None:
    values = np.sort(np.random.default_rng(1).normal(3, 2, 400))
    ours = bootstrap(values, seed=5)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    half_width = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert ours.value == pytest.approx(values.mean())
    assert ours.high - ours.low == pytest.approx(2 * half_width, rel=0.1)
    assert ours.n == 400


def test_bootstrap_takes_other_statistics_with_or_without_an_axis() -> None:
    values = [1.0, 2.0, 2.0, 3.0, 50.0]
    assert bootstrap(values, np.median, FEW) == bootstrap(
        values, lambda sample: float(np.median(sample)), FEW
    )


def test_constant_values_and_one_value_have_zero_width() -> None:
    assert bootstrap([0.25] * 7) == Estimate(0.25, 0.25, 0.25, 7)
    assert bootstrap([3]) == Estimate(3.0, 3.0, 3.0, 1)


@given(numbers, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_bootstrap_holds_its_value_and_forgets_the_order(values: list, random) -> None:
    estimate = bootstrap(values, resamples=FEW)
    assert min(values) - 1e-6 <= estimate.low <= estimate.value <= estimate.high
    assert estimate.high <= max(values) + 1e-6
    shuffled = random.sample(values, len(values))
    assert bootstrap(shuffled, resamples=FEW) == estimate


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "at least one"),
        ([[1.0, 2.0]], "one dimension"),
        ([1.0, math.nan], "row 1"),
        ([math.inf], "infinite"),
    ],
)
def test_bootstrap_refuses_bad_values(values: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        bootstrap(values)


def test_bootstrap_refuses_no_resamples() -> None:
    with pytest.raises(ValueError, match="resamples is 0"):
        bootstrap([1.0, 2.0], resamples=0)


def test_proportion_of_agreeing_flags_is_wilson() -> None:
    # Wilson at 0/n: high = z^2 / (n + z^2)
    z2 = stats.norm.ppf(0.975) ** 2
    none, every = proportion([False] * 48), proportion([True] * 48)
    assert (none.value, none.low, none.n) == (0.0, 0.0, 48)
    assert none.high == pytest.approx(z2 / (48 + z2))
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)
    assert proportion([True]).low < 0.3


def test_proportion_is_near_the_binomial_interval() -> None:
    flags = np.arange(400) < 120
    exact = stats.binomtest(120, 400).proportion_ci(0.95, method="wilson")
    ours = proportion(flags)
    assert ours.value == pytest.approx(0.3)
    assert (ours.low, ours.high) == pytest.approx((exact.low, exact.high), abs=0.01)


@pytest.mark.parametrize("flags", [[0, 2], [0.5], ["yes"]])
def test_proportion_refuses_what_is_no_flag(flags: list) -> None:
    with pytest.raises(ValueError):
        proportion(flags)


def test_effectiveness_of_the_paper_table() -> None:
    # Table 1: OPT-1.3B, 32 % to 8 %, 75 % fewer
    before, after = np.arange(100) < 32, np.arange(100) < 8
    estimate = effectiveness(before, after)
    assert estimate.value == pytest.approx(75.0)
    assert 55 < estimate.low < 75 < estimate.high < 95
    assert estimate.n == 100


def test_effectiveness_is_paired() -> None:
    generator = np.random.default_rng(0)
    before = generator.random(200) < 0.5
    after = before & (generator.random(200) < 0.5)
    shuffled = generator.permutation(after)
    paired, unpaired = effectiveness(before, after), effectiveness(before, shuffled)
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < unpaired.high - unpaired.low


def test_effectiveness_is_nan_where_nothing_was_harmful() -> None:
    estimate = effectiveness([False, False], [True, False])
    assert all(math.isnan(part) for part in (estimate.value, estimate.low, estimate.high))
    assert estimate.n == 2


def test_effectiveness_never_claims_certainty() -> None:
    before = np.arange(48) < 24
    none_left = effectiveness(before, np.zeros(48, bool))
    bound = proportion(np.zeros(48, bool)).high
    assert (none_left.value, none_left.high) == (100.0, 100.0)
    assert none_left.low == pytest.approx(100 * (1 - bound / 0.5))
    unchanged = effectiveness(before, before)
    assert unchanged.low == pytest.approx(-100 * bound / 0.5)
    assert unchanged.high == pytest.approx(100 * bound / 0.5)


@given(verdicts, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_effectiveness_holds_its_value_and_forgets_the_order(pairs: list, random) -> None:
    before, after = columns(pairs)
    estimate = effectiveness(before, after, resamples=FEW)
    if not before.any():
        assert math.isnan(estimate.value)
        return
    expected = (before.mean() - after.mean()) / before.mean() * 100
    assert estimate.value == pytest.approx(expected)
    assert estimate.low <= estimate.value <= estimate.high <= 100
    assert estimate.low < estimate.high
    assert effectiveness(*columns(random.sample(pairs, len(pairs))), resamples=FEW) == estimate


def test_ratio_of_means_by_hand() -> None:
    assert ratio([2, 4], [1, 2]) == Estimate(2.0, 2.0, 2.0, 2)
    assert ratio([1, 2, 6], [2, 2, 2], FEW).value == pytest.approx(1.5)
    assert math.isnan(ratio([1.0, 2.0], [0.0, 0.0]).value)
    with pytest.raises(ValueError, match="same rows"):
        ratio([1.0, 2.0], [1.0])


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
        lambda rows: len({flag for _, flag in rows}) == 2
    )
)
@settings(max_examples=40, deadline=None)
def test_area_under_curve_is_sklearns(rows: list) -> None:
    scores, positive = columns(rows)
    estimate = area_under_curve(scores, positive, resamples=FEW)
    assert estimate.value == pytest.approx(roc_auc_score(positive, scores))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_area_under_curve_resamples_as_sklearn_would() -> None:
    generator = np.random.default_rng(2)
    positive = np.sort(generator.random(80) < 0.4)
    scores = generator.normal(positive, 1)
    areas = []
    for _ in range(1000):
        rows = generator.integers(80, size=80)
        areas.append(roc_auc_score(positive[rows], scores[rows]))
    estimate = area_under_curve(scores, positive)
    expected = np.percentile(areas, [2.5, 97.5])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(expected), abs=0.02)


def test_area_under_curve_needs_both_classes() -> None:
    with pytest.raises(ValueError, match="both classes"):
        area_under_curve([0.1, 0.2], [True, True])


# --- perplexity ------------------------------------------------------------------------------


def test_perplexity_weighs_tokens_not_rows() -> None:
    estimate = perplexity([1.0, 8.0], [1, 3])
    assert estimate.value == pytest.approx(math.exp(9 / 4))
    assert estimate.low == pytest.approx(math.exp(1.0))
    assert estimate.high == pytest.approx(math.exp(8 / 3))
    assert perplexity([math.log(50) * 7], [7]).value == pytest.approx(50)
    assert perplexity([5000.0], [1]).value == math.inf


@pytest.mark.parametrize("counts", [[2, 0], [1.5, 2], [2, -1], [2], [math.nan, 1]])
def test_perplexity_refuses_bad_counts(counts: list) -> None:
    with pytest.raises(ValueError):
        perplexity([1.0, 2.0], counts)


# --- text ------------------------------------------------------------------------------------

NATURAL = (
    "I can't help with that. If you are in danger, please call your local emergency number, or "
    "talk to someone whom you trust. There are people who can help you today."
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "!!!!",
        "... --- ???",
        "no no no",
        "the the the the the the",
        "hahahahahahaha",
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "a b " * 20,
        "I do not know what to say. " * 5,
        "One sentence of quite some many words, said again. " * 3,
        "Well, here goes: " + "and then some more " * 12,
    ],
)
def test_broken_answers_are_degenerate(text: str) -> None:
    assert degenerate([text]).tolist() == [True]


@pytest.mark.parametrize(
    "text",
    [
        NATURAL,
        "Yes.",
        "No, no.",
        "2222",
        "Paris",
        "El perro come.",
        "東京は日本の首都です。",
        "1. Mix flour and water. 2. Knead the dough. 3. Let the dough rest. 4. Bake the bread.",
        "to be or not to be, that is the question",
    ],
)
def test_natural_answers_are_not_degenerate(text: str) -> None:
    assert degenerate([text]).tolist() == [False]


@given(st.lists(st.text(max_size=60), max_size=8))
@settings(max_examples=60, deadline=None)
def test_degenerate_judges_each_text_alone(texts: list) -> None:
    flags = degenerate(texts)
    assert flags.dtype == bool
    assert flags.shape == (len(texts),)
    assert degenerate(texts[::-1]).tolist() == flags[::-1].tolist()


def test_rouge_l_by_hand() -> None:
    references = ["the cat sat on the mat", "running dogs", "words", ""]
    texts = ["the cat on a mat", "dog runs", "", "words"]
    # row 0: common "the cat on mat" = 4 of 6 reference words, 4 of 5 text words
    # row 1: stems "run dog" and "dog run" share one word in order
    assert rouge_l_recall(references, texts) == pytest.approx([4 / 6, 0.5, 0, 0])
    assert rouge_l(references, texts) == pytest.approx([8 / 11, 0.5, 0, 0])


@given(st.lists(st.text(alphabet="ab c", min_size=1, max_size=20), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_rouge_l_of_a_text_with_itself(texts: list) -> None:
    worded = [float(any(character != " " for character in text)) for text in texts]
    assert rouge_l(texts, texts).tolist() == worded
    assert rouge_l_recall(texts, texts).tolist() == worded


def test_cosine_rows_is_the_diagonal_of_sklearns() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=(2, 6, 5))
    assert cosine_rows(first, second) == pytest.approx(np.diag(cosine_similarity(first, second)))
    assert cosine_rows([[3, 4], [0, 0], [1, 0]], [[3, 4], [1, 1], [-2, 0]]).tolist() == [1, 0, -1]
    assert cosine_rows(np.zeros((0, 4)), np.zeros((0, 4))).shape == (0,)


def test_word_counts() -> None:
    assert word_counts(["", "one", " two  words\n"]).tolist() == [0, 1, 2]


def test_texts_of_wrong_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="single string"):
        degenerate("one text")
    with pytest.raises(ValueError, match="row 1"):
        word_counts(["fine", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one reference"):
        rouge_l(["a"], [])
    with pytest.raises(ValueError, match="one shape"):
        cosine_rows([[1.0]], [[1.0, 2.0]])


# --- tidy ------------------------------------------------------------------------------------

ROW = Row(
    experiment="harmful",
    scenario="",
    model="None",
    method="GradAscent",
    stage="unlearned",
    split="objectives",
    seed=0,
    metric="harmful_rate",
    run="ab12",
    **asdict(Estimate(1 / 3, 0.25, 0.5, 48)),
)


def test_columns_are_the_designs() -> None:
    expected = "experiment scenario model method stage split seed metric value low high n run"
    assert tuple(expected.split()) == COLUMNS


def test_metrics_are_documented() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.better in {"lower", "higher", "neither"}
        assert metric.unit
        assert metric.meaning.endswith(".")


def test_written_bytes_and_what_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results" / "metrics.csv"
    base = replace(ROW, stage="base", value=math.nan, low=math.nan, high=math.nan)
    tidy.write(path, tidy.to_frame([ROW, base])[list(COLUMNS[::-1])])
    assert path.read_bytes() == (
        b"experiment,scenario,model,method,stage,split,seed,metric,value,low,high,n,run\n"
        b"harmful,,None,GradAscent,base,objectives,0,harmful_rate,,,,48,ab12\n"
        b"harmful,,None,GradAscent,unlearned,objectives,0,harmful_rate,0.333333,0.25,0.5,48,ab12\n"
    )
    frame = tidy.read(path)
    assert tuple(frame.columns) == COLUMNS
    assert frame["model"].tolist() == ["None", "None"]
    assert frame["scenario"].tolist() == ["", ""]
    assert frame["value"].tolist() == pytest.approx([math.nan, 0.333333], nan_ok=True)
    assert (frame["seed"].dtype, frame["n"].dtype) == (np.int64, np.int64)
    assert [entry.name for entry in path.parent.iterdir()] == ["metrics.csv"]


words = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc"]))
any_number = st.floats(allow_nan=True, allow_infinity=True)
rows = st.builds(
    Row,
    experiment=words,
    scenario=words,
    model=words,
    method=words,
    stage=words,
    split=words,
    seed=st.integers(0, 2**40),
    metric=st.sampled_from(sorted(METRICS)),
    value=any_number,
    low=any_number,
    high=any_number,
    n=st.integers(0, 2**40),
    run=words,
)


@given(st.lists(rows, max_size=4))
@example([replace(ROW, value=0.0), replace(ROW, value=-0.0), replace(ROW, value=1e-320)])
@example([replace(ROW, value=1.0000001, low=0.9), replace(ROW, value=1.0000002, low=0.8)])
@settings(max_examples=20, deadline=None)
def test_the_table_is_byte_stable(tmp_path_factory: pytest.TempPathFactory, table: list) -> None:
    folder = tmp_path_factory.mktemp("tidy")
    first, second, third = (folder / f"{name}.csv" for name in "abc")
    tidy.write(first, tidy.to_frame(table))
    tidy.write(second, tidy.read(first))
    tidy.write(third, tidy.to_frame(table[::-1]))
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert len(tidy.read(first)) == len(table)


def test_unknown_names_are_met_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown metric 'harmfull_rate'.*'harmful_rate'"):
        tidy.to_frame([replace(ROW, metric="harmfull_rate")])
    path = tmp_path / "metrics.csv"
    tidy.write(path, tidy.to_frame([ROW]))
    text = path.read_text()
    path.write_text(text.replace("metric,", "metrics,", 1))
    with pytest.raises(ValueError, match=r"metrics\.csv: unknown column 'metrics'.*'metric'"):
        tidy.read(path)
    path.write_text("\n".join(line.rsplit(",", 1)[0] for line in text.splitlines()))
    with pytest.raises(ValueError, match="column run is missing"):
        tidy.read(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",48,", ",many,"),
        (",48,", ",4.5,"),
        (",48,", ",,"),
        (",0.25,", ",low,"),
        ("run\n", 'run\n"'),
    ],
)
def test_broken_cells_are_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "metrics.csv"
    tidy.write(path, tidy.to_frame([ROW]))
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"metrics\.csv"):
        tidy.read(path)


def test_empty_files_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with pytest.raises(FileNotFoundError):
        tidy.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="no readable table"):
        tidy.read(path)


def test_a_failed_write_leaves_the_old_table(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "metrics.csv"
    tidy.write(path, tidy.to_frame([ROW]))
    before = path.read_bytes()

    def half_written(self: pd.DataFrame, target: Path, **options: object) -> None:
        target.write_text("experiment,")
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half_written)
    with pytest.raises(OSError, match="no space"):
        tidy.write(path, tidy.to_frame([ROW, ROW]))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]


def test_estimates_fill_a_row() -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 10)
    row = replace(ROW, **asdict(estimate))
    assert (row.value, row.low, row.high, row.n) == astuple(estimate)


def test_metrics_do_without_torch() -> None:
    code = "import sys, unlearn_lib.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
