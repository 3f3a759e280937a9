"""Verdicts: each rule worked out by hand, claims.yaml whole and well-formed, `make verify`."""

import math
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from unlearn_lib import __main__, claims, results
from unlearn_lib.claims import (
    DIRECTION_ONLY,
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    VERDICTS,
    WITHIN_TOLERANCE,
    Verdict,
    rules,
)
from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import METRICS
from unlearn_lib.metrics.tidy import COLUMNS
from unlearn_lib.profiles import PROFILES, load_profile
from unlearn_lib.tables.common import Pooled, read_claims
from unlearn_lib.tables.eco_verdicts import ECO_CLAIMS
from unlearn_lib.tables.orderings import read_orderings

CLAIMS = results.CLAIMS
OPT, SMALL = "facebook/opt-1.3b", "HuggingFaceTB/SmolLM2-135M-Instruct"
OTHER_MEASURES = {
    "diversity",
    "downstream accuracy",
    "fluency",
    "hallucination rate",
    "knowledge memorisation, forget",
    "knowledge memorisation, retain",
    "memory",
    "memory of a GPU",
    "reward",
    "share of the time of RLHF",
    "similarity",
    "time",
    "verbatim memorisation, forget",
}
ALONE = Path()


def row(metric: str, value: float, half: float = math.nan, **key: Any) -> dict[str, Any]:
    """Return one line of the tidy table: value plus or minus half."""
    known = dict.fromkeys(COLUMNS, "") | {"method": "none", "stage": "base", "model": SMALL}
    numbers = {"seed": 1, "n": 50, "value": value, "low": value - half, "high": value + half}
    return known | numbers | {"metric": metric} | key


