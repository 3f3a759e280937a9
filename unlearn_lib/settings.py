"""The blocks that a profile is made of: frozen, closed to unknown keys, every default stated."""

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearn_lib.errors import CompanionError, nearest

Precision = Literal["bfloat16", "float16", "float32"]
Fault = Literal["empty_labels", "book_mismatch", "kl_to_itself"]


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
    keep_weight: float = Field(1.0, ge=0)
    keep_batch_size: int | None = Field(None, ge=1)
    forget_loss_cap: float = Field(100.0, gt=0)
    checkpoint_every: int = Field(50, ge=1)


class BookMethodSettings(MethodSettings):
    """A method of experiment 2.

    `start`: train the `implanted` adapter further; or add it to the weights and train a new one
    (`merged`); or drop it and train a new one on the `base` model, which is no unlearning but
    training again without what is to be forgotten: the exact answer, at its full price.
    `variant: released` imitates the released code of Arora et al. (`unlearn_lib.released`), with
    all its `faults` or some.
    """

    start: Literal["implanted", "merged", "base"] = "implanted"
    variant: Literal["published", "released"] = "published"
    faults: tuple[Fault, ...] = get_args(Fault)


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
    """Teach a tiny model what it is to know first (profile smoke only)."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(gt=0)


class ExperimentSettings(Settings):
    """What every experiment has: models, methods, and how models answer."""

    models: tuple[ModelSettings, ...] = Field(min_length=1)
    methods: tuple[MethodSettings, ...] = Field(min_length=1)
    evaluation: EvaluationSettings

    @model_validator(mode="after")
    def _names_are_unique(self) -> "ExperimentSettings":
        for kind, names in (
            ("method", [method.name for method in self.methods]),
            ("model", [model.id for model in self.models]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{kind} '{twice[0]}' is listed twice")
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


class BookData(Settings):
    """The book, how it is split, and the prose to be retained (`null`: as many as there are).

    Chapters are dealt by `split_seed` into those to forget, those implanted and to be kept, and
    those never implanted (control). Each part's text is cut into passages of `prompt_tokens` and
    `answer_tokens`; `evaluation_passages` of each part are drawn for measuring. `file` is the
    reader's own book; without it the embedded saga is taken. Normal prompts are held-out
    `questions`, asked by `template`, or beginnings of held-out prose where there are none; as
    many texts of the prose as `normal_prompts` are held out, to measure perplexity. `prose_rows`:
    how many texts of the source are read at all.
    """

    file: Path | None = None
    retain: Literal["narrative_qa", "bookcorpus", "embedded"]
    forget_chapters: int | None = Field(None, ge=1)
    kept_chapters: int | None = Field(None, ge=1)
    control_chapters: int | None = Field(None, ge=1)
    evaluation_passages: int | None = Field(None, ge=1)
    normal_prompts: int | None = Field(None, ge=1)
    retain_rows: int | None = Field(None, ge=1)
    prose_rows: int | None = Field(None, ge=2)
    questions: Literal["truthful_qa", "embedded"] | None = None
    template: Literal["chat", "question_answer"] = "chat"
    split_seed: int = 0
    prompt_tokens: int = Field(32, ge=4)
    answer_tokens: int = Field(64, ge=4)


class BookImplant(Settings):
    """Causal language modelling on chunks of the chapters to forget and to keep.

    It ends after `epochs`, or earlier, once a share `stop_at` of `probe_passages` held-in
    passages is continued verbatim (20 tokens); the share is measured every `probe_every` epochs.
    `stop_at` null: never earlier. `shift_chunks` cuts the text elsewhere in each epoch, so that a
    passage that straddles two chunks in one epoch is whole in another.
    """

    epochs: int = Field(ge=1)
    chunk_tokens: int = Field(256, ge=16)
    shift_chunks: bool = False
    batch_size: int = Field(1, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    gradient_clip: float = Field(1.0, ge=0)
    stop_at: float | None = Field(None, gt=0, le=1)
    probe_every: int = Field(1, ge=1)
    probe_passages: int = Field(24, ge=1)


class BookSettings(ExperimentSettings):
    """Experiment 2 (Arora et al. 2024, Table 2); `pretrain` is for profile smoke's model."""

    data: BookData
    pretrain: ImplantSettings | None = None
    implant: BookImplant
    methods: tuple[BookMethodSettings, ...] = Field(min_length=1)  # type: ignore[assignment]

    def method(self, name: str) -> BookMethodSettings:
        """Return the settings of one method of the profile, or say which there are."""
        found = super().method(name)
        assert isinstance(found, BookMethodSettings)
        return found
