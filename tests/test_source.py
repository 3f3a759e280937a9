"""The digest of the code that computes a run: what changes it, and what does not."""

import re
import shutil
from pathlib import Path

import pytest

from unlearn_lib import source
from unlearn_lib.unlearn.methods import METHODS

TRAINING = ("unlearn_lib.unlearn.trainer", "unlearn_lib.model.loading")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's source, which `source` reads instead of the package."""
    copy = tmp_path / "unlearn_lib"
    shutil.copytree(source.PACKAGE, copy, ignore=lambda _, names: {"embedded", "__pycache__"})
    monkeypatch.setattr(source, "PACKAGE", copy)
    forget()
    return copy


@pytest.fixture(autouse=True)
def _nothing_stays_cached() -> object:
    yield
    forget()


def forget() -> None:
    """Clear what `source` has read."""
    for function in vars(source).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def digest(name: str = "") -> str:
    """The digest of a run that trains by a method; without one: of one that teaches."""
    method = METHODS.get(name)
    functions = (method.forget, method.retain, method.keep) if method else ()
    return source.code_of(*TRAINING, functions=functions)


def digests() -> dict[str, str]:
    forget()
    return {name: digest(name) for name in ("", *METHODS)}


def changed(file: Path, text: str) -> set[str]:
    """The methods whose digest another text of a file changes; "" for teaching."""
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
    users = {
        name
        for name, method in METHODS.items()
        if loss in {getattr(each, "__name__", "") for each in (method.forget, method.retain)}
    }
    text = f"{file.read_text()}\n\ndef {loss}(*_):\n    return 1.0\n"
    assert users and changed(file, text) == users


def test_what_a_loss_calls_is_a_part_of_it(package: Path) -> None:
    file = package / "unlearn" / "losses.py"
    text = f"{file.read_text()}\n\ndef _refusal_cost(nll):\n    return nll\n"
    users = changed(file, text)
    assert {"dpo_gd", "dpo_kl", "ga_ap"} <= users and "ga_gd" not in users and "" not in users


@pytest.mark.parametrize("name", ["util.py", "model/packing.py", "unlearn/steps.py"])
def test_a_changed_helper_changes_every_run(name: str, package: Path) -> None:
    file = package / name
    assert changed(file, f"{file.read_text()}\nNEW = 1\n") == {"", *METHODS}


@pytest.mark.parametrize("name", ["results.py", "tasks/harm.py", "unlearn/methods.py"])
def test_what_a_run_does_not_import_does_not_count(name: str, package: Path) -> None:
    file = package / name
    assert changed(file, f"{file.read_text()}\nNEW = 1\n") == set()


def test_the_stages_differ() -> None:
    modules = ("unlearn_lib.unlearn.trainer", "unlearn_lib.model.generate", "unlearn_lib.guard.fit")
    assert len({source.code_of(name) for name in modules}) == 3
