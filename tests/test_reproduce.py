"""`make reproduce` on profile smoke, in a copy of the tree, with the real make: everything is
there, and what is there is not computed again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
from browser import SIZES, Visit, dead_links, faults
from filelock import FileLock

from unlearn_lib.figures import FIGURES
from unlearn_lib.profiles import ROOT
from unlearn_lib.tables import TABLES

if TYPE_CHECKING:
    from playwright.sync_api import Browser

COSTS = """seconds peak_memory_bytes milliseconds_per_prompt milliseconds_per_token
    time_ratio""".split()
pytestmark = pytest.mark.timeout(1800)


class Tree:
    """A copy of the project in which make can be run and killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results" / "smoke"
        self.first_metrics = folder.with_name(f"{folder.name}.csv")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "CONDA_"))}
        self.environment = {**kept, "PYTHONPATH": str(folder)}
        self._stages: dict[str, str] = {}

    def copy_project(self) -> None:
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in names.stdout.splitlines():
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.folder / name)
        shutil.rmtree(self.folder / "figures", ignore_errors=True)

    def start(self, target: str = "reproduce", profile: str = "smoke") -> subprocess.Popen[str]:
        command = ["make", "-o", "setup", target, f"PROFILE={profile}", f"VENV={sys.prefix}"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, target: str, profile: str = "smoke") -> str:
        process = self.start(target, profile)
        output, _ = process.communicate()
        assert process.returncode == 0, output[-4000:]
        return output

    def reproduce(self) -> str:
        return self.make("reproduce")

    def report(self, profile: str) -> Path:
        """Write a profile's report from what is stored, and return its folder."""
        self.make("report", profile)
        return self.folder / "results" / profile / "report"

    def reproduce_killed_at(self, moments: Sequence["Moment"]) -> list["Moment"]:
        """Kill make at the first of the moments that comes; return those that have come."""
        process = self.start()
        come: list[Moment] = []
        while process.poll() is None and not come:
            time.sleep(0.05)
            come = [moment for moment in moments if moment(self)]
        assert process.poll() is None, f"make ended, and none of these came: {moments}"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return come

    def runs(self) -> dict[str, int]:
        return {p.parent.name: p.stat().st_mtime_ns for p in self.results.glob("runs/*/run.json")}

    def stage(self, key: str) -> str:
        if key not in self._stages:
            record = json.loads((self.results / "runs" / key / "run.json").read_text())
            self._stages[key] = record["stage"]
        return self._stages[key]

    def metrics(self) -> pd.DataFrame:
        return without_costs(self.results / "metrics.csv")


Moment = Callable[[Tree], bool]


def without_costs(path: Path) -> pd.DataFrame:
    """A table of metrics without those that hang on the machine and its load."""
    table = pd.read_csv(path)
    return table[~table["metric"].isin(COSTS)].reset_index(drop=True)


def undisturbed_tree(factory: pytest.TempPathFactory) -> Tree:
    """A tree in which make has run to its end, one for all workers: the first to ask makes it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "undisturbed.lock"):
        tree = Tree(shared / "undisturbed")
        if not tree.first_metrics.is_file():
            tree.copy_project()
            tree.reproduce()
            shutil.copyfile(tree.results / "metrics.csv", tree.first_metrics)
    return tree


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return undisturbed_tree(tmp_path_factory)


def test_everything_is_there(undisturbed: Tree) -> None:
    notebooks = sorted(path.name for path in (undisturbed.results / "notebooks").glob("*.ipynb"))
    assert notebooks == [
        "00_start_here.ipynb",
        "01_harmful_unlearning__tiny-opt__s1.ipynb",
        "02_lotr_implant_then_forget__tiny-opt__s1.ipynb",
        "03_eco_comparison__tiny-opt__s1.ipynb",
        "04_closer_look__tiny-opt__s1.ipynb",
        "05_figures_and_tables.ipynb",
    ]
    figures = undisturbed.folder / "figures" / "smoke"
    drawn, tabled = (list(chain(*each.values())) for each in (FIGURES, TABLES))
    for name in drawn:
        assert (figures / f"{name}.json").is_file()
        for ending in ("png", "svg", "pdf"):
            assert (figures / f"{name}.{ending}").stat().st_size > 1000
    for name in tabled:
        assert (figures / f"{name}.table.json").is_file()
        for ending in ("csv", "md", "tex"):
            assert (figures / f"{name}.{ending}").stat().st_size > 100
    stages = undisturbed.metrics().groupby("experiment")["stage"].agg(set).to_dict()
    assert stages == {
        "harmful": {"base", "unlearned"},
        "book": {"base", "implanted", "unlearned"},
        "tofu": {"base", "implanted", "reference", "unlearned"},
        "eco": {"base", "implanted", "reference", "unlearned", "guarded"},
    }


def test_a_second_call_computes_nothing(undisturbed: Tree) -> None:
    before = undisturbed.runs()
    undisturbed.reproduce()
    assert undisturbed.runs() == before


@pytest.fixture(scope="module")
def report(undisturbed: Tree, chromium: "Browser") -> Path:
    return undisturbed.report("smoke")


@pytest.mark.parametrize("size", SIZES)
def test_its_report_has_no_fault_in_a_browser(report: Path, chromium: "Browser", size: str) -> None:
    visit = Visit(chromium, size)
    pages = sorted(report.glob("*.html"))
    names = [path.stem for path in (report.parent / "notebooks").glob("*.ipynb")]
    assert set(names) <= {path.stem for path in pages}, "each executed notebook is a page"
    assert [fault for path in pages for fault in faults(visit, path)] == []
    assert dead_links(visit, report) == []
    visit.close()


def test_its_report_folds_harmful_texts_away(report: Path, chromium: "Browser") -> None:
    visit = Visit(chromium)
    page = visit.page
    page.goto((report / "index.html").as_uri())
    fold = page.locator("#texts details.harmful")
    texts = fold.locator("table.texts-table tbody td")
    warning = fold.locator("summary")
    assert "Harmful" in warning.inner_text()
    assert not texts.first.is_visible()
    warning.click()
    assert texts.first.is_visible()
    before = texts.all_inner_texts()
    fold.get_by_label("after").select_option(index=1)
    assert texts.all_inner_texts()[::3] == before[::3], "the same prompts"
    assert texts.all_inner_texts() != before, "answered by another model"
    warning.click()
    assert not texts.first.is_visible()
    visit.close()


def test_a_changed_setting_reruns_what_depends_on_it(undisturbed: Tree) -> None:
    before = undisturbed.runs()
    profile = undisturbed.folder / "notebooks" / "profiles" / "smoke.yaml"
    text = profile.read_text()
    assert text.count("label: GA,") == 2, "a method of each experiment"
    assert text.count("mismatch_answers: 3") == 1, "of another method"
    text = text.replace("label: GA,", "label: ascent,") + "only: [harmful, book]\n"
    profile.write_text(text.replace("mismatch_answers: 3", "mismatch_answers: 2"))
    undisturbed.reproduce()
    after = undisturbed.runs()
    assert before.items() <= after.items()
    stages = sorted(undisturbed.stage(key) for key in after.keys() - before.keys())
    assert stages == ["answers", "measure", "unlearn"], "of one method; a label changes no result"
    for name in ("table1_harmful", "table2_book"):
        table = undisturbed.folder / "figures" / "smoke" / f"{name}.csv"
        assert "ascent" in table.read_text(), "but it is shown"
