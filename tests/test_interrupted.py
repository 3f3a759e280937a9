"""`make reproduce` on profile smoke: twice the same, killed and resumed the same, and no
training the second time. Each test works in a copy of the tree, with the real make."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from unlearn_lib import profiles
from unlearn_lib.profiles import ROOT, load_profile

COSTS = ("seconds", "peak_memory_bytes")
pytestmark = pytest.mark.timeout(900)


class Tree:
    """A copy of the project in which make can be run and killed."""

    first_metrics: pd.DataFrame

    def __init__(self, folder: Path, only: str | None = None) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in names.stdout.splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        shutil.rmtree(folder / "figures", ignore_errors=True)
        if only:
            with (folder / "notebooks" / "profiles" / "smoke.yaml").open("a") as profile:
                profile.write(f"only: [{only}]\n")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "CONDA_"))}
        self.environment = {**kept, "PYTHONPATH": str(folder)}

    @property
    def results(self) -> Path:
        return self.folder / "results" / "smoke"

    def start(self) -> subprocess.Popen[str]:
        command = ["make", "-o", "setup", "reproduce", "PROFILE=smoke", f"VENV={sys.prefix}"]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def reproduce(self) -> str:
        process = self.start()
        output, _ = process.communicate()
        assert process.returncode == 0, output[-4000:]
        return output

    def reproduce_killed_when(self, moment: Callable[["Tree"], bool]) -> None:
        process = self.start()
        while process.poll() is None and not moment(self):
            time.sleep(0.02)
        assert process.poll() is None, "make ended before the moment to kill it came"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def runs(self) -> dict[str, int]:
        return {p.parent.name: p.stat().st_mtime_ns for p in self.results.glob("runs/*/run.json")}

    def stage(self, key: str) -> str:
        return json.loads((self.results / "runs" / key / "run.json").read_text())["stage"]

    def metrics(self) -> pd.DataFrame:
        table = pd.read_csv(self.results / "metrics.csv")
        return table[~table["metric"].isin(COSTS)].reset_index(drop=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    tree = Tree(tmp_path_factory.mktemp("undisturbed"))
    tree.reproduce()
    tree.first_metrics = tree.metrics()
    return tree


def test_everything_is_there(undisturbed: Tree) -> None:
    notebooks = sorted(path.name for path in (undisturbed.results / "notebooks").glob("*.ipynb"))
    assert notebooks == [
        "00_start_here.ipynb",
        "01_harmful_unlearning__tiny-opt__s1.ipynb",
        "02_lotr_implant_then_forget__tiny-opt__s1.ipynb",
        "04_closer_look__tiny-opt__s1.ipynb",
    ]
    figures = undisturbed.folder / "figures" / "smoke"
    looks = ("closer_look_grid", "closer_look_continual", "closer_look_methods")
    drawn = ("harmful_rate", "book_tradeoff", "book_methods", *looks)
    tabled = ("table1_harmful", "table2_book", "table3_closer_look", "closer_look_orderings")
    for name in drawn + tabled:
        assert (figures / f"{name}.json").is_file()
    for name in drawn:
        for ending in ("png", "svg", "pdf"):
            assert (figures / f"{name}.{ending}").stat().st_size > 1000
    for name in tabled:
        for ending in ("csv", "md", "tex"):
            assert (figures / f"{name}.{ending}").stat().st_size > 100
    stages = undisturbed.metrics().groupby("experiment")["stage"].agg(set).to_dict()
    assert stages == {
        "harmful": {"base", "unlearned"},
        "book": {"base", "implanted", "unlearned"},
        "tofu": {"base", "implanted", "reference", "unlearned"},
    }


def test_a_second_call_computes_nothing(undisturbed: Tree) -> None:
    before = undisturbed.runs()
    undisturbed.reproduce()
    assert undisturbed.runs() == before


def test_a_changed_setting_reruns_what_depends_on_it(undisturbed: Tree) -> None:
    before = undisturbed.runs()
    profile = undisturbed.folder / "notebooks" / "profiles" / "smoke.yaml"
    text = profile.read_text()
    assert text.count("label: GA,") == 2, "a method of each experiment"
    profile.write_text(text.replace("label: GA,", "label: ascent,"))
    undisturbed.reproduce()
    assert undisturbed.runs() == before, "a label changes no result"
    for name in ("table1_harmful", "table2_book"):
        table = undisturbed.folder / "figures" / "smoke" / f"{name}.csv"
        assert "ascent" in table.read_text(), "but it is shown"
    text = profile.read_text()
    assert text.count("forget_loss_cap: 12") == 1
    profile.write_text(text.replace("forget_loss_cap: 12", "forget_loss_cap: 13"))
    undisturbed.reproduce()
    after = undisturbed.runs()
    assert before.items() <= after.items()
    stages = sorted(undisturbed.stage(key) for key in after.keys() - before.keys())
    assert stages == ["answers", "measure", "unlearn"], "of one method of one experiment"


def test_two_fresh_runs_are_identical(undisturbed: Tree, tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.reproduce()
    pd.testing.assert_frame_equal(tree.metrics(), undisturbed.first_metrics, check_exact=True)


def first_checkpoint(tree: Tree) -> bool:
    return any(tree.results.glob("partial/*/checkpoints/checkpoint-*/trainer_state.json"))


def implanting_the_book(tree: Tree) -> bool:
    """The book's base model is ready: the next checkpoint is that of its implant."""
    pretrained = any(tree.stage(key) == "pretrain" for key in tree.runs())
    return pretrained and first_checkpoint(tree)


