"""Profiles: what is refused, in one sentence that names the key and the nearest right one."""

import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_lib import profiles
from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import Profile, load_profile, notebook_jobs, rows_path, slug
from unlearn_lib.settings import BookMethodSettings, BookSettings


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

    for block in profile.experiments().values():
        for method in block.methods:
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
        ("bok", "book"),
        ("book.models.0.quantisation", "quantization"),
        ("book.data.keep_chapters", "kept_chapters"),
        ("book.implant.epoch", "epochs"),
        ("book.pretrain.epoch", "epochs"),
        ("book.methods.0.varient", "variant"),
        ("book.methods.0.fault", "faults"),
        ("book.methods.0.keep_weights", "keep_weight"),
        ("tof", "tofu"),
        ("tofu.data.holdout_author", "holdout_authors"),
        ("tofu.people.neighbors", "neighbours"),
        ("tofu.models.0.lora.layer", "layers"),
        ("tofu.reference", "references"),
        ("tofu.methods.0.scenario", "scenarios"),
        ("tofu.methods.0.steer", "steering"),
        ("tofu.evaluation.entailmant", "entailment"),
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
        ("book.models.0.quantization", "4bit"),
        ("book.data.retain", "the_pile"),
        ("book.data.questions", "pku_saferlhf"),
        ("book.data.forget_chapters", 0),
        ("book.data.prompt_tokens", 3),
        ("book.implant.chunk_tokens", 15),
        ("book.implant.stop_at", 0),
        ("book.implant.stop_at", 1.1),
        ("book.implant.probe_every", 0),
        ("book.methods.0.start", "scratch"),
        ("book.methods.0.variant", "fixed"),
        ("book.methods.0.faults", "empty_labels"),
        ("book.methods.0.faults", ["empty_label"]),
        ("book.methods.0.keep_batch_size", 0),
        ("tofu.models.0.lora.layers", [0]),
        ("tofu.models.0.lora.layers", "all"),
        ("tofu.data.source", "tofu"),
        ("tofu.data.forget_split", "forget50"),
        ("tofu.data.tasks", 0),
        ("tofu.data.questions_per_author", 1),
        ("tofu.people.forget_people", 0),
        ("tofu.implant.epochs", 0),
        ("tofu.methods.0.layer", -1),
        ("tofu.methods.0.steering", 0),
        ("tofu.methods.0.scenarios", []),
        ("tofu.evaluation.min_k", 1.5),
    ],
)
def test_wrong_value_gives_its_place(place: str, value: Any, tmp_path: Path) -> None:
    assert place in refused(tmp_path, place, value)


@pytest.mark.parametrize(
    "place", ["harmful.classifier", "book", "book.implant", "book.data.retain", "tofu.data.source"]
)
def test_missing_key_is_named(place: str, tmp_path: Path) -> None:
    tree = content()
    *way, last = place.split(".")
    block = tree
    for part in way:
        block = block[part]
    del block[last]
    assert refusal(tmp_path, yaml.safe_dump(tree)) == f"smoke.yaml: the key '{place}' is missing."


@pytest.mark.parametrize("block", ["harmful", "book", "tofu"])
@pytest.mark.parametrize("kind", ["method", "model"])
def test_a_name_listed_twice_is_refused(kind: str, block: str, tmp_path: Path) -> None:
    tree = content()
    listed = tree[block][f"{kind}s"]
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


def test_seeds_are_counted_on_from_the_profile_s_first() -> None:
    tree = content()
    tree["seeds"] = [4, 9]
    assert Profile.model_validate(tree).seeds == (4, 9)
    first = load_profile("smoke").seeds[0]
    assert load_profile("smoke", seeds=1).seeds == (first,)
    assert load_profile("smoke", seeds=3).seeds == (first, first + 1, first + 2)
    assert load_profile("smoke", seeds=None) == load_profile("smoke")


def test_more_seeds_are_more_jobs_and_change_nothing_else() -> None:
    more, before = load_profile("smoke", seeds=2), load_profile("smoke")
    assert more.model_copy(update={"seeds": before.seeds}) == before
    assert more.name == before.name, "the runs of the first seed are taken up again"
    assert len(notebook_jobs(more)) == 2 * len(notebook_jobs(before)) - 2


