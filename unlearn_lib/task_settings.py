"""What a profile says of each task: models, methods, guards, data, and how models are asked."""

from typing import ClassVar, Generic, TypeVar

from pydantic import Field, model_validator

from unlearn_lib import settings
from unlearn_lib.util import entry_of, nearest, slug

ECO, PROMPTING = "eco", "prompting"
BEFORE = ("base", "target", "retain_model")
"""The models before unlearning."""
Data = TypeVar("Data", bound=settings.Reading)


class Guards(settings.Settings):
    """The guards of a task: ECO's, and the prompting baseline; null: not run."""

    eco: settings.GuardSettings | None = None
    prompting: settings.PromptingSettings | None = None


class TaskSettings(settings.Settings):
    """What every task has: models, methods, guards, and how models are asked.

    `pretrain`: for the tiny model of profile smoke, which knows nothing by itself.
    """

    in_files: ClassVar[tuple[str, ...]] = ("model", "method", "overrides")
    models: tuple[settings.ModelSettings, ...] = Field(min_length=1)
    methods: dict[str, settings.MethodSettings] = {}
    guards: Guards = Guards()
    evaluation: settings.EvaluationSettings
    pretrain: settings.TeachSettings | None = None

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> "TaskSettings":
        models = dict.fromkeys(slug(model.id).lower() for model in self.models)
        if len(models) < len(self.models):
            raise ValueError("two models have one short name, and so one place for results")
        labels = [method.label or name for name, method in self.methods.items()]
        labels += [getattr(self.guards, name).label for name in self.guard_names]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"two methods or guards have the label '{twice[0]}'")
        if taken := set(self.methods) & {*BEFORE, ECO, PROMPTING}:
            raise ValueError(f"'{min(taken)}' is no name for a method: a model has it already")
        return self

    def model(self, model_id: str) -> settings.ModelSettings:
        """Return the settings of one model of the task, or say which there are."""
        models = {str(model.id): model for model in self.models}
        return entry_of(models, model_id, "The profile has no model")

    def method(self, name: str) -> settings.MethodSettings:
        """Return the settings of one method of the task, or say which there are."""
        return entry_of(self.methods, name, "The profile has no method")

    @property
    def guard_names(self) -> list[str]:
        """The guards that run."""
        return [name for name, guard in self.guards if guard is not None]


class HarmSettings(TaskSettings):
    """Task harm (Arora et al. 2024, Table 1)."""

    data: settings.HarmData
    judge: settings.JudgeSettings

    @model_validator(mode="after")
    def _judge_has_its_data(self) -> "HarmSettings":
        judge, forget = self.judge, self.data.forget
        if judge.data not in ("jigsaw", forget):
            raise ValueError(f"'judge.data' must be as 'data.forget', '{forget}', or 'jigsaw'")
        if judge.kind == "embedding" and judge.data == "jigsaw":
            raise ValueError("judge.kind 'embedding' cannot learn from jigsaw; use 'sequence'")
        return self


class BookSettings(TaskSettings):
    """Task book (Arora et al. 2024, Table 2)."""

    data: settings.BookData
    teach: settings.MemoriseSettings


class QuestionSettings(TaskSettings, Generic[Data]):
    """Tasks authors, continual, people (Yuan et al. 2025), science, subjects (Liu et al. 2024).

    `teach` null: the models of the profile have been taught already; `retain_models` then names
    each one's counterpart that was trained on the retain set only.
    """

    data: Data
    teach: settings.TeachSettings | None = None
    retain_models: dict[str, settings.HubId] = {}

    @model_validator(mode="after")
    def _models_can_run(self) -> "QuestionSettings[Data]":
        if any(model.quantization != "none" for model in self.models):
            raise ValueError("adapters are added to the weights here: set 'quantization' to 'none'")
        known = [model.id for model in self.models]
        for name in sorted(set(self.retain_models) - set(known)):
            raise ValueError(f"'retain_models' names '{name}', no model here{nearest(name, known)}")
        return self


class Tasks(settings.Settings):
    """The tasks of a profile; null: not run."""

    harm: HarmSettings | None = None
    book: BookSettings | None = None
    authors: QuestionSettings[settings.AuthorsData] | None = None
    continual: QuestionSettings[settings.AuthorsData] | None = None
    people: QuestionSettings[settings.PeopleData] | None = None
    science: QuestionSettings[settings.ScienceData] | None = None
    subjects: QuestionSettings[settings.ScienceData] | None = None

    @model_validator(mode="after")
    def _attacked_are_models(self) -> "Tasks":
        if task := self.authors:
            known = {*BEFORE, *task.guard_names, *task.methods}
            if unknown := sorted(set(task.evaluation.attacked) - known):
                near = nearest(unknown[0], known)
                raise ValueError(f"'attacked' of task authors names '{unknown[0]}', no model{near}")
        return self


TASKS = tuple(Tasks.model_fields)
"""The names of the tasks there are."""
