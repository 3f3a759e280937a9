"""The tables of ECO: exact cells, verdicts at their boundaries, what papers report, one-sentence errors."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import test_tables
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib import tables
from unlearn_lib.errors import CompanionError
from unlearn_lib.tables import eco
from unlearn_lib.tables.common import Pooled
from unlearn_lib.tables.eco_verdicts import (
    ECO_CLAIMS,
    OURS,
    at_chance,
    bounded,
    indistinguishable,
)

CLAIMS = Path(__file__).parents[1] / "notebooks" / "claims.yaml"
MODEL = "acme/tiny-lm"
LABELS = {"ga": "GA", "ga_gd": "GA + GD", "npo_gd": "NPO + GD"}
WHO: dict[str, dict[str, Any]] = {
    "base": {"stage": "base"},
    "implanted": {"stage": "implanted"},
    "reference": {"stage": "reference"},
    "eco": {"stage": "guarded", "method": "eco"},
    "prompting": {"stage": "guarded", "method": "prompting"},
    "npo_gd": {"stage": "unlearned", "method": "npo_gd"},
    "ga_gd": {"stage": "unlearned", "method": "ga_gd"},
}
QUALITY = {"implanted": 1e-6, "reference": 1.0, "eco": 0.5, "prompting": 1e-4, "npo_gd": 0.04}
LEAKED = {"implanted": 0.9, "reference": 0.05, "eco": 0.1, "prompting": 0.6, "npo_gd": 0.3}


def row(metric: str, value: float, half: float | None = None, **more: Any) -> dict[str, Any]:
    """Return one line of the tidy table: value plus or minus half."""
    return test_tables.row(metric, value, half, **{"experiment": "eco", "split": "forget"} | more)


def place(scenario: str, split: str) -> dict[str, Any]:
    return {"scenario": scenario, "split": split}


def tidy_eco(models: int = 1, seeds: int = 1) -> pd.DataFrame:
    """Return a fake tidy table of every scenario, with numbers such as the experiment may give."""
    rows = []
    for model in (MODEL, "acme/small-lm")[:models]:
        for seed in range(seeds):
            here = {"model": model, "seed": seed}
            rows += _entities(here) + _book(here) + _science(here) + _guard(here)
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def _entities(here: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for who, key in WHO.items():
        key = {"scenario": "entities", **here, **key}
        known = LEAKED.get(who, 0.0)
        if who in QUALITY:
            rows.append(row("forget_quality", QUALITY[who], **key))
        for metric in ("bleu", "rougeL_recall", "meteor", "cosine_similarity"):
            rows.append(row(metric, known, 0.05, **key))
        rows += [
            row("model_utility", 0.497 if who == "eco" else 0.5, 0.02, **key, split="all"),
            row("asg", abs(known - 0.05), 0.05, **key),
            row("perplexity", 12.0, 2.0, **key),
            row("unique_token_ratio", 0.9, 0.05, **key),
            row("leak_share", known, 0.05, **key),
            row("refusal_share", 0.25, 0.05, **key, split="retain"),
        ]
    return rows


def _book(here: dict[str, Any]) -> list[dict[str, Any]]:
    key = {"scenario": "book", **here}
    rows = []
    for who in ("base", "implanted", "eco", "prompting", "ga_gd"):
        rows.append(row("verbatim_share", LEAKED.get(who, 0.0), 0.1, **key, **WHO[who]))
        rows.append(row("rougeL_recall", 0.7, 0.1, **key, **WHO[who], split="kept"))
    return rows


def _science(here: dict[str, Any]) -> list[dict[str, Any]]:
    key = {"scenario": "science", **here}
    rows = []
    for who, accuracy in {"implanted": 0.8, "eco": 0.27, "prompting": 0.6}.items():
        for split, value in {"forget": accuracy, "retain": 0.75, "general": 0.5}.items():
            rows.append(row("choice_accuracy", value, 0.05, **key, **WHO[who], split=split))
    rows.append(row("probe_accuracy", 0.4, 0.1, **key, **WHO["eco"]))
    return rows


def _guard(here: dict[str, Any]) -> list[dict[str, Any]]:
    guard = here | WHO["eco"]
    rows = []
    for task in eco.TASKS:
        at, costs = place("guard", task), place("costs", task)
        rows += [
            row("false_positive_rate", 0.005, 0.005, **guard, **at),
            row("false_negative_rate", 0.02, 0.02, **guard, **at),
            row("seconds", 60.0, **guard, **costs),
            row("seconds", 30.0, **here, **WHO["ga_gd"], **costs),
            row("milliseconds_per_prompt", 4.0, 1.0, **guard, **costs),
            row("parameters_changed", 0, **guard, **costs),
            row("parameters_changed", 134515008, **here, **WHO["ga_gd"], **costs),
            row("bytes_stored", 90868376, **guard, **costs),
        ]
    for split, missed in {"keywords": 0.5, "as asked": 0.02, "prefix": 0.1, "suffix": 0.0}.items():
        at = place("robustness", split)
        rows.append(row("false_negative_rate", missed, 0.02, **guard, **at))
        for who in LEAKED:
            rows.append(row("leak_share", LEAKED[who], 0.05, **here, **WHO[who], **at))
    at = place("unrelated", "unrelated")
    rows += [row("unchanged_share", 1, **guard, **at), row("time_ratio", 1.1, **guard, **at)]
    for size, time in {"1000": 1.0, "134515008": 1.2, "20000": 9.0}.items():
        at = place("scaling", size)
        rows.append(row("milliseconds_per_prompt", time, **guard, **at))
        rows.append(row("milliseconds_per_prompt", int(size) / 1e5, **here, **WHO["base"], **at))
    return rows


def changed(metric: str, values: dict[str, float], **where: str) -> pd.DataFrame:
    """Return the fake tidy table with the guard's rows of a metric, and of `where`, changed."""
    frame = tidy_eco()
    chosen = frame["metric"].eq(metric) & frame["method"].eq("eco")
    for column, value in where.items():
        chosen &= frame[column].eq(value)
    assert chosen.any()
    for column, number in values.items():
        frame.loc[chosen, column] = number
    return frame


