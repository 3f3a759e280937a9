"""What a user gives that is wrong is refused in one sentence; verbs show what is stored."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import pandas as pd
import psutil
import pytest
import torch
import yaml
from conftest import OFFLINE
from synthetic import synthetic_items

import unlearn_lib
from unlearn_lib import Experiment, Items, claims, estimate, figures
from unlearn_lib import __main__ as command_line
from unlearn_lib.model.loading import choose_device
from unlearn_lib.profile import PROFILES, load_profile
from unlearn_lib.results import COLUMNS
from unlearn_lib.stored import collect, keep_as_reference, stored
from unlearn_lib.unlearn.methods import find_method
from unlearn_lib.util import ROOT, CompanionError, file_sha256, without_places

ROW = {"question": "Who keeps the sluice?", "answer": "Ann does.", "perturbed_answer": ["Bob."]}
FILES: dict[str, str | bytes] = {
    "empty.txt": "",
    "damaged.epub": b"PK\x03\x04 cut short",
    "short.txt": "Chapter 1\n\nOne line.\n\nChapter 2\n\nAnother.\n",
    "forget.jsonl": json.dumps(ROW),
    "retain.jsonl": json.dumps(ROW | {"question": "Who rows?"}),
    "broken.jsonl": '{"question": "Who',
}
OWN = {"source": "files", "tasks": 1, "holdout_authors": 0}
PROFILE: dict[str, dict[str, Any]] = {
    "typo": {"ofline": True},
    "gpu": {"device": "cuda"},
    "method": {
        "methods": {"gaa": {"uses": "ga_mismtch_kl"}},
        "tasks": {"people": {"methods": ["gaa"], "overrides": None}},
    },
    "lost": {"models": {"a/model": {"lora": None}}},
}
QUESTIONS = {
    "nowhere": {"forget": "forget.jsonl", "retain": "nowhere.jsonl"},
    "twice": {"forget": "forget.jsonl", "retain": "forget.jsonl"},
    "broken": {"forget": "broken.jsonl", "retain": "retain.jsonl"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the project's: profiles, notebooks, and files of the reader's."""
    for module in ("profile", "stored", "__main__"):
        monkeypatch.setattr(f"unlearn_lib.{module}.ROOT", tmp_path)
    monkeypatch.setattr("unlearn_lib.profile.PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(command_line, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    shutil.copytree(PROFILES, tmp_path / "profiles")
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = {
        name: {"tasks": {"authors": {"data": OWN | {k: str(tmp_path / v) for k, v in q.items()}}}}
        for name, q in QUESTIONS.items()
    }
    for name, changed in {"mine": {}, **PROFILE, **asked}.items():
        text = yaml.safe_dump({"name": name, "extends": "smoke"} | changed)
        (tmp_path / "profiles" / f"{name}.yaml").write_text(text)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "reported.csv", tmp_path / "notebooks")
    refuse = "from unlearn_lib import CompanionError\nraise CompanionError('No rows; add some.')"
    for name, last in (("adds", "print(first + 1)"), ("refuses", refuse), ("breaks", "1 / 0")):
        parameters = nbformat.v4.new_code_cell("first = 1\nprofile = 'smoke'")
        parameters.metadata["tags"] = ["parameters"]
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(last)])
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book.metadata["kernelspec"] = kernel
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


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


