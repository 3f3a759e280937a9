"""The run store: keys, whole-or-nothing commits, resuming, and which setting reruns what."""

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib import runs
from unlearn_lib.runs import Run, RunStore, Spec, merge_provenance, provenance

SPEC = Spec("stage", {"steps": 3, "seed": 7}, ("parent",), {"rows": "abc"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
SETTINGS = st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=4)


def compute(folder: Path) -> dict[str, Any]:
    (folder / "value.txt").write_text("42")
    return {"value": 42, "hardware": {"device": "cpu"}}


def backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: backwards(value[name]) for name in reversed(value)}
    return [backwards(part) for part in value] if isinstance(value, list) else value


@given(SETTINGS)
def test_key_does_not_depend_on_the_order_of_settings(settings: dict[str, Any]) -> None:
    key = Spec("stage", settings).key
    assert Spec("stage", backwards(settings)).key == key
    assert Spec("stage", json.loads(json.dumps(settings))).key == key
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")


@given(SETTINGS, st.data())
def test_any_changed_setting_changes_the_key(settings: dict[str, Any], draw: Any) -> None:
    name = draw.draw(st.sampled_from(sorted(settings)))
    other = draw.draw(JSON.filter(lambda value: json.dumps(value) != json.dumps(settings[name])))
    changed = settings | {name: other}
    if json.dumps(changed, sort_keys=True) != json.dumps(settings, sort_keys=True):
        assert Spec("stage", changed).key != Spec("stage", settings).key


def test_every_part_of_a_spec_counts() -> None:
    others = [
        Spec("other", SPEC.settings, SPEC.parents, SPEC.data),
        Spec("stage", SPEC.settings, ("other",), SPEC.data),
        Spec("stage", SPEC.settings, (), SPEC.data),
        Spec("stage", SPEC.settings, SPEC.parents, {"rows": "abd"}),
        Spec("stage", SPEC.settings, SPEC.parents, SPEC.data, version=2),
    ]
    assert len({SPEC.key, *(spec.key for spec in others)}) == 1 + len(others)


def test_key_stays_as_it_was() -> None:
    """Stored results are found by it: whoever changes it makes everyone compute again."""
    assert SPEC.key == "756e404c3732083c9969aca7243e7b4439db600087a808641d9cbca58c4844d2"


def test_second_call_returns_the_stored_run(tmp_path: Path) -> None:
    store, calls = RunStore(tmp_path), []

    def counted(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return compute(folder)

    first, second = store.get(SPEC, counted), store.get(SPEC, counted)
    assert len(calls) == 1 and not first.cached and second.cached
    assert first.folder == second.folder == tmp_path / "runs" / SPEC.key
    assert second.result["value"] == 42 and (second.folder / "value.txt").read_text() == "42"
    assert store.visited == [first, second]
    assert RunStore(tmp_path).get(SPEC, counted).cached and len(calls) == 1


def test_crash_leaves_no_run_and_a_later_call_computes_afresh(tmp_path: Path) -> None:
    store = RunStore(tmp_path)

    def crash(folder: Path) -> dict[str, Any]:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(SPEC, crash)
    assert store.find(SPEC) is None and not list(tmp_path.glob("runs/*"))
    run = store.get(SPEC, compute)
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"value.txt", "run.json", "provenance.json"}


def test_result_that_cannot_be_written_leaves_no_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with pytest.raises(TypeError):
        store.get(SPEC, lambda folder: {"value": object()})
    assert store.find(SPEC) is None
    assert store.get(SPEC, compute).result["value"] == 42


def test_resumable_run_finds_what_was_left(tmp_path: Path) -> None:
    store = RunStore(tmp_path)

    def crash(folder: Path) -> dict[str, Any]:
        (folder / "checkpoint.txt").write_text("step 5")
        raise RuntimeError

    def resume(folder: Path) -> dict[str, Any]:
        return {"found": (folder / "checkpoint.txt").read_text()}

    with pytest.raises(RuntimeError):
        store.get(SPEC, crash, resumable=True)
    assert store.get(SPEC, resume, resumable=True).result == {"found": "step 5"}


def test_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.get(SPEC, compute)
    (tmp_path / "runs" / SPEC.key / "run.json").unlink()
    assert store.find(SPEC) is None
    assert not store.get(SPEC, compute).cached


def slow(folder: Path) -> dict[str, Any]:
    import time

    with open(folder.parents[1] / "calls.txt", "a") as log:
        log.write("x")
    time.sleep(0.5)
    return compute(folder)


