"""Profiles: how a file is written out for each task, and what is refused in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearn_lib import profile as profiles
from unlearn_lib.profile import load_profile
from unlearn_lib.unlearn.methods import find_method
from unlearn_lib.util import CompanionError

NAMES = sorted(path.stem for path in profiles.PROFILES.glob("*.yaml"))
SMALL = """
name: small
seeds: [4, 9]
models: {first: {precision: float32}, second: {lora: {rank: 4}}}
methods: {ga: {forget_weight: 0.5, label: GA}, npo: {steps: 7, beta: 0.2}}
guards: {eco: {classifier: {base: encoder, epochs: 5}, threshold: 0.1}, prompting: {}}
evaluation: {encoder: encoder, new_tokens: 30}
tasks:
  authors:
    models: [second]
    model: {lora: {alpha: 5}}
    data: {source: embedded, tasks: 2}
    teach: {epochs: 3, learning_rate: 1}
    retain_models: {second: exact}
    methods: [npo, ga]
    method: {steps: 3, learning_rate: 1}
    guards: [eco]
    overrides: {ga: {forget_weight: 2, steps: 4}, eco: {threshold: 0.5, classifier: {epochs: 2}}}
    evaluation: {new_tokens: 9, attacked: [target, eco], scaling: [8]}
  continual: {methods: [ga], data: {tasks: 3}}
  people: {data: {}, methods: [ga], method: {steps: 6}}
  harm:
    data: {forget: embedded, retain: embedded}
    judge: {base: encoder, data: embedded}
    methods: [ga]
    overrides: {ga: {steps: 1, learning_rate: 2}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of profiles, with `small` in it."""
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


def refusal(folder: Path, place: str, value: Any) -> str:
    """The sentence that refuses `small` with a value put at a place, such as `tasks.harm`."""
    block = tree = yaml.safe_load(SMALL)
    *way, last = place.split(".")
    for part in way:
        block = block.setdefault(part, {})
    block[last] = value
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(CompanionError) as caught:
        load_profile("small")
    message = str(caught.value)
    assert message.startswith("small.yaml") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_can_run(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name and profile.running()
    for task in profile.running().values():
        assert task.methods or task.guard_names
        for key, method in task.methods.items():
            find_method(method.uses or key)


def test_a_task_takes_from_the_tables_and_says_what_differs(folder: Path) -> None:
    profile = load_profile("small")
    task = profile.task("authors")
    (model,) = task.models
    assert (model.id, model.precision) == ("second", "bfloat16")
    assert (model.lora.rank, model.lora.alpha) == (4, 5)
    ga, npo = task.method("ga"), task.method("npo")
    assert list(task.methods) == ["npo", "ga"]
    assert (ga.forget_weight, ga.steps, ga.learning_rate) == (2, 4, 1)
    assert (npo.forget_weight, npo.steps, npo.beta) == (1, 3, 0.2)
    eco = task.guards.eco
    assert (eco.threshold, eco.classifier.base, eco.classifier.epochs) == (0.5, "encoder", 2)
    assert task.guard_names == ["eco"]
    assert (task.evaluation.encoder, task.evaluation.new_tokens) == ("encoder", 9)
    harm = profile.task("harm")
    assert [each.id for each in harm.models] == ["first", "second"]
    assert (harm.method("ga").forget_weight, harm.method("ga").learning_rate) == (0.5, 2)
    assert harm.evaluation.new_tokens == 30
    assert profile.labels() | {"ga": "GA", "npo": "npo", "eco": "ECO (guard)"} == profile.labels()


def test_continual_and_people_take_from_authors(folder: Path) -> None:
    profile = load_profile("small")
    authors, continual, people = (profile.task(n) for n in ("authors", "continual", "people"))
    assert continual.models == people.models == authors.models
    assert continual.teach == authors.teach and people.teach is None
    assert continual.retain_models == {"second": "exact"} and people.retain_models == {}
    assert continual.data == authors.data.model_copy(update={"tasks": 3})
    ga = continual.method("ga"), people.method("ga")
    assert [(each.steps, each.forget_weight) for each in ga] == [(3, 0.5), (6, 0.5)]
    for task in (continual, people):
        assert task.evaluation.new_tokens == 9 and not task.guard_names


def test_a_profile_extends_another(folder: Path) -> None:
    changes = "only: [harm]\ntasks: {authors: {data: {tasks: 1}, methods: [ga]}, people: null}"
    (folder / "mine.yaml").write_text(f"name: mine\nextends: small\n{changes}")
    mine, small = load_profile("mine"), load_profile("small")
    assert list(small.running()) == ["harm", "authors", "continual", "people"]
    assert list(mine.running()) == ["harm"] and mine.task("harm") == small.task("harm")
    authors = mine.task("authors")
    assert authors.data == small.task("authors").data.model_copy(update={"tasks": 1})
    assert list(authors.methods) == ["ga"]
    with pytest.raises(CompanionError, match="people"):
        mine.task("people")


@pytest.mark.parametrize("other", ["a", "b", "c", "3"])
def test_a_profile_that_extends_itself_or_nothing_is_refused(folder: Path, other: str) -> None:
    (folder / "a.yaml").write_text(f"name: a\nextends: {other}\n")
    (folder / "b.yaml").write_text("name: b\nextends: a\n")
    with pytest.raises(CompanionError, match=other):
        load_profile("a")


@pytest.mark.parametrize(
    "place, value, nearest",
    [
        ("sead", 1, "seeds"),
        ("modls", {}, "models"),
        ("evaluaton", {}, "evaluation"),
        ("models.first.precison", "float32", "precision"),
        ("methods.unused.learning_rte", 1, "learning_rate"),
        ("tasks.hram", {}, "harm"),
        ("tasks.harm.models", ["frist"], "first"),
        ("tasks.harm.methods", ["gaa"], "ga"),
        ("tasks.harm.method.stps", 1, "steps"),
        ("tasks.harm.guards", ["promting"], "prompting"),
        ("tasks.harm.judge.treshold", 0.5, "threshold"),
        ("tasks.harm.evaluation.new_token", 9, "new_tokens"),
        ("tasks.authors.guard", ["eco"], "guards"),
        ("tasks.authors.model.precison", "float32", "precision"),
        ("tasks.authors.teach.epoch", 1, "epochs"),
        ("tasks.authors.retain_models.secnd", "exact", "second"),
        ("tasks.authors.overides", {}, "overrides"),
        ("tasks.authors.overrides.ecco", {}, "eco"),
        ("tasks.authors.overrides.eco.serch", {}, "search"),
        ("tasks.authors.overrides.eco.classifier.epoch", 1, "epochs"),
        ("tasks.people.data.neighbors", 4, "neighbours"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest(
    folder: Path, place: str, value: Any, nearest: str
) -> None:
    assert f"(did you mean '{nearest}'?)" in refusal(folder, place, value)


@pytest.mark.parametrize(
    "place, value",
    [
        ("seeds", []),
        ("name", "other"),
        ("name", "reference"),
        ("tasks", None),
        ("methods", ["ga"]),
        ("only", ["author"]),
        ("tasks.harm", 3),
        ("tasks.harm.methods", "ga"),
        ("tasks.harm.methods", [{"name": "ga"}]),
        ("tasks.harm.data", None),
        ("tasks.authors.teach.epochs", 0),
        ("tasks.authors.data.source", "tofu"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(folder: Path, place: str, value: Any) -> None:
    assert place in refusal(folder, place, value)


@pytest.mark.parametrize("text", ["name: [small", "", "- a\n", "just text", "name: \x00"])
def test_a_file_that_is_no_profile_is_named(folder: Path, text: str) -> None:
    (folder / "small.yaml").write_text(text)
    with pytest.raises(CompanionError, match=r"small\.yaml"):
        load_profile("small")


def test_an_unknown_name_gives_the_nearest(folder: Path) -> None:
    task = load_profile("small").task("authors")
    asks = {"smal": load_profile, "secnd": task.model, "npoo": task.method}
    for name, ask in asks.items():
        with pytest.raises(CompanionError, match="did you mean"):
            ask(name)


def test_seeds_are_counted_on_from_the_first(folder: Path) -> None:
    assert load_profile("small").seeds == (4, 9)
    more = load_profile("small", seeds=3)
    assert more.seeds == (4, 5, 6) and more.name == "small"
    with pytest.raises(CompanionError, match="SEEDS"):
        load_profile("small", seeds=0)


@pytest.mark.parametrize(
    "file, label",
    [
        ("The Two Towers.epub", "the-two-towers"),
        ("v.2 (a).txt", "v.2-a"),
        ("…", "own"),
        ("Война и мир.txt", "война-и-мир"),
        ("红楼梦.txt", "红楼梦"),
        ("हिन्दी_कथा.txt", "हिन्दी-कथा"),
        ("Cafe\u0301.txt", "caf\u00e9"),
        ("雨" * 80 + ".txt", "雨" * 40),
    ],
)
def test_an_own_book_is_the_only_task_and_lies_apart(tmp_path: Path, file: str, label: str) -> None:
    book = tmp_path / file
    with pytest.raises(CompanionError, match="BOOK"):
        load_profile("smoke", book)
    book.write_text("Its text is read later.")
    profile, before = load_profile("smoke", book, seeds=2), load_profile("smoke")
    assert profile.name == profile.results.name == f"smoke-book-{label}-26104e13"
    assert profile.own_book and not before.own_book and str(book) in profile.command
    assert list(profile.running()) == ["book"] and profile.task("book").data.file == book.resolve()
    assert profile.task("book").methods == before.task("book").methods


def test_two_books_never_share_a_folder(tmp_path: Path) -> None:
    names = []
    for place, text in {
        "one/book.txt": "Rain.",
        "two/book.txt": "Sun.",
        "one/Book.txt": "Wind.",
    }.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
        names.append(load_profile("smoke", tmp_path / place).name.lower())
    assert len(set(names)) == 3 and all(name.startswith("smoke-book-book-") for name in names)