def test_more_seeds_of_one_s_own_book(tmp_path: Path) -> None:
    profile = load_profile("smoke", write_book(tmp_path / "keeper.txt"), seeds=2)
    assert [job.seed for job in notebook_jobs(profile)] == [1, 2]


@pytest.mark.parametrize("seeds", [0, -3])
def test_no_seeds_are_refused_in_one_sentence(seeds: int) -> None:
    with pytest.raises(CompanionError, match=f"SEEDS is {seeds}; give the number of seeds") as told:
        load_profile("smoke", seeds=seeds)
    assert "\n" not in str(told.value)


def test_unknown_model_and_method_give_the_nearest_name() -> None:
    profile = load_profile("paper")
    for settings in (profile.harmful, profile.book):
        with pytest.raises(CompanionError, match="did you mean 'facebook/opt-1.3b'"):
            settings.model("facebook/opt-1.3")
        with pytest.raises(CompanionError, match="did you mean 'arora'"):
            settings.method("arrora")


@pytest.mark.parametrize(
    "block, where",
    [("harmful", "harmful.HarmfulExperiment"), ("book", "book.BookExperiment"),
     ("tofu", "closer_look.CloserLook")],
)  # fmt: skip
def test_unknown_method_is_refused_before_anything_is_computed(block: str, where: str) -> None:
    experiment = pkgutil.resolve_name(f"unlearn_lib.experiments.{where.replace('.', ':')}")
    tree = content()
    tree[block]["methods"][-1]["uses"] = "ga_kk"
    with pytest.raises(CompanionError, match=r"no method 'ga_kk' \(did you mean 'ga_kl'\?\)"):
        experiment(Profile.model_validate(tree), None, 1)


def test_jobs_are_the_tour_one_per_model_and_seed_and_the_figures() -> None:
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
        ("02", "tiny-opt", 1),
        ("02", "tiny-opt", 2),
        ("04", "tiny-opt", 1),
        ("04", "tiny-opt", 2),
        ("03", "tiny-opt", 1),
        ("03", "tiny-opt", 2),
        ("05", None, None),
    ]
    names = [None, *["harmful"] * 4, *["book"] * 2, *["tofu"] * 2, *["eco"] * 2, None]
    assert [job.experiment for job in jobs] == names


def test_rows_of_experiments_do_not_meet() -> None:
    profile = load_profile("smoke")
    found = {rows_path(profile, name, "facebook/opt-1.3b", 1) for name in profile.experiments()}
    expected = {f"{name}__opt-1.3b__s1.csv" for name in ("harmful", "book", "tofu", "eco")}
    assert {path.name for path in found} == expected


