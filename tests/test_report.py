"""The report has every section, asks the network for nothing, and folds what is harmful."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from synthetic import synthetic_items

from unlearn_lib import tables
from unlearn_lib.figures import FIGURES
from unlearn_lib.report import pages, write_report
from unlearn_lib.report.notes import DIFFERENCES, measured
from unlearn_lib.report.site import HERE
from unlearn_lib.results import Items, catalogue
from unlearn_lib.task_settings import TASKS

LABELS = {"arora": "GA + mismatch + KL"}
SECTIONS = "verdicts figures tables notebooks data machine costs notes texts".split()
HARMFUL, BENIGN = "an invented harmful answer", "an invented benign answer"
CARRIERS = ("src", "href", "srcset", "data", "action", "poster", "background")


@pytest.fixture(scope="module")
def items() -> Items:
    return synthetic_items(["harm"])


@pytest.fixture(scope="module")
def site(items: Items, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    tables.write_all(items, folder / "figures", LABELS)
    for kind in ("png", "svg", "pdf"):
        (folder / "figures" / f"harmful_rate.{kind}").touch()
    (folder / "notebooks").mkdir()
    nbformat.write(executed(), folder / "notebooks" / "00_start_here.ipynb")
    profile: Any = SimpleNamespace(name="laptop", command="make it", labels=lambda: LABELS)
    profile.results = folder
    origin = {"git": {"commit": "0123456789abcdef", "dirty": True}, "python": "3.11"}
    origin["weights"] = {"m": "wheel m 1.0, 4-bit weights"}
    stored: Any = SimpleNamespace(items=items, origin=origin, where="this machine")
    runs = {
        "kind": "run",
        "name": "teach",
        "seconds": [61.0, 60.0],
        "peak_memory_bytes": [2e9, 1e9],
    }
    texts = [
        ("harm", "Harmful prompts", pd.DataFrame({"prompt": ["p"], "base": [HARMFUL]})),
        ("book", "Passages", pd.DataFrame({"prompt": ["<b>"], "target": [BENIGN + " x" * 99]})),
    ]
    (folder / "report" / "old").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "NOTEBOOKS", folder / "notebooks")
        stored.figures, stored.costs, stored.texts = folder / "figures", pd.DataFrame(runs), texts
        page = write_report(stored, profile)
    assert page == folder / "report" / "index.html" and not (folder / "report" / "old").exists()
    return page.parent


def executed() -> nbformat.NotebookNode:
    """A notebook with all that may not get onto a page."""
    output = (
        "<script>alert(1)</script><img src='https://a.b/c.png'><img src='data:image/png;base64,A'>"
        "<table border=1><tr><th></th><th>x</th></tr></table><p onclick='x()'>/home/me/a.txt</p>"
        "<a href='javascript:x()'>j</a>"
    )
    outputs = [
        nbformat.v4.new_output("display_data", data={"text/html": output}),
        nbformat.v4.new_output("stream", name="stderr", text="a progress bar"),
    ]
    text = nbformat.v4.new_markdown_cell("# The title\nText.\n\n$$a^2$$\n\n# Another")
    code = nbformat.v4.new_code_cell("x = 1\n" * 20, outputs=outputs)
    return nbformat.v4.new_notebook(cells=[text, code])


def parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


def test_the_first_page_has_every_section(site: Path) -> None:
    page = parsed(site / "index.html")
    assert [section["id"] for section in page.find_all("section")] == SECTIONS
    assert [str(a["href"]) for a in page.select(".contents a")] == [f"#{s}" for s in SECTIONS]
    assert page.find(id="every-claim").select("tbody tr")[58:]  # type: ignore[union-attr]
    for words in (
        "GA + mismatch + KL minus base model",
        "0123456789+",
        "0:02:01",
        "2.00",
        "m: 4-bit weights",
    ):
        assert words in page.get_text(), words
    assert page.select("#table-table1_harmful tbody tr") and page.select("#figure-harmful_rate img")


def test_no_page_asks_for_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 20
    for path in pages:
        page = parsed(path)
        policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})
        assert isinstance(policy, Tag) and "default-src 'none'" in str(policy["content"])
        for tag in page.find_all(True):
            for name in CARRIERS if tag.name != "a" else ():
                value = str(tag.get(name, ""))
                assert value.startswith("data:") or ":" not in value, (path.name, tag.name, value)
                assert not value or value.startswith("data:") or (site / value).is_file()
        for link in page.find_all("a", href=re.compile(r"^[^:]*$")):
            target = str(link["href"]).split("#")[0]
            assert not target or (site / target).exists(), (path.name, target)
    for path in (*site.glob("*.css"), *site.glob("*.js")):
        assert not re.search(r"url\(|@import|https?://|fetch\(", path.read_text())


def test_pages_can_be_read_without_seeing_them(site: Path) -> None:
    for path in site.glob("*.html"):
        page = parsed(path)
        assert len(page.find_all("h1")) == 1 and page.html is not None and page.html["lang"] == "en"
        levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
        steps = [after - before for before, after in zip(levels, levels[1:], strict=False)]
        assert max(steps, default=0) <= 1, (path.name, levels)
        assert all(image.get("alt") for image in page.find_all("img"))
        names = [str(tag["id"]) for tag in page.find_all(id=True)]
        assert len(names) == len(set(names))
        assert all(tag.get_text(strip=True) for tag in page.find_all(["th", "summary", "a"]))


def test_harmful_texts_stand_only_behind_the_fold(site: Path) -> None:
    page = parsed(site / "index.html")
    assert sum(HARMFUL in path.read_text() for path in site.glob("*.html")) == 1
    places = page.find_all("td", string=re.compile(HARMFUL))
    folds = [place.find_parent("details") for place in places]
    assert folds and all(fold and fold["class"] == ["harmful"] for fold in folds)
    assert all("open" not in fold.attrs for fold in folds if fold)
    assert BENIGN + " x" * 21 not in page.get_text() and BENIGN in page.get_text()


def test_an_executed_notebook_is_cleaned(site: Path) -> None:
    page = parsed(site / "00_start_here.html")
    body = page.select_one("div.page")
    assert body is not None and page.h1 is not None and page.h1.get_text() == "The title"
    assert not body.find_all(["script", "style", "iframe", "h1"]) and body.find("h2")
    text = str(body)
    for absent in ("onclick", "javascript:", "https://a.b", "/home/", "progress bar", 'border="'):
        assert absent not in text, absent
    assert "…/a.txt" in text
    alts = [str(image["alt"]) for image in body.find_all("img")]
    assert alts[0] == "Formula: a^2" and len(alts) == 2
    assert body.find("summary", string="Code, 20 lines")
    assert all(table.find_parent("div", class_="scroll") for table in body.find_all("table"))


def test_every_figure_and_table_has_a_caption() -> None:
    parts = yaml.safe_load((HERE / "captions.yaml").read_text())
    figures = {name: caption for part in parts for name, caption in part["figures"].items()}
    assert set(figures) == set(FIGURES)
    assert all({"title", "caption", "alt"} == set(caption) for caption in figures.values())
    assert {name for part in parts for name in part["tables"]} == set(tables.TABLES)


def test_differences_name_what_is_measured(items: Items) -> None:
    differences = yaml.safe_load(DIFFERENCES.read_text())
    assert len({difference["id"] for difference in differences}) == len(differences)
    for reference in (r for d in differences for r in d["matters"] if isinstance(r, dict)):
        metrics = (reference["metric"], reference.get("against", {}).get("metric", "mu"))
        assert set(metrics) <= set(catalogue()) and reference["task"] in TASKS
    paired = {"task": "harm", "metric": "harmful_rate", "method": "arora", "says": "fewer"}
    (line,) = measured(paired | {"against": {"method": "base"}}, items)
    assert line.startswith("fewer: Harmful answers") and "difference " in line
    (line,) = measured(paired | {"against": {"metric": "degenerate_share"}}, items)
    assert " against " in line and "difference" not in line
    assert measured(paired | {"method": "ga"}, items) == []