def measuring_the_authors(tree: Tree) -> bool:
    """The judge of entailment is ready, and another run of its notebook is under way."""
    judged = any(tree.stage(key) == "judge" for key in tree.runs())
    return judged and any(path.is_dir() for path in tree.results.glob("partial/*"))


def first_run(tree: Tree) -> bool:
    return len(tree.runs()) >= 1


def after_the_notebook(tree: Tree) -> bool:
    return any((tree.results / "notebooks").glob("01_*__s1.ipynb"))


@pytest.mark.parametrize(
    ("only", "moment"),
    [
        ("harmful", first_run),
        ("harmful", first_checkpoint),
        ("harmful", after_the_notebook),
        ("book", implanting_the_book),
        ("tofu", measuring_the_authors),
    ],
)
def test_killed_and_resumed_gives_the_same_metrics(
    only: str, moment: Callable[[Tree], bool], undisturbed: Tree, tmp_path: Path
) -> None:
    tree = Tree(tmp_path, only)
    tree.reproduce_killed_when(moment)
    tree.reproduce()
    whole = undisturbed.first_metrics
    expected = whole[whole["experiment"] == only].reset_index(drop=True)
    pd.testing.assert_frame_equal(tree.metrics(), expected, check_exact=True, check_dtype=False)
    assert not [path for path in tree.results.glob("partial/*") if path.is_dir()]


def test_an_interrupted_implant_gives_the_same_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, without make: the book's implant goes on from its checkpoint."""
    from unlearn_lib.experiments.book import BookExperiment

    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    profile = load_profile("smoke")
    whole = BookExperiment(profile, None, 1)
    run = whole.implanted()
    adapter = (run.folder / "model" / "adapter_model.safetensors").read_bytes()
    curve = whole.curve()
    shutil.rmtree(run.folder)
    partial = profile.results / "partial" / run.key

    def stop(report: dict[str, float]) -> None:
        if any(partial.glob("checkpoints/checkpoint-*/trainer_state.json")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        whole.implanted(stop)
    assert partial.is_dir() and not run.folder.exists()
    seen: list[dict[str, float]] = []
    resumed = BookExperiment(profile, None, 1).implanted(seen.append)
    assert resumed.key == run.key and 0 < len(seen) < resumed.result["steps"]
    assert (resumed.folder / "model" / "adapter_model.safetensors").read_bytes() == adapter
    pd.testing.assert_frame_equal(whole.curve(), curve, check_exact=True)
    assert not partial.exists()
