"""A newcomer's way through a real JupyterLab: `make lab`, open a notebook, run all its cells."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import Visit
from test_reproduce import Tree

from unlearn_lib.profiles import load_profile

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.timeout(2400)
PATIENCE = 600_000
"""Milliseconds that a wait may take on a busy machine; every wait ends as soon as it can."""
NOTEBOOK = "01_harmful_unlearning.ipynb"
METHODS = len(load_profile("smoke").harmful.methods)


class Lab:
    """`make lab` in a copy of the project, with Jupyter's own folders beside the copy."""

    def __init__(self, folder: Path) -> None:
        self.tree = Tree(folder / "project")
        self.runtime = folder / "jupyter" / "runtime"
        self.log = folder / "lab.log"
        self.screenshot = folder / "figure.png"
        self.proxy = socket.create_server(("127.0.0.1", 0))
        """Never answers: whoever connects wanted the network."""
        proxy = f"http://127.0.0.1:{self.proxy.getsockname()[1]}"
        self.environment = self.tree.environment | {
            "JUPYTER_CONFIG_DIR": str(folder / "jupyter" / "config"),
            "JUPYTER_DATA_DIR": str(folder / "jupyter" / "data"),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "IPYTHONDIR": str(folder / "ipython"),
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy),
            **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
        }

    def start(self) -> None:
        """Start it on a free port and wait until it serves."""
        self.tree.copy_project()
        flags = "LAB_FLAGS=--no-browser --allow-root --ServerApp.port=0"
        command = ["make", "-o", "setup", "lab", f"VENV={sys.prefix}", flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.tree.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.door = self._written("jpserver-file-to-run-*-open.html")
        self.server: dict[str, Any] = json.loads(self._written("jpserver-*.json").read_text())
        self.origin = self.server["url"].rstrip("/")

    def _written(self, pattern: str) -> Path:
        deadline = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < deadline and self.process.poll() is None:
            for path in self.runtime.glob(pattern):
                if path.stat().st_size:
                    return path
            time.sleep(0.1)
        raise AssertionError(f"JupyterLab did not start:\n{self.log.read_text()[-3000:]}")

    def asked_the_network(self) -> bool:
        """Whether the server or a kernel tried to leave this machine."""
        return bool(select.select([self.proxy], [], [], 0)[0])

    def stop(self) -> None:
        """End the server, which ends its kernels; kernels end by themselves where it is killed."""
        if self.process.poll() is None:
            os.kill(self.server["pid"], signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.proxy.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium: "Browser") -> Iterator[Lab]:
    started = Lab(tmp_path_factory.mktemp("lab"))
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def visit(lab: Lab, chromium: "Browser") -> Iterator[Visit]:
    """The window that `make lab` opens."""
    opened = Visit(chromium, "desktop", lab.origin)
    opened.page.set_default_timeout(PATIENCE)
    opened.page.goto(lab.door.as_uri())
    yield opened
    opened.close()


def choose(page: "Page", menu: str, entry: str) -> None:
    """Choose an entry of the menu bar."""
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=entry, exact=True).click()


def in_front(page: "Page", name: str) -> "Locator":
    """The notebook of that name, in front and with an idle kernel."""
    page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.lm-mod-current", has_text=name).wait_for()
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    return page.locator(".jp-NotebookPanel:visible")


def prompts(panel: "Locator") -> "Locator":
    """The `[1]:` beside each code cell."""
    return panel.locator(".jp-CodeCell .jp-InputPrompt")


def run_all(page: "Page", panel: "Locator") -> None:
    """Run all cells, and wait until each has its number and none an error."""
    from playwright.sync_api import expect

    choose(page, "Run", "Run All Cells")
    failed = panel.locator("[data-mime-type='application/vnd.jupyter.error']")
    last = prompts(panel).last.filter(has_text=re.compile(r"\d"))
    last.or_(failed).first.wait_for()
    assert failed.all_inner_texts() == []
    numbers = [f"[{n}]:" for n in range(1, prompts(panel).count() + 1)]
    expect(prompts(panel)).to_have_text(numbers, timeout=PATIENCE)


def widths_of_pictures(panel: "Locator", source: str) -> list[int]:
    """The natural width in pixels of each picture below the cell with that source."""
    cell = panel.locator(".jp-CodeCell", has_text=source)
    pictures = cell.locator(".jp-OutputArea-output img")
    pictures.first.scroll_into_view_if_needed()
    return pictures.evaluate_all("found => found.map(image => image.naturalWidth)")


def test_make_lab_opens_on_start_here(lab: Lab, visit: Visit) -> None:
    panel = in_front(visit.page, "00_start_here.ipynb")
    assert visit.page.url == f"{lab.origin}/lab/tree/00_start_here.ipynb"
    panel.get_by_role("heading", name="Start here").wait_for()
    visit.page.get_by_role("region", name="File Browser Section").get_by_text(NOTEBOOK).wait_for()


@pytest.fixture(scope="module")
def panel(visit: Visit) -> "Locator":
    """Notebook 01, opened from the file browser, all cells run."""
    visit.page.locator(".jp-DirListing-item", has_text=NOTEBOOK).dblclick()
    opened = in_front(visit.page, NOTEBOOK)
    run_all(visit.page, opened)
    return opened


def test_notebook_01_runs_to_its_figure(lab: Lab, visit: Visit, panel: "Locator") -> None:
    curves = widths_of_pictures(panel, "LiveCurve(")
    assert len(curves) == METHODS and min(curves) > 100, "one loss curve a method"
    (figure,) = widths_of_pictures(panel, "harmful_show.figure(")
    assert figure > 300
    visit.page.screenshot(path=lab.screenshot)
    folded = panel.locator("details")
    assert folded.locator("summary").is_visible() and not folded.locator("table").is_visible()


def test_restarted_notebook_runs_again_from_what_is_stored(
    lab: Lab, visit: Visit, panel: "Locator"
) -> None:
    from playwright.sync_api import expect

    page = visit.page
    stored = lab.tree.runs()
    assert stored, "the first time has left its runs"
    choose(page, "Kernel", "Restart Kernel and Clear Outputs of All Cells…")
    page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
    blank = ["[ ]:"] * prompts(panel).count()
    expect(prompts(panel)).to_have_text(blank, timeout=PATIENCE)
    expect(panel.locator("img")).to_have_count(0, timeout=PATIENCE)
    run_all(page, panel)
    assert widths_of_pictures(panel, "harmful_show.figure(")[0] > 300
    assert lab.tree.runs() == stored


def test_nothing_left_this_machine(lab: Lab, visit: Visit, panel: "Locator") -> None:
    assert visit.page.get_by_text("Jupyter news").count() == 0, "nor does it offer to"
    assert visit.strangers == []
    assert visit.complaints == []
    assert not lab.asked_the_network()