def killed(folder: Path) -> dict[str, Any]:
    (folder / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def ask(folder: Path, how: Callable[[Path], dict[str, Any]]) -> None:
    assert RunStore(folder).get(SPEC, how).result["value"] == 42


def test_two_processes_compute_once(tmp_path: Path) -> None:
    fresh = multiprocessing.get_context("spawn")
    both = [fresh.Process(target=ask, args=(tmp_path, slow)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "calls.txt").read_text() == "x"


def test_killed_process_leaves_no_run_and_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=ask, args=(tmp_path, killed))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    store = RunStore(tmp_path)
    assert store.find(SPEC) is None
    run = store.get(SPEC, compute)
    assert not (run.folder / "half.txt").exists()


def test_provenance_is_complete_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_this_test")
    monkeypatch.setenv("USER", "user_of_this_test")
    run = RunStore(tmp_path).get(SPEC, compute)
    origin = run.provenance
    assert origin.keys() == {
        "git", "lock_sha256", "python", "machine", "versions", "data", "seed", "hardware",
        "wall_seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert origin["git"].keys() == {"commit", "dirty"}
    assert set(origin["versions"]) == set(runs.PACKAGES) and all(origin["versions"].values())
    assert len(origin["lock_sha256"]) == 64
    assert (origin["seed"], origin["data"]) == (7, {"rows": "abc"})
    assert origin["hardware"] == {"device": "cpu"}
    assert origin["wall_seconds"] >= 0 and origin["peak_memory_bytes"] > 0
    for file in ("provenance.json", "run.json"):
        text = (run.folder / file).read_text()
        for private in (str(tmp_path), str(runs.ROOT), str(Path.home()), "_of_this_test"):
            assert private not in text, (file, private)
    assert run.record["parents"] == ["parent"] and run.record["settings"] == SPEC.settings


def test_provenance_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    runs._git.cache_clear()
    assert provenance()["git"] == {"commit": None, "dirty": True}
    runs._git.cache_clear()


def test_merged_provenance_names_each_run_once() -> None:
    twice = [Run("b", Path(), True), Run("a", Path(), True), Run("b", Path(), False)]
    assert merge_provenance(twice)["runs"] == ["a", "b"]


# Which setting of a profile reruns what -----------------------------------------------------

METHODS = {
    "ga": "ga",
    "ga_gd": "ga_gd",
    "ga_kl": "ga_kl",
    "arora": "ga_mismatch_kl",
    "retain_only": "retain_only",
    "refusal": "npo_refusal_kl",
    "refusal_only": "refusal_kl",
}
EVERY = tuple(METHODS)
ALL = ("none", *EVERY)
OWN = ("refusal", "refusal_only")


def after(*methods: str) -> set[str]:
    """The runs of these methods, from training on."""
    return {f"{stage} {name}" for name in methods for stage in ("unlearn", "answers", "measure")}


def of(stage: str, *methods: str) -> set[str]:
    return {f"{stage} {name}" for name in methods}


EVALUATED = of("answers", *ALL) | of("measure", *ALL)
FIRST_METHOD = "harmful.methods.0."
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    # nothing that a result depends on
    ({"device": "cpu"}, set()),
    ({"offline": False}, set()),
    ({FIRST_METHOD + "label": "other words"}, set()),
    ({FIRST_METHOD + "checkpoint_every": 3}, set()),
    ({"harmful.evaluation.bleurt": "nobody/has-it"}, set()),
    # one method
    ({FIRST_METHOD + "steps": 13}, after("ga")),
    ({FIRST_METHOD + "learning_rate": 2e-3}, after("ga")),
    ({"harmful.methods.3.mismatch_answers": 2}, after("arora")),
    ({"harmful.methods.5.beta": 0.2}, after("refusal")),
    # how answers are made and judged
    ({"harmful.methods.6.own_tokens": 20}, after("refusal_only")),
    ({"harmful.evaluation.new_tokens": 31}, EVALUATED),
    ({"harmful.evaluation.batch_size": 8}, EVALUATED | {"own"} | after(*OWN)),
    ({"harmful.data.evaluation_prompts": 15}, EVALUATED),
    ({"harmful.data.normal_prompts": 15}, EVALUATED),
    ({"harmful.classifier.threshold": 0.4}, of("measure", *ALL)),
    ({"harmful.classifier.epochs": 2}, of("measure", *ALL) | {"classifier"}),
    # what is trained on
    ({"harmful.data.retain_rows": 9}, after(*EVERY[1:]) | {"own"}),
    ({"harmful.data.forget_rows": 9}, after(*(name for name in EVERY if name != "retain_only"))),
    ({"harmful.data.harmless_below": 0.01}, set()),
    ({"harmful.data.harmless_below": 0.3}, after(*OWN)),
    ({"harmful.data.answer_tokens": 63}, EVALUATED | {"own"} | after(*EVERY)),
    ({"harmful.models.0.lora.rank": 4}, after(*EVERY)),
    ({"harmful.data.split_seed": 5}, EVALUATED | {"own", "classifier"} | after(*EVERY)),
    ({"seeds.0": 2}, after(*EVERY)),
]


def smoke(implant: bool = False) -> dict[str, Any]:
    """Profile smoke with every method and, unless asked for, no implanting."""
    import yaml

    from unlearn_lib.profiles import PROFILES

    content = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
    common = {"steps": 12, "learning_rate": 1.0e-3, "label": "words"}
    content["harmful"]["methods"] = [
        {"name": name, "uses": uses} | common for name, uses in METHODS.items()
    ]
    if not implant:
        content["harmful"]["implant"] = None
    return content


def put(tree: Any, place: str, value: Any) -> None:
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in way:
        tree = tree[part]
    tree[last] = value


def keys_of(content: dict[str, Any]) -> dict[str, str]:
    """The key of every run of a profile; nothing is computed."""
    from unlearn_lib.experiments.harmful import HarmfulExperiment
    from unlearn_lib.profiles import Profile

    profile = Profile.model_validate(content)
    experiment = HarmfulExperiment(profile, None, profile.seeds[0])

    def record(spec: Spec, compute: Any, resumable: bool = False) -> Run:
        return Run(spec.key, experiment.store.folder / "runs" / spec.key, True)

    experiment.store.get = record  # type: ignore[method-assign]
    keys = {"own": experiment.own_answers(60).key, "classifier": experiment.classifier().key}
    keys |= {f"implant {i}": key for i, key in enumerate(experiment.original()[1])}
    for name in ("none", *experiment.methods):
        keys[f"answers {name}"] = experiment.answers(name).key
        keys[f"measure {name}"] = experiment.measured(name).key
        if name != "none":
            keys[f"unlearn {name}"] = experiment.unlearned(name).key
    assert len(set(keys.values())) == len(keys)
    return keys


@pytest.fixture(scope="module")
def unchanged() -> dict[str, str]:
    return keys_of(smoke())


@pytest.mark.parametrize("changed, rerun", CHANGES, ids=[next(iter(c)) for c, _ in CHANGES])
def test_a_changed_setting_reruns_what_depends_on_it_and_nothing_else(
    changed: dict[str, Any], rerun: set[str], unchanged: dict[str, str]
) -> None:
    content = smoke()
    for place, value in changed.items():
        put(content, place, value)
    keys = keys_of(content)
    assert {name for name in keys if keys[name] != unchanged[name]} == rerun


def test_keys_are_the_same_in_every_process_and_call(unchanged: dict[str, str]) -> None:
    assert keys_of(smoke()) == unchanged


def test_a_method_added_renamed_or_taken_away_reruns_no_other(unchanged: dict[str, str]) -> None:
    content = smoke()
    del content["harmful"]["methods"][1:3]
    content["harmful"]["methods"][0]["name"] = "ascent"
    keys = {name.replace("ascent", "ga"): key for name, key in keys_of(content).items()}
    assert keys.items() <= unchanged.items()


def test_more_evaluation_prompts_do_not_implant_again() -> None:
    """The tiny model's tokenizer is made of the data, but not of the profile's limits."""
    before = keys_of(smoke(implant=True))
    content = smoke(implant=True)
    content["harmful"]["data"] |= {"evaluation_prompts": 15, "normal_prompts": 15}
    keys = keys_of(content)
    assert {name for name in keys if keys[name] != before[name]} == EVALUATED
    content["harmful"]["implant"]["epochs"] += 1
    keys = keys_of(content)
    assert {name for name in keys if keys[name] == before[name]} == {"classifier"}


def test_altered_encoder_is_another_measure_run(
    unchanged: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from unlearn_lib.assets import find_model

    name = smoke()["harmful"]["evaluation"]["encoder"]
    folder = tmp_path / "models" / name
    shutil.copytree(find_model(name).folder, folder)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path))
    keys = keys_of(smoke())
    rerun = {found for found in keys if keys[found] != unchanged[found]}
    assert rerun == {"classifier"} | of("measure", *ALL)