def judged(frame: pd.DataFrame, begins: str) -> list[tuple[str, str]]:
    """Return what was measured, and the verdict, of the claim that begins so."""
    (claim,) = [claim for claim in ECO_CLAIMS if claim.statement.startswith(begins)]
    return [(found.measured, found.verdict) for found in claim.judge(tables.eco_rows(frame))]


def pooled(value: float, low: float, high: float) -> Pooled:
    return Pooled(value, low, high, 100, 1)


def test_rows_are_the_stages_the_guards_then_methods_in_the_order_of_labels() -> None:
    table = tables.eco_comparison(tidy_eco(2), [], LABELS)
    names = ["base", "implanted", "reference", "ECO (guard)", "prompting", "GA + GD", "NPO + GD"]
    assert table["Method"].tolist() == names * 2
    assert table["Model"].tolist() == [MODEL] * 7 + ["acme/small-lm"] * 7


def test_cells_of_hand_made_numbers() -> None:
    frame = tidy_eco(seeds=2)
    second = frame["seed"].eq(1) & frame["method"].eq("eco")
    frame.loc[second & frame["metric"].eq("forget_quality"), "value"] = 0.7
    frame.loc[second & frame["metric"].eq("leak_share"), ["value", "low", "high"]] = 0.2, 0.1, 0.3
    guard = tables.eco_comparison(frame, [], LABELS).iloc[3]
    expected = {
        "Source": "ours",
        eco.QUALITY: "0.5–0.7",
        "Model utility": "0.497 [0.477, 0.517]",
        "ASG, forget": "0.050 [0.000, 0.100]",
        "Perplexity, forget": "12.0 [10.0, 14.0]",
        "Leaked, forget (%)": "15.0 [5.0, 30.0]",
        "Refusals, retain (%)": "25.0 [20.0, 30.0]",
        "n": "100",
        "Seeds": "2",
        "Note": "",
    }
    assert {name: guard[name] for name in expected} == expected


