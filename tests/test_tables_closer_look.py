"""The tables of A Closer Look: exact cells, verdicts worked out by hand, one-sentence errors."""

import math
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_tables import tidy

from unlearn_lib import tables
from unlearn_lib.errors import CompanionError
from unlearn_lib.methods import METHODS
from unlearn_lib.metrics import METRICS
from unlearn_lib.tables import closer_look, orderings
from unlearn_lib.tables.common import Pooled

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
CLAIMS, ORDERINGS = NOTEBOOKS / "claims.yaml", NOTEBOOKS / "orderings.yaml"
LABELS = {
    **{
        f"{forget}_{retain}": f"{forget.upper()} + {retain.upper()}"
        for forget in ("ga", "npo", "me", "dpo", "idk")
        for retain in ("gd", "kl", "ap")
    },
    "llmu": "LLMU (GA + mismatch + KL)",
    "simnpo_gd": "SimNPO + GD",
    "wga_gd": "WGA + GD",
    "undial_gd": "UNDIAL + GD",
    "rmu": "RMU",
}
# MU and FE, share of refusals on forget and retain, degenerate share on forget, forget quality
FATES: dict[str, tuple[float, ...]] = {
    "base": (0.41, 0.80, 0.02, 0.02, 0.04, math.nan),
    "implanted": (0.66, 0.12, 0.0, 0.0, 0.0, 2e-9),
    "reference": (0.65, 0.70, 0.0, 0.0, 0.0, 1.0),
    "ga_gd": (0.52, 0.81, 0.0, 0.0, 0.35, 1e-4),
    "ga_kl": (0.33, 0.86, 0.0, 0.0, 0.60, 3e-6),
    "ga_ap": (0.48, 0.84, 0.0, 0.0, 0.40, 2e-5),
    "npo_gd": (0.55, 0.72, 0.0, 0.0, 0.10, 0.04),
    "npo_kl": (0.50, 0.74, 0.0, 0.0, 0.15, 0.02),
    "npo_ap": (0.53, 0.70, 0.0, 0.0, 0.08, 0.06),
    "me_gd": (0.62, 0.88, 0.0, 0.0, 0.02, 3e-3),
    "me_kl": (0.58, 0.90, 0.0, 0.0, 0.05, 8e-4),
    "me_ap": (0.60, 0.86, 0.0, 0.0, 0.03, 2e-3),
    "dpo_gd": (0.21, 0.79, 0.95, 0.70, 0.0, 0.11),
    "dpo_kl": (0.17, 0.80, 0.97, 0.81, 0.0, 0.09),
    "dpo_ap": (0.57, 0.66, 0.70, 0.06, 0.0, 0.15),
    "idk_gd": (0.30, 0.77, 0.96, 0.55, 0.0, 1e-5),
    "idk_kl": (0.0, 0.78, 1.0, 0.92, 0.0, 4e-15),
    "idk_ap": (0.61, 0.76, 0.93, 0.03, 0.0, 0.01),
    "llmu": (0.36, 0.83, 0.0, 0.0, 0.50, 2e-8),
    "simnpo_gd": (0.57, 0.52, 0.0, 0.0, 0.02, 0.20),
    "wga_gd": (0.59, 0.63, 0.0, 0.0, 0.05, 0.08),
    "undial_gd": (0.63, 0.38, 0.0, 0.0, 0.01, 3e-3),
    "rmu": (0.55, 0.73, 0.0, 0.0, 0.22, 0.02),
}
ELSEWHERE = ("ga_gd", "me_gd", "idk_gd", "idk_ap")


def row(metric: str, value: float, half: float | None = None, **more: Any) -> dict[str, Any]:
    """Return one line of the tidy table: value plus or minus half."""
    known = {
        "experiment": "tofu",
        "scenario": "fictitious",
        "model": "acme/tiny-lm",
        "method": "none",
        "stage": "base",
        "split": "forget",
        "seed": 0,
        "metric": metric,
        "value": value,
        "low": numpy.nan if half is None else value - half,
        "high": numpy.nan if half is None else value + half,
        "n": 16,
        "run": "r0",
    }
    return known | more


def key_of(who: str) -> dict[str, Any]:
    """Return stage and method of the base, the implanted model, the reference or a method."""
    if who in closer_look.STAGES:
        return {"stage": who, "method": "none"}
    return {"stage": "unlearned", "method": who}


