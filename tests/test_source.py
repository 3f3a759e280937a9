"""The digest of the code that computes a run: what changes it, and what does not."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unlearn_lib import source
from unlearn_lib.unlearn import losses
from unlearn_lib.unlearn.methods import METHODS

TRAINING = ("unlearn_lib.unlearn.trainer", "unlearn_lib.model.loading")
NAMES = ("ga_gd", "ga_ap", "dpo_gd", "dpo_ap", "simnpo_gd", "wga_gd", "undial_gd")
TEACHING = ""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's source, which `source` reads instead of the package."""
    copy = tmp_path / "unlearn_lib"
    shutil.copytree(source.PACKAGE, copy, ignore=lambda _, names: {"embedded", "__pycache__"})
    monkeypatch.setattr(source, "PACKAGE", copy)
    forget()
    return copy


@pytest.fixture(autouse=True)
def _nothing_stays_cached() -> Iterator[None]:
    yield
    forget()


def forget() -> None:
    """Clear what `source` has read."""
    for function in vars(source).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def losses_of(name: str) -> set[Callable[..., Any]]:
    """The losses that a method sums; teaching names none."""
    method = METHODS.get(name)
    terms = (method.forget, method.retain, method.keep) if method else ()
    return {each for each in terms if each is not None}


def digests() -> dict[str, str]:
    forget()
    return {
        name: source.code_of(*TRAINING, functions=losses_of(name)) for name in (TEACHING, *NAMES)
    }


def changed(file: Path, text: str) -> set[str]:
    """The runs whose digest another text of a file changes."""
    before = digests()
    file.write_text(text)
    after = digests()
    return {name for name in before if before[name] != after[name]}


def reworded(text: str) -> str:
    """The same code with another docstring of every function, and other comments and lines."""
    text = re.sub(r'(\) -> [^\n]+:\n +""")', r"\1Other words. ", text)
    return f'"""Other words."""\n\n{text}\n\n\n# a comment\n'


@pytest.mark.parametrize("name", ["unlearn/trainer.py", "unlearn/losses.py", "util.py"])
def test_prose_and_layout_do_not_count(name: str, package: Path) -> None:
    text = (package / name).read_text()
    assert reworded(text).count("Other words") > 3
    assert changed(package / name, reworded(text)) == set()


@pytest.mark.parametrize("loss", ["simnpo", "wga", "undial", "dpo", "answer_preservation"])
def test_a_changed_loss_changes_the_runs_that_use_it(loss: str, package: Path) -> None:
    file = package / "unlearn" / "losses.py"
    users = {name for name in NAMES if getattr(losses, loss) in losses_of(name)}
    text = f"{file.read_text()}\n\ndef {loss}(*_):\n    return 1.0\n"
    assert users and changed(file, text) == users


def test_what_a_loss_calls_is_a_part_of_it(package: Path) -> None:
    file = package / "unlearn" / "losses.py"
    text = f"{file.read_text()}\n\ndef _refusal_cost(nll):\n    return nll\n"
    assert changed(file, text) == {"dpo_gd", "dpo_ap", "ga_ap"}


@pytest.mark.parametrize("name", ["util.py", "model/packing.py", "unlearn/steps.py"])
def test_a_changed_helper_changes_every_run(name: str, package: Path) -> None:
    file = package / name
    assert changed(file, f"{file.read_text()}\nNEW = 1\n") == {TEACHING, *NAMES}


@pytest.mark.parametrize("name", ["results.py", "tasks/harm.py", "unlearn/methods.py"])
def test_what_a_run_does_not_import_does_not_count(name: str, package: Path) -> None:
    file = package / name
    assert changed(file, f"{file.read_text()}\nNEW = 1\n") == set()
