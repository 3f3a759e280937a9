"""A model's block of a profile, and the base of all blocks: frozen, closed to unknown keys."""

import datetime
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearn_lib.util import nearest

Precision = Literal["bfloat16", "float16", "float32"]


class Settings(BaseModel):
    """Base of every settings block: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    in_files: ClassVar[tuple[str, ...]] = ()
    """Further keys that this block may have in a profile's file; reading it resolves them."""

    @model_validator(mode="before")
    @classmethod
    def known_keys(cls, block: Any) -> Any:
        """Return a block as it is, or refuse its unknown keys with the nearest right name."""
        for key in block if isinstance(block, dict) else ():
            if key not in cls.model_fields:
                known = [*cls.model_fields, *cls.in_files]
                raise ValueError(f"unknown key '{key}'{nearest(str(key), known)}")
        return block


class LoraSettings(Settings):
    """A low-rank adapter (PEFT); `targets` is `all-linear` or names of projections.

    `layers`: the first and last block (from 0) that get one; null: all. Blocks below need no
    backward pass.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers: tuple[int, int] | None = None


class ChatSettings(Settings):
    """How a model's chat template is filled, where a task has `template: chat`.

    `system`: the system turn; null: the template's own. `date`: what the template takes for today,
    on whatever day it runs; default: the date that Llama's templates state without a clock.
    `space_before_answer`: whether answers begin with a space; null: as the template has it.
    """

    system: str | None = None
    date: datetime.date = datetime.date(2024, 7, 26)
    space_before_answer: bool | None = None


class ModelSettings(Settings):
    """A causal language model and how its weights are held while they are trained.

    Hardware without the `precision` that is asked for takes float32, and every run records it.
    `lora: null` trains all weights.
    """

    id: str
    precision: Precision = "bfloat16"
    quantization: Literal["none", "8bit", "nf4"] = "none"
    lora: LoraSettings | None = LoraSettings()
    gradient_checkpointing: bool = False
    chat: ChatSettings = ChatSettings()
