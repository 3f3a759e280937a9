"""The run store: what makes a key, whole-or-nothing commits, resuming, provenance."""

import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unlearn_lib.store import RunStore, Spec, git_state
from unlearn_lib.util import ROOT, say

SPEC = Spec("stage", {"steps": 3, "seed": 7}, ("parent",), {"rows": "abc"}, "code")
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
SETTINGS = st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=4)


def compute(folder: Path) -> dict[str, Any]:
    (folder / "value.txt").write_text("42")
    return {"value": 42, "hardware": {"device": "cpu"}}


def interrupted(folder: Path) -> dict[str, Any]:
    (folder / "half.txt").write_text("step 5")
    raise KeyboardInterrupt


def killed(folder: Path) -> dict[str, Any]:
    (folder / "half.txt").write_text("step 5")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def slow(folder: Path) -> dict[str, Any]:
    with (folder.parents[1] / "calls.txt").open("a") as log:
        log.write("x")
    time.sleep(0.5)
    return compute(folder)


@given(SETTINGS)
def test_a_key_does_not_depend_on_the_order_of_settings(settings: dict[str, Any]) -> None:
    key = Spec("stage", settings).key
    assert Spec("stage", dict(reversed(settings.items()))).key == key
    assert Spec("stage", json.loads(json.dumps(settings))).key == key
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")


@given(SETTINGS, JSON, st.data())
def test_any_changed_setting_changes_the_key(
    settings: dict[str, Any], value: Any, data: Any
) -> None:
    changed = settings | {data.draw(st.sampled_from(sorted(settings))): value}
    assume(json.dumps(changed, sort_keys=True) != json.dumps(settings, sort_keys=True))
    assert Spec("stage", changed).key != Spec("stage", settings).key


def test_every_part_of_a_spec_counts() -> None:
    changes: list[dict[str, Any]] = [{"stage": "other"}, {"parents": ("other",)}, {"parents": ()}]
    changes += [{"data": {"rows": "abd"}}, {"code": "other"}]
    keys = {replace(SPEC, **change).key for change in changes}
    assert len(keys | {SPEC.key}) == 1 + len(changes)


