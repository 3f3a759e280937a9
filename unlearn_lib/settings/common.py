"""The settings that every experiment shares: models, methods, evaluation."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearn_lib.errors import CompanionError, nearest

Precision = Literal["bfloat16", "float16", "float32"]


class Settings(BaseModel):
    """Base of every settings block: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LoraSettings(Settings):
    """A low-rank adapter (PEFT); `targets` is `all-linear` or names of projections.

    `layers`: the first and the last block (from 0) that get one; null: all. Blocks below the
    first need no backward pass.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers: tuple[int, int] | None = None


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


class MethodSettings(Settings):
    """One line of the method table: a registered method and the settings it runs with.

    `name` is what tables and figures show; `uses` a key of `unlearn_lib.methods.METHODS`.
    The weights are the papers' epsilon 1, 2 and 3. Training stops, and the last good state is
    kept, when the cross-entropy of the forget answers passes `forget_loss_cap` (nats per token).
    `retain_batch_size` null: as many retain rows as forget rows. Refusals longer than
    `refusal_tokens` are no substitutes; the original model's own answers are cut after
    `own_tokens`. `gradient_clip` 0: none, as in the released loop. RMU steers the activations
    after block `layer` (from 0) to a random vector of length `steering`.
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
    layer: int = Field(7, ge=0)
    steering: float = Field(2.0, gt=0)
    keep_weight: float = Field(1.0, ge=0)
    keep_batch_size: int | None = Field(None, ge=1)
    forget_loss_cap: float = Field(100.0, gt=0)
    checkpoint_every: int = Field(50, ge=1)


class EvaluationSettings(Settings):
    """Greedy answers and their batch size; `encoder` is the sentence encoder of similarity.

    `bleurt` names a BLEURT model, measured too when its weights are to be had.
    """

    new_tokens: int = Field(60, ge=1)
    batch_size: int = Field(32, ge=1)
    encoder: str
    bleurt: str | None = None


class ImplantSettings(Settings):
    """Teach a model what it is to know before it can be asked to forget."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)


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
