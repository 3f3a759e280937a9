"""What is stored is read, shown, and refused where it is damaged."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from synthetic import synthetic_items

from unlearn_lib import Items, claims, figures
from unlearn_lib import __main__ as command_line
from unlearn_lib.profile import load_profile
from unlearn_lib.stored import collect, keep_as_reference, stored
from unlearn_lib.util import ROOT, CompanionError, file_sha256


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
