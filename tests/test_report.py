"""The report: links that lead somewhere, nothing from elsewhere, text as text, whole or not at all."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from bs4 import BeautifulSoup, Tag

from unlearn_lib import claims, costs, figures, profiles, results, tables
from unlearn_lib.__main__ import main
from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import Profile, load_profile
from unlearn_lib.report import site, write_report
from unlearn_lib.report.figures import caption_of
from unlearn_lib.report.grid import grid_of, memory, seconds
from unlearn_lib.report.verdicts import SYMBOLS

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "figures" / "laptop"
HOSTILE = '"><script>alert("x")</script><img src=x onerror=alert(1)>'
KEY = "ab" * 32
ROW = "harmful,held_out,tiny,arora,unlearned,forget,1,harmful_rate,0.36,0.25,0.47,64," + KEY


def moved(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Let results be read and written below another folder; nothing is drawn."""
    for module in (profiles, results, costs, site):
        patch.setattr(module, "ROOT", root)

    def drawn(profile: Profile, processes: int) -> list[Path]:
        frame, origin, _ = results.stored(profile)
        verdicts = claims.write(frame, root / "drawn", profile.name, origin, results.CLAIMS)
        return [*sorted(FIGURES.iterdir()), *verdicts]

    patch.setattr(results, "draw", drawn)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The report of a fresh clone: of reference results alone."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "results" / "reference", root / "results" / "reference")
    with pytest.MonkeyPatch.context() as patch:
        moved(patch, root)
        yield write_report(load_profile("laptop")).parent


