"""What a profile says of each task: models, methods, guards, data, and how models are asked."""

from pydantic import Field, model_validator

from unlearn_lib.settings import (
    AuthorsData,
    BookData,
    EvaluationSettings,
    GuardSettings,
    HarmData,
    JudgeSettings,
    MemoriseSettings,
    MethodSettings,
    ModelSettings,
    PeopleData,
    PromptingSettings,
    ScienceData,
    Settings,
    TeachSettings,
)
from unlearn_lib.util import CompanionError, nearest

ECO, PROMPTING = "eco", "prompting"


class Guards(Settings):
    """The guards of a task: ECO's, and the prompting baseline; null: not run."""

    eco: GuardSettings | None = None
    prompting: PromptingSettings | None = None


class TaskSettings(Settings):
    """What every task has: models, methods, guards, and how models are asked.

    `pretrain`: for the tiny model of profile smoke, which knows nothing by itself.
    """

    models: tuple[ModelSettings, ...] = Field(min_length=1)
    methods: dict[str, MethodSettings] = {}
    guards: Guards = Guards()
    evaluation: EvaluationSettings
    pretrain: TeachSettings | None = None

    def model(self, model_id: str) -> ModelSettings:
        """Return the settings of one model of the task, or say which there are."""
        for model in self.models:
            if model.id == model_id:
                return model
        known = nearest(model_id, [model.id for model in self.models])
        raise CompanionError(f"The profile has no model '{model_id}'{known}.")

    def method(self, name: str) -> MethodSettings:
        """Return the settings of one method of the task, or say which there are."""
        if name not in self.methods:
            raise CompanionError(
                f"The profile has no method '{name}'{nearest(name, self.methods)}."
            )
        return self.methods[name]

    @property
    def guard_names(self) -> list[str]:
        """The guards that run."""
        return [name for name in (ECO, PROMPTING) if getattr(self.guards, name) is not None]


class HarmSettings(TaskSettings):
    """Task harm (Arora et al. 2024, Table 1)."""

    data: HarmData
    judge: JudgeSettings

    @model_validator(mode="after")
    def _judge_has_its_data(self) -> "HarmSettings":
        judge, forget = self.judge, self.data.forget
        if judge.data not in ("jigsaw", forget):
            raise ValueError(
                f"judge.data is '{judge.data}', but the graded answers here are '{forget}'; "
                f"set it to 'jigsaw', or to the same as data.forget"
            )
        if judge.kind == "embedding" and judge.data == "jigsaw":
            raise ValueError("judge.kind 'embedding' cannot learn from jigsaw; use 'sequence'")
        return self


class BookSettings(TaskSettings):
    """Task book (Arora et al. 2024, Table 2)."""

    data: BookData
    teach: MemoriseSettings


class QuestionSettings(TaskSettings):
    """Tasks authors, continual and people (Yuan et al. 2025), and science (Liu et al. 2024).

    `teach` null: the models of the profile have been taught already; `retain_models` then names
    each one's counterpart that was trained on the retain set only.
    """

    teach: TeachSettings | None = None
    retain_models: dict[str, str] = {}

    @model_validator(mode="after")
    def _models_can_run(self) -> "QuestionSettings":
        if any(model.quantization != "none" for model in self.models):
            raise ValueError(
                "adapters are added to the weights here, which a quantised model does not allow; "
                "set its quantization to 'none'"
            )
        known = [model.id for model in self.models]
        for name in sorted(set(self.retain_models) - set(known)):
            raise ValueError(f"'retain_models' names '{name}', no model here{nearest(name, known)}")
        return self


class AuthorsSettings(QuestionSettings):
    """Tasks authors and continual."""

    data: AuthorsData


class PeopleSettings(QuestionSettings):
    """Task people."""

    data: PeopleData


class ScienceSettings(QuestionSettings):
    """Task science."""

    data: ScienceData


class Tasks(Settings):
    """The tasks of a profile; null: not run."""

    harm: HarmSettings | None = None
    book: BookSettings | None = None
    authors: AuthorsSettings | None = None
    continual: AuthorsSettings | None = None
    people: PeopleSettings | None = None
    science: ScienceSettings | None = None


TASKS = tuple(Tasks.model_fields)
"""The names of the tasks there are."""
