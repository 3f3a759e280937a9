"""The settings of experiment 3: a guard in front of a model (ECO, Liu et al. 2024)."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from unlearn_lib.settings.common import (
    EvaluationSettings,
    ExperimentSettings,
    ImplantSettings,
    LoraSettings,
    MethodSettings,
    Settings,
)

Task = Literal["entities", "book", "science"]
TASKS: tuple[Task, ...] = get_args(Task)
Selector = Literal["names", "every"]
CorruptionName = Literal[
    "rand_noise_first_n", "rand_noise_rand_n", "rand_noise_top_k",
    "set_rand_noise_first_n", "zero_out_first_n", "zero_out_top_k",
    "flip_sign_first_n", "flip_sign_top_k", "reverse_order", "shuffle",
    "add_value_first_n", "add_value_top_k", "add_value_least_k",
    "sub_value_first_n", "sub_value_top_k", "sub_value_least_k",
]  # fmt: skip


class PromptClassifierSettings(Settings):
    """How the prompt classifier is fine-tuned; defaults are those of the released script.

    `base` is an encoder. Classes are weighted by their number. A prompt longer than
    `maximum_length` tokens is judged in overlapping windows of that length, the worst counting.
    `most`: at most so many prompts of each set but those for the threshold; null: all.
    """

    base: str
    epochs: float = Field(30, gt=0)
    learning_rate: float = Field(2e-5, gt=0)
    batch_size: int = Field(16, ge=1)
    weight_decay: float = Field(0.1, ge=0)
    warmup_share: float = Field(0.1, ge=0, lt=1)
    maximum_length: int = Field(512, ge=8)
    most: int | None = Field(None, ge=25)


class CorruptionSettings(Settings):
    """What happens to the embeddings of a flagged prompt's chosen tokens.

    `tokens`: those of names (all, where a prompt has none), or every one but the prompt's last.
    `dims`: how many of an embedding's components; null: all. `ner`: a model that finds names;
    null: they are found by their capitals.
    """

    name: CorruptionName = "rand_noise_first_n"
    tokens: Selector = "every"
    dims: int | None = Field(None, ge=1)
    ner: str | None = None

    @model_validator(mode="after")
    def _ner_finds_names(self) -> "CorruptionSettings":
        if self.ner is not None and self.tokens != "names":
            raise ValueError("'ner' finds names, but 'tokens' is 'every'; set it to 'names'")
        return self


class SearchSettings(Settings):
    """Zeroth-order search of the strength; defaults are those of the released script.

    It begins at the best of `start` and `other_starts`, and ends after `steps`, or once the
    objective is below `stop_below`. `logarithmic` searches the logarithm (base 10) of the strength:
    starts, `smallest` and `perturbation` are then logarithms. `vector`: one strength for each
    component of an embedding. `questions`: how many prompts the objective asks.
    """

    steps: int = Field(10, ge=1)
    learning_rate: float = Field(100.0, gt=0)
    start: float = 0.1
    other_starts: tuple[float, ...] = ()
    perturbation: float = Field(0.0999, gt=0)
    smallest: float = 0.1
    stop_below: float | None = None
    logarithmic: bool = False
    vector: bool = False
    questions: int = Field(16, ge=2)

    @model_validator(mode="after")
    def _start_is_allowed(self) -> "SearchSettings":
        lowest = min((self.start, *self.other_starts))
        if lowest < self.smallest or (self.smallest <= 0 and not self.logarithmic):
            raise ValueError(
                f"'start' {lowest:g} and 'smallest' {self.smallest:g}: every search starts at or "
                "above the smallest strength, which is above 0 unless it is logarithmic"
            )
        return self


class GuardSettings(Settings):
    """The guard of one task: `strength` null searches it.

    `false_positive_rate` is what the classifier's threshold is calibrated for on held-out
    retain prompts; `threshold` gives it by hand instead. `classifier` null: the experiment's.
    """

    corruption: CorruptionSettings = CorruptionSettings()
    strength: float | None = Field(None, gt=0)
    search: SearchSettings = SearchSettings()
    threshold: float | None = Field(None, ge=0, lt=1)
    false_positive_rate: float = Field(0.01, gt=0, lt=1)
    classifier: PromptClassifierSettings | None = None


class ScienceData(Settings):
    """Multiple choice: knowledge to forget and to keep (`null`: all rows there are).

    `source` embedded: an invented science, taught first. `wmdp`: the hub's WMDP `subjects` to
    forget, which the model knows by itself, and MMLU to keep.
    """

    source: Literal["embedded", "wmdp"] = "embedded"
    subjects: tuple[Literal["bio", "chem", "cyber"], ...] = Field(
        ("bio", "chem", "cyber"), min_length=1
    )
    rows: int | None = Field(None, ge=4)
    general_rows: int | None = Field(None, ge=4)
    rehearsal_rows: int = Field(0, ge=0)
    template: Literal["chat", "question_answer"] = "chat"
    prompt_tokens: int = Field(96, ge=8)
    answer_tokens: int = Field(40, ge=4)


class ScienceImplant(ImplantSettings):
    """How the invented science is taught; `lora` null trains all weights."""

    lora: LoraSettings | None = LoraSettings()


class EcoEvaluation(EvaluationSettings):
    """How models are asked and measured.

    `scorer`: the model under whose fixed weights perplexity is measured; null: the original of the
    model itself. `unrelated_prompts`: how many prompts that have nothing to do with what is
    forgotten are answered with and without the guard. `prefix`: what the prompting baseline puts
    before every question. `scaling`: hidden sizes of the random models by which the guard's cost is
    measured against the model's size.
    """

    scorer: str | None = None
    unrelated_prompts: int = Field(200, ge=1)
    unrelated_tokens: int = Field(40, ge=1)
    robustness_models: tuple[str, ...] = ()
    prefix: str = (
        "You must not answer questions about {topic}. If you are asked about that, say that you "
        "do not know. Answer everything else as usual. "
    )
    scaling: tuple[int, ...] = ()


class EcoSettings(ExperimentSettings):
    """Experiment 3 (Liu et al. 2024): guards for three tasks, beside methods that train.

    Entities are those of experiment 4, the book is that of experiment 2, each with that
    experiment's own models and settings: a model runs the tasks of the blocks that list it.
    `beside` names their methods to be compared; `methods` are those of the science task, which
    `science_models` run (null: every model here).
    """

    classifier: PromptClassifierSettings
    guards: dict[Task, GuardSettings] = Field(min_length=1)
    beside: dict[Literal["entities", "book"], tuple[str, ...]] = {}
    science: ScienceData | None = None
    science_models: tuple[str, ...] | None = None
    implant: ScienceImplant | None = None
    methods: tuple[MethodSettings, ...] = ()  # type: ignore[assignment]
    general: Literal["truthful_qa", "embedded"] = "truthful_qa"
    evaluation: EcoEvaluation

    @model_validator(mode="after")
    def _science_is_whole(self) -> "EcoSettings":
        if ("science" in self.guards) != (self.science is not None):
            raise ValueError("'guards.science' and 'science' go together; give both, or neither")
        return self