def table(*lines: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(lines, columns=list(COLUMNS))


def harmful(rate: float, half: float = math.nan, method: str = "arora", **key: Any) -> Any:
    stage = {"stage": "base", "method": "none"} if method == "base" else {"stage": "unlearned"}
    where = {"experiment": "harmful", "scenario": "held_out", "method": method, **stage}
    return row("harmful_rate", rate, half, **{**where, **key})


ENTRIES = {entry["id"]: entry for entry in read_claims(CLAIMS)}


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Make the folder in which `verdict_on` puts a claim by itself, which is faster than all."""
    global ALONE
    ALONE = tmp_path_factory.mktemp("alone") / "claims.yaml"
    shutil.copy(results.ORDERINGS, ALONE.parent)


def verdict_on(name: str, frame: pd.DataFrame, profile: str = "laptop") -> Verdict:
    entry = {key: value for key, value in ENTRIES[name].items() if key != "see"}
    ALONE.write_text(yaml.safe_dump([entry]))
    return claims.judge_all(frame, profile, ALONE)[0]


UNLEARNED = "arora_table1_opt13b_harmful_unlearned"  # 8 per cent, tolerance 5


@pytest.mark.parametrize(
    "rate, half, verdict",
    [
        (0.09, 0.02, REPRODUCED),
        (0.10, 0.02, REPRODUCED),  # the interval ends at the paper's value
        (0.11, 0.02, WITHIN_TOLERANCE),
        (0.13, 0.06, REPRODUCED),  # off by exactly the tolerance
        (0.13, math.nan, WITHIN_TOLERANCE),
        (0.131, 0.01, NOT_REPRODUCED),  # no base model in this table, so no direction
        (0.20, 0.15, NOT_REPRODUCED),
    ],
)
def test_a_number_of_the_same_model_needs_tolerance_and_interval(
    rate: float, half: float, verdict: str
) -> None:
    found = verdict_on(UNLEARNED, table(harmful(rate, half, model=OPT)), "paper")
    assert found.verdict == verdict
    assert (found.why == "") == (verdict == REPRODUCED)
    assert found.reported == "8 %" and found.experiment == "harmful"


@pytest.mark.parametrize(
    "before, verdict", [(0.6, DIRECTION_ONLY), (0.4, NOT_REPRODUCED), (0.1, NOT_REPRODUCED)]
)
def test_outside_the_tolerance_the_direction_is_left(before: float, verdict: str) -> None:
    frame = table(harmful(0.2, 0.1, model=OPT), harmful(before, 0.1, "base", model=OPT))
    found = verdict_on(UNLEARNED, frame, "paper")
    assert (found.verdict, found.why) == (verdict, "off by more than 5")


@pytest.mark.parametrize(
    "after, half, verdict",
    [
        (0.1, 0.05, DIRECTION_ONLY),
        (0.3, 0.1, NOT_REPRODUCED),  # the intervals touch
        (0.1, math.nan, NOT_REPRODUCED),
        (0.5, 0.05, NOT_REPRODUCED),  # no change
        (0.7, 0.05, NOT_REPRODUCED),
    ],
)
def test_of_another_model_only_a_shown_direction_counts(
    after: float, half: float, verdict: str
) -> None:
    frame = table(harmful(after, half), harmful(0.5, 0.1, "base"))
    found = verdict_on(UNLEARNED, frame)
    assert found.verdict == verdict and found.why
    assert found.measured.startswith(f"{100 * after:.1f}") and " against 50.0 [40.0" in (
        found.measured
    )


def test_missing_rows_are_not_judged_and_the_reader_is_told_why() -> None:
    only_after = table(harmful(0.1, 0.05))
    assert verdict_on(UNLEARNED, only_after).verdict == NOT_JUDGED
    base = verdict_on("arora_table1_opt13b_harmful_base", only_after)
    assert (base.verdict, base.why) == (NOT_JUDGED, f"needs {OPT} (profile paper)")
    measured = verdict_on("arora_table1_opt13b_similarity_base", only_after)
    assert measured.why == "its measure is not ours"
    assert verdict_on("eco_at_chance", only_after).why == "its rows were not measured"
    nowhere = verdict_on(UNLEARNED, only_after, "smoke")
    assert (nowhere.verdict, nowhere.measured) == (NOT_JUDGED, "")
    unmeasured = verdict_on(UNLEARNED, only_after, "paper")  # rows of another model alone
    assert (unmeasured.verdict, unmeasured.measured) == (NOT_JUDGED, "")


def test_seeds_are_pooled_and_counted() -> None:
    seeds = [harmful(rate, 0.01, model=OPT, seed=n) for n, rate in enumerate((0.07, 0.08, 0.12))]
    found = verdict_on(UNLEARNED, table(*seeds), "paper")
    assert found.measured == "9.0 [6.0, 13.0] %, n 50, 3 seeds" and found.verdict == REPRODUCED


def test_the_worst_of_several_models_counts() -> None:
    key = {"experiment": "harmful", "scenario": "held_out", "method": "arora"}
    for value, verdict in ((70.0, REPRODUCED), (50.0, DIRECTION_ONLY), (2.0, NOT_REPRODUCED)):
        lines = [
            row("effectiveness", each, 6, model=model, stage="unlearned", **key)
            for model, each in ((OPT, 74.0), ("facebook/opt-2.7b", value))
        ]
        found = verdict_on("arora_abstract_reduction", table(*lines), "paper")
        assert found.verdict == verdict
        assert found.measured.startswith("opt-1.3b: 74.0 [68.0, 80.0] %, n 50; opt-2.7b: ")


def test_a_change_is_judged_after_minus_before() -> None:
    key = {"experiment": "eco", "scenario": "science", "split": "retain"}
    guarded = row("choice_accuracy", 0.60, 0.1, stage="guarded", method="eco", **key)
    same = verdict_on("eco_mmlu_change", table(guarded, row("choice_accuracy", 0.60, 0.1, **key)),
                      "paper")  # fmt: skip
    assert (same.verdict, same.measured) == (REPRODUCED, "+0.0 [0.0, 0.0] %, n 50")
    near = verdict_on("eco_mmlu_change", table(guarded, row("choice_accuracy", 0.605, 0.1, **key)),
                      "paper")  # fmt: skip
    assert (near.verdict, near.measured) == (WITHIN_TOLERANCE, "-0.5 %, n 50")
    assert near.why == "ours has no interval"


def test_the_book_is_judged_by_number_on_the_readers_copy_alone() -> None:
    key = {"experiment": "book", "scenario": "text", "split": "forget", "model": OPT}
    frame = table(
        row("similarity_text", 0.13, 0.02, **key),
        row("similarity_text", 0.70, 0.05, stage="implanted", **key),
    )
    name = "arora_table2_opt13b_similarity_text_implanted"
    assert verdict_on(name, frame, "paper-book-rings").verdict == REPRODUCED
    assert verdict_on(name, frame, "paper").verdict == DIRECTION_ONLY
    base = name.replace("implanted", "base")
    assert verdict_on(base, frame, "paper-book-rings").verdict == REPRODUCED
    assert verdict_on(base, frame, "paper").why == (
        f"needs {OPT} and the paper's book (profile paper)"
    )


def refusals(idk: float, kept: dict[str, float], half: float = 0.1) -> pd.DataFrame:
    """Return the rows that judge whether the older measures miss ignorance."""
    key: dict[str, Any] = {"experiment": "tofu", "scenario": "fictitious", "split": "retain"}
    mine = {**key, "method": "idk_gd", "stage": "unlearned"}
    lines = [row("refusal_share", idk, half, **mine)]
    for metric, value in kept.items():
        lines += [
            row(metric, value, half, **mine),
            row(metric, 0.8, half, stage="implanted", **key),
        ]
    return table(*lines)


@pytest.mark.parametrize(
    "idk, kept, verdict",
    [
        (0.9, {"probability": 0.7, "truth_ratio": 0.7, "rougeL_recall": 0.7}, REPRODUCED),
        (0.9, {"probability": 0.7, "truth_ratio": 0.45, "rougeL_recall": 0.7}, DIRECTION_ONLY),
        (0.9, {"probability": 0.7, "truth_ratio": 0.45, "rougeL_recall": 0.1}, DIRECTION_ONLY),
        (0.9, {"probability": 0.1, "truth_ratio": 0.1, "rougeL_recall": 0.1}, NOT_REPRODUCED),
        (0.5, {"probability": 0.7, "truth_ratio": 0.7, "rougeL_recall": 0.7}, NOT_JUDGED),
        (0.9, {}, NOT_JUDGED),
    ],
)
def test_words_are_judged_by_their_comparisons(
    idk: float, kept: dict[str, float], verdict: str
) -> None:
    assert verdict_on("yuan_older_metrics_miss", refusals(idk, kept)).verdict == verdict


def test_without_partly_one_comparison_refutes_a_claim_in_words() -> None:
    assert rules.in_words([rules.SHOWN, rules.SEEN]) == DIRECTION_ONLY
    assert rules.in_words([rules.SHOWN, rules.CONTRARY]) == NOT_REPRODUCED
    assert rules.in_words([rules.SHOWN, rules.CONTRARY], partly=True) == DIRECTION_ONLY
    assert rules.in_words([]) == NOT_JUDGED
    assert rules.worst([NOT_JUDGED, REPRODUCED, DIRECTION_ONLY]) == DIRECTION_ONLY


def test_touching_and_unknown_intervals_show_nothing() -> None:
    low, high = Pooled(0.2, 0.1, 0.3, 9, 1), Pooled(0.4, 0.3, 0.5, 9, 1)
    assert rules.ordered(high, low, above=True) == rules.SEEN
    assert rules.ordered(low, rules.bar(0.31), above=False) == rules.SHOWN
    assert rules.ordered(low, rules.bar(0.3), above=False) == rules.SEEN
    assert rules.ordered(low, low, above=True) == rules.CONTRARY
    unknown = Pooled(0.9, math.nan, math.nan, 9, 1)
    assert rules.ordered(unknown, low, above=True) == rules.SEEN


def ordering_rows(mu: float, mu_half: float, fe: float) -> pd.DataFrame:
    """Return what judges ME+GD over GA+GD among fictitious authors."""
    key = {"experiment": "tofu", "scenario": "fictitious", "method": "me_gd", "stage": "unlearned"}
    return table(
        row("mu", 0.5, 0.1, split="all", **key),
        row("mu_difference", mu, mu_half, split="ga_gd", **key),
        row("fe_difference", fe, 0.01, split="ga_gd", **key),
    )


@pytest.mark.parametrize(
    "mu, half, fe, verdict",
    [
        (0.2, 0.1, 0.0, REPRODUCED),
        (0.2, 0.2, 0.0, DIRECTION_ONLY),  # the interval begins at 0
        (0.0, 0.2, 0.0, NOT_REPRODUCED),
        (-0.1, 0.2, 0.0, NOT_REPRODUCED),  # undecided, and the value goes the other way
        (0.2, 0.1, -0.11, NOT_REPRODUCED),
    ],
)
def test_orderings_are_judged_as_in_their_table(
    mu: float, half: float, fe: float, verdict: str
) -> None:
    found = verdict_on("yuan_me_gd_fictitious", ordering_rows(mu, half, fe))
    assert found.verdict == verdict
    assert "1 of 2 pairs" in found.measured
    assert ("FE is lower" in found.why) == (fe < -0.1)


@pytest.mark.parametrize(
    "value, half, verdict",
    [(0.3, 0.1, REPRODUCED), (0.3, math.nan, DIRECTION_ONLY), (0.5, 0.1, NOT_REPRODUCED)],
)
def test_eco_is_judged_as_in_its_table(value: float, half: float, verdict: str) -> None:
    key = {"experiment": "eco", "scenario": "science", "split": "forget"}
    frame = table(row("choice_accuracy", value, half, stage="guarded", method="eco", **key))
    found = verdict_on("eco_at_chance", frame)
    assert found.verdict == verdict
    if verdict == REPRODUCED:
        assert found.why == "on another model and other data"
        assert verdict_on("eco_at_chance", frame, "paper").why == ""


def test_what_has_no_interval_is_a_direction_at_most() -> None:
    key: dict[str, Any] = {"experiment": "eco", "scenario": "entities", "split": "forget"}
    frame = table(row("forget_quality", 0.9, stage="guarded", method="eco", **key))
    found = verdict_on("eco_forget_quality", frame)
    assert (found.verdict, found.why) == (DIRECTION_ONLY, "a p-value has no interval")
    frame = table(row("forget_quality", 0.01, stage="guarded", method="eco", **key))
    assert verdict_on("eco_forget_quality", frame).verdict == NOT_REPRODUCED


def test_a_profile_that_extends_another_is_judged_in_words_as_that_one() -> None:
    frame = ordering_rows(0.2, 0.1, 0.0)
    assert verdict_on("yuan_me_gd_fictitious", frame, "tofu01").verdict == REPRODUCED
    assert verdict_on("yuan_me_gd_fictitious", frame, "smoke").verdict == NOT_JUDGED


def test_two_rows_of_one_number_are_refused() -> None:
    with pytest.raises(CompanionError, match="two values of harmful held_out"):
        verdict_on(UNLEARNED, table(*[harmful(0.1, 0.05)] * 2, harmful(0.5, 0.1, "base")))
    with pytest.raises(CompanionError, match="lacks the columns low"):
        verdict_on(UNLEARNED, table(harmful(0.1)).drop(columns="low"))


# --- claims.yaml


@pytest.fixture(scope="module")
def every() -> list[claims.Claim]:
    return claims.read(CLAIMS)


def test_every_entry_is_well_formed(every: list[claims.Claim]) -> None:
    profiles = {path.stem for path in PROFILES.glob("*.yaml")}
    ordered = {ordering.id for ordering in read_orderings(results.ORDERINGS)}
    judged_eco = {claim.id for claim in ECO_CLAIMS if claim.id}
    for claim in every:
        able = {*claim.judged_in, *claim.direction.get("judged_in", [])}
        assert able <= profiles, claim.id
        assert claim.metric is None or claim.metric in {*METRICS, *OTHER_MEASURES}, claim.id
        assert claim.statement.endswith((".", "]")), claim.id
        if claim.words:
            assert claim.value is None and claim.judged_in and claim.short, claim.id
            assert claim.words.get("ordering", claim.id) == claim.id
            assert claim.words.get("eco", "") in {*judged_eco, ""}
        elif claim.judged_in:
            assert isinstance(claim.value, int | float) and claim.tolerance, claim.id
            assert claim.metric in METRICS and claim.row["experiment"], claim.id
        else:
            assert claim.why, claim.id
    assert ordered == {claim.words["ordering"] for claim in every if "ordering" in claim.words}
    assert 10 <= sum(claim.headline for claim in every) <= 15


def test_numbers_are_judged_on_rows_that_profile_paper_makes(every: list[claims.Claim]) -> None:
    paper = load_profile("paper")
    models = {
        name: {model.id for model in block.models} for name, block in paper.experiments().items()
    }
    for claim in every:
        if "paper" in claim.judged_in and not claim.words:
            here = claim.row["experiment"]
            assert claim.model is None or claim.model in models[here], claim.id
            if claim.row["stage"] == "unlearned":
                assert claim.row["method"] in paper.labels(here), claim.id


def test_the_papers_tables_are_there_to_the_last_number(every: list[claims.Claim]) -> None:
    value = {claim.id: claim.value for claim in every}
    for size, rates, similarity in (("13b", (32, 8), (-0.659, -0.942)),
                                    ("27b", (41, 11), (-0.913, -1.010))):  # fmt: skip
        for stage, rate, other in zip(("base", "unlearned"), rates, similarity, strict=True):
            assert value[f"arora_table1_opt{size}_harmful_{stage}"] == rate
            assert value[f"arora_table1_opt{size}_similarity_{stage}"] == other
    for size, text, original in (("13b", (0.13, 0.67, 0.01), (0.611, 0.102, 0.371)),
                                 ("27b", (0.27, 0.71, 0.00), (0.740, 0.237, 0.503))):  # fmt: skip
        for stage, one, other in zip(
            ("base", "implanted", "unlearned"), text, original, strict=True
        ):
            assert value[f"arora_table2_opt{size}_similarity_text_{stage}"] == one
            assert value[f"arora_table2_opt{size}_similarity_{stage}"] == other
    assert value["arora_abstract_reduction"] == 75
    papers = Counter(claim.id.split("_")[0] for claim in every if not claim.words)
    assert papers["yao"] == 72 + 24 + 6 + 12 + 5  # harmful, leaks, rewards, hallucinations, RLHF
    assert papers["open"] == 2 * 8 * 3 * 3 + 7 * 2 * 4  # TOFU: sets and measures; MUSE
    assert papers["dualoptim"] == 2 * 3 * 5 * 2 + 6 and papers["dragon"] == 20 + 7
    assert papers["yuan"] == 4 + 6 and papers["reload"] == 4
    unknown = {claim.id for claim in every if claim.value is None and not claim.words}
    assert unknown == {
        "eco_probe_guarded_accuracy",
        "eco_prefixes_false_negatives",
        "yuan_table2_idk_ap_fe",
        *(f"yao_{name}_fluency" for name in ("opt13b_ga", "opt27b_ga", "opt27b_ga_mismatch")),
        "yao_llama2_ga_mismatch_fluency",
    }


@pytest.mark.parametrize(
    "change, message",
    [
        ({"judgd_in": []}, "claim x has the key 'judgd_in' .did you mean 'judged_in'"),
        ({"ours": {"splt": "all"}}, "claim x, ours, has the key 'splt' .did you mean 'split'"),
        ({"words": {"compare": [{"of": {}, "abve": 1}]}}, "'abve' .did you mean 'above'"),
        ({"words": {"compare": [{"of": {}}]}}, "has 'of' and one of above and below"),
        ({"words": {"at_most": DIRECTION_ONLY}}, "one of ordering, eco and compare"),
        ({"words": {"eco": "x", "at_most": "maybe"}}, "at_most is one of reproduced"),
        ({"direction": "up"}, "'direction' is no mapping of above, below"),
        ({"judged_in": "paper"}, "judged_in lists the names"),
        ({"see": "y"}, "claim x refers to 'y'"),
    ],
)  # fmt: skip
def test_a_broken_entry_is_refused_in_one_sentence(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([{**ENTRIES[UNLEARNED], "id": "x"} | change]))
    with pytest.raises(CompanionError, match=message):
        claims.read(path)


def test_an_id_stands_there_once(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([ENTRIES[UNLEARNED]] * 2))
    with pytest.raises(CompanionError, match=f"{UNLEARNED} stands there twice"):
        claims.read(path)


# --- what is shown


@pytest.fixture(scope="module")
def reference() -> list[Verdict]:
    profile = load_profile("laptop")
    frame = results.tidy.read(results.ROOT / "results" / "reference" / "laptop" / "metrics.csv")
    labels = {name: profile.labels(name) for name in profile.experiments()}
    return claims.judge_all(frame, "laptop", CLAIMS, labels)


def presupposed(claim: claims.Claim) -> bool:
    """Whether the premise of a claim, if it has one, holds beyond the reference intervals."""
    if "given" not in claim.words:
        return True
    frame = results.tidy.read(results.ROOT / "results" / "reference" / "laptop" / "metrics.csv")
    wanted = {**claim.row, **claim.words["given"]["of"]}
    found = frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert len(found), claim.id
    return bool(found["low"].min() > claim.words["given"]["above"])


def test_every_claim_has_a_verdict_by_the_reference_results(
    reference: list[Verdict], every: list[claims.Claim]
) -> None:
    assert [each.id for each in reference] == [claim.id for claim in every]
    for each in reference:
        assert each.verdict in VERDICTS and each.statement
        assert bool(each.measured) == (each.verdict != NOT_JUDGED), each.id
        assert each.why, each.id
    for claim, each in zip(every, reference, strict=True):
        of_few_methods = claim.id.endswith(("continual", "real_world"))
        if (claim.words or claim.direction) and not of_few_methods:
            assert (each.verdict != NOT_JUDGED) == presupposed(claim), each.id


def test_tables_of_verdicts(reference: list[Verdict], tmp_path: Path) -> None:
    whole = claims.verdicts_table(reference)
    assert len(whole) == len(reference)
    first = sum(each.verdict != NOT_JUDGED for each in reference)
    assert NOT_JUDGED not in set(whole["Verdict"][:first])
    assert whole.attrs["footnotes"] == list(claims.RULES)
    short = claims.headline(reference)
    assert len(short) == sum(each.headline for each in reference)
    summary = claims.verdicts_summary(reference).set_index("Paper")
    assert summary.columns.tolist() == list(VERDICTS)
    assert summary.loc["all"].sum() == len(reference) == summary.drop("all").to_numpy().sum()
    frame = table(harmful(0.1, 0.05), harmful(0.5, 0.1, "base"))
    written = claims.write(frame, tmp_path, "laptop", {"git": "abc"}, CLAIMS)
    names = {path.name.partition(".")[0] for path in written}
    assert names == {"verdicts", "verdicts_headline"}
    assert {path.suffix for path in written} == {".csv", ".md", ".tex", ".html", ".json"}


def test_verify_lists_what_is_not_reproduced() -> None:
    kept: dict[str, Any] = {
        "paper": "p",
        "place": "t",
        "statement": "s",
        "reported": "8 %",
        "experiment": "",
    }
    good = Verdict(id="a", measured="9 %", verdict=REPRODUCED, why="", **kept)
    bad = Verdict(id="b", measured="50 %", verdict=NOT_REPRODUCED, why="off", **kept)
    none = Verdict(id="c", measured="", verdict=NOT_JUDGED, why="no rows", **kept)
    text, held = claims.verify([good, none])
    assert held and "c:" not in text
    assert text.splitlines()[0] == "reproduced        a: reported 8 %, measured 9 %"
    text, held = claims.verify([good, bad, none])
    assert not held and text.endswith("Not reproduced:\n  b")
    assert "1 reproduced, 0 within tolerance, 0 direction only, 1 not reproduced, 1 not" in text


@pytest.mark.parametrize("after, code", [(0.1, 0), (0.5, 1)])
def test_verify_exits_by_its_verdicts_and_says_whose_results(
    after: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = table(harmful(after, 0.05), harmful(0.5, 0.1, "base"))
    monkeypatch.setattr(results, "stored", lambda profile: (frame, {}, "reference results"))
    assert __main__.main(["verify", "--profile", "laptop"]) == code
    printed = capsys.readouterr().out
    assert printed.startswith("Profile laptop, from reference results (2 rows).\n")
    assert (UNLEARNED in printed.split("Not reproduced:")[-1]) or code == 0


def test_verify_without_results_says_how_to_make_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr("unlearn_lib.profiles.ROOT", tmp_path)
    assert __main__.main(["verify", "--profile", "laptop"]) == 2
    assert "run `make reproduce PROFILE=laptop`" in capsys.readouterr().err


def test_claims_need_no_torch() -> None:
    code = "import sys, unlearn_lib.claims; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
