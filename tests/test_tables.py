"""Tables: cells, order of rows, what others report, the mark of broken answers."""

from pathlib import Path

import mistune
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from synthetic import MODEL, synthetic_items

from unlearn_lib.results import COLUMNS, Estimate, Items
from unlearn_lib.results_page import markdown
from unlearn_lib.tables import TABLES, Column, broken, build, conditions_of, to_latex, write_all

LABELS = {"npo_gd": "NPO + GD", "ga_gd": "GA + GD"}
COSTS = {"me_gd": 61.25, "ga_gd": 26.5, "target": 150.0, "eco": 180.34}
GOLDEN = """Source,Model,Task,Method,Seconds,Bytes stored,n,Seeds
ours,family/model-135m,Fictitious authors,target (taught),150.0,,1,1
ours,family/model-135m,Fictitious authors,ECO (guard),180.3,"90,868,000",1,1
ours,family/model-135m,Fictitious authors,GA + GD,26.5,,1,1
ours,family/model-135m,Fictitious authors,me gd,61.2,,1,1
"""


def items_of(*rows: dict[str, object]) -> Items:
    usual = dict.fromkeys(COLUMNS, "") | {"task": "authors", "model": MODEL, "seed": 1}
    return Items(pd.DataFrame([usual | row for row in rows]))


def degenerate(
    method: str, share: float, split: str, condition: str = ""
) -> list[dict[str, object]]:
    where = {"method": method, "split": split, "condition": condition, "metric": "degenerate"}
    return [where | {"item": str(i), "cluster": str(i), "value": i < 20 * share} for i in range(20)]


def test_a_table_as_csv_by_hand(tmp_path: Path) -> None:
    own: dict[str, object] = {"split": "costs", "metric": "seconds"}
    costs = [own | {"method": method, "value": value} for method, value in COSTS.items()]
    stored = own | {"method": "eco", "metric": "bytes_stored", "value": 90868000.0}
    asked = own | {"method": "base", "metric": "choice_right", "value": 1.0}
    write_all(items_of(*costs, stored, asked), tmp_path, LABELS)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"eco_costs.{end}" for end in ("csv", "md", "tex", "html")}
    assert (tmp_path / "eco_costs.csv").read_text() == GOLDEN
    assert r"90,868,000" in (tmp_path / "eco_costs.tex").read_text()


@pytest.mark.parametrize(
    ("column", "number", "text"),
    [
        (Column("harmful_rate"), Estimate(36.04, 28.1, 44.26, 64, 1), "36.0 [28.1, 44.3]"),
        (Column("mu"), Estimate(0.4376, 0.0, 0.51949, 36, 3), "0.438 [0.000, 0.519]"),
        (Column("forget_quality"), Estimate(0.0034, float("nan"), float("nan"), 16, 1), "0.0034"),
        (Column("privleak"), Estimate(-0.01, -0.02, 0.04, 8, 1), "0.0 [0.0, 0.0]"),
        (Column("perplexity_text"), Estimate(2.5e9, 1e9, 9e9, 8, 1), "2.5e+09 [1e+09, 9e+09]"),
        (Column("mu"), None, ""),
    ],
)
def test_cells(column: Column, number: Estimate | None, text: str) -> None:
    assert column.text(number) == text


def test_a_relative_column_divides_by_the_base_model() -> None:
    items = synthetic_items(["harm"])
    where = {"task": "harm", "method": "refusal"}
    plain = Column("perplexity_text", "retain").read(items, **where)
    base = Column("perplexity_text", "retain").read(items, task="harm", method="base")
    relative = Column("perplexity_text", "retain", relative=True).read(items, **where)
    assert plain and base and relative
    assert relative.high == pytest.approx(plain.high / base.value)


@pytest.mark.parametrize(
    ("rows", "condition", "expected"),
    [
        (degenerate("me", 0.10, "forget"), "", False),
        (degenerate("me", 0.15, "forget"), "", True),
        (degenerate("me", 0.0, "forget") + degenerate("me", 0.15, "retain"), "", True),
        (degenerate("me", 0.15, "forget"), "typos", True),
        (degenerate("me", 0.15, "forget") + degenerate("me", 0.0, "forget", "2"), "2", False),
        (degenerate("other", 1.0, "forget"), "", False),
    ],
)
def test_broken_is_more_than_a_tenth_on_any_split(
    rows: list[dict[str, object]], condition: str, expected: bool
) -> None:
    assert broken(items_of(*rows), "authors", "me", MODEL, condition) is expected


