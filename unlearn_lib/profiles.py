"""Profiles: the same notebooks in three sizes, read from `notebooks/profiles/<name>.yaml`.

A profile is plain YAML held in frozen pydantic models. An unknown key is refused with the
nearest right name, so that a typing error never silently leaves a default in place.
Nothing here knows of torch.
"""

import re
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.settings import (
    TASKS,
    BookSettings,
    EcoSettings,
    ExperimentSettings,
    HarmfulSettings,
    MethodSettings,
    Settings,
    Task,
    TofuSettings,
)
from unlearn_lib.settings.everywhere import with_methods_everywhere

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "notebooks" / "profiles"

OWN_BOOK = "-book-"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class Profile(Settings):
    """One size of the whole companion.

    `device` is where to compute (`cuda` fails without a GPU, `auto` takes one if there is one);
    it is recorded with each run and is no part of a run's identity. `only` names the experiments
    to run; null: all. `methods` run in every experiment, beside each one's own: see
    `unlearn_lib.settings.everywhere`. A file may say `extends: <another profile>` and give what
    differs.
    """

    name: str = Field(pattern=NAME)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offline: bool = True
    seeds: tuple[int, ...] = Field(min_length=1)
    only: tuple[Literal["harmful", "book", "tofu", "eco"], ...] | None = Field(None, min_length=1)
    methods: tuple[MethodSettings, ...] = ()
    harmful: HarmfulSettings
    book: BookSettings
    tofu: TofuSettings
    eco: EcoSettings

    @model_validator(mode="before")
    @classmethod
    def _methods_run_everywhere(cls, content: Any) -> Any:
        return with_methods_everywhere(content) if isinstance(content, dict) else content

    @field_validator("name")
    @classmethod
    def _name_is_free(cls, name: str) -> str:
        if name == "reference":
            raise ValueError("results/reference holds the committed results; take another name")
        return name

    @model_validator(mode="after")
    def _guarded_models_have_tasks(self) -> "Profile":
        if self.only and "eco" not in self.only:
            return self
        for place, names in self.eco.beside.items():
            block = self.tofu if place == "entities" else self.book
            known = [method.name for method in block.methods]
            for name in sorted(set(names) - set(known)):
                raise ValueError(
                    f"'eco.beside.{place}' names the method '{name}', none of that "
                    f"experiment{nearest(name, known)}"
                )
        for model in self.eco.models:
            if not self.guarded_tasks(model.id):
                raise ValueError(
                    f"'eco.models' lists '{model.id}', which has no task: add it to the models of "
                    "tofu or book, or to 'science_models'"
                )
        return self

    def guarded_tasks(self, model_id: str) -> tuple[Task, ...]:
        """Which tasks of experiment 3 a model runs: those whose own experiment lists it."""
        real = self.tofu.real_world_models or ()
        runs = {
            "entities": [model.id for model in self.tofu.models if model.id not in real],
            "book": [model.id for model in self.book.models],
            "science": self.eco.science_models or [model.id for model in self.eco.models],
        }
        return tuple(task for task in TASKS if task in self.eco.guards and model_id in runs[task])

    def labels(self, experiment: str) -> dict[str, str]:
        """Display names of an experiment's methods, by name, in order."""
        block = self.experiments()[experiment]
        own = {method.name: method.label for method in block.methods}
        if experiment != "eco":
            return own
        found = {"eco": "ECO (guard)", "prompting": "prompting"}
        for place, names in self.eco.beside.items():
            others = self.tofu if place == "entities" else self.book
            found |= {name: others.method(name).label for name in names}
        return found | own

    @property
    def results(self) -> Path:
        """The folder of everything this profile computes."""
        return ROOT / "results" / self.name

    @property
    def command(self) -> str:
        """The command that makes the results."""
        base, _, label = self.name.partition(OWN_BOOK)
        book = f"BOOK='{self.book.data.file}' " if label else ""
        return f"{book}make reproduce PROFILE={base if label else self.name}"

    @property
    def own_book(self) -> bool:
        """Whether the book is the reader's own file instead of the embedded saga."""
        return self.book.data.file is not None

    def experiments(self) -> dict[str, ExperimentSettings]:
        """The experiments to run, by name; with the reader's own book, only the one it is for."""
        if self.own_book:
            return {"book": self.book}
        every = {"harmful": self.harmful, "book": self.book, "tofu": self.tofu, "eco": self.eco}
        return {name: block for name, block in every.items() if name in (self.only or every)}