@pytest.fixture(scope="module")
def read(reference: Path) -> dict[str, BeautifulSoup]:
    """The pages of that report, parsed once."""
    return pages(reference)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of this machine, small, with hostile text wherever text comes from elsewhere."""
    moved(monkeypatch, tmp_path)
    folder = tmp_path / "results" / "laptop"
    run = folder / "runs" / KEY
    run.mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "metrics.csv").write_text(",".join(tables.COLUMNS) + f"\n{ROW}\n")
    git = {"commit": "abc1234def5678", "dirty": True}
    (folder / "metrics.json").write_text(json.dumps({"git": git, "runs": [KEY]}))
    (run / "run.json").write_text(json.dumps({"key": KEY, "stage": HOSTILE, "parents": []}))
    origin = {"git": git, "seed": 1, "wall_seconds": 75.4, "peak_memory_bytes": 2_500_000_000}
    data = {"data": {HOSTILE.replace(" ", ""): "cd" * 32}}
    (run / "provenance.json").write_text(json.dumps(origin | data))
    job = "01_harmful_unlearning__tiny__s1"
    (folder / "logs" / f"{job}.tsv").write_text("s\th:m:s\tmax_rss\n100.5\t0:01:40\t1000.0\n")
    table = pd.DataFrame({"Source": ["ours"], "Method": [HOSTILE], "Rate": ["36.0 [25.0, 47.0]"]})
    written = tables.write_table(table, tmp_path / "drawn", "table1_harmful", {})
    verdicts = [
        claims.Verdict(f"c{i}", HOSTILE, "Table 1", HOSTILE, "8 %", HOSTILE, word, HOSTILE,
                       "harmful", i == 0)
        for i, word in enumerate(claims.VERDICTS)
    ]  # fmt: skip
    monkeypatch.setattr(claims, "judge_all", lambda *_: verdicts)
    kinds = ("csv", "md", "tex", "table.json")
    for name in ("verdicts", "verdicts_headline"):
        for kind in kinds:
            written.append(tmp_path / "drawn" / f"{name}.{kind}")
            written[-1].write_text("\n")
    monkeypatch.setattr(results, "draw", lambda profile, processes: written)
    monkeypatch.setattr(site.notebooks, "pages", lambda profile: [])
    return tmp_path


def pages(folder: Path) -> dict[str, BeautifulSoup]:
    return {
        path.name: BeautifulSoup(path.read_text(encoding="utf-8"), "lxml")
        for path in sorted(folder.glob("*.html"))
    }


def one(page: Tag, selector: str) -> Tag:
    """The one element that a selector finds."""
    found = page.select(selector)
    assert len(found) == 1, f"{selector}: {len(found)}"
    return found[0]


def check_links(folder: Path, found: dict[str, BeautifulSoup]) -> int:
    """Follow every link of every page; return how many there are within the site."""
    ids = {name: {tag["id"] for tag in page.select("[id]")} for name, page in found.items()}
    followed = 0
    for name, page in found.items():
        twice = [
            one for one, n in Counter(tag["id"] for tag in page.select("[id]")).items() if n > 1
        ]
        assert not twice, f"{name}: {twice}"
        for tag in page.select("a[href]"):
            target = urlsplit(str(tag["href"]))
            if target.scheme:
                assert target.scheme in ("https", "http", "mailto"), f"{name}: {tag}"
                continue
            path = unquote(target.path) or name
            assert (folder / path).is_file(), f"{name}: {tag}"
            if target.fragment:
                assert unquote(target.fragment) in ids[path], f"{name}: {tag}"
            followed += 1
    return followed


def check_pictures_and_scripts(folder: Path, found: dict[str, BeautifulSoup]) -> None:
    for name, page in found.items():
        for tag in page.select("img, script[src], link[href], iframe, object, embed, source"):
            address = str(tag.get("src") or tag.get("href"))
            if address.startswith("data:"):
                continue
            assert not urlsplit(address).scheme and not address.startswith("/"), f"{name}: {tag}"
            assert (folder / address).is_file(), f"{name}: {tag}"
        for image in page.select("img"):
            assert str(image.get("alt", "")).strip(), f"{name}: {image}"
        for script in page.select("script:not([src])"):
            assert script.get("type") == "application/json", name
        assert not [
            tag for tag in page.find_all(True) if any(a.startswith("on") for a in tag.attrs)
        ]
        assert not page.select("[style*=url]"), name
    for sheet in folder.glob("*.css"):
        assert not re.search(r"url\(|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_link_of_every_page_leads_somewhere(
    reference: Path, read: dict[str, BeautifulSoup]
) -> None:
    assert check_links(reference, read) > 100


def test_nothing_is_loaded_from_elsewhere_and_every_picture_is_described(
    reference: Path, read: dict[str, BeautifulSoup]
) -> None:
    check_pictures_and_scripts(reference, read)


def test_the_first_page_holds_its_sections_in_order_verdicts_first(
    read: dict[str, BeautifulSoup],
) -> None:
    index = read["index.html"]
    assert [section["id"] for section in index.select("main > section")] == list(site.SECTIONS)
    links = [link["href"] for link in index.select("nav.contents a")]
    assert links == [f"#{name}" for name in site.SECTIONS]
    assert (
        "commit" in one(index, "header").get_text()
        and "reference results" in one(index, "header").get_text()
    )


def test_every_verdict_is_a_word_with_a_symbol_and_can_be_filtered(
    read: dict[str, BeautifulSoup],
) -> None:
    index = read["index.html"]
    assert set(SYMBOLS) == set(claims.VERDICTS)
    said = one(index, "ul.counts").get_text(" ", strip=True)
    assert all(f"{SYMBOLS[word]} {word}" in said for word in claims.VERDICTS)
    rows = index.select("#claims tbody tr")
    frame, *_ = results.stored(load_profile("laptop"))
    judged = claims.judge_all(frame, "laptop", results.CLAIMS)
    assert Counter(row["data-verdict"] for row in rows) == Counter(v.verdict for v in judged)
    for row in rows:
        word = str(row["data-verdict"])
        assert one(row, ".badge").get_text() == f"{SYMBOLS[word]} {word}"
    papers = [option.get_text() for option in index.select("select[name=paper] option")]
    assert set(papers) == {"all", *(row["data-paper"] for row in rows)}
    heads = index.select("#headline tbody tr")
    assert len(heads) == sum(verdict.headline for verdict in judged) > 0


def test_every_figure_and_table_is_there_with_its_files_and_its_provenance(
    reference: Path, read: dict[str, BeautifulSoup]
) -> None:
    index = read["index.html"]
    for name in (name for group in figures.FIGURES.values() for name in group):
        figure = one(index, f"#figure-{name}")
        links = {link["href"] for link in figure.select("a")}
        assert links == {f"figures/{name}.{end}" for end in ("png", "svg", "pdf", "json")}
        assert len(one(figure, "figcaption").get_text()) > 100
    for name in (name for group in tables.TABLES.values() for name in group):
        rows = pd.read_csv(FIGURES / f"{name}.csv")
        assert len(index.select(f"#table-{name} tbody tr")) == len(rows)
        assert index.select(f'a[href="figures/{name}.table.json"]')
    assert json.loads((reference / "metrics.json").read_text())["runs"]


def test_a_fresh_clone_is_told_what_is_missing_and_which_command_makes_it(
    read: dict[str, BeautifulSoup],
) -> None:
    for name in ("costs", "texts"):
        section = one(read["index.html"], f"#{name}").get_text()
        stored = (ROOT / "results" / "reference" / "laptop" / "costs.csv").is_file()
        assert (name == "costs" and stored) or "make reproduce PROFILE=laptop" in section
    assert "make reproduce" in one(read["01_harmful_unlearning.html"], "header").get_text()


def test_text_from_elsewhere_stays_text(own: Path) -> None:
    folder = write_report(load_profile("laptop")).parent
    found = pages(folder)
    check_links(folder, found)
    check_pictures_and_scripts(folder, found)
    assert HOSTILE in one(found["index.html"], "#table-table1_harmful").get_text()
    assert HOSTILE in one(found["index.html"], "#claims").get_text()
    assert HOSTILE in one(found["index.html"], "#stage-times").get_text()
    assert HOSTILE in one(found["runs.html"], "#runs").get_text()


def test_a_run_is_shown_with_key_time_memory_commit_and_data(own: Path) -> None:
    found = pages(write_report(load_profile("laptop")).parent)
    row = one(found["runs.html"], f"#run-{KEY[:10]}")
    assert one(row, f'[title="{KEY}"]')
    text = row.get_text(" ", strip=True)
    assert "1 min 15 s" in text and "2.50 GB" in text and "abc1234def" in text and "cdcd" in text
    assert "Fewer harmful answers: arora (1 rows)" in text
    times = one(found["index.html"], "#notebook-times").get_text(" ", strip=True)
    assert "01_harmful_unlearning__tiny__s1" in times and "1 min 40 s" in times
    assert "this machine" in one(found["index.html"], "header").get_text()


def test_the_command_says_where_the_report_is(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--profile", "laptop"]) == 0
    printed = Path(capsys.readouterr().out.strip())
    assert printed == own / "results" / "laptop" / "report" / "index.html" and printed.is_file()


def test_the_same_results_give_the_same_bytes(own: Path) -> None:
    copies = []
    for _ in range(2):
        folder = write_report(load_profile("laptop")).parent
        copies.append({path.name: path.read_bytes() for path in folder.glob("*.*")})
    assert copies[0] == copies[1]


def test_the_report_is_written_whole_or_stays_as_it_was(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = write_report(load_profile("laptop"))
    before = index.read_bytes()
    (index.parent / "of_before.html").write_text("")

    def broken(*_: object) -> str:
        raise CompanionError("No notes.")

    with monkeypatch.context() as patch:
        patch.setattr(site.notes, "section", broken)
        with pytest.raises(CompanionError, match="No notes"):
            write_report(load_profile("laptop"))
    assert index.read_bytes() == before
    write_report(load_profile("laptop"))
    assert not (index.parent / "of_before.html").exists()
    assert not [path for path in index.parents[1].glob(".report*") if path.is_dir()]


def test_costs_are_of_the_runs_that_count(own: Path) -> None:
    profile = load_profile("laptop")
    other = profile.results / "runs" / "old"
    shutil.copytree(profile.results / "runs" / KEY, other)
    table = costs.cost_table(profile.results)
    assert list(table.columns) == costs.COLUMNS
    assert table["kind"].tolist() == ["notebook", "run"]
    assert table["seconds"].tolist() == [100.5, 75.4]
    assert table["peak_memory_bytes"].tolist() == [1000 * 2**20, 2_500_000_000]
    path = costs.write_costs(profile)
    twin = own / "results" / "reference" / "laptop" / "costs.csv"
    twin.parent.mkdir(parents=True)
    shutil.copyfile(path, twin)
    stored = costs.stored_costs(profile, "reference results")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)
    assert costs.by_stage(stored).to_dict("records") == [
        {"name": HOSTILE, "runs": 1, "seconds": 75.4, "peak": 2_500_000_000}
    ]


def test_a_torn_run_or_time_is_named(own: Path) -> None:
    folder = load_profile("laptop").results
    (folder / "runs" / KEY / "provenance.json").write_text("{")
    with pytest.raises(CompanionError, match=f"{KEY} is not whole .*; delete that folder"):
        costs.cost_table(folder)
    next(folder.glob("logs/*.tsv")).write_text("nothing\n")
    with pytest.raises(CompanionError, match="tsv is no time of a notebook"):
        costs.cost_table(folder)


def test_every_figure_and_table_has_its_caption() -> None:
    for group in figures.FIGURES.values():
        for name in group:
            said = caption_of("figures", name)
            assert said["title"] and said["caption"].endswith(".") and said["alt"].endswith(".")
    for each in tables.TABLES.values():
        assert all(caption_of("tables", name)["title"] for name in each)
    assert all(caption_of("experiments", name)["paper"] for name in figures.FIGURES)
    with pytest.raises(CompanionError, match="captions.yaml says nothing of other"):
        caption_of("figures", "other")


def test_cells_are_set_as_numbers_with_intervals_where_a_column_holds_nothing_else() -> None:
    frame = pd.DataFrame({"Model": ["m", "n"], "Rate": ["36.0 [25.0, 47.0]", ""], "Method": "ab"})
    grid = grid_of(frame, "one", "One")
    assert grid.columns == ["Method", "Rate", "Model"]
    assert grid.numeric == [False, True, False]
    shown = site.TEMPLATES.from_string("{{ text | lines }}").render(text="36.0 [25.0, 47.0]; <b>")
    assert shown == '36.0 <span class="interval">[25.0, 47.0]</span>;<br>&lt;b&gt;'
    assert [seconds(value).text for value in (2.25, 75, 3675, float("nan"))] == [
        "2.2 s", "1 min 15 s", "1 h 1 min 15 s", "",
    ]  # fmt: skip
    assert memory(2_345_000_000).text == "2.35 GB"


def test_writing_the_report_needs_no_torch() -> None:
    heavy = "torch transformers datasets".split()
    code = f"import sys, unlearn_lib.report.site; sys.exit(bool(set({heavy}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