def tidy_closer_look(models: int = 1, seeds: int = 1, tasks: int = 3) -> pd.DataFrame:
    """Return a fake tidy table with numbers such as the experiment gives."""
    names = ["HuggingFaceTB/SmolLM2-135M-Instruct", "open-unlearning/tofu_Llama-3.2-1B_full"]
    rows = []
    for model in names[:models]:
        for seed in range(seeds):
            here = {"model": model, "seed": seed}
            for who, fate in FATES.items():
                rows += _fate_rows(fate, scenario="fictitious", **here, **key_of(who))
            for place in (*(f"continual {task + 1}" for task in range(tasks)), "real_world"):
                for who in ("base", *ELSEWHERE) if place == "real_world" else ELSEWHERE:
                    worn = 0.03 * (closer_look.task_of(place) or 3)
                    fate = (max(0.0, FATES[who][0] - worn), *FATES[who][1:])
                    rows += _fate_rows(fate, scenario=place, **here, **key_of(who))
            rows += _difference_rows(here, tasks)
    judge = {"scenario": "judge", "split": "held_out"}
    rows.append(row("judge_accuracy", 0.91, 0.03, **judge))
    rows.append(row("judge_auc", 0.96, 0.02, **judge))
    rows.append(row("seconds", 9.0, scenario="training", split="fictitious", **key_of("ga_gd")))
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def _unit(metric: str, value: float, half: float, **key: Any) -> dict[str, Any]:
    ends = {"low": max(0.0, value - half), "high": min(1.0, value + half)}
    return row(metric, value, **key) | ends


def _fate_rows(fate: tuple[float, ...], **key: Any) -> list[dict[str, Any]]:
    mu, fe, refused, refused_kept, broken, quality = fate
    real = key["scenario"] == "real_world"
    known = 1 - fe
    rows = [
        _unit("mu", mu, 0.03, **key, split="all", n=48),
        _unit("fe", fe, 0.04, **key),
        _unit("rougeL_recall", min(1.0, 1.05 * known), 0.07, **key),
        _unit("probability", known**2, 0.03, **key),
        _unit("truth_ratio", 0.55 + 0.2 * fe, 0.06, **key),
        _unit("entailment", 0.6 * known, 0.12, **key),
        _unit("cosine_similarity", 0.3 + 0.6 * known, 0.05, **key),
        _unit("token_entropy", 0.95 - 0.5 * broken, 0.03, **key),
        _unit("extraction_strength", known**3, 0.04, **key),
        _unit("hallucinated_share", (1 - refused) * (1 - broken) * fe, 0.15, **key),
        _unit("degenerate_share", broken, 0.1, **key),
        _unit("refusal_share", refused, 0.1, **key),
        _unit("refusal_share", refused_kept, 0.1, **key, split="neighbours" if real else "retain"),
    ]
    if not real:
        rows.append(_unit("model_utility", 0.9 * mu, 0.03, **key, split="all", n=48))
    if key["scenario"] == "fictitious":
        rows += [row("forget_quality", quality, **key), row("privleak", 20 * fe, 12.0, **key)]
    return rows


def _difference_rows(here: dict[str, Any], tasks: int) -> list[dict[str, Any]]:
    rows = []
    for ordering in tables.read_orderings(ORDERINGS):
        scenario = ordering.scenario
        present = LABELS if scenario == "fictitious" else ELSEWHERE
        for better, other in tables.pairs([ordering], scenario, present):
            mine, theirs = FATES[better], FATES[other]
            key = {"scenario": f"continual {tasks}" if scenario == "continual" else scenario}
            key |= {"split": other, **key_of(better), **here}
            rows.append(row("mu_difference", mine[0] - theirs[0], 0.05, **key))
            rows.append(row("fe_difference", mine[1] - theirs[1], 0.05, **key))
    return rows


def by_hand() -> pd.DataFrame:
    """Two seeds of one method whose pooled numbers can be worked out on paper."""
    rows = [row("mu", 0.5, 0.1, split="all", **key_of("reference"))]
    for seed in (0, 1):
        ours = {"seed": seed, **key_of("ga_gd")}
        rows += [
            row("mu", 0.40 + 0.2 * seed, 0.05, split="all", **ours),
            row("fe", 0.80, 0.10, **ours),
            row("forget_quality", 0.01 + 0.02 * seed, **ours),
            row("refusal_share", 0.25, 0.05, split="retain", **ours),
            row("refusal_share", 0.75, 0.05, **ours),
            row("privleak", -40.0, 10.0, **ours),
        ]
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def difference(value: float, half: float = 0.05) -> Pooled:
    """Return a difference of two methods, value plus or minus half."""
    return Pooled(value, value - half, value + half, 16, 1)


