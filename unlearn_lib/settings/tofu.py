"""The settings of experiment 4: question answering, fictitious, continual and real-world."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator, model_validator

from unlearn_lib.errors import nearest
from unlearn_lib.settings.common import (
    EvaluationSettings,
    ExperimentSettings,
    ImplantSettings,
    LoraSettings,
    MethodSettings,
    Settings,
)

Scenario = Literal["fictitious", "continual", "real_world"]


class TofuData(Settings):
    """Whose questions are forgotten and kept (`null`: all rows there are).

    `source` embedded writes fictitious authors; their numbers are the `authors` settings. The
    hub's TOFU is split by `forget_split` instead. `files` are the reader's own `forget`, `retain`
    and, for questions never taught, `holdout`: JSON lines, relative to the project's folder. The
    first of `tasks` is the fictitious scenario's forget set; all are taught, and the continual
    scenario forgets one after another.
    `retain_rows`: how many rows to teach and keep; `evaluation_rows`: how many of each set but
    the forget set are asked; `rehearsal_rows`: how many of the other real authors and world
    facts are taught and kept too (0, as in TOFU: none), so that a small model does not lose all
    else while it is taught.
    """

    source: Literal["embedded", "locuslab/TOFU", "files"]
    forget: Path | None = None
    retain: Path | None = None
    holdout: Path | None = None
    forget_split: Literal["forget01", "forget05", "forget10"] = "forget01"
    tasks: int = Field(3, ge=1)
    authors_per_task: int = Field(2, ge=1)
    retain_authors: int = Field(6, ge=1)
    holdout_authors: int = Field(2, ge=0)
    questions_per_author: int = Field(10, ge=2)
    seed: int = 0
    retain_rows: int | None = Field(None, ge=1)
    evaluation_rows: int | None = Field(None, ge=2)
    rehearsal_rows: int = Field(0, ge=0)
    template: Literal["chat", "question_answer"] = "chat"
    prompt_tokens: int = Field(96, ge=8)
    answer_tokens: int = Field(64, ge=4)

    @model_validator(mode="after")
    def _files_are_named(self) -> "TofuData":
        own = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        if self.source != "files":
            for name in (name for name, path in own.items() if path):
                raise ValueError(f"'{name}' names a file, but 'source' is '{self.source}'; give "
                                 "source 'files', or leave it out")  # fmt: skip
            return self
        for name in ("forget", "retain"):
            if own[name] is None:
                raise ValueError(f"source 'files' needs '{name}', the path of a file of questions")
        if self.tasks != 1:
            raise ValueError("the file 'forget' is one task; set 'tasks' to 1")
        return self


class PeopleData(Settings):
    """The real-world scenario: known people to forget, neighbours to keep, others to ask about.

    Only questions that the unmodified model answers right count, and only people with
    `least_right` of them; 0: every question counts, whatever it answers (profile smoke, whose
    model knows nobody). `rows`: how many questions it is asked at all.
    """

    forget_people: int = Field(4, ge=1)
    neighbours: int = Field(4, ge=1)
    evaluation_neighbours: int = Field(4, ge=1)
    least_right: int = Field(3, ge=0)
    seed: int = 0
    rows: int | None = Field(None, ge=1)


class TofuImplant(ImplantSettings):
    """How the questions are taught; `lora` null trains all weights."""

    lora: LoraSettings | None = LoraSettings()


class TofuMethodSettings(MethodSettings):
    """A method of experiment 4; `scenarios`: where it runs, each with what differs there."""

    scenarios: dict[Scenario, dict[str, Any]] = Field({"fictitious": {}}, min_length=1)

    @field_validator("scenarios", mode="before")
    @classmethod
    def _names_alone(cls, given: Any) -> Any:
        """Accept a list of names where nothing differs."""
        names = isinstance(given, list) and all(isinstance(name, str) for name in given)
        return {name: {} for name in given} if names else given

    @field_validator("scenarios")
    @classmethod
    def _overrides_are_settings(cls, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
        for scenario, changes in given.items():
            fixed = sorted({"name", "uses", "label", "scenarios"} & set(changes))
            if fixed:
                raise ValueError(f"'{fixed[0]}' cannot differ in scenario '{scenario}'")
            unknown = sorted(set(changes) - set(cls.model_fields))
            if unknown:
                hint = nearest(unknown[0], cls.model_fields)
                raise ValueError(f"scenario '{scenario}', unknown key '{unknown[0]}'{hint}")
            trial = {"name": "trial", "uses": "trial", "label": "trial", "steps": 1}
            try:
                cls.model_validate(trial | {"learning_rate": 1.0} | changes)
            except ValidationError as error:
                problem = error.errors()[0]
                key = ".".join(map(str, problem["loc"]))
                raise ValueError(f"scenario '{scenario}', '{key}': {problem['msg']}") from error
        return given

    def within(self, scenario: Scenario) -> "TofuMethodSettings":
        """The settings as they hold in one scenario."""
        changes = self.scenarios.get(scenario, {})
        return type(self).model_validate(self.model_dump() | changes)


class TofuEvaluation(EvaluationSettings):
    """How models are scored.

    `entailment` is a natural-language-inference model, or `trained`: a small judge trained on
    paraphrases and wrong answers of other authors, whose held-out accuracy stands beside it.
    `min_k`: the share of tokens in the Min-K attacks.
    """

    entailment: str = "trained"
    judge_authors: int = Field(40, ge=4)
    min_k: float = Field(0.4, gt=0, le=1)


class TofuSettings(ExperimentSettings):
    """Experiment 4 (Yuan et al. 2025), on TOFU's format.

    `implant` null: the models of the profile have been taught already; `references` then gives
    the id of each one's counterpart that was trained on the retain set only. `real_world_models`
    run that scenario alone, and the others all but it; null: every model runs all.
    """

    data: TofuData
    people: PeopleData | None = None
    implant: TofuImplant | None = None
    references: dict[str, str] = {}
    real_world_models: tuple[str, ...] | None = None
    methods: tuple[TofuMethodSettings, ...] = Field(min_length=1)  # type: ignore[assignment]
    evaluation: TofuEvaluation

    def method(self, name: str) -> TofuMethodSettings:
        """Return the settings of one method of the profile, or say which there are."""
        found = super().method(name)
        assert isinstance(found, TofuMethodSettings)
        return found

    def methods_of(self, scenario: Scenario, model_id: str) -> list[str]:
        """The names of the methods that run in a scenario on a model; none where it does not."""
        real, chosen = scenario == "real_world", self.real_world_models
        if chosen is not None and (model_id in chosen) != real:
            return []
        return [method.name for method in self.methods if scenario in method.scenarios]

    @model_validator(mode="after")
    def _scenarios_can_run(self) -> "TofuSettings":
        runs = any("real_world" in method.scenarios for method in self.methods)
        if runs and self.people is None:
            raise ValueError("methods run in real_world, but there is no 'people'; add that block")
        if any(model.quantization != "none" for model in self.models):
            raise ValueError(
                "adapters are added to the weights here, which a quantised model does not allow; "
                "set its quantization to 'none'"
            )
        known = [model.id for model in self.models]
        for place, named in (
            ("references", tuple(self.references)),
            ("real_world_models", self.real_world_models or ()),
        ):
            for name in sorted(set(named) - set(known)):
                raise ValueError(f"'{place}' names '{name}', no model here{nearest(name, known)}")
        return self


SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
