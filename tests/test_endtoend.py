"""A newcomer's way: clone, `make smoke`, JupyterLab, the report in a browser; and a machine that dies.

The tree that is run is a clone of the work tree, changes that are not committed included. Chromium
is the system's, or the one that UNLEARN_CHROMIUM names; without one its tests are skipped.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from benchmarks.tree import Tree
from unlearn_lib.profile import load_profile
from unlearn_lib.stored import notebook_jobs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.endtoend, pytest.mark.timeout(1500)]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PATIENCE = 600_000
"""Milliseconds that a wait in the browser may take; every wait ends as soon as it can."""
NOTEBOOK = "01_harmful_unlearning.ipynb"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A clean clone in which `make smoke` has run."""
    clone = Tree(tmp_path_factory.mktemp("clone"))
    clone.make("smoke")
    return clone


def test_a_clean_clone_runs_everything_and_stays_clean(tree: Tree) -> None:
    assert tree.git("status", "--porcelain") == ""
    jobs = {f"{job.name}.ipynb" for job in notebook_jobs(load_profile("smoke"))}
    assert {path.name for path in (tree.results() / "notebooks").iterdir()} == jobs
    assert set(tree.items()["task"]) == set(load_profile("smoke").running())
    drawn = {path.suffix for path in (tree.results() / "figures").iterdir()}
    assert {".png", ".svg", ".pdf", ".csv", ".tex", ".md"} <= drawn
    texts = [*tree.results().glob("notebooks/*.ipynb"), *tree.results().glob("logs/*.log")]
    for path in texts:
        assert not re.search(
            rf"{tree.folder}|{Path.home()}/|^  (Host|User):", path.read_text(), re.M
        )


def test_a_second_run_computes_nothing(tree: Tree) -> None:
    before, items = tree.runs(), tree.results() / "items.parquet"
    written = items.stat().st_mtime_ns
    tree.make("smoke")
    assert tree.runs() == before and items.stat().st_mtime_ns == written


KILLED = "name: killed\nextends: smoke\nonly: [book]\n"
MOMENTS = [  # while the target is taught, after a method, after a notebook
    ("partial/*/checkpoints/checkpoint-*/trainer_state.json", "pretrain"),
    ("runs", "unlearn"),
    ("notebooks/02_*__s1.ipynb", ""),
]


def test_killed_at_three_moments_and_continued_gives_the_same_items(
    tree: Tree, tmp_path: Path
) -> None:
    killed = Tree(tmp_path / "killed")
    (killed.folder / "notebooks" / "profiles" / "killed.yaml").write_text(KILLED)
    results, command = killed.results("killed"), ("reproduce", "PROFILE=killed", "JOBS=1")
    for moment in MOMENTS:
        before, process = killed.runs("killed"), killed.start(*command)
        while process.poll() is None and not killed.has("killed", *moment):
            time.sleep(0.05)
        assert process.poll() is None, f"make ended before {moment}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert before.items() <= killed.runs("killed").items(), "what is finished is kept"
    killed.make(*command)
    whole = tree.items().query("task == 'book'").reset_index(drop=True)
    again = killed.items("killed").reset_index(drop=True)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert not [path for path in results.glob("partial/*") if path.is_dir()]


