"""The report of the committed reference results in Chromium, at desktop and at phone width."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import SIZES, Visit, dead_links, faults
from test_reproduce import Tree

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

pytestmark = pytest.mark.timeout(900)
NUMBER = re.compile(r"^[-−+]?\d[\d,]*\.?\d*")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, chromium: "Browser") -> Path:
    """The report that a fresh clone writes: from reference results, without any run."""
    tree = Tree(tmp_path_factory.mktemp("report") / "project")
    tree.copy_project()
    return tree.report("laptop")


@pytest.fixture(scope="module", params=SIZES)
def visit(request: pytest.FixtureRequest, chromium: "Browser") -> Iterator[Visit]:
    opened = Visit(chromium, request.param)
    opened.page.set_default_timeout(60_000)
    yield opened
    opened.close()


@pytest.fixture
def index(visit: Visit, site: Path) -> Iterator[Visit]:
    """The first page, opened afresh; nothing that a test does there may be complained of."""
    visit.page.goto((site / "index.html").as_uri())
    yield visit
    assert visit.complaints == visit.strangers == []


def test_no_page_has_a_fault(visit: Visit, site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 20, "the first page, notebooks and data cards"
    assert [fault for path in pages for fault in faults(visit, path)] == []


def test_every_link_leads_somewhere(chromium: "Browser", site: Path) -> None:
    assert dead_links(Visit(chromium), site) == []


def test_a_click_on_a_heading_sorts_a_method_table(index: Visit) -> None:
    table = index.page.locator("#table-table1_harmful")
    heads = table.locator("thead th")
    column = heads.evaluate_all("all => all.findIndex(each => each.matches('.number'))")
    head = heads.nth(column)
    assert head.get_attribute("aria-sort") == "none"
    before = numbers(table, column)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(table, column) == sorted(before) != before
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers(table, column) == sorted(before, reverse=True)
    head.get_by_role("button").press("Space")
    assert numbers(table, column) == before
    sorts = heads.evaluate_all("all => all.map(each => each.ariaSort)")
    assert set(sorts) == {"none"}


def numbers(table: "Locator", column: int) -> list[float]:
    """What a column's cells begin with, from top to bottom; empty cells are left out."""
    texts = table.locator(f"tbody tr > :nth-child({column + 1})").all_text_contents()
    found = [NUMBER.match(text.strip()) for text in texts if text.strip()]
    assert len(found) > 2
    assert all(found), texts
    return [float(each[0].replace("−", "-").replace(",", "")) for each in found if each]


def test_claims_unfold_and_can_be_filtered(index: Visit) -> None:
    page, fold = index.page, index.page.locator("#every-claim")
    rows = page.locator("#claims tbody tr")
    assert not rows.first.is_visible()
    fold.locator("summary").click()
    assert rows.first.is_visible()
    form = page.locator("form.filters[data-for=claims]")
    form.get_by_label("Verdict").select_option("not reproduced")
    shown = page.locator("#claims tbody tr:visible")
    left = shown.evaluate_all("all => all.map(each => each.dataset.verdict)")
    assert left
    assert set(left) == {"not reproduced"}
    said = form.locator("output")
    assert said.inner_text() == f"{len(left)} of {rows.count()} shown"
    form.get_by_label("Words").fill("no claim holds these words")
    assert said.inner_text() == f"0 of {rows.count()} shown"
    fold.locator("summary").click()
    assert not form.is_visible()


def test_every_fold_opens_and_closes(index: Visit) -> None:
    folds = index.page.locator("details")
    for fold in folds.all():
        summary, inside = fold.locator("> summary"), fold.locator("> :not(summary)").first
        assert summary.is_visible()
        assert not inside.is_visible()
        summary.click()
        assert inside.is_visible()
        summary.click()
        assert not inside.is_visible()


def test_a_link_into_a_fold_opens_it(index: Visit, site: Path) -> None:
    name = index.page.locator("#claims tbody tr").last.get_attribute("id")
    index.page.goto(f"{(site / 'index.html').as_uri()}#{name}")
    index.page.reload()
    assert index.page.locator(f"#{name}").is_visible()


def test_without_scripts_all_is_still_to_be_read(chromium: "Browser", site: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    assert page.locator("#headline tbody tr").first.is_visible()
    assert not page.locator("form.filters").first.is_visible(), "what cannot work is not offered"
    page.locator("#every-claim > summary").click()
    assert page.locator("#claims tbody tr").first.is_visible()
    context.close()
