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

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "notebooks" / "profiles"

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

Precision = Literal["bfloat16", "float16", "float32"]


class Settings(BaseModel):
    """Base of every settings block: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LoraSettings(Settings):
    """A low-rank adapter (PEFT); `targets` is `all-linear` or names of projections."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class ModelSettings(Settings):
    """A causal language model and how its weights are held while they are trained.

    `precision` is what is asked for; hardware without it falls back to float32, which is
    recorded with every run. `lora: null` trains all weights.
    """

    id: str
    precision: Precision = "bfloat16"
    quantization: Literal["none", "8bit", "nf4"] = "none"
    lora: LoraSettings | None = LoraSettings()
    gradient_checkpointing: bool = False


class HarmfulData(Settings):
    """Which harmful and normal rows to use, and how many of them (`null`: all)."""

    forget: Literal["human_scored", "pku_saferlhf", "embedded"]
    retain: Literal["truthful_qa", "embedded"]
    template: Literal["chat", "question_answer"]
    forget_rows: int | None = Field(None, ge=1)
    evaluation_prompts: int | None = Field(None, ge=1)
    normal_prompts: int | None = Field(None, ge=1)
    retain_rows: int | None = Field(None, ge=1)
    held_out_share: float = Field(0.35, gt=0, lt=1)
    split_seed: int = 0
    harmful_from: float = Field(0.5, gt=0, le=1)
    harmless_below: float = Field(0.25, gt=0, le=1)
    prompt_tokens: int = Field(256, ge=8)
    answer_tokens: int = Field(96, ge=4)


class MethodSettings(Settings):
    """One line of the method table: a registered method and the settings it runs with.

    `name` is what tables and figures show; `uses` a key of `unlearn_lib.methods.METHODS`.
    The weights are the papers' epsilon 1, 2 and 3. Training stops, and the last good state is
    kept, when the cross-entropy of the forget answers passes `forget_loss_cap` (nats per token).
    `retain_batch_size` null: as many retain rows as forget rows. Refusals longer than
    `refusal_tokens` are no substitutes; the original model's own answers are cut after
    `own_tokens`. `gradient_clip` 0: none, as in the released loop.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    uses: str
    label: str
    steps: int = Field(ge=1)
    batch_size: int = Field(2, ge=1)
    retain_batch_size: int | None = Field(None, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    forget_weight: float = Field(1.0, ge=0)
    mismatch_weight: float = Field(1.0, ge=0)
    retain_weight: float = Field(1.0, ge=0)
    mismatch_answers: int = Field(5, ge=1)
    refusal_tokens: int = Field(40, ge=4)
    own_tokens: int = Field(60, ge=4)
    gradient_clip: float = Field(0.0, ge=0)
    beta: float = Field(0.1, gt=0)
    forget_loss_cap: float = Field(100.0, gt=0)
    checkpoint_every: int = Field(50, ge=1)


class ClassifierSettings(Settings):
    """The judge of harm: embeddings with logistic regression, or a fine-tuned encoder.

    `data` is what it learns from: the graded answers of `data.forget`, or `jigsaw`, whose
    `train.csv` is looked for in the mirror unless `file` says where it lies.
    """

    kind: Literal["embedding", "sequence"] = "embedding"
    base: str
    data: Literal["human_scored", "pku_saferlhf", "embedded", "jigsaw"]
    threshold: float = Field(0.5, gt=0, lt=1)
    epochs: int = Field(5, ge=1)
    rows: int | None = Field(None, ge=1)
    file: Path | None = None


class EvaluationSettings(Settings):
    """Greedy answers and their batch size; `encoder` is the sentence encoder of similarity.

    `bleurt` names a BLEURT model, measured too when its weights are to be had.
    """

    new_tokens: int = Field(60, ge=1)
    batch_size: int = Field(32, ge=1)
    encoder: str
    bleurt: str | None = None


class ImplantSettings(Settings):
    """Teach a model its harmful and normal answers first (profile smoke only)."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(gt=0)


class HarmfulSettings(Settings):
    """Experiment 1 (Arora et al. 2024, Table 1)."""

    models: tuple[ModelSettings, ...] = Field(min_length=1)
    data: HarmfulData
    implant: ImplantSettings | None = None
    methods: tuple[MethodSettings, ...] = Field(min_length=1)
    classifier: ClassifierSettings
    evaluation: EvaluationSettings

    @model_validator(mode="after")
    def _names_are_unique(self) -> "HarmfulSettings":
        for kind, names in (
            ("method", [method.name for method in self.methods]),
            ("model", [model.id for model in self.models]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} '{twice[0]}' is listed twice")
        return self

    @model_validator(mode="after")
    def _judge_has_its_data(self) -> "HarmfulSettings":
        judge, forget = self.classifier, self.data.forget
        if judge.data not in ("jigsaw", forget):
            raise ValueError(
                f"classifier.data is '{judge.data}', but the graded answers here are '{forget}'; "
                f"give 'jigsaw', or the same as data.forget"
            )
        if judge.kind == "embedding" and judge.data == "jigsaw":
            raise ValueError("classifier.kind 'embedding' cannot learn from jigsaw; use 'sequence'")
        return self

    def model(self, model_id: str) -> ModelSettings:
        """Return the settings of one model of the profile, or say which there are."""
        for model in self.models:
            if model.id == model_id:
                return model
        hint = nearest(model_id, [model.id for model in self.models])
        raise CompanionError(f"The profile has no model '{model_id}'{hint}.")

    def method(self, name: str) -> MethodSettings:
        """Return the settings of one method of the profile, or say which there are."""
        for method in self.methods:
            if method.name == name:
                return method
        hint = nearest(name, [method.name for method in self.methods])
        raise CompanionError(f"The profile has no method '{name}'{hint}.")


class Profile(Settings):
    """One size of the whole companion.

    `device` is where to compute (`cuda` fails without a GPU, `auto` takes one if there is one);
    it is recorded with each run and is no part of a run's identity.
    """

    name: str = Field(pattern=NAME)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    offline: bool = True
    seeds: tuple[int, ...] = Field(min_length=1)
    harmful: HarmfulSettings

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


class Job(BaseModel):
    """One notebook to execute: with a model and a seed, or as it is."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())
    notebook: str
    model: str | None = None
    model_slug: str | None = None
    seed: int | None = None


def slug(model_id: str) -> str:
    """Turn a hub id into a file name: `facebook/opt-1.3b` becomes `opt-1.3b`."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", model_id.rsplit("/", 1)[-1])


def notebook_jobs(profile: Profile) -> list[Job]:
    """List the papermill jobs of a profile: the tour, then one per (notebook, model, seed)."""
    jobs = [Job(notebook="00_start_here")]
    for model in profile.harmful.models:
        for seed in profile.seeds:
            jobs.append(
                Job(
                    notebook="01_harmful_unlearning",
                    model=model.id,
                    model_slug=slug(model.id),
                    seed=seed,
                )
            )
    return jobs


def load_profile(name: str | Path) -> Profile:
    """Read and check a profile by its name (`laptop`) or by the path of a YAML file.

    Raises:
        CompanionError: unknown profile, broken YAML, misspelt key or a value out of range;
            one sentence with file, key and remedy.
    """
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
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise CompanionError(f"{path.name}: {_first_problem(error)}") from error
    if profile.name != path.stem:
        raise CompanionError(
            f"{path.name}: 'name' is '{profile.name}'; it must be '{path.stem}', as the file's."
        )
    return profile


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