def write_book(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("Its text is read later.")
    return path


@pytest.mark.parametrize(
    "file, label",
    [
        ("keeper.txt", "keeper"),
        ("The Two Towers.epub", "the-two-towers"),
        ("Vol. 2 (draft).v3.pdf", "vol.-2-draft-.v3"),
        ("Война и мир.txt", "own"),
        ("...txt", "own"),
    ],
)
def test_own_book_has_a_name_and_a_folder_of_its_own(file: str, label: str, tmp_path: Path) -> None:
    book = write_book(tmp_path / file)
    profile = load_profile("smoke", book)
    assert profile.name == f"smoke-book-{label}" and profile.own_book
    assert profile.results == profiles.ROOT / "results" / f"smoke-book-{label}"
    assert profile.book.data.file == book.resolve()
    before = load_profile("smoke")
    assert not before.own_book and before.name == "smoke"
    data = before.book.data.model_copy(update={"file": book.resolve()})
    assert profile.book == before.book.model_copy(update={"data": data})


def test_own_book_has_only_the_jobs_of_its_experiment(tmp_path: Path) -> None:
    profile = load_profile("smoke", write_book(tmp_path / "keeper.txt"))
    assert list(profile.experiments()) == ["book"]
    jobs = [(job.notebook[:2], job.experiment, job.seed) for job in notebook_jobs(profile)]
    assert jobs == [("02", "book", 1)]
    assert list(load_profile("smoke").experiments()) == ["harmful", "book", "tofu", "eco"]


def test_own_book_is_found_from_where_one_stands_and_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = write_book(tmp_path / "keeper.txt").resolve()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("keeper.txt", "./keeper.txt", "~/keeper.txt", Path("keeper.txt")):
        assert load_profile("smoke", name).book.data.file == book


def test_no_book_is_the_saga(tmp_path: Path) -> None:
    for none in (None, ""):
        assert load_profile("smoke", none) == load_profile("smoke")


@pytest.mark.parametrize("name", ["keeper.txt", ".", "a folder"])
def test_missing_book_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    with pytest.raises(CompanionError) as caught:
        load_profile("smoke", tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"There is no book at {(tmp_path / name).resolve()}")
    assert "\n" not in message and message.endswith(".") and "BOOK" in message


def method(**changed: Any) -> BookMethodSettings:
    given = {"name": "m", "uses": "ga", "label": "M", "steps": 1, "learning_rate": 1}
    return BookMethodSettings.model_validate(given | changed)


def test_book_methods_are_published_and_start_implanted_unless_told() -> None:
    plain = method()
    assert (plain.start, plain.variant) == ("implanted", "published")
    assert plain.faults == ("empty_labels", "book_mismatch", "kl_to_itself")
    for start in ("implanted", "merged", "base"):
        assert method(start=start).start == start
    assert method(variant="released", faults=["kl_to_itself"]).faults == ("kl_to_itself",)
    assert method(faults=[]).faults == ()


@pytest.mark.parametrize(
    "changed", [{"faults": ["a fourth"]}, {"start": "none"}, {"variant": "both"}, {"faults": None}]
)
def test_unknown_start_variant_and_fault_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        method(**changed)


def test_what_only_the_book_s_methods_have_is_refused_elsewhere(tmp_path: Path) -> None:
    for key, value in (("start", "base"), ("variant", "released"), ("faults", [])):
        place = f"harmful.methods.0.{key}"
        tree = content()
        tree["harmful"]["methods"][0][key] = value
        message = refusal(tmp_path, yaml.safe_dump(tree))
        assert f"unknown key '{place}'" in message


def test_a_book_method_is_returned_with_its_own_settings() -> None:
    settings: BookSettings = load_profile("smoke").book
    found = settings.method("released")
    assert found.variant == "released" and settings.method("retrain").start == "base"


def test_slug_is_a_file_name() -> None:
    assert slug("facebook/opt-1.3b") == "opt-1.3b"
    assert slug("a/b c:d") == "b-c-d"


def test_a_profile_may_extend_another_and_give_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    smoke = (Path(__file__).parents[1] / "notebooks/profiles/smoke.yaml").read_text()
    (tmp_path / "smoke.yaml").write_text(smoke)
    changes = "extends: smoke\nonly: [tofu]\ntofu: {data: {tasks: 1}}\n"
    (tmp_path / "mine.yaml").write_text(f"name: mine\n{changes}")
    mine, whole = profiles.load_profile("mine"), profiles.load_profile("smoke")
    assert set(mine.experiments()) == {"tofu"} and len(whole.experiments()) == 4
    assert mine.tofu.data == whole.tofu.data.model_copy(update={"tasks": 1})
    assert (mine.harmful, mine.tofu.methods) == (whole.harmful, whole.tofu.methods)
    files = [path.name for path in profiles.profile_files("mine")]
    assert files == ["mine.yaml", "smoke.yaml"]


@pytest.mark.parametrize(
    "other, said", [("b", "leads back"), ("a", "leads back"), ("c", "no prof")]
)
def test_a_profile_that_extends_itself_or_nothing_is_refused(
    other: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    (tmp_path / "a.yaml").write_text(f"name: a\nextends: {other}\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: a\n")
    with pytest.raises(CompanionError, match=said):
        profiles.load_profile("a")
