"""`make reproduce` on profile smoke, killed again and again in a copy of the tree: what is finished
is kept, and the metrics are those of an undisturbed run."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from test_reproduce import Moment, Tree, undisturbed_tree, without_costs

from unlearn_lib import profiles
from unlearn_lib.metrics.tidy import COLUMNS
from unlearn_lib.profiles import load_profile

pytestmark = pytest.mark.timeout(1800)


def is_done(tree: Tree, stage: str) -> bool:
    return any(tree.stage(key) == stage for key in tree.runs())


def is_under_way(tree: Tree) -> bool:
    return any(path.is_dir() for path in tree.results.glob("partial/*"))


def first_run(tree: Tree) -> bool:
    return len(tree.runs()) >= 1


def first_checkpoint(tree: Tree) -> bool:
    return any(tree.results.glob("partial/*/checkpoints/checkpoint-*/trainer_state.json"))


def after_the_notebook(tree: Tree) -> bool:
    return any((tree.results / "notebooks").glob("01_*__s1.ipynb"))


def implanting_the_book(tree: Tree) -> bool:
    """The book's base model is ready: the next checkpoint is that of its implant."""
    return first_checkpoint(tree) and is_done(tree, "pretrain")


def measuring_the_authors(tree: Tree) -> bool:
    """The judge of entailment is ready, and another run of its notebook is under way."""
    return is_under_way(tree) and is_done(tree, "judge")


def searching_the_strength(tree: Tree) -> bool:
    """A prompt classifier is ready, and another run of its notebook is under way."""
    return is_under_way(tree) and is_done(tree, "guard")


MOMENTS: tuple[Moment, ...] = (
    first_run, first_checkpoint, after_the_notebook,
    implanting_the_book, measuring_the_authors, searching_the_strength,
)  # fmt: skip


def test_killed_and_resumed_gives_the_same_metrics(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both trees compute everything themselves, so that two undisturbed runs are equal too."""
    tree = Tree(tmp_path / "killed")
    tree.copy_project()
    ahead = list(MOMENTS)
    while ahead:
        before = tree.runs()
        come = tree.reproduce_killed_at(ahead)
        assert before.items() <= tree.runs().items(), "what is finished is kept"
        ahead = [moment for moment in ahead if moment not in come]
    tree.reproduce()
    whole = without_costs(undisturbed_tree(tmp_path_factory).first_metrics)
    row = list(COLUMNS[: COLUMNS.index("value")])
    different = tree.metrics().set_index(row).compare(whole.set_index(row))
    assert different.empty, different.to_string()
    assert not is_under_way(tree)


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