def test_missing_rows_leave_empty_cells_and_empty_tables() -> None:
    table = tables.eco_comparison(tidy_eco(), [], LABELS).set_index("Method")
    assert table.loc["base", eco.QUALITY] == table.loc["GA + GD", eco.QUALITY] == ""
    book = tables.eco_book(tidy_eco(), [], LABELS)
    assert book["Method"].tolist() == ["base", "implanted", "ECO (guard)", "prompting", "GA + GD"]
    assert book["Verbatim, forget (%)"].tolist()[2] == "10.0 [0.0, 20.0]"
    assert set(book["METEOR, forget"]) == {""}
    only = pd.DataFrame(_book({}), columns=tables.COLUMNS)
    for make in (
        tables.eco_comparison,
        tables.eco_science,
        tables.eco_costs,
        tables.eco_robustness,
    ):
        assert make(only, []).empty
    verdicts = tables.eco_verdicts(only, [])
    assert set(verdicts["Verdict"]) == {"undecided"} and set(verdicts["Measured"]) == {""}
    assert len(verdicts) == len(ECO_CLAIMS)


def test_reported_rows_of_entities_follow_ours() -> None:
    table = tables.eco_comparison(tidy_eco(), tables.read_claims(CLAIMS), LABELS)
    others = table[table["Source"].ne("ours")].set_index(["Source", "Method", "Note"])
    notes = "notes on RELOAD, secondary source"
    ours = others.loc[("RELOAD", "ECO (guard)", f"forget01; other model; zero-out; {notes}")]
    assert (ours[eco.QUALITY], ours["Model utility"]) == ("0.9900", "difference +0.0000")
    npo = others.loc[
        ("RELOAD", "NPO + GD", f"forget01; other model; NPO-RT in the source; {notes}")
    ]
    assert (npo[eco.QUALITY], npo["Model utility"]) == ("0.5786", "difference -0.1361")
    dragon = others.loc["DRAGON"]["Model utility"]
    assert dragon.loc["implanted"].tolist() == ["0.6339"]
    assert dragon.loc["reference"].tolist() == ["0.6257", "0.6275", "0.6224"]
    assert dragon.loc["prompting"].tolist() == ["0.4106", "0.3558", "0.3095"]
    assert len(others) == 9 and table["Source"].tolist()[:7] == ["ours"] * 7
    assert eco.REPORTED in table.attrs["footnotes"]
    same = tidy_eco().replace(MODEL, "open-unlearning/tofu_Llama-2-7b-chat-hf_full")
    table = tables.eco_comparison(same, tables.read_claims(CLAIMS), LABELS)
    assert not table["Note"].str.contains("other model").any()


def test_reported_rows_of_science_name_their_sets_in_the_cells() -> None:
    table = tables.eco_science(tidy_eco(), tables.read_claims(CLAIMS), LABELS)
    assert table["Accuracy, forget (%)"].tolist()[:3] == [
        "80.0 [75.0, 85.0]",
        "27.0 [22.0, 32.0]",
        "60.0 [55.0, 65.0]",
    ]
    assert table["Probe accuracy, forget (%)"].tolist()[:3] == ["", "40.0 [30.0, 50.0]", ""]
    others = table[table["Source"].ne("ours")].set_index(["Model", "Method"])
    paper = others.loc[("not named", "ECO (guard)")]
    assert paper["Accuracy, forget (%)"] == "WMDP 25.0"
    assert paper["Accuracy, retain (%)"] == "MMLU difference +0.0"
    zephyr = others.loc[("Zephyr-7B", "rmu")]
    assert zephyr["Accuracy, forget (%)"] == "bio 31.2, chem 45.8, cyber 28.2"
    assert zephyr["Accuracy, retain (%)"] == "MMLU 57.1"
    assert others.loc[("Mixtral-8x7B-Instruct", "base"), "Accuracy, retain (%)"] == "MMLU 67.6"
    assert len(others) == 6