def test_a_broken_method_has_a_dagger_that_a_note_explains() -> None:
    frame = build("table3_closer_look", synthetic_items(["authors"]), LABELS)
    marked = [method for method in frame["Method"] if method.endswith("†")]
    assert marked == ["me gd †"] and any(note.startswith("†") for note in frame.attrs["notes"])


def test_what_others_report_stands_below_ours() -> None:
    columns = ["source", "place", "task", "model", "method", "metric", "split", "value", "unit"]
    rows = [
        (
            "A",
            "Table 1",
            "science",
            "Big",
            "npo_gd",
            "choice_accuracy",
            "retain",
            "72.5",
            "per cent",
        ),
        ("A", "Table 1", "science", "Big", "npo_gd", "choice_accuracy", "forget", 31, "per cent"),
        ("A", "Table 1", "science", "Big", "npo_gd", "mu", "all", "0.5", "score"),
        ("A", "Table 9", "harm", "Big", "base", "harmful_rate", "", "32", "per cent"),
    ]
    items, others = synthetic_items(["science"]), pd.DataFrame(rows, columns=columns)
    frame = build("eco_science", items, LABELS, others)
    assert list(frame["Source"]) == ["ours"] * 4 + ["A"]
    last = frame.iloc[-1]
    assert (last["Method"], last["Place"]) == ("NPO + GD", "Table 1")
    assert last["Choice accuracy, retain (%)"] == "72.5"
    assert last["Choice accuracy, forget (%)"] == "31"


@pytest.mark.parametrize("name", sorted(set(TABLES) - {"judges", "guards"}))
def test_every_table_is_built_from_a_laptop_run(name: str) -> None:
    frame = build(name, synthetic_items(), LABELS)
    assert len(frame) and not frame.isna().any().any()


def test_the_last_part_of_the_continual_task_is_shown() -> None:
    items = synthetic_items(["continual"])
    assert conditions_of(items, "continual") == ["2"]
    assert conditions_of(items, "continual", r"\d") == ["1", "2"]


def test_a_long_table_runs_over_pages() -> None:
    short = build("eco_science", synthetic_items(["science"]), LABELS)
    long = build("eco_costs", synthetic_items(), LABELS)
    assert r"\begin{longtable}" in to_latex(pd.concat([long, long]))
    assert r"\begin{tabular}" in to_latex(short) and r"accuracy, retain (\%)" in to_latex(short)


ODD = "a|b `x` $y$ 5% _z_ ^{2} \\w <script>alert(1)</script> [c](javascript:d)\nnext"


def test_a_label_is_plain_text_in_every_format(tmp_path: Path) -> None:
    own: dict[str, object] = {"split": "costs", "metric": "seconds", "value": 2.0}
    items = items_of(own | {"method": "ga"}, own | {"method": "eco"})
    write_all(items, tmp_path, {"ga": ODD})
    grid = (tmp_path / "eco_costs.md").read_text().split("\n\n")[0]
    for table in (grid, markdown(build("eco_costs", items, {"ga": ODD}))):
        page = str(mistune.create_markdown(escape=False, plugins=["table"])(table))
        cells = [
            [td.get_text() for td in row("td")] for row in BeautifulSoup(page, "html.parser")("tr")
        ]
        assert [len(row) for row in cells[1:]] == [7, 7], "a row for each method"
        assert " ".join(ODD.split()) in cells[2]
        assert not any(tag in page for tag in ("<script", "<code", "<a "))
    html = (tmp_path / "eco_costs.html").read_text()
    assert "<script" not in html and "&lt;script" in html
    tex = (tmp_path / "eco_costs.tex").read_text()
    assert r"\$y\$ 5\% \_z\_ \textasciicircum \{2\} \textbackslash w" in tex