def test_cells_of_hand_made_numbers() -> None:
    table = tables.table_three(by_hand(), [], {"ga_gd": "GA + GD"})
    assert table["Method"].tolist() == ["reference", "GA + GD"]
    assert set(table["Scenario"]) == {"Fictitious authors"}
    assert table["MU"].tolist() == ["0.500 [0.400, 0.600]", "0.500 [0.350, 0.650]"]
    assert table["FE"].tolist() == ["", "0.800 [0.700, 0.900]"]
    assert table[closer_look.QUALITY].tolist() == ["", "0.01–0.03"]
    assert table["Refusals, kept set (%)"].tolist() == ["", "25.0 [20.0, 30.0]"]
    assert table["Privleak (%)"].tolist() == ["", "-40.0 [-50.0, -30.0]"]
    assert table["Model utility"].tolist() == ["", ""]
    assert table["Seeds"].tolist() == ["1", "2"]


def test_a_row_per_method_scenario_and_model_with_the_last_task_of_continual() -> None:
    table = tables.table_three(tidy_closer_look(2, tasks=10), [], LABELS)
    count = table.groupby(["Model", "Scenario"], sort=False).size()
    per_model = {"Fictitious authors": 23, "Continual, after 10 tasks": 4, "Real world": 5}
    assert count.tolist() == list(per_model.values()) * 2
    assert [scenario for _, scenario in count.index] == list(per_model) * 2
    first = table["Method"].tolist()[:23]
    assert first == ["base", "implanted", "reference", *LABELS.values()]
    assert "accuracy 0.91 [0.88, 0.94], AUC 0.96 [0.94, 0.98]" in " ".join(table.attrs["footnotes"])


def test_the_kept_set_of_the_real_world_is_its_neighbours() -> None:
    table = tables.table_three(tidy_closer_look(), [], LABELS)
    ours = table[table["Scenario"].eq("Real world") & table["Method"].eq("IDK + GD")]
    assert ours["Refusals, kept set (%)"].item() == "55.0 [45.0, 65.0]"
    assert ours["Model utility"].item() == ""


def test_rows_of_others_follow_with_their_models_and_how_they_were_come_by() -> None:
    claims = tables.read_claims(CLAIMS)
    table = tables.table_three(tidy_closer_look(), claims, LABELS)
    others = table[table["Source"] != "ours"]
    found = others.set_index(["Source", "Model", "Scenario", "Method"])
    row_of = found.loc[("DualOptim", "Llama-2-7B", "Fictitious authors, forget01", "ME + GD")]
    assert (row_of["MU"], row_of["FE"], row_of["Model utility"]) == ("0.7271", "0.9204", "")
    assert "secondary" in row_of["Note"]
    row_of = found.loc[
        ("open-unlearning", "Llama-2-7b-chat", "Fictitious authors, forget01", "RMU")
    ]
    assert (row_of["Model utility"], row_of[closer_look.QUALITY]) == ("0.62", "0.4")
    row_of = found.loc[("Yuan et al. 2025", "Llama-3-8B-Instruct", "Real world", "IDK + AP")]
    assert (row_of["MU"], row_of["FE"]) == ("0.5311", "")
    logs = found.loc["Maini et al. 2024"]
    assert logs["Model utility"].tolist()[:4] == ["0.522074", "0.531991", "0.524959", "0.518603"]
    assert logs[closer_look.QUALITY].tolist()[4:] == ["2.1943e-16", "6.8666e-13", "7.3673e-05"]
    notes = " ".join(table.attrs["footnotes"])
    assert "Disagreement" in notes and "secondary" in notes
    assert len(others) == 2 * 15 + 2 * 8 + 3 + 7


def test_claims_of_this_experiment_leak_into_no_other_table() -> None:
    claims = tables.read_claims(CLAIMS)
    own = [claim for claim in claims if claim.get("experiment") == "tofu"]
    renamed = [{**claim, "place": f"Table {number}"} for claim in own for number in (1, 2)]
    assert tables.table_one(tidy(), renamed)["Source"].unique().tolist() == ["ours"]
    others = [claim for claim in claims if claim not in own]
    table = tables.table_three(tidy_closer_look(), others)
    assert table["Source"].unique().tolist() == ["ours"]
    assert "Disagreement" not in " ".join(table.attrs["footnotes"])


