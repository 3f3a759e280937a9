"""The settings of experiment 1: harmful answers."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from unlearn_lib.settings.common import ExperimentSettings, ImplantSettings, Settings


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


class HarmfulSettings(ExperimentSettings):
    """Experiment 1 (Arora et al. 2024, Table 1)."""

    data: HarmfulData
    implant: ImplantSettings | None = None
    classifier: ClassifierSettings

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
