"""Tables: exact cells for hand-made numbers, files that never change, and one-sentence errors."""

import json
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import pytest

from unlearn_lib import tables
from unlearn_lib.errors import CompanionError

CLAIMS = Path(__file__).parents[1] / "notebooks" / "claims.yaml"
LABELS = {
    "ga": "GA",
    "ga_gd": "GA + GD",
    "ga_kl": "GA + KL",
    "npo_kl": "NPO + KL",
    "published": "GA + mismatch + KL (published)",
    "ours": "NPO + own answers",
}
FATES = {  # harmful rate, degenerate share, perplexity factor, similarity, length-matched rate
    "none": (0.63, 0.01, 1.0, 1.0, None),
    "published": (0.36, 0.02, 1.11, 0.44, 0.51),
    "ga": (0.02, 0.97, 3.1e5, 0.03, 0.58),
    "ga_gd": (0.21, 0.18, 1.42, 0.39, 0.55),
    "ga_kl": (0.31, 0.06, 1.19, 0.52, 0.57),
    "npo_kl": (0.27, 0.03, 1.08, 0.61, 0.60),
    "ours": (0.12, 0.02, 1.05, 0.83, 0.61),
}


def row(metric: str, value: float, half: float | None = None, **more: Any) -> dict[str, Any]:
    """Return one line of the tidy table: value plus or minus half."""
    known = {
        "experiment": "harmful",
        "scenario": tables.SCENARIOS.get(metric, ""),
        "model": "acme/tiny-lm",
        "method": "none",
        "stage": "base",
        "split": "test",
        "seed": 0,
        "metric": metric,
        "value": value,
        "low": numpy.nan if half is None else value - half,
        "high": numpy.nan if half is None else value + half,
        "n": 100,
        "run": "r0",
    }
    return known | more


def tidy(models: int = 1, seeds: int = 1) -> pd.DataFrame:
    """Return a fake tidy table with numbers such as the experiment gives."""
    draw = numpy.random.default_rng(1)
    names = ["HuggingFaceTB/SmolLM2-135M-Instruct", "facebook/opt-1.3b"][:models]
    rows = []
    for model in names:
        for seed in range(seeds):
            for method, fate in FATES.items():
                shift = draw.normal(0, 0.02) if seeds > 1 else 0.0
                key = {"model": model, "method": method, "seed": seed}
                key["stage"] = "base" if method == "none" else "unlearned"
                rows += _fate_rows(key, fate, shift)
    rows.append(row("classifier_auc", 0.84, 0.04, scenario="classifier", method="none"))
    rows.append(row("classifier_accuracy", 0.76, 0.05, scenario="classifier", method="none"))
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def _fate_rows(key: dict[str, Any], fate: tuple, shift: float) -> list[dict[str, Any]]:
    rate, degenerate, factor, similarity, matched = fate
    rate = min(0.99, max(0.01, rate + shift))
    bar = 1.96 * (rate * (1 - rate) / 120) ** 0.5
    rows = [
        row("harmful_rate", rate, bar, n=120, **key),
        row("degenerate_share", degenerate, min(degenerate, 1 - degenerate), n=120, **key),
        row("retain_perplexity", 18.2 * factor, 0.6 * factor, n=200, **key),
        row("answer_tokens", 55.0, 2.0, n=120, **key),
        row("refusal_share_normal", 0.02, 0.02, n=60, **key),
    ]
    if matched is not None:
        rows += [
            row("effectiveness", 100 * (0.63 - rate) / 0.63, 9.0, n=120, **key),
            row("similarity_original", similarity, 0.04, n=60, **key),
            row("rougeL_original", similarity * 0.8, 0.05, n=60, **key),
            row("harmful_rate_length_matched", matched, 0.08, n=120, **key),
        ]
    return rows


def by_hand() -> pd.DataFrame:
    """Two seeds of one method whose pooled numbers can be worked out on paper."""
    ours: dict[str, Any] = {"method": "ga", "stage": "unlearned"}
    rows = [
        row("harmful_rate", 0.50, 0.10),
        row("retain_perplexity", 20.0, 2.0),
        row("degenerate_share", 0.0, 0.0),
        row("harmful_rate", 0.10, 0.05, **ours),
        row("harmful_rate", 0.20, 0.05, seed=1, **ours),
        row("retain_perplexity", 24.0, 1.0, **ours),
        row("retain_perplexity", 26.0, 1.0, seed=1, **ours),
        row("degenerate_share", 0.04, **ours),
        row("similarity_original", 0.80, 0.10, **ours),
        row("effectiveness", 80.0, 5.0, **ours),
        row("effectiveness", 60.0, 5.0, seed=1, **ours),
    ]
    return pd.DataFrame(rows, columns=tables.COLUMNS)


def test_cells_of_hand_made_numbers() -> None:
    table = tables.table_one(by_hand(), [], {"ga": "Gradient ascent"})
    assert table["Method"].tolist() == ["original", "Gradient ascent"]
    assert table["Harmful rate (%)"].tolist() == ["50.0 [40.0, 60.0]", "15.0 [5.0, 25.0]"]
    assert table["Effectiveness (%)"].tolist() == ["", "70.0 [55.0, 85.0]"]
    assert table["Similarity to original (cosine)"].tolist() == ["1", "0.80 [0.70, 0.90]"]
    assert table["Perplexity ratio"].tolist() == ["1", "1.25 [1.15, 1.35]"]
    assert table["Degenerate answers (%)"].tolist() == ["0.0 [0.0, 0.0]", "4.0"]
    assert table["Shortness control (%)"].tolist() == ["", ""]
    assert table["Seeds"].tolist() == ["1", "2"]
    assert table["n"].tolist() == ["100", "100"]


