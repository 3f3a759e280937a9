"""What `check` refuses before anything is trained, and when it says that results are out of date."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_lib.check import check
from unlearn_lib.profile import load_profile
from unlearn_lib.util import CompanionError

AUTHORS = ("tasks", "authors")
SENSELESS: dict[str, tuple[tuple[str, ...], Any]] = {
    "inf": ((*AUTHORS, "method", "learning_rate"), float("inf")),
    "nan": ((*AUTHORS, "method", "beta"), float("nan")),
    "steps beyond reason": ((*AUTHORS, "method", "steps"), 10**12),
    "a batch beyond reason": ((*AUTHORS, "method", "batch_size"), 10**9),
    "a rank beyond reason": (("models", "embedded/tiny-opt", "lora", "rank"), 10**7),
    "blocks that fall": (("models", "embedded/tiny-opt", "lora", "layers"), [3, 1]),
    "a negative block": (("models", "embedded/tiny-opt", "lora", "layers"), [-1, 1]),
    "equal seeds": (("seeds",), [1, 1]),
    "a negative seed": (("seeds",), [-1]),
    "a seed beyond torch": (("seeds",), [2**40]),
    "a shell command": (("models", "me/$(touch x)model"), {}),
    "a path for an id": (("models", "../secret/model"), {}),
    "an absolute path": (("models", "/etc/passwd"), {}),
    "two short names": (("models", "other/Tiny-OPT"), {}),
    "two labels": (("methods", "me_gd", "label"), "GA + GD"),
    "a method called base": (("methods", "base"), {"uses": "ga"}),
    "attacked nobody": ((*AUTHORS, "evaluation", "attacked"), ["nope"]),
    "an encoder that is not there": (("evaluation", "encoder"), "no/encoder"),
    "an encoder that is no id": (("evaluation", "encoder"), "a b"),
    "a judge that is not there": (("tasks", "harm", "judge", "base"), "no/judge"),
    "a classifier that is not there": (("guards", "eco", "classifier", "base"), "no/base"),
    "a width of a million": ((*AUTHORS, "evaluation", "scaling"), [10**6]),
    "a prefix that reads more": (("guards", "prompting", "prefix"), "{topic.__class__}"),
    "a prefix of braces": (("guards", "prompting", "prefix"), "Say {nothing}."),
    "more authors than there are": ((*AUTHORS, "data", "authors_per_task"), 50_000),
    "more chapters than there are": (("tasks", "book", "data", "forget_chapters"), 500),
    "a file that is not there": (("tasks", "harm", "judge", "file"), "nowhere.csv"),
    "data that is not there": (("tasks", "science", "data"), {"source": "wmdp"}),
    "more people than there are": (("tasks", "people", "data", "forget_people"), 10**5),
    "a chat with the tiny model": ((*AUTHORS, "data", "template"), "chat"),
    "a prompt beyond the tiny model": ((*AUTHORS, "data", "prompt_tokens"), 600),
    "only the same": (("only",), ["harm", "harm"]),
}


def profile_of(folder: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Profile `mine`: smoke with changes; its results lie below the folder."""
    monkeypatch.setattr("unlearn_lib.profile.ROOT", folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = yaml.safe_dump({"name": "mine", "extends": "smoke"} | changes)
    (folder / "mine.yaml").write_text(text)
    return load_profile(folder / "mine.yaml")


def changed(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A tree with one value at a place; a further method or model is run by task authors."""
    for key in reversed(place):
        value = {key: value}
    tree: dict[str, Any] = value
    if place[0] == "methods":
        tree |= {"tasks": {"authors": {"methods": ["ga_gd", "me_gd", place[1]]}}}
    return tree


@pytest.mark.parametrize("fault", SENSELESS)
def test_what_cannot_be_meant_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CompanionError) as refused:
        check(profile_of(tmp_path, changed(*SENSELESS[fault]), monkeypatch))
    assert str(refused.value).count("\n") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"], "nothing is written"


@pytest.mark.parametrize(
    "text, words",
    [
        ("name: mine\nextends: smoke\nseeds: [1]\nseeds: [2]\n", "'seeds' stands twice"),
        ("name: mine\nextends: smoke\ntasks:\n  book: null\n  book: {}\n", "'book' stands twice"),
        ("name: mine\nextends: smoke\nseeds: &a [*a]\n", "mine.yaml: "),
        ("name: mine\nextends: smoke\nseeds: !!python/object:os.system [1]\n", "not readable"),
        ("[" * 5000, "not readable YAML"),
    ],
)
def test_yaml_that_says_a_thing_twice_or_more_than_data_is_refused(
    text: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(CompanionError, match=words):
        load_profile(tmp_path / "mine.yaml")


def test_inputs_are_told_by_content_and_not_by_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"question": "Who rows?", "answer": "Ann does.", "perturbed_answer": ["Bob does."]}
    (tmp_path / "forget.jsonl").write_text(json.dumps(rows))
    (tmp_path / "retain.jsonl").write_text(json.dumps(rows | {"question": "Who swims?"}))
    named = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    own = {"source": "files", "tasks": 1, "holdout_authors": 0, **named}
    tree: Any = {"only": ["authors"], "tasks": {"authors": {"data": own, "guards": []}}}
    tree["tasks"]["authors"]["evaluation"] = {"attacked": []}
    profile = profile_of(tmp_path, tree, monkeypatch)
    inputs = profile.results / "inputs.json"

    def written() -> bool:
        before = inputs.stat().st_ino if inputs.exists() else 0
        check(profile)
        return inputs.stat().st_ino != before

    assert written() and not written()
    os.utime(tmp_path / "forget.jsonl")
    assert not written(), "touched, not changed"
    (tmp_path / "forget.jsonl").write_text(json.dumps(rows | {"answer": "Eve does."}))
    os.utime(tmp_path / "forget.jsonl", (1, 1))
    assert written(), "replaced by an older file"
    (profile.results / "origin.json").write_text(json.dumps({"runs": ["gone"]}))
    assert written(), "a run of the results is gone"
    (profile.results / "runs" / "gone").mkdir(parents=True)
    assert not written()
    drawn, marker = profile.results / "figures", profile.results / ".figures"
    drawn.mkdir()
    (drawn / "provenance.json").write_text(json.dumps({"pictures": ["a.png"]}))
    (drawn / "a.png").touch()
    marker.touch()
    check(profile)
    assert marker.exists()
    (drawn / "a.png").unlink()
    check(profile)
    assert not marker.exists(), "a picture was deleted: they are drawn again"
    longer = {"tasks": {"authors": {"method": {"steps": 5}}}}
    profile = profile_of(tmp_path, {**tree, **longer}, monkeypatch)
    assert written(), "another setting"
