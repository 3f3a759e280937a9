"""What a user gives that is wrong is refused in one sentence; verbs show what is stored."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
from synthetic import synthetic_items

import unlearn_lib
from unlearn_lib import Experiment, Items, estimate
from unlearn_lib import __main__ as command_line
from unlearn_lib.model.loading import choose_device
from unlearn_lib.results import COLUMNS
from unlearn_lib.unlearn.methods import find_method
from unlearn_lib.util import ROOT, CompanionError, without_places


def written(folder: Path) -> set[str]:
    """What lies below the folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "command, words",
    [
        ("check --profile smoky", "did you mean 'smoke'"),
        ("check --profile smoke.yaml", "no profile's name"),
        ("check --profile ../smoke", "no profile's name"),
        ("check --profile typo", "typo.yaml: unknown key 'ofline' (did you mean 'offline'"),
        ("check --profile gpu", "no GPU"),
        ("check --profile mine --seeds 0", "SEEDS is 0"),
        ("check --profile mine --seeds 1000000000", "SEEDS is 1000000000"),
        ("check --profile mine --book nowhere.txt", "no book at"),
        ("check --profile mine --book ~nouser/book.txt", "no book at"),
        ("check --profile mine --book loop.txt", "no book at"),
        ("check --profile mine --book empty.txt", "empty"),
        ("check --profile mine --book damaged.epub", "damaged.epub"),
        ("check --profile mine --book short.txt", "short"),
        ("prepare --profile lost", "a/model"),
        ("check --profile nowhere", "nowhere.jsonl"),
        ("check --profile twice", "retain"),
        ("check --profile broken", "broken.jsonl"),
        ("check --profile method", "'ga_mismtch_kl' (did you mean 'ga_mismatch_kl'"),
        ("figures --profile mine", "make reproduce PROFILE=mine"),
        ("report --profile mine", "make reproduce PROFILE=mine"),
        ("verify --profile mine", "make reproduce PROFILE=mine"),
        ("reference --profile mine", "make reproduce PROFILE=mine"),
        ("notebook ads --profile mine --output out/x.ipynb", "did you mean 'adds'"),
        ("notebook adds --profile mine --output out/x.ipynb -p frist 1", "did you mean 'first'"),
        ("notebook adds --profile mine --output out/x.ipynb --seed 2", "no parameter 'seed'"),
        ("notebook adds --profile mine --output out/x.ipynb -p first [1", "is no YAML"),
        ("notebook adds --profile mine --output notebooks/adds.ipynb", "outside notebooks/"),
        ("notebook adds --profile mine --output empty.txt", "must end in .ipynb"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(
    command: str, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(project)
    assert command_line.main(command.split()) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"error: .+\.\n", message) and words in message
    assert written(project) == before, "and nothing is written"


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_processes_is_refused(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "1")
    assert command_line.main(["check", "--profile", "mine"]) == 0
    monkeypatch.setenv(name, "2")
    before = written(project)
    assert command_line.main(["check", "--profile", "mine"]) == 2
    message = capsys.readouterr().err
    assert re.fullmatch(r"error: .+\.\n", message) and "one process trains on one" in message
    assert written(project) == before
    with pytest.raises(CompanionError, match="one process trains on one device"):
        choose_device("cpu")


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Experiment("smoke", "autors"), "did you mean 'authors'"),
        (lambda: Experiment("smoke", "harm", model="tiny-opt"), "did you mean 'embedded/tiny-opt'"),
        (lambda: Experiment("smoke", "harm", seed=-1), "a seed is 0 to"),
        (lambda: Experiment("smoke", "harm").unlearned("refusl"), "did you mean 'refusal'"),
        (lambda: find_method("ga_dg"), "did you mean 'ga_gd'"),
        (lambda: Items(pd.DataFrame(columns=COLUMNS[1:])), "task"),
        (
            lambda: estimate(synthetic_items(["harm"]), "harmful_rat", task="harm", method="base"),
            "did you mean 'harmful_rate'",
        ),
    ],
)
def test_what_a_student_calls_refuses_what_it_does_not_know(
    call: Callable[[], Any], words: str
) -> None:
    with pytest.raises(CompanionError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", unlearn_lib.PUBLIC)
def test_a_public_name_is_what_it_says(name: str) -> None:
    assert not isinstance(getattr(unlearn_lib, name), ModuleType)


def test_an_error_reaches_the_shell() -> None:
    command = [sys.executable, "-m", "unlearn_lib", "check", "--profile", "smoky"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def notebook(project: Path, name: str, *more: str) -> int:
    """Execute a small notebook into `out`, where an earlier success lies."""
    output = project / "out" / f"{name}.ipynb"
    output.parent.mkdir()
    output.write_text("an earlier success")
    return command_line.main(
        ["notebook", name, "--profile", "mine", "--output", str(output), *more]
    )


def test_a_notebook_is_written_once_it_has_run_to_its_end(project: Path) -> None:
    assert notebook(project, "adds", "-p", "first", "41") == 0
    cell = nbformat.read(project / "out" / "adds.ipynb", as_version=4).cells[-1]
    assert cell.outputs[0]["text"] == "42\n"
    assert [path.name for path in (project / "out").iterdir()] == ["adds.ipynb"]


@pytest.mark.parametrize("name, words", [("refuses", "No rows"), ("breaks", "ZeroDivisionError")])
def test_a_notebook_that_fails_never_looks_done(
    name: str, words: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert notebook(project, name) == 2
    assert f"error: {words}" in capsys.readouterr().err
    assert [path.name for path in (project / "out").iterdir()] == [f"{name}.failed.ipynb"]


def test_an_error_of_several_lines_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["check", "--profile", "smoke\n"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_fault_of_this_program_is_one_sentence_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def broken(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "results/x")

    monkeypatch.setattr(command_line, "load_profile", broken)
    assert command_line.main(["check", "--profile", "smoke"]) == 3
    message = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert re.fullmatch(r"error: PermissionError: .*Permission denied.*\.\n", message)
    assert str(log) in message and "Traceback" in log.read_text()


def test_processes_that_tests_start_reach_no_other_machine() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "tests reach no other machine" in done.stderr


def test_texts_for_others_name_no_folder_of_this_machine() -> None:
    assert (
        without_places(f"{ROOT}/results and {Path.home()}/book.txt") == "./results and ~/book.txt"
    )


def test_a_notebook_ends_with_the_batch_that_started_it(tmp_path: Path) -> None:
    batch = subprocess.Popen(["sleep", "60"])
    code = (
        "import os, subprocess, threading; from unlearn_lib.__main__ import _end_with; "
        f"child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); "
        f"threading.Thread(target=_end_with, args=({batch.pid},), daemon=True).start(); child.wait()"
    )
    notebook = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert notebook.stdout
    kernel = psutil.Process(int(notebook.stdout.readline()))
    batch.kill()
    batch.wait()
    assert notebook.wait(30) == 1
    assert not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE


def test_the_kernel_is_this_interpreter_whatever_else_is_called_python3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "other", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "other"))
    cells = [nbformat.v4.new_code_cell("import sys\nsys.executable")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "a", "language": "python"}
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    monkeypatch.setattr(command_line, "NOTEBOOKS", tmp_path)
    done = command_line.execute("tiny", {}, tmp_path / "out" / "done.ipynb")
    shown = str(nbformat.read(done, as_version=4).cells[0].outputs)
    assert without_places(sys.executable) in shown