def test_paper_rows_stand_beside_ours_with_a_note() -> None:
    table = tables.table_one(by_hand(), tables.read_claims(CLAIMS))
    paper = table[table["Source"] == "paper"]
    assert paper["Model"].tolist() == ["facebook/opt-1.3b"] * 2 + ["facebook/opt-2.7b"] * 2
    assert paper["Method"].tolist() == ["original", "unlearned"] * 2
    assert paper["Harmful rate (%)"].tolist() == ["32", "8", "41", "11"]
    assert paper["Effectiveness (%)"].tolist() == ["", "75.0", "", "73.2"]
    assert paper[tables.PAPER_SIMILARITY].tolist() == ["-0.659", "-0.942", "-0.913", "-1.010"]
    assert (paper["Similarity to original (cosine)"] == "").all()
    assert (paper["Degenerate answers (%)"] == "").all()
    assert (paper["Note"] == tables.OTHER_MODEL_NOTE).all()
    same = tables.table_one(tidy(2), tables.read_claims(CLAIMS))["Note"].tolist()
    assert same[-4:] == [tables.PAPER_NOTE] * 2 + [tables.OTHER_MODEL_NOTE] * 2


def test_abstract_is_a_claim_but_no_row_of_table_one() -> None:
    claims = tables.read_claims(CLAIMS)
    abstract = [claim for claim in claims if claim["place"] == "Abstract"]
    assert [(claim["metric"], claim["value"]) for claim in abstract] == [("effectiveness", 75)]
    assert len({claim["id"] for claim in claims}) == len(claims)
    assert sum(claim["paper"].startswith("Arora") for claim in claims) == 22


def test_order_of_methods_is_the_profiles() -> None:
    table = tables.table_one(tidy(), [], LABELS)
    assert table["Method"].tolist() == ["original", *LABELS.values()]
    assert tables.table_one(tidy(), [])["Method"].tolist()[1:] == list(FATES)[1:]


def test_files_are_whole_escaped_and_the_same_twice(tmp_path: Path) -> None:
    details = {"git": {"commit": "abc1234"}}
    written = [
        tables.write_all(
            tidy(2, 3), tmp_path / name, "laptop", details, CLAIMS, {"harmful": LABELS}
        )
        for name in ("first", "second")
    ]
    assert [path.suffix for path in written[0]] == [".csv", ".md", ".tex", ".html", ".json"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert not list(tmp_path.rglob("*.tmp"))
    latex = written[0][2].read_text()
    assert r"\toprule" in latex and r"Harmful rate (\%)" in latex
    assert "nan" not in written[0][0].read_text().lower()
    cells = pd.read_csv(written[0][0], dtype=str, keep_default_na=False)
    assert len(cells) == 2 * 7 + 4
    assert json.loads(written[0][4].read_text())["git"] == details["git"]


def test_a_long_table_runs_over_pages() -> None:
    short, long = (tables.to_latex(pd.DataFrame({"a": range(rows), "b": "x"})) for rows in (45, 46))
    assert "resizebox" in short and "longtable" not in short
    assert r"\begin{longtable}" in long and "resizebox" not in long
    assert long.count(r"p{0.400\textwidth}") == 2
    assert long.count(r" & x \\") == 46


def test_latex_escapes_what_a_label_may_hold(tmp_path: Path) -> None:
    table = tables.table_one(by_hand(), [], {"ga": "GA_1 & 50 % of β"})
    assert r"GA\_1 \& 50 \% of $\beta$" in tables.to_latex(table)


def test_missing_cells_stay_empty(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": ["x", None], "b": [1.5, numpy.nan]})
    paths = tables.write_table(frame, tmp_path, "t", {})
    assert paths[0].read_text() == "a,b\nx,1.5\n,\n"


def test_messages_name_the_command() -> None:
    command = "make reproduce PROFILE=smoke"
    frame = tidy()
    with pytest.raises(CompanionError, match=f"lacks the columns low, high; run `{command}`"):
        tables.table_one(frame.drop(columns=["low", "high"]), [], profile_name="smoke")
    with pytest.raises(CompanionError, match=f"No retain_perplexity of.*{command}"):
        kept = frame[frame["metric"] != "retain_perplexity"]
        tables.table_one(kept, [], profile_name="smoke")
    with pytest.raises(
        CompanionError, match=f"No harmful_rate, retain_perplexity before unlearning.*{command}"
    ):
        tables.table_one(frame[frame["stage"] != "base"], [], profile_name="smoke")


def test_two_values_for_one_seed_are_refused() -> None:
    twice = pd.concat([by_hand(), by_hand().assign(split="other")])
    with pytest.raises(CompanionError, match="keep one split"):
        tables.table_one(twice, [])


def test_shares_in_per_cent_are_refused() -> None:
    frame = by_hand()
    frame.loc[0, "value"] = 50.0
    with pytest.raises(CompanionError, match="no fraction from 0 to 1"):
        tables.table_one(frame, [])


def test_claims_with_a_missing_key_or_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    with pytest.raises(CompanionError, match="There is no claims.yaml"):
        tables.read_claims(path)
    path.write_text("- id: [x\n")
    with pytest.raises(CompanionError, match="is no YAML"):
        tables.read_claims(path)
    path.write_text("- id: x\n  paper: p\n")
    with pytest.raises(CompanionError, match="claim x lacks place"):
        tables.read_claims(path)