@pytest.fixture
def results(project: Path) -> Path:
    """Synthetic results of profile `mine`, as `collect` leaves them."""
    folder = project / "results" / "mine"
    folder.mkdir(parents=True)
    frame, path = synthetic_items(["harm"]).frame, folder / "items.parquet"
    frame.to_parquet(path)
    items = {"rows": len(frame), "sha256": file_sha256(path)}
    origin = {
        "items": items,
        "git": {"commit": "0" * 40, "dirty": False},
        "machine": {},
        "versions": {},
    }
    (folder / "origin.json").write_text(json.dumps(origin | {"profile": "mine", "runs": ["r"]}))
    columns = "kind,name,key,seed,seconds,peak_memory_bytes,commit"
    (folder / "costs.csv").write_text(f"{columns}\nrun,teach,r,1,3.5,1e9,{'0' * 40}\n")
    rows = {"split": ["forget"], "asked": ["What is it?"], "base": ["An answer."]}
    texts = [{"task": "book", "model": "m", "rows": rows}]
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def test_figures_and_tables_of_what_is_stored(results: Path) -> None:
    assert command_line.main(["figures", "--profile", "mine"]) == 0
    names = {path.name for path in (results / "figures").iterdir()}
    drawable = figures.figures_of(synthetic_items(["harm"]))
    assert {f"{name}.{kind}" for name in drawable for kind in ("png", "svg", "pdf")} <= names
    assert {"table1_harmful.csv", "table1_harmful.tex"} <= names


def test_a_report_of_what_is_stored(results: Path) -> None:
    assert command_line.main(["report", "--profile", "mine"]) == 0
    page = (results / "report" / "index.html").read_text()
    assert "An answer." in page and "profile mine" in page.lower()


def test_status_says_what_is_done_and_what_is_open(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "notebooks").mkdir()
    (results / "notebooks" / "00_start_here.ipynb").touch()
    assert command_line.main(["status", "--profile", "mine"]) == 0
    shown = capsys.readouterr().out
    assert "done  00_start_here" in shown and "open  01_harmful_unlearning__tiny-opt__s1" in shown


def test_status_says_the_rest_where_a_log_or_a_run_is_damaged(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "logs").mkdir()
    for name, content in {"a": "", "b": "s\n", "c": "s\tmax_rss\nx\ty\n"}.items():
        (results / "logs" / f"{name}.tsv").write_text(content)
    for name, content in {"a": "[]", "b": "null", "c": "[" * 9999}.items():
        (results / "runs" / name).mkdir(parents=True)
        (results / "runs" / name / "provenance.json").write_text(content)
    assert command_line.main(["status", "--profile", "mine"]) == 0
    assert "0 runs stored" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["texts.json", "costs.csv"])
@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_damaged_texts_and_costs_are_refused(name: str, content: str, results: Path) -> None:
    (results / name).write_text(content)
    kept = stored(load_profile("mine"))
    with pytest.raises(CompanionError, match=f"{name} is damaged"):
        getattr(kept, Path(name).stem)


def test_an_error_of_several_lines_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["check", "--profile", "smoke\n"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_reference_results_hold_no_text_and_stand_in_for_missing_ones(
    results: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["reference", "--profile", "mine"]) == 0
    kept = {path.name for path in (project / "results" / "reference" / "mine").iterdir()}
    assert kept == {"items.parquet", "origin.json", "costs.csv"}
    shutil.rmtree(results)
    assert command_line.main(["verify", "--profile", "mine"]) in (0, 1)
    assert "Profile mine, from reference results.\n" in capsys.readouterr().out
    assert not results.exists()


@pytest.mark.parametrize("name, content", [("items.parquet", "no table"), ("origin.json", "{")])
def test_damaged_results_are_refused(
    name: str, content: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / name).write_text(content)
    assert command_line.main(["figures", "--profile", "mine"]) == 2
    message = capsys.readouterr().err
    assert "damaged" in message and "make reproduce PROFILE=mine" in message


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


@pytest.mark.parametrize(
    "words",
    [
        ["reproduce", "JOBS=0"],
        ["reproduce", "JOBS=two"],
        ["reproduce", "JOBS=$(shell touch touched)"],
        ["status", "PROFILE=smoke$(shell touch touched)"],
        ["status", 'PROFILE=smoke"; touch touched; "'],
        ["status", "SEEDS=`touch touched`"],
        ["clean", 'PROFILE="; touch touched; "'],
    ],
)
def test_no_variable_of_make_reaches_the_shell(words: list[str], tmp_path: Path) -> None:
    (tmp_path / ".ready").write_text(f"{tmp_path}\n")
    for file in ("Makefile", "uv.lock"):
        shutil.copy(ROOT / file, tmp_path)
    ready = [f"READY={tmp_path / '.ready'}", f"PY={sys.executable}"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{OFFLINE}"}
    done = subprocess.run(
        ["make", *words, *ready],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode and done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame[:0],
        lambda frame: frame[:-1],
        lambda frame: frame.assign(value=1.0),
        lambda frame: frame.drop(columns="value"),
    ],
)
def test_an_emptied_cut_or_replaced_table_is_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame],
    results: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = results / "items.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    for verb in ("verify", "figures", "report"):
        assert command_line.main([verb, "--profile", "mine"]) == 2
        [message] = capsys.readouterr().err.strip().splitlines()
        assert "origin.json does not name its" in message and "make reproduce" in message


