"""`python -m unlearn_lib` and the runner of notebooks: one sentence, a code that is not zero."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
import yaml
from test_readers import novel

from unlearn_lib import __main__ as command_line
from unlearn_lib import assets, notebooks, profiles
from unlearn_lib.datasets.prose import load_prose
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


def test_check_accepts_the_profile_for_any_machine_and_prints_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_line.main(["check", "--profile", "smoke"]) == 0
    assert capsys.readouterr().out == "smoke\n"


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
    assert "run `make reproduce PROFILE=mine`." in refusal(capsys, verb, "--profile", "mine")
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
    for notebook in ("01_harmful_unlearning", "02_lotr_implant_then_forget"):
        assert f"open  {notebook}" in printed
    assert "0 runs stored" in printed


@pytest.fixture
def books(own_profiles: Path) -> Path:
    """A folder of books, good and bad; profiles and results are in the one above it."""
    changed(own_profiles)
    folder = own_profiles / "books"
    folder.mkdir()
    (folder / "The Keeper.txt").write_text(novel(), encoding="utf-8")
    (folder / "empty.txt").write_text("")
    (folder / "blank.epub").write_text("\n \n")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (folder / "damaged.epub").write_bytes(b"PK\x03\x04 cut short")
    (folder / "short.txt").write_text("Chapter 1\n\nOne line.\n\nChapter 2\n\nAnother.\n")
    (folder / "keeper.docx").write_text(novel(), encoding="utf-8")
    prose = "\n\n".join(f"Chapter {i}\n\n{text}" for i, text in enumerate(PLAIN_PROSE, 1))
    (folder / "prose.txt").write_text(prose, encoding="utf-8")
    return folder


PLAIN_PROSE = load_prose("embedded").texts[:10]


def below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", ["check", "status", "collect", "figures"])
def test_verbs_take_the_reader_s_own_book(
    verb: str, books: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [verb, "--profile", "mine", "--book", str(books / "The Keeper.txt")]
    before = below(books.parent)
    if verb in ("collect", "figures"):
        book = books / "The Keeper.txt"
        message = refusal(capsys, *arguments)
        assert f"run `BOOK='{book}' make reproduce PROFILE=mine`." in message
    else:
        assert command_line.main(arguments) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(
            "mine-book-the-keeper\n" if verb == "check" else "profile mine-book-the-keeper\n"
        )
        assert "01_harmful" not in printed
    assert below(books.parent) == before and not (books.parent / "results").exists()


def test_prepare_takes_the_reader_s_own_book(
    books: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def find(name: str) -> assets.Asset:
        asked.append(name)
        return assets.Asset(name, books, "test", "0")

    monkeypatch.setattr(assets, "find_model", find)
    arguments = ["prepare", "--profile", "mine", "--book", str(books / "The Keeper.txt")]
    assert command_line.main(arguments) == 0
    assert asked == ["embedded/tiny-opt"]
    assert capsys.readouterr().out == f"{books}\n"


@pytest.mark.parametrize(
    "name, says",
    [
        ("nowhere.txt", "There is no book at"),
        ("", "There is no book at"),
        ("empty.txt", "is empty"),
        ("blank.epub", "is empty"),
        ("binary.txt", "binary file"),
        ("damaged.epub", "damaged.epub"),
        ("short.txt", "too short to be split"),
        ("keeper.docx", "none of the known endings"),
        ("prose.txt", "retain set contains the book"),
    ],
)
def test_a_bad_book_is_refused_and_nothing_written(
    name: str, says: str, books: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = below(books.parent)
    message = refusal(capsys, "check", "--profile", "mine", "--book", str(books / name))
    assert says in message and (name in message or "retain set" in says)
    assert below(books.parent) == before and not (books.parent / "results").exists()


def test_a_bad_book_reaches_the_shell(books: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "unlearn_lib", "check", "--profile", "smoke"]
        + ["--book", str(books / "short.txt")],
        capture_output=True, text=True, cwd=Path(profiles.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "too short to be split" in done.stderr


def test_notebook_verb_hands_the_book_on(
    small_notebooks: Path, books: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(notebooks, "execute", lambda *arguments: given.append(arguments))
    monkeypatch.chdir(books)
    common = ["notebook", "adds", "--profile", "mine", "--output", str(tmp_path / "x.ipynb")]
    assert command_line.main([*common, "--book", "The Keeper.txt", "--seed", "3"]) == 0
    assert command_line.main(common) == 0
    book = str((books / "The Keeper.txt").resolve())
    assert given[0][1] == {"profile": "mine", "seed": 3, "book": book}
    assert given[1][1] == {"profile": "mine"}


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
