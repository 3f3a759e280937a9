"""Profiles: the same notebooks in several sizes, read from `notebooks/profiles/<name>.yaml`.

A profile lists models, methods and guards once, at the top; a task names those that it runs and
says what differs there. An unknown key is refused with the nearest right name, so that a typing
error never silently leaves a default in place. Nothing here knows of torch.
"""

import functools
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from unlearn_lib.settings import MethodSettings, ModelSettings, Settings
from unlearn_lib.task_settings import TASKS, Tasks, TaskSettings
from unlearn_lib.util import ROOT, CompanionError, entry_of, expanded, slug

PROFILES = ROOT / "notebooks" / "profiles"
OWN_BOOK = "-book-"
MOST_SEEDS = 100
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
NAMES = {"base": "base model", "target": "target (taught)", "retain_model": "retain model"}
"""What the models before unlearning are called."""
FOR_PEOPLE = ("models", "model", "method", "evaluation")
FROM_AUTHORS = {"people": FOR_PEOPLE, "continual": (*FOR_PEOPLE, "data", "teach", "retain_models")}
"""What tasks take from task authors where they do not say it themselves."""
Name = str | Path
Tree = dict[str, Any]


class Text(BaseModel, extra="allow"):
    """What a file says, before it is resolved; null is the same as nothing."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_nothing(cls, block: Any) -> Any:
        if not isinstance(block, dict):
            return block
        return {key: value for key, value in block.items() if value is not None}


class TaskText(Text):
    """A task: which models, methods and guards of the profile it has, and what differs here.

    `model` and `method` hold for all its models or methods, `overrides` for one.
    """

    models: list[str] = []
    methods: list[str] = []
    guards: list[str] = []
    evaluation: Tree = {}
    model: Tree = {}
    method: Tree = {}
    overrides: dict[str, Tree | None] = {}


class ProfileText(Text):
    """A profile: tables of models, methods and guards, and the tasks that name entries of them."""

    models: dict[str, Annotated[Tree | None, AfterValidator(ModelSettings.known_keys)]] = {}
    methods: dict[str, Annotated[Tree | None, AfterValidator(MethodSettings.known_keys)]] = {}
    guards: dict[str, Tree | None] = {}
    evaluation: Tree = {}
    tasks: dict[str, TaskText | None] = Field(min_length=1)


class Profile(Settings):
    """One size of the whole companion.

    `device` is where to compute (`cuda` fails without a GPU, `auto` takes one if there is one);
    it is recorded with each run and is no part of a run's identity. `only`: the tasks to run; null:
    all. A file may say `extends: <another profile>` and give what differs.
    """

    in_files: ClassVar[tuple[str, ...]] = (*ProfileText.model_fields, "extends")
    name: str = Field(pattern=NAME)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offline: bool = True
    seeds: tuple[int, ...] = Field(min_length=1)
    only: tuple[str, ...] | None = Field(None, min_length=1)
    tasks: Tasks

    @field_validator("seeds", "only")
    @classmethod
    def _each_once(cls, values: Any) -> Any:
        if values and len(set(values)) < len(values):
            raise ValueError(f"{list(values)} holds one of them twice")
        return values

    @property
    def results(self) -> Path:
        """The folder of everything this profile computes."""
        return ROOT / "results" / self.name

    @property
    def command(self) -> str:
        """The command that makes the results."""
        base, _, label = self.name.partition(OWN_BOOK)
        if label and self.own_book:
            return f"BOOK='{self.task('book').data.file}' make reproduce PROFILE={base}"
        return f"make reproduce PROFILE={self.name}"

    @property
    def own_book(self) -> bool:
        """Whether the book is the reader's own file, which is then the only task."""
        return self.tasks.book is not None and self.tasks.book.data.file is not None

    def running(self) -> dict[str, TaskSettings]:
        """The tasks to run, by name."""
        names = ("book",) if self.own_book else (self.only or TASKS)
        return {name: task for name, task in self.tasks if task is not None and name in names}

    def task(self, name: str) -> Any:
        """Return the settings of one task, or say which there are."""
        tasks = {name: task for name, task in self.tasks if task is not None}
        return entry_of(tasks, name, f"Profile {self.name} has no task")

    def labels(self) -> dict[str, str]:
        """Display names of models before unlearning, of guards and of methods, in order."""
        names = dict(NAMES)
        for task in self.running().values():
            names |= {name: getattr(task.guards, name).label for name in task.guard_names}
            names |= {key: method.label or key for key, method in task.methods.items()}
        return names


