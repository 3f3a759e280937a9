"""`python -m unlearn_lib` and the runner of notebooks: one sentence, a code that is not zero."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import yaml

from unlearn_lib import __main__ as command_line
from unlearn_lib import notebooks, profiles
from unlearn_lib.errors import CompanionError
from unlearn_lib.notebooks import execute

VERBS = ("check", "collect", "figures", "status")


@pytest.fixture
def small_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small notebooks in place of the project's: `adds`, `refuses` and `breaks`."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    refuse = (
        "from unlearn_lib.errors import CompanionError\nraise CompanionError('No rows; add some.')"
    )
    for name, last in (("adds", "print(first + 1)"), ("refuses", refuse), ("breaks", "1 / 0")):
        parameters = nbformat.v4.new_code_cell("first = 1\nprofile = 'smoke'")
        parameters.metadata["tags"] = ["parameters"]
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(last)])
        book.metadata["kernelspec"] = {
            "name": "python3", "language": "python", "display_name": "Python 3",
        }  # fmt: skip
        nbformat.write(book, folder / f"{name}.ipynb")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", folder)
    return folder


@pytest.fixture
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles that a test may write; results go below the same root."""
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return tmp_path


def changed(folder: Path, **values: Any) -> None:
    """Write profile `mine`: smoke with other values at the top."""
    smoke = Path(__file__).parents[1] / "notebooks/profiles/smoke.yaml"
    content = yaml.safe_load(smoke.read_text()) | {"name": "mine"} | values
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_check_accepts_the_profile_for_any_machine() -> None:
    assert command_line.main(["check", "--profile", "smoke"]) == 0


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_profile_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'smoke'" in refusal(capsys, verb, "--profile", "smoky")


@pytest.mark.parametrize("name", ["notebooks/profiles/smoke.yaml", "smoke.yaml", "../x", "", "a b"])
def test_a_path_is_no_profile_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no profile's name" in refusal(capsys, "check", "--profile", name)


def test_misspelt_key_is_refused(own_profiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(own_profiles, ofline=True)
    message = refusal(capsys, "check", "--profile", "mine")
    assert "mine.yaml: unknown key 'ofline' (did you mean 'offline'?)" in message
    assert not (own_profiles / "results").exists()


def test_cuda_without_a_gpu_is_refused(
    own_profiles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changed(own_profiles, device="cuda")
    message = refusal(capsys, "check", "--profile", "mine")
    assert "no GPU" in message and "device: auto" in message


@pytest.mark.parametrize("verb", ["collect", "figures"])
def test_verbs_without_results_name_the_command(
    verb: str, own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(own_profiles)
    assert "make reproduce PROFILE=mine" in refusal(capsys, verb, "--profile", "mine")
    assert not (own_profiles / "figures").exists()


@pytest.mark.parametrize("broken", ["metrics.csv", "metrics.json", "no metrics.json"])
def test_results_that_are_not_whole_are_refused(
    broken: str, own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(own_profiles)
    folder = own_profiles / "results/mine"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("experiment,scenario\n1\n")
    if not broken.startswith("no"):
        (folder / "metrics.json").write_text("{}" if broken == "metrics.csv" else '{"a":')
    message = refusal(capsys, "figures", "--profile", "mine")
    assert "not whole" in message and "make reproduce PROFILE=mine" in message


def test_status_of_nothing_says_open(
    own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(own_profiles)
    assert command_line.main(["status", "--profile", "mine"]) == 0
    printed = capsys.readouterr().out
    assert "open  01_harmful_unlearning" in printed and "0 runs stored" in printed


def test_offline_profile_keeps_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.delenv("HF_HUB_OFFLINE")
    command_line.main(["check", "--profile", "smoke"])
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_error_reaches_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unlearn_lib", "check", "--profile", "smoky"],
        capture_output=True, text=True, cwd=profiles.ROOT,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: There is no profile 'smoky'")
    assert "Traceback" not in done.stderr


def test_notebook_is_written_when_it_has_run_to_its_end(
    small_notebooks: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out/adds.ipynb"
    assert execute("adds", {"first": 41}, output) == output
    shown = nbformat.read(output, as_version=4).cells[-1].outputs[0]["text"]
    assert shown == "42\n"
    assert [path.name for path in output.parent.iterdir()] == ["adds.ipynb"]


@pytest.mark.parametrize(
    "name, reason", [("refuses", "No rows; add some."), ("breaks", "ZeroDivisionError: division")]
)
def test_failing_notebook_never_looks_done(
    name: str, reason: str, small_notebooks: Path, tmp_path: Path, capfd: Any
) -> None:
    output = tmp_path / f"out/{name}.ipynb"
    output.parent.mkdir()
    output.write_text("an earlier success")
    with pytest.raises(CompanionError) as caught:
        execute(name, {}, output)
    assert str(caught.value).startswith(reason) and f"'{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in output.parent.iterdir()] == [f"{name}.failed.ipynb"]


@pytest.mark.parametrize("parameter, hint", [("frist", "first"), ("profil", "profile")])
def test_unknown_parameter_is_refused_before_anything_is_touched(
    parameter: str, hint: str, small_notebooks: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adds.ipynb"
    output.write_text("an earlier success")
    with pytest.raises(
        CompanionError, match=rf"no parameter '{parameter}' \(did you mean '{hint}'"
    ):
        execute("adds", {parameter: 1}, output)
    assert output.read_text() == "an earlier success"


def test_unknown_notebook_gives_the_nearest(small_notebooks: Path, tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match=r"no notebook 'breakes' \(did you mean 'breaks'\?\)"):
        execute("breakes", {}, tmp_path / "x.ipynb")


def test_notebook_verb_refuses_an_unknown_parameter(
    small_notebooks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out" / "adds.ipynb"
    message = refusal(
        capsys,
        "notebook",
        "adds",
        "--profile",
        "smoke",
        "--output",
        str(output),
        "-p",
        "frist",
        "1",
    )
    assert "no parameter 'frist'" in message
    assert not output.parent.exists()