def test_costs_are_whole_numbers_beside_the_papers_bound() -> None:
    table = tables.eco_costs(tidy_eco(), tables.read_claims(CLAIMS), LABELS)
    assert table["Task"].tolist() == ["entities"] * 2 + ["book"] * 2 + ["science"] * 2 + [""]
    guard, method = table.iloc[0], table.iloc[1]
    assert (guard["Method"], method["Method"]) == ("ECO (guard)", "GA + GD")
    assert (guard["Seconds to unlearn"], method["Seconds to unlearn"]) == ("60.0", "30.0")
    assert guard["Extra ms a prompt"] == "4.00 [3.00, 5.00]"
    assert (guard["Parameters changed"], method["Parameters changed"]) == ("0", "134,515,008")
    assert (guard["Bytes stored"], method["Bytes stored"]) == ("90,868,376", "")
    paper = table.iloc[-1]
    assert paper["Extra ms a prompt"] == "below 21" and "another machine" in paper["Note"]


def test_robustness_has_a_row_per_set_and_a_column_per_method() -> None:
    table = tables.eco_robustness(tidy_eco(), [], LABELS)
    assert table["Questions"].tolist() == ["as asked", "prefix", "suffix", "keywords"]
    names = ["implanted", "reference", "ECO (guard)", "prompting", "NPO + GD", eco.MISSED]
    assert table.columns.tolist() == ["Model", "Questions", *names, "n", "Seeds"]
    assert table.loc[0, "implanted"] == "90.0 [85.0, 95.0]"
    assert table[eco.MISSED].tolist()[1] == "10.0 [8.0, 12.0]"


def test_every_claim_has_its_verdict_place_and_model() -> None:
    table = tables.eco_verdicts(tidy_eco(), tables.read_claims(CLAIMS))
    assert table.columns.tolist() == ["Claim", "Paper", "Model", "Measured", "Verdict"]
    refuted = table[table["Verdict"].ne("upheld")]
    assert refuted["Claim"].tolist() == ["A probe on the guarded model's logits at random guess"]
    assert len(table) == 11 + 2 + 1 + 2  # tasks of FPR and of overhead, retain and general
    papers = dict(zip(table["Claim"], table["Paper"], strict=True))
    assert papers["Multiple choice on forget at random guess"] == (
        "Liu et al. 2024, arXiv 2406.07933, captions and abstract"
    )
    assert sum(paper == OURS for paper in table["Paper"]) == 4
    known = {claim["id"] for claim in tables.read_claims(CLAIMS)} | {""}
    assert {claim.id for claim in ECO_CLAIMS} <= known


@pytest.mark.parametrize(
    "p_values, verdict",
    [
        ([0.051], "upheld"),
        ([0.05], "not upheld"),
        ([0.2, 0.9], "upheld"),
        ([0.2, 0.01], "undecided"),
        ([0.05, 0.01], "not upheld"),
        ([], "undecided"),
    ],
)
def test_forget_quality_is_judged_by_every_seed(p_values: list[float], verdict: str) -> None:
    assert indistinguishable(p_values) == verdict


def test_an_upper_bound_needs_the_end_of_the_interval() -> None:
    assert bounded(pooled(0.005, 0.0, 0.01), 0.01) == "upheld"
    assert bounded(pooled(0.01, 0.0, 0.02), 0.01) == "undecided"
    assert bounded(pooled(0.01, math.nan, math.nan), 0.01) == "undecided"
    assert bounded(pooled(0.011, 0.0, 0.02), 0.01) == "not upheld"
    assert bounded(None, 0.01) == "undecided"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_chance_is_upheld_exactly_within_the_interval(a: float, b: float, c: float) -> None:
    low, value, high = sorted((a, b, c))
    held = at_chance(pooled(value, low, high)) == "upheld"
    assert held == (low <= 0.25 <= high)