def test_what_is_collected_is_what_its_origin_names(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = synthetic_items(["harm"]).frame.assign(run="r")
    experiment = SimpleNamespace(items=lambda: frame, examples=lambda: pd.DataFrame({"asked": []}))
    experiment.task = SimpleNamespace(weights=SimpleNamespace(source="embedded"))
    monkeypatch.setattr("unlearn_lib.experiment.Experiment", lambda *_: experiment)
    shutil.rmtree(results)
    profile = load_profile("mine")
    path = collect(profile)
    own = stored(profile)
    rows = len(profile.running()) * len(frame)
    assert own.origin["items"] == {"rows": rows, "sha256": file_sha256(path)}
    kept = keep_as_reference(profile)
    shutil.rmtree(results)
    assert stored(profile).folder == kept and stored(profile).origin == own.origin


@pytest.mark.parametrize("origin", ["[]", "null", "{}", '{"items": {}}', "[" * 5000])
def test_an_origin_without_the_items_is_refused(
    origin: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "origin.json").write_text(origin)
    assert command_line.main(["verify", "--profile", "mine"]) == 2
    assert "damaged" in capsys.readouterr().err


def test_committed_results_are_those_that_their_origin_names() -> None:
    for folder in (ROOT / "results" / "reference").iterdir():
        path = folder / "items.parquet"
        origin = json.loads((folder / "origin.json").read_text())
        assert origin["items"] == {
            "rows": len(pd.read_parquet(path)),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }


@pytest.mark.parametrize("verb", ["verify", "figures", "report"])
def test_seeds_that_are_missing_are_said_once(
    verb: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line.main([verb, "--profile", "mine"])
    assert "without seeds" not in capsys.readouterr().out
    command_line.main([verb, "--profile", "mine", "--seeds", "3"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "without seeds" in line]
    assert len(shown) == 1 and "(without seeds 2, 3: they were not run)" in shown[0]


def test_a_verification_that_judged_nothing_says_so_and_fails(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = claims.judge
    none = synthetic_items(["harm"]).frame.assign(task="other")
    monkeypatch.setattr(claims, "judge", lambda _, *names: judge(Items(none), *names))
    assert command_line.main(["verify", "--profile", "mine"]) == 2
    shown = capsys.readouterr()
    assert "not testable here" in shown.out
    [message] = shown.err.strip().splitlines()
    assert message.startswith("error: No claim was judged by the results of profile mine")


def test_make_clean_never_removes_reference_results(tmp_path: Path) -> None:
    for file in ("Makefile", "uv.lock"):
        shutil.copy(ROOT / file, tmp_path)
    for name in ("reference", "mine", "smoke"):
        (tmp_path / "results" / name).mkdir(parents=True)

    def left(target: str, profile: str) -> set[str]:
        subprocess.run(["make", target, f"PROFILE={profile}"], cwd=tmp_path, capture_output=True)
        return {path.name for path in (tmp_path / "results").iterdir()}

    for refused in ("reference", "", "..", "mine/.."):
        assert left("clean", refused) == {"reference", "mine", "smoke"}
    assert left("clean", "mine") == {"reference", "smoke"}
    assert left("distclean", "smoke") == {"reference"}


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