# --- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """The system's Chromium."""
    api = pytest.importorskip("playwright.sync_api")
    names = filter(None, (os.environ.get("UNLEARN_CHROMIUM"), "chromium", "google-chrome"))
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("No Chromium here.")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """One window, and what a page complains of or asks of anyone but `origin` and the disk."""

    def __init__(self, browser: "Browser", size: str = "desktop", origin: str = "file:///") -> None:
        width, height = SIZES[size]
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.complaints: list[str] = []
        own = ("file:", "data:", "blob:", "about:", origin, origin.replace("http", "ws", 1))

        def note(address: str) -> None:
            if not address.startswith(own):
                self.complaints.append(f"asked for {address}")

        def console(line: Any) -> None:
            if line.type == "error":
                self.complaints.append(f"{line.text} {line.location['url']}")

        self.page.on("request", lambda request: note(request.url))
        self.page.on("websocket", lambda connection: note(connection.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", console)


RULES = """button-name color-contrast empty-table-header heading-order html-has-lang image-alt label
    link-name nested-interactive scrollable-region-focusable select-name summary-name""".split()
PREPARE = """async () => {
  document.querySelectorAll('details').forEach(each => { each.open = true; });
  const pictures = [...document.images];
  pictures.forEach(each => { each.loading = 'eager'; });
  await Promise.all(pictures.map(each => each.decode().catch(() => null)));
  const broken = pictures.filter(each => !each.naturalWidth).map(each => each.src.slice(0, 90));
  const wide = document.documentElement.scrollWidth;
  return wide > innerWidth ? [...broken, `${wide} pixels of ${innerWidth}`] : broken;
}"""
LINKS = """all => all.filter(a => a.href.startsWith('file:') && a.hash && a.pathname ===
    location.pathname && !document.getElementById(decodeURIComponent(a.hash.slice(1))))
    .map(a => a.href)"""


@pytest.fixture(scope="module")
def report(tree: Tree) -> Path:
    """The folder of the report."""
    tree.make("report", "PROFILE=smoke")
    return tree.results() / "report"


@pytest.mark.parametrize("size", SIZES)
def test_the_report_has_no_fault_in_a_browser(
    size: str, tree: Tree, report: Path, chromium: "Browser"
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit = Visit(chromium, size)
    options = {"runOnly": {"type": "rule", "values": RULES}, "resultTypes": ["violations"]}
    pages = sorted(report.glob("*.html"))
    assert {path.stem for path in (tree.results() / "notebooks").iterdir()} <= {
        p.stem for p in pages
    }
    for path in pages:
        visit.page.goto(path.as_uri())
        visit.complaints += visit.page.evaluate(PREPARE)
        visit.complaints += visit.page.eval_on_selector_all("a[href]", LINKS)
        for violation in Axe().run(visit.page, options=options).response["violations"]:
            visit.complaints += [
                f"{violation['id']}: {n['html'][:150]}" for n in violation["nodes"]
            ]
        assert visit.complaints == [], path.name


class Lab:
    """`make lab` in a tree, with Jupyter's own folders beside it and a proxy that never answers."""

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.proxy = socket.create_server(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{self.proxy.getsockname()[1]}"
        environment = dict.fromkeys(
            ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy
        )
        environment |= dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost")
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            environment[name] = str(folder / name)
        flags = "LAB_FLAGS=--no-browser --allow-root --ServerApp.port=0"
        with (folder / "lab.log").open("w") as log:
            self.process = tree.start("lab", flags, log=log, **environment)
        runtime = folder / "JUPYTER_RUNTIME_DIR"
        self.door = self._written(runtime, "jpserver-file-to-run-*-open.html")
        self.server = json.loads(self._written(runtime, "jpserver-*.json").read_text())
        self.origin = self.server["url"].rstrip("/")

    def _written(self, folder: Path, pattern: str) -> Path:
        while self.process.poll() is None:
            for path in folder.glob(pattern):
                if path.stat().st_size:
                    return path
            time.sleep(0.1)
        raise AssertionError("JupyterLab did not start")


@pytest.fixture
def lab(tree: Tree, tmp_path: Path, chromium: "Browser") -> Iterator[Lab]:
    """JupyterLab, ended afterwards with its kernels."""
    running = Lab(tree, tmp_path)
    yield running
    os.kill(running.server["pid"], signal.SIGTERM)
    running.process.wait(60)
    running.proxy.close()


def run_all(page: "Page", panel: "Locator") -> None:
    """Run all cells and wait until each has its number and none an error."""
    from playwright.sync_api import expect

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = panel.locator(".jp-CodeCell .jp-InputPrompt")
    failed = panel.locator("[data-mime-type='application/vnd.jupyter.error']")
    prompts.last.filter(has_text=re.compile(r"\d")).or_(failed).first.wait_for()
    assert failed.all_inner_texts() == []
    numbers = [f"[{n}]:" for n in range(1, prompts.count() + 1)]
    expect(prompts).to_have_text(numbers, timeout=PATIENCE)


def test_a_notebook_runs_in_jupyterlab_from_what_is_stored(
    lab: Lab, tree: Tree, chromium: "Browser"
) -> None:
    before, visit = tree.runs(), Visit(chromium, origin=lab.origin)
    page = visit.page
    page.set_default_timeout(PATIENCE)
    page.goto(lab.door.as_uri())
    page.get_by_role("heading", name="Start here").wait_for()
    assert page.url == f"{lab.origin}/lab/tree/00_start_here.ipynb"
    page.locator(".jp-DirListing-item", has_text=NOTEBOOK).dblclick()
    current = ".lm-DockPanel-tabBar .lm-TabBar-tab.lm-mod-current"
    page.locator(current, has_text=NOTEBOOK).wait_for()
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    panel = page.locator(".jp-NotebookPanel:visible")
    run_all(page, panel)
    cell = panel.locator(".jp-CodeCell", has_text='figures.draw("harmful_rate"')
    picture = cell.locator(".jp-OutputArea-output img").first
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("image => image.naturalWidth") > 300
    folded = panel.locator("details").first
    assert folded.locator("summary").is_visible() and not folded.locator("td").first.is_visible()
    assert tree.runs() == before
    assert visit.complaints == []
    assert not select.select([lab.proxy], [], [], 0)[0], "nobody asked for the network"