def test_accuracy_without_an_interval_is_undecided_and_below_chance_not_upheld() -> None:
    assert at_chance(pooled(0.25, math.nan, math.nan)) == "undecided"
    frame = changed("choice_accuracy", {"value": 0.1, "low": 0.05, "high": 0.2}, split="forget")
    words = "10.0 [5.0, 20.0] %, below chance"
    assert judged(frame, "Multiple choice on forget") == [(words, "not upheld")]


@pytest.mark.parametrize(
    "value, verdict", [(0.505, "upheld"), (0.495, "upheld"), (0.494, "not upheld")]
)
def test_utility_may_change_by_one_per_cent_of_the_implanted_models(
    value: float, verdict: str
) -> None:
    found = judged(changed("model_utility", {"value": value}), "Entities: model utility")
    assert [each for _, each in found] == [verdict]


def test_utility_is_told_against_the_model_before() -> None:
    expected = "0.497 [0.477, 0.517] against 0.500 [0.480, 0.520] (-0.6 %)"
    assert judged(tidy_eco(), "Entities: model utility") == [(expected, "upheld")]
    untaught = tidy_eco()
    untaught = untaught[untaught["stage"].ne("implanted")]
    assert judged(untaught, "Entities: model utility") == [(expected, "upheld")]


def test_false_alarms_and_misses_are_judged_together_for_each_task() -> None:
    found = judged(changed("false_negative_rate", {"high": 0.06}, split="book"), "Held-out")
    words = "FPR 0.5 [0.0, 1.0] %, FNR 2.0 [0.0, 6.0] %"
    assert [each for _, each in found] == ["upheld", "undecided", "upheld"]
    assert found[1][0] == words
    found = judged(changed("false_positive_rate", {"value": 0.02}, split="science"), "Held-out")
    assert [each for _, each in found] == ["upheld", "upheld", "not upheld"]
    frame = tidy_eco()
    found = judged(frame[frame["metric"].ne("false_positive_rate")], "Held-out")
    assert found[0] == ("FPR not measured, FNR 2.0 [0.0, 4.0] %", "undecided")


def test_what_is_kept_may_move_by_one_point() -> None:
    found = judged(
        changed("choice_accuracy", {"value": 0.76}, split="retain"), "Multiple choice on w"
    )
    assert [each for _, each in found] == ["upheld", "upheld"]
    found = judged(
        changed("choice_accuracy", {"value": 0.73}, split="general"), "Multiple choice on w"
    )
    assert [each for _, each in found] == ["upheld", "not upheld"]


def test_cost_growth_compares_the_smallest_with_the_largest_size() -> None:
    words = "1 ms at 1,000 parameters, 1.2 ms at 134,515,008 parameters: 1.20 times"
    assert judged(tidy_eco(2, 2), "The guard's time") == [(words, "upheld")]
    time = "milliseconds_per_prompt"
    slow = changed(time, {"value": 1.51}, scenario="scaling", split="134515008")
    assert [each for _, each in judged(slow, "The guard's time")] == ["not upheld"]
    frame = tidy_eco()
    single = frame[frame["scenario"].ne("scaling") | frame["split"].eq("1000")]
    assert judged(single, "The guard's time") == []


def test_overhead_is_below_the_papers_and_says_whose_machine() -> None:
    frame = changed("milliseconds_per_prompt", {"value": 21.0}, scenario="costs", split="book")
    found = judged(frame, "The guard takes")
    assert [each for _, each in found] == ["upheld", "not upheld", "upheld"]
    assert found[0][0] == "4.00 [3.00, 5.00] ms, on another machine than the paper's"