def load_profile(name: Name, book: Name | None = None, seeds: int | None = None) -> Profile:
    """Read and check a profile by its name (`laptop`) or by the path of a YAML file.

    Args:
        seeds: how many seeds to run, counted on from the profile's first; None: the profile's.
        book: the reader's own book. The profile is then called `<name>-book-<file>-<hash>`, the
            hash being the first eight hex digits of the file's sha256, so that its results and
            figures lie apart from those of any other text.

    Raises:
        CompanionError: unknown profile, broken YAML, misspelt key or a value out of range;
            one sentence with file, key and remedy.
    """
    files = _files(name)
    path = next(iter(files))
    content = functools.reduce(_merged, reversed(files.values()))
    try:
        profile = Profile.model_validate(_resolved(content))
        for task in profile.only or ():
            entry_of(Tasks.model_fields, task, "'only' names the task")
    except ValidationError as error:
        raise CompanionError(f"{path.name}: {_first_problem(error)}.") from error
    except CompanionError as error:
        raise CompanionError(f"{path.name}: {error}") from error
    if profile.name != path.stem:
        raise CompanionError(f"{path.name}: 'name' must be '{path.stem}', as the file's.")
    if profile.name == "reference":
        raise CompanionError(f"{path.name}: results/reference is taken; choose another name.")
    if seeds is not None:
        if not 1 <= seeds <= MOST_SEEDS:
            raise CompanionError(f"SEEDS is {seeds}; set it to how many there are to be, 1 to 100.")
        first = profile.seeds[0]
        profile = profile.model_copy(update={"seeds": tuple(range(first, first + seeds))})
    return _with_book(profile, Path(os.path.realpath(expanded(book)))) if book else profile


def _files(name: Name) -> dict[Path, Tree]:
    """A profile's file and those that it extends, in this order, with what each says."""
    files: dict[Path, Tree] = {}
    other: Name | None = name
    while other is not None:
        if not isinstance(other, str | Path):
            raise CompanionError(f"'extends' is {other!r}; it must be the name of a profile.")
        path, content = _read(other)
        if path in files:
            raise CompanionError(f"{[*files][-1].name} extends '{other}', which leads back to it.")
        files[path] = content
        other = content.pop("extends", None)
    return files


class _EachKeyOnce(yaml.SafeLoader):
    """Reads YAML, but refuses a key that a mapping has twice: the last would win silently."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        texts = [key.value for key, _ in node.value if isinstance(key.value, str)]
        counts = Counter(text for text in texts if text != "<<")
        if twice := [text for text in counts if counts[text] > 1]:
            place = node.start_mark
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice[0]}' stands twice in one block", place
            )
        return super().construct_mapping(node, deep)


def _read(name: Name) -> tuple[Path, Tree]:
    """A profile's file, by the profile's name or its own path, and what it says."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        profiles = {file.stem: file for file in PROFILES.glob("*.yaml")}
        path = entry_of(profiles, str(name), "There is no profile")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CompanionError(f"{path.name} is not readable YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise CompanionError(f"{path.name} is empty or no mapping; copy laptop.yaml to start.")
    return path, content


def _merged(base: Tree, changes: Tree) -> Tree:
    """Base with the changes laid over it: mappings are merged, everything else is replaced."""
    merged = base | changes
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged[key] = _merged(base[key], value)
    return merged


def _resolved(content: Tree) -> Tree:
    """The profile with each task's models, methods, guards and evaluation written out."""
    tables = ProfileText.model_validate(content)
    tasks = content["tasks"]
    authors = tasks.get("authors") or {}
    resolved = {}
    for name, block in tasks.items():
        taken = {key: authors[key] for key in FROM_AUTHORS.get(name, ()) if key in authors}
        resolved[name] = None if block is None else _task(name, _merged(taken, block), tables)
    return (tables.model_extra or {}) | {"tasks": resolved}


def _task(name: str, block: Tree, tables: ProfileText) -> Tree:
    """One task written out: entries of the tables, with what the task changes in them."""
    task = TaskText.model_validate(block)

    def entry(kind: str, key: str, shared: Tree) -> Tree:
        table = getattr(tables, kind)
        listed = entry_of(table, key, f"'tasks.{name}.{kind}' names") or {}
        return _merged(_merged(listed, shared), task.overrides.get(key) or {})

    for key in task.overrides:
        entry_of(tables.methods | tables.guards, key, f"'tasks.{name}.overrides' names")
    models = task.models or tables.models
    return (task.model_extra or {}) | {
        "models": [{"id": key} | entry("models", key, task.model) for key in models],
        "methods": {key: entry("methods", key, task.method) for key in task.methods},
        "guards": {key: entry("guards", key, {}) for key in task.guards},
        "evaluation": _merged(tables.evaluation, task.evaluation),
    }


def _with_book(profile: Profile, book: Path) -> Profile:
    if not book.is_file():
        raise CompanionError(f"There is no book at {book}; set BOOK to the path of a file.")
    task = profile.task("book")
    data = task.data.model_copy(update={"file": book})
    tasks = profile.tasks.model_copy(update={"book": task.model_copy(update={"data": data})})
    # a file name has at most 255 bytes, and a letter up to 4
    label = slug(book.stem).strip("-.").lower()[:40] or "own"
    name = f"{profile.name}{OWN_BOOK}{label}-{hashlib.sha256(book.read_bytes()).hexdigest()[:8]}"
    return profile.model_copy(update={"name": name, "tasks": tasks})


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"the key '{place}' is missing"
    message = problem["msg"].removeprefix("Value error, ").partition(" or instance of")[0]
    return f"'{place}': {message}" if place else message