def test_claims_are_numbers_that_name_their_profile_or_say_why_none() -> None:
    profile = yaml.safe_load((NOTEBOOKS / "profiles" / "paper.yaml").read_text())["tofu"]
    models = {model["id"] for model in profile["models"]}
    methods = {method["name"] for method in profile["methods"]} | {"none"}
    for claim in tables.read_claims(CLAIMS):
        if claim.get("experiment") != "tofu":
            continue
        assert isinstance(claim["value"], int | float) and claim["tolerance"] > 0, claim["id"]
        assert claim["metric"] in METRICS
        assert claim["method"] in METHODS or claim["method"] in {"none", "llmu"}
        if claim["judged_in"]:
            assert claim["judged_in"] == ["paper"] and claim["data"] == "forget01"
            assert claim["model"] in models and claim["method"] in methods
        else:
            assert "rofile" in claim["statement"]
        secondary = claim["paper"].startswith(("DualOptim", "Yuan"))
        assert ("[secondary]" in claim["statement"]) == secondary


def test_absent_metrics_leave_empty_cells() -> None:
    frame = tidy_closer_look()
    absent = ["privleak", "forget_quality", "model_utility", "judge_accuracy", "judge_auc"]
    bare = frame[~frame["metric"].isin(absent) & frame["stage"].ne("reference")]
    table = tables.table_three(bare, [], LABELS)
    assert set(
        table[["Privleak (%)", closer_look.QUALITY, "Model utility"]].to_numpy().ravel()
    ) == {""}
    assert "Judge of entailment" not in " ".join(table.attrs["footnotes"])


def test_messages_name_the_command() -> None:
    command = "make reproduce PROFILE=smoke"
    frame = tidy_closer_look()
    with pytest.raises(CompanionError, match=f"lacks the columns low; run `{command}`"):
        tables.table_three(frame.drop(columns="low"), [], profile_name="smoke")
    for make in (tables.table_three, tables.orderings_table):
        with pytest.raises(CompanionError, match=f"No MU and FE of an unlearned.*{command}"):
            make(frame[frame["stage"] != "unlearned"], [], profile_name="smoke")
    frame.loc[frame["metric"].eq("mu"), "value"] *= 100
    with pytest.raises(CompanionError, match="no fraction from 0 to 1"):
        tables.table_three(frame, [])
    twice = pd.concat([by_hand(), by_hand()])
    with pytest.raises(CompanionError, match="two values of mu on all for acme/tiny-lm, reference"):
        tables.table_three(twice, [])


def test_files_are_written_for_every_model_and_the_same_twice(tmp_path: Path) -> None:
    both = pd.concat([tidy(), tidy_closer_look(2, 3)])
    labels = {"harmful": {}, "tofu": LABELS}
    written = [
        tables.write_all(both, tmp_path / name, "laptop", {}, CLAIMS, labels)
        for name in ("first", "second")
    ]
    names = {"table1_harmful", "table3_closer_look", "closer_look_orderings"}
    assert {path.name.partition(".")[0] for path in written[0]} == names
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
        assert first.suffix == ".json" or "nan" not in first.read_text().lower()


def test_pairs_of_a_scenario_are_those_whose_methods_run() -> None:
    claimed = tables.read_orderings(ORDERINGS)
    assert tables.pairs(claimed, "fictitious", LABELS) == [
        *(("me_gd", "ga_gd"), ("me_gd", "npo_gd")),
        *(("idk_ap", "idk_gd"), ("idk_ap", "idk_kl"), ("idk_ap", "dpo_gd"), ("idk_ap", "dpo_kl")),
    ]
    assert tables.pairs(claimed, "continual", ELSEWHERE) == [
        ("me_gd", "ga_gd"),
        ("idk_ap", "idk_gd"),
    ]
    assert tables.pairs(claimed, "real_world", ["idk_ap"]) == []
    assert tables.pairs(claimed * 2, "fictitious", LABELS) == tables.pairs(
        claimed, "fictitious", LABELS
    )


def test_verdicts_on_a_pair() -> None:
    near = difference(0.0)
    assert orderings.verdict(difference(0.2), near, 0.1) == "upheld"
    assert orderings.verdict(difference(0.2), difference(-0.1), 0.1) == "upheld"
    assert orderings.verdict(difference(0.2), difference(-0.11), 0.1) == "not upheld"
    assert orderings.verdict(difference(-0.2), near, 0.1) == "not upheld"
    assert orderings.verdict(difference(0.04), near, 0.1) == "undecided"
    assert orderings.verdict(difference(0.05), near, 0.1) == "undecided"
    assert orderings.verdict(difference(0.2), None, 0.1) == "undecided"
    assert orderings.verdict(None, near, 0.1) == "undecided"
    assert orderings.verdict(Pooled(0.2, math.nan, math.nan, 16, 1), near, 0.1) == "undecided"