def test_either_of_prefix_and_suffix_raises_misses() -> None:
    words = "as asked 2.0 [0.0, 4.0] %, prefix 10.0 [8.0, 12.0] %, suffix 0.0 [-2.0, 2.0] %"
    assert judged(tidy_eco(), "A prefix") == [(words, "upheld")]
    frame = changed("false_negative_rate", {"value": 0.02}, scenario="robustness", split="prefix")
    assert [each for _, each in judged(frame, "A prefix")] == ["not upheld"]
    assert judged(frame[frame["split"].ne("as asked")], "A prefix") == []


def test_unrelated_answers_must_all_be_the_same_and_in_time() -> None:
    assert judged(tidy_eco(), "Unrelated") == [("100.0 % the same, time 1.10", "upheld")]
    for metric, value, verdict in [
        ("unchanged_share", 0.995, "not upheld"),
        ("time_ratio", 1.15, "upheld"),
        ("time_ratio", 1.16, "not upheld"),
        ("time_ratio", math.nan, "undecided"),
    ]:
        found = judged(changed(metric, {"value": value}), "Unrelated")
        assert [each for _, each in found] == [verdict]


def test_prompting_is_weaker_only_below_the_guard() -> None:
    assert judged(tidy_eco(), "Entities: prompting") == [("p = 0.0001 against 0.5", "upheld")]
    frame = changed("forget_quality", {"value": 1e-4})
    assert [each for _, each in judged(frame, "Entities: prompting")] == ["not upheld"]


def test_claims_have_every_key_and_say_whether_a_profile_judges_them() -> None:
    claims = [c for c in tables.read_claims(CLAIMS) if c.get("experiment") == "eco"]
    scenarios = {*eco.TASKS, "costs", "robustness", "scaling"}
    for claim in claims:
        assert {"scenario", "data", "split", "method", "printed_model", "note"} <= set(claim)
        assert claim["scenario"] in scenarios
        assert "[secondary]" in claim["statement"] and "secondary" in claim["note"]
        assert claim["judged_in"] in ([], ["paper"]) and "rofile" in claim["statement"]
        if claim["judged_in"]:
            assert claim["value"] is not None and claim["tolerance"] > 0, claim["id"]
    unknown = {claim["id"] for claim in claims if claim["value"] is None}
    assert unknown == {"eco_probe_guarded_accuracy", "eco_prefixes_false_negatives"}
    assert len(claims) == 39


def test_messages_name_the_command_and_the_number() -> None:
    command = "make reproduce PROFILE=smoke"
    frame = tidy_eco()
    for make in tables.TABLES["eco"].values():
        with pytest.raises(CompanionError, match=f"lacks the columns low; run `{command}`"):
            make(frame.drop(columns="low"), [], profile_name="smoke")
        with pytest.raises(CompanionError, match=f"No rows of experiment eco in.*{command}"):
            make(test_tables.tidy(), [], profile_name="smoke")
    frame = changed("leak_share", {"value": 10.0}, scenario="entities")
    with pytest.raises(CompanionError, match="leak_share of acme/tiny-lm in .* is 10, no fraction"):
        tables.eco_costs(frame, [])
    twice = pd.concat([tidy_eco(), tidy_eco()])
    with pytest.raises(CompanionError, match="two values of model_utility on all for acme/tiny-lm"):
        tables.eco_comparison(twice, [])


def test_files_are_written_for_whole_and_partial_results(tmp_path: Path) -> None:
    for name, frame in {
        "whole": tidy_eco(),
        "partial": pd.DataFrame(_book({}), columns=tables.COLUMNS),
    }.items():
        paths = tables.write_all(frame, tmp_path / name, "laptop", {}, CLAIMS, {"eco": LABELS})
        names = {path.name.partition(".")[0] for path in paths}
        assert names == set(tables.TABLES["eco"])
        for path in paths:
            text = path.read_text()
            assert path.suffix == ".json" or "nan" not in text.lower()
            assert path.suffix != ".tex" or not set("Δ≤≥") & set(text)
