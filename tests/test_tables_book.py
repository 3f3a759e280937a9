"""The book's table: exact cells for hand-made numbers, absent measures, and one-sentence errors."""

from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import pytest
from test_tables import tidy

from unlearn_lib import tables
from unlearn_lib.errors import CompanionError
from unlearn_lib.tables import book

CLAIMS = Path(__file__).parents[1] / "notebooks" / "claims.yaml"
LABELS = {
    "published": "GA + mismatch + KL (published)",
    "released": "GA + mismatch + KL (as released)",
    "empty": "released: empty labels only",
    "ga": "GA",
    "ga_gd": "GA + GD",
    "ga_kl": "GA + KL",
    "npo_keep": "NPO + keep",
    "npo_kl": "NPO + KL to own answers",
    "ours": "mismatch + keep (ours)",
}
# verbatim on forget and kept, similarity to the book, perplexity on forget, similarity on normal
# prompts, degenerate share on forget
FATES = {
    "base": (0.0, 0.0, 0.33, 31.0, None, 0.02),
    "implanted": (0.92, 0.90, 0.91, 1.3, 0.71, 0.01),
    "published": (0.0, 0.12, 0.12, 410.0, 0.44, 0.08),
    "released": (0.0, 0.0, 0.02, 8.1e6, 0.11, 1.0),
    "empty": (0.88, 0.87, 0.88, 1.4, 0.70, 0.02),
    "ga": (0.0, 0.0, 0.03, numpy.inf, 0.06, 0.97),
    "ga_gd": (0.06, 0.55, 0.29, 44.0, 0.58, 0.05),
    "ga_kl": (0.02, 0.41, 0.25, 95.0, 0.66, 0.14),
    "npo_keep": (0.04, 0.84, 0.31, 36.0, 0.83, 0.03),
    "npo_kl": (0.15, 0.37, 0.41, 18.0, 0.74, 0.02),
    "ours": (0.02, 0.80, 0.30, 38.0, 0.86, 0.01),
}


def row(metric: str, value: float, half: float | None = None, **more: Any) -> dict[str, Any]:
    """Return one line of the tidy table: value plus or minus half."""
    known = {
        "experiment": "book",
        "scenario": "text",
        "model": "acme/tiny-lm",
        "method": "none",
        "stage": "base",
        "split": "forget",
        "seed": 0,
        "metric": metric,
        "value": value,
        "low": numpy.nan if half is None else value - half,
        "high": numpy.nan if half is None else value + half,
        "n": 40,
        "run": "r0",
    }
    return known | more


def key_of(who: str) -> dict[str, Any]:
    """Return stage and method of the base, the implanted model or a method."""
    if who in ("base", "implanted"):
        return {"stage": who, "method": "none"}
    return {"stage": "unlearned", "method": who}


def tidy_book(models: int = 1, seeds: int = 1) -> pd.DataFrame:
    """Return a fake tidy table with numbers such as the experiment gives."""
    names = ["HuggingFaceTB/SmolLM2-135M-Instruct", "facebook/opt-1.3b"][:models]
    rows = []
    for model in names:
        for seed in range(seeds):
            for who, fate in FATES.items():
                rows += _fate_rows({"model": model, "seed": seed, **key_of(who)}, fate)
    rows.append(row("seconds", 12.0, scenario="training", method="ga", stage="unlearned"))
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def _share(metric: str, value: float, n: int, **key: Any) -> dict[str, Any]:
    centre, spread = (value + 1.92 / n) / (1 + 3.84 / n), 3.84 / n / (1 + 3.84 / n)
    half = (spread * (value * (1 - value) + 0.96 / n)) ** 0.5
    ends = {"low": max(0.0, min(value, centre - half)), "high": min(1.0, max(value, centre + half))}
    return row(metric, value, n=n, **key) | ends