def test_a_second_call_returns_the_stored_run(tmp_path: Path) -> None:
    calls = []

    def counted(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return compute(folder)

    first, second = (RunStore(tmp_path).get(SPEC, counted) for _ in range(2))
    assert len(calls) == 1
    assert first.folder == second.folder == tmp_path / "runs" / SPEC.key
    assert second.result["value"] == 42 and (second.folder / "value.txt").read_text() == "42"
    assert second.record["settings"] == SPEC.settings and second.record["parents"] == ["parent"]


def test_an_interrupted_run_is_none_and_a_later_call_computes_afresh(tmp_path: Path) -> None:
    runs = RunStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runs.get(SPEC, interrupted)
    assert runs.find(SPEC) is None and not list(tmp_path.glob("runs/*"))
    names = {path.name for path in runs.get(SPEC, compute).folder.iterdir()}
    assert names == {"value.txt", "run.json", "provenance.json"}


def swap(run: Any) -> None:
    other = RunStore(run.folder.parents[1]).get(replace(SPEC, stage="other"), compute)
    (run.folder / "run.json").write_text((other.folder / "run.json").read_text())


DAMAGES: dict[str, Callable[[Any], object]] = {
    "an altered file": lambda run: (run.folder / "value.txt").write_text("43"),
    "a file cut short": lambda run: (run.folder / "value.txt").write_text(""),
    "a missing file": lambda run: (run.folder / "value.txt").unlink(),
    "one more file": lambda run: (run.folder / "model.safetensors").write_text("x"),
    "altered provenance": lambda run: (run.folder / "provenance.json").write_text("{}"),
    "an emptied record": lambda run: (run.folder / "run.json").write_text(""),
    "no record": lambda run: (run.folder / "run.json").unlink(),
    "a list for a record": lambda run: (run.folder / "run.json").write_text("[]"),
    "an altered result": lambda run: (run.folder / "run.json").write_text(
        (run.folder / "run.json").read_text().replace("42", "43")
    ),
    "another run's record": swap,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_set_aside_and_computed_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = RunStore(tmp_path)
    DAMAGES[damage](runs.get(SPEC, compute))
    assert runs.find(SPEC) is None
    again = runs.get(SPEC, compute)
    assert again.result["value"] == 42 and (again.folder / "value.txt").read_text() == "42"
    assert runs.find(SPEC) and len(list(tmp_path.glob("damaged/*"))) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "(stage)" in said and "computed again" in said


def test_runs_that_know_a_private_book_are_for_one_user(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    RunStore(tmp_path / "own", private=True).get(SPEC, compute)
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


def test_what_a_system_hides_in_a_folder_is_no_damage(tmp_path: Path) -> None:
    runs = RunStore(tmp_path)
    (runs.get(SPEC, compute).folder / ".DS_Store").write_text("x")
    assert runs.find(SPEC) is not None


def test_a_resumable_run_finds_what_was_left(tmp_path: Path) -> None:
    runs = RunStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        runs.get(SPEC, interrupted, resumable=True)
    run = runs.get(SPEC, lambda f: {"left": (f / "half.txt").read_text()}, resumable=True)
    assert run.result == {"left": "step 5"}


def ask(folder: Path, how: Callable[[Path], dict[str, Any]]) -> None:
    assert RunStore(folder).get(SPEC, how).result["value"] == 42


def exit_codes(count: int, *arguments: Any) -> list[int | None]:
    """The exit codes of several processes that ask for the same run at once."""
    fresh = multiprocessing.get_context("spawn")
    processes = [fresh.Process(target=ask, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_two_processes_compute_once(tmp_path: Path) -> None:
    assert exit_codes(2, tmp_path, slow) == [0, 0]
    assert (tmp_path / "calls.txt").read_text() == "x"


def test_a_killed_process_leaves_no_run_and_no_lock(tmp_path: Path) -> None:
    assert exit_codes(1, tmp_path, killed) == [-signal.SIGKILL]
    runs = RunStore(tmp_path)
    assert runs.find(SPEC) is None
    assert not (runs.get(SPEC, compute).folder / "half.txt").exists()


def test_provenance_is_complete_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret_of_this_test")
    monkeypatch.setenv("USER", "user_of_this_test")
    say("A book of 3 chapters.")
    run = RunStore(tmp_path).get(SPEC, compute)
    origin = run.provenance
    assert "A book of 3 chapters." in origin["said"]
    assert {"git", "lock_sha256", "python", "machine"} < set(origin)
    assert origin["versions"]["torch"] and origin["versions"]["transformers"]
    assert (origin["seed"], origin["data"]) == (7, {"rows": "abc"})
    assert origin["hardware"] == {"device": "cpu"}
    assert origin["wall_seconds"] >= 0 and origin["peak_memory_bytes"] > 0
    for file in ("provenance.json", "run.json"):
        text = (run.folder / file).read_text()
        for private in (str(tmp_path), str(ROOT), str(Path.home()), "_of_this_test"):
            assert private not in text, (file, private)


def test_a_commit_is_of_this_tree_and_of_no_other(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for words in (
        "init -q",
        "add .",
        "-c user.name=a -c user.email=b commit -q --allow-empty -m c",
    ):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    assert len(git_state(tmp_path)["commit"]) == 40
    assert git_state(inner) == {"commit": None, "dirty": True}
    (inner / ".commit").write_text("$Format:%H$\n")
    git_state.cache_clear()
    assert git_state(inner)["commit"] is None
    (inner / ".commit").write_text("0123abcd\n")
    git_state.cache_clear()
    assert git_state(inner) == {"commit": "0123abcd", "dirty": True}


def test_an_archive_says_its_commit() -> None:
    attributes = (ROOT / ".gitattributes").read_text()
    assert (ROOT / ".commit").read_text().startswith("$Format:%H$")
    assert ".commit export-subst" in attributes and "eol=lf" in attributes
