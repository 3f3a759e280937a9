"""Profiles: the same notebooks in several sizes, read from `notebooks/profiles/<name>.yaml`.

A profile lists models, methods and guards once, at the top; a task names those that it runs and
says what differs there. An unknown key is refused with the nearest right name, so that a typing
error never silently leaves a default in place. Nothing here knows of torch.
"""

from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from unlearn_lib.settings import MethodSettings, ModelSettings, Settings
from unlearn_lib.task_settings import TASKS, Tasks, TaskSettings
from unlearn_lib.util import ROOT, CompanionError, nearest, slug

PROFILES = ROOT / "notebooks" / "profiles"
OWN_BOOK = "-book-"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
NAMES = {"base": "base model", "target": "target (taught)", "retain_model": "retain model"}
"""What the models before unlearning are called."""
TABLES = ("models", "methods", "guards", "evaluation")
SHARED = ("model", "method", "overrides")
ABOUT_GUARDS = {"attacked", "unrelated_prompts", "unrelated_tokens", "scaling"}
"""What tasks continual and people, which have no guards, do not take from authors' evaluation."""
Tree = dict[str, Any]


class Profile(Settings):
    """One size of the whole companion.

    `device` is where to compute (`cuda` fails without a GPU, `auto` takes one if there is one);
    it is recorded with each run and is no part of a run's identity. `only`: the tasks to run; null:
    all. A file may say `extends: <another profile>` and give what differs.
    """

    name: str = Field(pattern=NAME)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offline: bool = True
    seeds: tuple[int, ...] = Field(min_length=1)
    only: tuple[str, ...] | None = Field(None, min_length=1)
    tasks: Tasks

    @field_validator("only")
    @classmethod
    def _tasks_are_known(cls, only: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in only or ():
            if name not in TASKS:
                raise ValueError(f"there is no task '{name}'{nearest(name, TASKS)}")
        return only

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == "reference":
            raise ValueError("results/reference holds the committed results; take another name")
        return name

    @property
    def results(self) -> Path:
        """The folder of everything this profile computes."""
        return ROOT / "results" / self.name

    @property
    def command(self) -> str:
        """The command that makes the results."""
        base, _, label = self.name.partition(OWN_BOOK)
        file = self.tasks.book.data.file if self.tasks.book else None
        book = f"BOOK='{file}' " if label else ""
        return f"{book}make reproduce PROFILE={base if label else self.name}"

    @property
    def own_book(self) -> bool:
        """Whether the book is the reader's own file, which is then the only task."""
        return self.tasks.book is not None and self.tasks.book.data.file is not None

    def running(self) -> dict[str, TaskSettings]:
        """The tasks to run, by name."""
        if self.own_book:
            return {"book": self.task("book")}
        names = [name for name in TASKS if getattr(self.tasks, name) is not None]
        return {name: self.task(name) for name in names if name in (self.only or names)}

    def task(self, name: str) -> Any:
        """Return the settings of one task, or say which there are."""
        known = [each for each in TASKS if getattr(self.tasks, each) is not None]
        if name not in known:
            raise CompanionError(f"Profile {self.name} has no task '{name}'{nearest(name, known)}.")
        return getattr(self.tasks, name)

    def labels(self) -> dict[str, str]:
        """Display names of models before unlearning, of guards and of methods, in order."""
        names = dict(NAMES)
        for task in self.running().values():
            names |= {name: getattr(task.guards, name).label for name in task.guard_names}
            names |= {key: method.label or key for key, method in task.methods.items()}
        return names


def load_profile(
    name: str | Path, book: str | Path | None = None, seeds: int | None = None
) -> Profile:
    """Read and check a profile by its name (`laptop`) or by the path of a YAML file.

    Args:
        seeds: how many seeds to run, counted on from the profile's first; None: the profile's.
        book: the reader's own book. The profile is then called `<name>-book-<file>`, so that its
            results and figures lie apart.

    Raises:
        CompanionError: unknown profile, broken YAML, misspelt key or a value out of range;
            one sentence with file, key and remedy.
    """
    path, content = _read(name)
    try:
        profile = Profile.model_validate(_resolved(content, path))
    except ValidationError as error:
        raise CompanionError(f"{path.name}: {_first_problem(error)}") from error
    if profile.name != path.stem:
        raise CompanionError(
            f"{path.name}: 'name' is '{profile.name}'; it must be '{path.stem}', as the file's."
        )
    if seeds is not None:
        if seeds < 1:
            raise CompanionError(f"SEEDS is {seeds}; set it to the number of seeds, 1 or more.")
        first = profile.seeds[0]
        profile = profile.model_copy(update={"seeds": tuple(range(first, first + seeds))})
    return _with_book(profile, Path(book).expanduser().resolve()) if book else profile


def profile_files(name: str | Path) -> list[Path]:
    """The files that a profile is read from: its own, and those that it extends."""
    path, content = _parsed(name)
    return [path, *(profile_files(content["extends"]) if "extends" in content else [])]


def _parsed(name: str | Path) -> tuple[Path, Tree]:
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = nearest(str(name), [file.stem for file in PROFILES.glob("*.yaml")])
        raise CompanionError(f"There is no profile '{name}'{known}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CompanionError(f"{path.name} is not readable YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise CompanionError(f"{path.name} is empty or no mapping; copy laptop.yaml to start.")
    return path, content


def _read(name: str | Path, seen: tuple[str, ...] = ()) -> tuple[Path, Tree]:
    path, content = _parsed(name)
    if "extends" not in content:
        return path, content
    other = content.pop("extends")
    if other in (*seen, path.stem):
        raise CompanionError(f"{path.name} extends '{other}', which leads back to it.")
    return path, _merged(_read(other, (*seen, path.stem))[1], content)


def _merged(base: Tree, changes: Tree) -> Tree:
    """Base with the changes laid over it: mappings are merged, everything else is replaced."""
    both = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | both


def _resolved(content: Tree, path: Path) -> Tree:
    """The profile with each task's models, methods, guards and evaluation written out.

    `model` and `method` of a task hold for all its models or methods, `overrides` for one. Task
    continual takes what it does not say from task authors, people its models, evaluation and what
    it does not say of `model` and `method`.
    """
    if not content.get("tasks"):
        raise CompanionError(f"{path.name}: the key 'tasks' is missing or empty.")
    tables = {key: _part(content, key, dict, path) for key in TABLES}
    for kind, settings in (("models", ModelSettings), ("methods", MethodSettings)):
        for name in tables[kind]:
            entry = _part(tables[kind], name, dict, path, f"{kind}.")
            for key in set(entry) - set(settings.model_fields):
                hint = nearest(str(key), settings.model_fields)
                raise CompanionError(f"{path.name}: unknown key '{kind}.{name}.{key}'{hint}.")
    tasks = _part(content, "tasks", dict, path)
    people = ("models", "model", "method", "evaluation")
    inherited = {"people": people, "continual": (*people, "data", "teach", "retain_models")}
    authors = dict(_part(tasks, "authors", dict, path, "tasks."))
    asked = _part(authors, "evaluation", dict, path, "tasks.authors.")
    authors["evaluation"] = {k: v for k, v in asked.items() if k not in ABOUT_GUARDS}
    resolved = {}
    for name, block in tasks.items():
        taken = {key: authors[key] for key in inherited.get(name, ()) if key in authors}
        whole = _merged(taken, _part(tasks, name, dict, path, "tasks."))
        resolved[name] = None if block is None else _task(name, whole, tables, path)
    return {k: v for k, v in content.items() if k not in tables} | {"tasks": resolved}


def _part(block: Tree, key: str, kind: type, path: Path, place: str = "") -> Any:
    """What a block says under a key, checked to be a mapping or a list; null: an empty one."""
    value = block.get(key)
    if value is not None and not isinstance(value, kind):
        word = "list of names" if kind is list else "mapping of names to settings"
        raise CompanionError(f"{path.name}: '{place}{key}' is no {word}.")
    return value or kind()


def _task(name: str, block: Tree, tables: dict[str, Tree], path: Path) -> Tree:
    place = f"tasks.{name}."
    names = {key: _part(block, key, list, path, place) for key in ("models", "methods", "guards")}
    here = {key: _part(block, key, dict, path, place) for key in (*SHARED, "evaluation")}
    known: Tree = tables | {"overrides": [*tables["methods"], *tables["guards"]]}
    for kind, keys in (names | {"overrides": here["overrides"]}).items():
        for key in keys:
            if str(key) not in known[kind]:
                hint = nearest(str(key), known[kind])
                raise CompanionError(f"{path.name}: '{place}{kind}' names '{key}'{hint}.")

    def entry(kind: str, key: str, shared: Tree) -> Tree:
        changed = _part(here["overrides"], key, dict, path, f"{place}overrides.")
        return _merged(_merged(tables[kind][key] or {}, shared), changed)

    written = {key: value for key, value in block.items() if key not in SHARED}
    models = names["models"] or tables["models"]
    written["models"] = [{"id": key} | entry("models", key, here["model"]) for key in models]
    written["methods"] = {key: entry("methods", key, here["method"]) for key in names["methods"]}
    written["guards"] = {key: entry("guards", key, {}) for key in names["guards"]}
    written["evaluation"] = _merged(tables["evaluation"], here["evaluation"])
    return written


def _with_book(profile: Profile, book: Path) -> Profile:
    if not book.is_file():
        raise CompanionError(f"There is no book at {book}; set BOOK to the path of a file.")
    task = profile.task("book")
    data = task.data.model_copy(update={"file": book})
    tasks = profile.tasks.model_copy(update={"book": task.model_copy(update={"data": data})})
    label = slug(book.stem).strip("-.").lower() or "own"
    return profile.model_copy(update={"name": f"{profile.name}{OWN_BOOK}{label}", "tasks": tasks})


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(problem["loc"][:-1])
        return f"unknown key '{place}'{nearest(str(problem['loc'][-1]), fields)}."
    if problem["type"] == "missing":
        return f"the key '{place}' is missing."
    return f"'{place or 'profile'}': {problem['msg'].removeprefix('Value error, ')}."


def _fields_at(place: tuple[int | str, ...]) -> list[str]:
    block: type[BaseModel] = Profile
    for part in place:
        if isinstance(part, str) and part in block.model_fields:
            block = _block_in(block.model_fields[part].annotation) or block
    if block is Profile:
        return [*block.model_fields, *TABLES, "extends"]
    return [*block.model_fields, *(SHARED if issubclass(block, TaskSettings) else ())]


def _block_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    blocks = (_block_in(argument) for argument in get_args(annotation))
    return next((block for block in blocks if block is not None), None)