def _fate_rows(key: dict[str, Any], fate: tuple) -> list[dict[str, Any]]:
    forget, kept, similarity, perplexity, normal, degenerate = fate
    rows = [
        _share("verbatim_share", forget, 40, **key),
        _share("verbatim_share", kept, 32, split="kept", **key),
        _share("verbatim_share", 0.0, 16, split="control", **key),
        row("similarity_text", similarity, 0.05, **key),
        row("bleu", 0.9 * forget, 0.02, **key),
        row("extraction_strength", forget * 0.7, 0.03, **key),
        row("perplexity", perplexity, 0.15 * perplexity, n=80, **key),
        _share("degenerate_share", degenerate, 40, **key),
        _share("degenerate_share", 0.8 * degenerate, 32, split="kept", **key),
        _share("degenerate_share", 0.5 * degenerate, 24, split="normal", **key),
    ]
    if normal is not None:
        rows += [
            row("similarity_original", normal, 0.06, split="normal", n=24, **key),
            row("ks_distance", abs(similarity - 0.33), 0.05, scenario="minus_base", **key),
            row("ks_p_value", 0.02, scenario="minus_base", **key),
        ]
    return rows


def by_hand() -> pd.DataFrame:
    """Two seeds of one method whose pooled numbers can be worked out on paper."""
    ours = key_of("ga")
    rows = [
        row("verbatim_share", 0.0, 0.0),
        row("similarity_text", 0.30, 0.02),
        row("verbatim_share", 0.90, 0.05, **key_of("implanted")),
        row("degenerate_share", 0.01, **key_of("implanted")),
    ]
    for seed, verbatim in enumerate((0.10, 0.20)):
        rows += [
            row("verbatim_share", verbatim, 0.05, seed=seed, **ours),
            row("verbatim_share", 0.50, 0.10, seed=seed, split="kept", **ours),
            row("verbatim_share", -0.10, 0.05, seed=seed, scenario="minus_base", **ours),
            row("perplexity", 20.0 + 10 * seed, 2.0, seed=seed, **ours),
            row("degenerate_share", 0.02, 0.02, seed=seed, **ours),
            row("degenerate_share", 0.08, 0.02, seed=seed, split="normal", **ours),
            row("similarity_original", 0.80, 0.10, seed=seed, split="normal", **ours),
            row("ks_distance", 0.40, 0.10, seed=seed, scenario="minus_base", **ours),
            row("ks_p_value", 0.01 + 0.02 * seed, seed=seed, scenario="minus_base", **ours),
        ]
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def test_cells_of_hand_made_numbers() -> None:
    table = tables.table_two(by_hand(), [], {"ga": "Gradient ascent"})
    assert table["Method"].tolist() == ["base", "implanted", "Gradient ascent"]
    assert table["Verbatim, forget (%)"].tolist() == [
        "0.0 [0.0, 0.0]",
        "90.0 [85.0, 95.0]",
        "15.0 [5.0, 25.0]",
    ]
    assert table["Verbatim, kept (%)"].tolist() == ["", "", "50.0 [40.0, 60.0]"]
    assert table["Perplexity, forget"].tolist() == ["", "", "25.0 [18.0, 32.0]"]
    assert table[book.KS_DISTANCE].tolist() == ["0", "", "0.40 [0.30, 0.50] (p = 0.01–0.03)"]
    assert table[book.ORIGINAL].tolist() == ["1", "", "0.80 [0.70, 0.90]"]
    assert table[book.DEGENERATE].tolist() == ["", "1.0", "8.0 [6.0, 10.0]"]
    assert table["n"].tolist() == ["40"] * 3
    assert table["Seeds"].tolist() == ["1", "1", "2"]


def test_paper_rows_stand_beside_ours_in_columns_of_their_own() -> None:
    table = tables.table_two(by_hand(), tables.read_claims(CLAIMS))
    paper = table[table["Source"] == "paper"]
    assert paper["Method"].tolist() == ["base", "implanted", "unlearned"] * 2
    assert paper[book.PAPER_TEXT].tolist() == ["0.13", "0.67", "0.01", "0.27", "0.71", "0.00"]
    assert paper[tables.PAPER_SIMILARITY].tolist() == [
        *("0.611", "0.102", "0.371"),
        *("0.740", "0.237", "0.503"),
    ]
    assert (paper[book.ORIGINAL] == "").all()
    assert (paper["Note"] == tables.OTHER_MODEL_NOTE).all()
    notes = " ".join(table.attrs["footnotes"])
    assert "Square brackets" in notes and "MiniLM" in notes and ".611" in notes
    same = tables.table_two(tidy_book(2), tables.read_claims(CLAIMS))["Note"].tolist()
    assert same[-6:] == [tables.PAPER_NOTE] * 3 + [tables.OTHER_MODEL_NOTE] * 3