def test_a_claim_is_upheld_by_all_its_pairs_and_refuted_by_one() -> None:
    assert orderings.overall(["upheld", "upheld"]) == "upheld"
    assert orderings.overall(["upheld", "undecided"]) == "undecided"
    assert orderings.overall(["upheld", "undecided", "not upheld"]) == "not upheld"
    assert orderings.overall([]) == "undecided"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(-1, 1), st.floats(0, 1))
def test_swapping_a_pair_never_upholds_both_ways(
    value: float, half: float, similar: float, margin: float
) -> None:
    both = [
        orderings.verdict(difference(sign * value, half), difference(sign * similar, 0.0), margin)
        for sign in (1, -1)
    ]
    assert both.count("upheld") <= 1


def test_the_table_of_verdicts() -> None:
    claimed = tables.read_orderings(ORDERINGS)
    table = tables.orderings_table(tidy_closer_look(), claimed, LABELS)
    claims = table[table["Than"].str.endswith("measured")]
    assert len(claims) == len(claimed) == 6
    assert claims["Than"].tolist() == [
        "2 of 2 pairs measured",
        *["1 of 2 pairs measured"] * 2,
        "4 of 4 pairs measured",
        *["1 of 4 pairs measured"] * 2,
    ]
    assert claims["Verdict"].tolist() == ["upheld"] * 6
    assert claims["Scenario"].tolist()[:3] == [
        "Fictitious authors",
        "Continual, after 3 tasks",
        "Real world",
    ]
    first = table.iloc[1]
    assert (first["Better"], first["Than"]) == ("ME + GD", "GA + GD")
    assert first["Difference in MU"] == "0.100 [0.050, 0.150]"
    assert first["Difference in FE"] == "0.070 [0.020, 0.120]"
    assert (first["n"], first["Seeds"], first["Verdict"]) == ("16", "1", "upheld")


def test_seeds_that_disagree_leave_a_claim_undecided() -> None:
    frame = tidy_closer_look(seeds=2)
    chosen = frame["metric"].eq("mu_difference") & frame["seed"].eq(1)
    frame.loc[chosen, ["value", "low", "high"]] -= 0.2
    table = tables.orderings_table(frame, tables.read_orderings(ORDERINGS), LABELS)
    assert table["Difference in MU"].iloc[1] == "0.000 [-0.150, 0.150]"
    assert table["Verdict"].iloc[0] == "undecided"
    assert table["Seeds"].iloc[1] == "2"


def test_without_differences_claims_are_undecided_and_absent_scenarios_left_out() -> None:
    frame = tidy_closer_look()
    frame = frame[~frame["metric"].isin(["mu_difference", "fe_difference"])]
    frame = frame[frame["scenario"].ne("real_world")]
    table = tables.orderings_table(frame, tables.read_orderings(ORDERINGS), LABELS)
    assert len(table) == 4
    assert set(table["Verdict"]) == {"undecided"}
    assert "0 of 2 pairs measured" in table["Than"].tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scenari": "x"}, "ordering one has the key 'scenari'.*did you mean 'scenario'"),
        ({"scenario": None}, "ordering one lacks scenario"),
        ({"scenario": "real"}, "has the scenario 'real'"),
        ({"metric": "fe"}, "metric and similar are mu and fe"),
        ({"than": "ga_gd"}, "than lists the names"),
        ({"than": []}, "than lists the names"),
        ({"margin": 10}, "margin is 10; give a number from 0 to 1"),
    ],
)
def test_bad_orderings_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    entry = yaml.safe_load(ORDERINGS.read_text())[0] | {"id": "one"} | change
    path = tmp_path / "orderings.yaml"
    kept = {key: value for key, value in entry.items() if value is not None}
    path.write_text(yaml.safe_dump([kept]))
    with pytest.raises(CompanionError, match=message) as raised:
        tables.read_orderings(path)
    assert "orderings.yaml" in str(raised.value)


def test_files_of_orderings_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "orderings.yaml"
    with pytest.raises(CompanionError, match="There is no orderings.yaml"):
        tables.read_orderings(path)
    path.write_text("- id: [x\n")
    with pytest.raises(CompanionError, match="is no YAML"):
        tables.read_orderings(path)
    path.write_text("a: 1\n")
    with pytest.raises(CompanionError, match="is no list of claims"):
        tables.read_orderings(path)
    path.write_text(yaml.safe_dump([yaml.safe_load(ORDERINGS.read_text())[0]] * 2))
    with pytest.raises(CompanionError, match="yuan_me_gd_fictitious stands there twice"):
        tables.read_orderings(path)