NOTEBOOKS = {
    "harmful": "01_harmful_unlearning",
    "book": "02_lotr_implant_then_forget",
    "tofu": "04_closer_look",
    "eco": "03_eco_comparison",
}
"""The notebook of each experiment."""
GALLERY = "05_figures_and_tables"
"""The notebook that shows what was drawn."""


class Job(BaseModel):
    """One notebook to execute: with a model and a seed, or as it is."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    notebook: str
    experiment: str | None = None
    model: str | None = None
    model_slug: str | None = None
    seed: int | None = None


def slug(model_id: str) -> str:
    """Turn a hub id into a file name: `facebook/opt-1.3b` becomes `opt-1.3b`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", model_id.rsplit("/", 1)[-1])


def notebook_jobs(profile: Profile) -> list[Job]:
    """List the papermill jobs of a profile: the tour, one per (notebook, model, seed), the figures.

    With the reader's own book, those of its experiment alone.
    """
    jobs = [] if profile.own_book else [Job(notebook="00_start_here")]
    for name, settings in profile.experiments().items():
        for model in settings.models:
            for seed in profile.seeds:
                chosen = {"model": model.id, "model_slug": slug(model.id), "seed": seed}
                jobs.append(Job(notebook=NOTEBOOKS[name], experiment=name, **chosen))
    return jobs if profile.own_book else [*jobs, Job(notebook=GALLERY)]


def rows_path(profile: Profile, experiment: str, model_id: str, seed: int) -> Path:
    """Where the tidy rows of one experiment, model and seed lie."""
    return profile.results / "rows" / f"{experiment}__{slug(model_id)}__s{seed}.csv"


def load_profile(
    name: str | Path, book: str | Path | None = None, seeds: int | None = None
) -> Profile:
    """Read and check a profile by its name (`laptop`) or by the path of a YAML file.

    Args:
        name: of the profile.
        seeds: how many seeds to run, counted on from the profile's first; None: the profile's.
        book: the reader's own book for experiment 2. The profile is then called
            `<name>-book-<file>`, so that its results and figures lie apart.

    Raises:
        CompanionError: unknown profile, broken YAML, misspelt key or a value out of range;
            one sentence with file, key and remedy.
    """
    path, content = _read(name)
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise CompanionError(f"{path.name}: {_first_problem(error)}") from error
    if profile.name != path.stem:
        raise CompanionError(
            f"{path.name}: 'name' is '{profile.name}'; it must be '{path.stem}', as the file's."
        )
    if seeds is not None:
        if seeds < 1:
            raise CompanionError(f"SEEDS is {seeds}; give the number of seeds to run, 1 or more.")
        first = profile.seeds[0]
        profile = profile.model_copy(update={"seeds": tuple(range(first, first + seeds))})
    return _with_book(profile, Path(book).expanduser().resolve()) if book else profile


def profile_files(name: str | Path) -> list[Path]:
    """The files that a profile is read from: its own, and those that it extends."""
    path, content = _read(name, extended=False)
    return [path, *(profile_files(content["extends"]) if "extends" in content else [])]


def _read(
    name: str | Path, extended: bool = True, seen: tuple[str, ...] = ()
) -> tuple[Path, dict[str, Any]]:
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not path.is_file():
        hint = nearest(str(name), [file.stem for file in PROFILES.glob("*.yaml")])
        raise CompanionError(f"There is no profile '{name}'{hint}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CompanionError(f"{path.name} is not readable YAML: {reason}.") from error
    if not isinstance(content, dict):
        raise CompanionError(f"{path.name} is empty or no mapping; copy laptop.yaml to start.")
    if not extended or "extends" not in content:
        return path, content
    other = content.pop("extends")
    if other in (*seen, path.stem):
        raise CompanionError(f"{path.name} extends '{other}', which leads back to it.")
    return path, _merged(_read(other, seen=(*seen, path.stem))[1], content)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Base with the changes laid over it: mappings are merged, everything else is replaced."""
    both = {
        key: _merged(base[key], value)
        for key, value in changes.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return base | changes | both


def _with_book(profile: Profile, book: Path) -> Profile:
    if not book.is_file():
        raise CompanionError(f"There is no book at {book}; give BOOK the path of a file.")
    data = profile.book.data.model_copy(update={"file": book})
    label = slug(book.stem).strip("-.").lower() or "own"
    changed = {
        "name": f"{profile.name}{OWN_BOOK}{label}",
        "book": profile.book.model_copy(update={"data": data}),
    }
    return profile.model_copy(update=changed)


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
            block = _settings_in(block.model_fields[part].annotation) or block
    return list(block.model_fields)


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_settings_in(argument) for argument in get_args(annotation))
    return next((block for block in found if block is not None), None)
