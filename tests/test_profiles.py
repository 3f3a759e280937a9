"""Profiles: what is refused, in one sentence that names the key and the nearest right one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_lib import profiles
from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import Profile, load_profile, notebook_jobs, slug


def content() -> dict[str, Any]:
    return yaml.safe_load((profiles.PROFILES / "smoke.yaml").read_text())


def put(tree: Any, place: str, value: Any) -> None:
    """Set `harmful.methods.0.steps` in nested mappings and lists."""
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in way:
        tree = tree[part]
    tree[last] = value


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "smoke.yaml"
    path.write_text(text)
    with pytest.raises(CompanionError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith("smoke.yaml") and "\n" not in message and message.endswith(".")
    return message


def refused(tmp_path: Path, place: str, value: Any) -> str:
    tree = content()
    put(tree, place, value)
    return refusal(tmp_path, yaml.safe_dump(tree))


@pytest.mark.parametrize("name", sorted(path.stem for path in profiles.PROFILES.glob("*.yaml")))
def test_every_profile_is_valid(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.results == profiles.ROOT / "results" / name
    from unlearn_lib.methods import find_method

    for method in profile.harmful.methods:
        find_method(method.uses)


def test_the_three_sizes_are_there() -> None:
    assert {"smoke", "laptop", "paper"} <= {path.stem for path in profiles.PROFILES.glob("*.yaml")}


def test_unknown_profile_gives_the_nearest_name() -> None:
    with pytest.raises(CompanionError, match=r"no profile 'laptob' \(did you mean 'laptop'\?\)"):
        load_profile("laptob")
    with pytest.raises(CompanionError, match=r"no profile 'xyzzy' \(known: laptop, paper, smoke"):
        load_profile("xyzzy")


@pytest.mark.parametrize(
    "place, nearest",
    [
        ("sead", "seeds"),
        ("harmful.modles", "models"),
        ("harmful.models.0.precison", "precision"),
        ("harmful.models.0.lora.rnk", "rank"),
        ("harmful.implant.epoch", "epochs"),
        ("harmful.data.templat", "template"),
        ("harmful.methods.1.learning_rte", "learning_rate"),
        ("harmful.classifier.treshold", "threshold"),
        ("harmful.evaluation.new_token", "new_tokens"),
    ],
)
def test_misspelt_key_gives_its_place_and_the_nearest_name(
    place: str, nearest: str, tmp_path: Path
) -> None:
    assert refused(tmp_path, place, 1) == (
        f"smoke.yaml: unknown key '{place}' (did you mean '{nearest}'?)."
    )


@pytest.mark.parametrize(
    "place, value",
    [
        ("seeds", "one"),
        ("seeds", []),
        ("offline", "perhaps"),
        ("device", "gpu"),
        ("harmful.models", []),
        ("harmful.models.0.precision", "float8"),
        ("harmful.models.0.lora.rank", 0),
        ("harmful.data.held_out_share", 1.5),
        ("harmful.data.forget", "toxic"),
        ("harmful.methods.0.steps", "many"),
        ("harmful.methods.0.learning_rate", -1),
        ("harmful.methods.0.name", "With Blanks"),
        ("harmful.classifier.threshold", 1.0),
        ("harmful.evaluation", 3),
    ],
)
def test_wrong_value_gives_its_place(place: str, value: Any, tmp_path: Path) -> None:
    assert place in refused(tmp_path, place, value)


def test_missing_key_is_named(tmp_path: Path) -> None:
    tree = content()
    del tree["harmful"]["classifier"]
    assert refusal(tmp_path, yaml.safe_dump(tree)) == (
        "smoke.yaml: the key 'harmful.classifier' is missing."
    )


@pytest.mark.parametrize("kind", ["method", "model"])
def test_a_name_listed_twice_is_refused(kind: str, tmp_path: Path) -> None:
    tree = content()
    listed = tree["harmful"][f"{kind}s"]
    listed.append(listed[0])
    assert f"{kind} '" in (message := refusal(tmp_path, yaml.safe_dump(tree)))
    assert "listed twice" in message


@pytest.mark.parametrize("text", ["name: [smoke", "a: b: c", "\t- x"])
def test_broken_yaml_is_named(text: str, tmp_path: Path) -> None:
    assert "not readable YAML" in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just text"])
def test_yaml_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    assert "copy laptop.yaml" in refusal(tmp_path, text)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "smoke.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(CompanionError, match="not readable YAML"):
        load_profile(tmp_path / "smoke.yaml")


def test_name_must_be_the_file_s(tmp_path: Path) -> None:
    """Otherwise two profiles would share a results folder."""
    assert "'name' is 'laptop'; it must be 'smoke'" in refused(tmp_path, "name", "laptop")


@pytest.mark.parametrize("name", ["reference", "../up", "a/b", ".hidden", ""])
def test_name_that_would_leave_the_results_folder_is_refused(name: str, tmp_path: Path) -> None:
    assert "'name'" in refused(tmp_path, "name", name)


def test_judge_without_its_data_is_refused(tmp_path: Path) -> None:
    assert "classifier.data is 'human_scored'" in refused(
        tmp_path, "harmful.classifier.data", "human_scored"
    )
    assert "'embedding' cannot learn from jigsaw" in refused(
        tmp_path, "harmful.classifier.data", "jigsaw"
    )


def test_profiles_cannot_be_changed() -> None:
    profile = load_profile("smoke")
    with pytest.raises(ValueError, match="frozen"):
        profile.harmful.methods[0].steps = 5  # type: ignore[misc]


def test_unknown_model_and_method_give_the_nearest_name() -> None:
    settings = load_profile("paper").harmful
    with pytest.raises(CompanionError, match="did you mean 'facebook/opt-1.3b'"):
        settings.model("facebook/opt-1.3")
    with pytest.raises(CompanionError, match="did you mean 'arora'"):
        settings.method("arrora")


def test_unknown_method_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    from unlearn_lib.experiments.harmful import HarmfulExperiment

    tree = content()
    tree["harmful"]["methods"][-1]["uses"] = "ga_kk"
    with pytest.raises(CompanionError, match=r"no method 'ga_kk' \(did you mean 'ga_kl'\?\)"):
        HarmfulExperiment(Profile.model_validate(tree), None, 1)


def test_jobs_are_the_tour_and_one_per_model_and_seed() -> None:
    tree = content()
    tree["seeds"] = [1, 2]
    tree["harmful"]["models"].append({"id": "facebook/opt-1.3b"})
    jobs = notebook_jobs(Profile.model_validate(tree))
    assert [(job.notebook[:2], job.model_slug, job.seed) for job in jobs] == [
        ("00", None, None),
        ("01", "tiny-opt", 1),
        ("01", "tiny-opt", 2),
        ("01", "opt-1.3b", 1),
        ("01", "opt-1.3b", 2),
    ]


def test_slug_is_a_file_name() -> None:
    assert slug("facebook/opt-1.3b") == "opt-1.3b"
    assert slug("a/b c:d") == "b-c-d"