def test_claims_of_table_two_say_why_no_profile_judges_them() -> None:
    claims = [c for c in tables.read_claims(CLAIMS) if c["place"] == "Table 2"]
    assert len(claims) == 12
    for claim in claims:
        text = claim["metric"] == "similarity_text"
        assert claim["judged_in"] == (["paper"] if text else [])
        assert ("MiniLM" if text else "no profile can judge it") in claim["statement"]


def test_order_of_methods_is_the_profiles() -> None:
    table = tables.table_two(tidy_book(), [], LABELS)
    assert table["Method"].tolist() == ["base", "implanted", *LABELS.values()]
    assert tables.table_two(tidy_book(), [])["Method"].tolist() == list(FATES)


def test_absent_measures_leave_empty_cells() -> None:
    frame = tidy_book()
    bare = frame[frame["metric"].isin(["verbatim_share"]) & frame["split"].eq("forget")]
    table = tables.table_two(bare, [])
    assert len(table) == len(FATES)
    cells = table.drop(columns=["Source", "Model", "Method", "Verbatim, forget (%)", "n", "Seeds"])
    assert set(cells.iloc[1:].to_numpy().ravel()) == {""}
    without_p = frame[frame["metric"] != "ks_p_value"]
    assert "p =" not in " ".join(tables.table_two(without_p, [])[book.KS_DISTANCE])


def test_huge_perplexities_stay_short() -> None:
    cells = tables.table_two(tidy_book(), [], LABELS)["Perplexity, forget"].tolist()
    assert cells[3] == "8.1e+06 [6.9e+06, 9.3e+06]"
    assert cells[5].startswith("inf")


def test_every_experiment_present_is_written_and_the_same_twice(tmp_path: Path) -> None:
    both = pd.concat([tidy(), tidy_book(2, 2)])
    labels = {"harmful": {}, "book": LABELS}
    written = [
        tables.write_all(both, tmp_path / name, "laptop", {}, CLAIMS, labels)
        for name in ("first", "second")
    ]
    names = {path.name.partition(".")[0] for path in written[0]}
    assert names == {"table1_harmful", "table2_book"}
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    alone = tables.write_all(tidy_book(), tmp_path / "alone", "laptop", {}, CLAIMS)
    assert {path.name.partition(".")[0] for path in alone} == {"table2_book"}
    assert "nan" not in alone[0].read_text().lower()


def test_messages_name_the_command() -> None:
    command = "make reproduce PROFILE=smoke"
    frame = tidy_book()
    with pytest.raises(CompanionError, match=f"lacks the columns low; run `{command}`"):
        tables.table_two(frame.drop(columns="low"), [], profile_name="smoke")
    with pytest.raises(CompanionError, match=f"No verbatim_share of the base.*{command}"):
        tables.table_two(frame[frame["stage"] != "base"], [], profile_name="smoke")
    with pytest.raises(
        CompanionError, match=f"No rows of harmful or book or tofu or eco in.*{command}"
    ):
        tables.write_all(frame.iloc[:0], Path("unused"), "smoke", {}, CLAIMS)


def test_shares_in_per_cent_and_two_values_for_one_seed_are_refused() -> None:
    frame = by_hand()
    frame.loc[0, "value"] = 50.0
    with pytest.raises(CompanionError, match="no fraction from 0 to 1"):
        tables.table_two(frame, [])
    twice = pd.concat([by_hand(), by_hand()])
    with pytest.raises(CompanionError, match="two values of similarity_text on forget"):
        tables.table_two(twice, [])
