"""A model's block of a profile, and the base of all blocks: frozen, closed to unknown keys."""

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import CoreSchema, core_schema

from unlearn_lib.util import nearest

MOST, MOST_SEED = 1_000_000, 2**32 - 1
"""Beyond these a number is a typing error, or what torch takes for no seed."""
HUB_ID = r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$"
Precision = Literal["bfloat16", "float16", "float32"]


class HubId(str):
    """The name of a model on the hub, `owner/name` or `name`: no path, and nothing for a shell."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls, core_schema.str_schema(pattern=HUB_ID)
        )


class Settings(BaseModel):
    """Base of every settings block: immutable, closed to unknown keys, without inf and nan."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
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

    @model_validator(mode="after")
    def _within_reason(self) -> Any:
        for name, value in self:
            seed = name.endswith(("seed", "seeds"))
            for number in value if isinstance(value, tuple) else [value]:
                if isinstance(number, int) and not seed and abs(number) > MOST:
                    raise ValueError(f"'{name}' is {number}, beyond reason (at most {MOST:,})")
                if seed and not 0 <= number <= MOST_SEED:
                    raise ValueError(f"'{name}' is {number}: a seed is 0 to {MOST_SEED:,}")
        return self


def hub_ids(block: Any) -> Iterator[HubId]:
    """Give every hub id below a block of settings."""
    if isinstance(block, HubId):
        yield block
    elif isinstance(block, BaseModel | Mapping):
        for _, value in block.items() if isinstance(block, Mapping) else block:
            yield from hub_ids(value)
    elif isinstance(block, tuple):
        for value in block:
            yield from hub_ids(value)


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

    @model_validator(mode="after")
    def _layers_rise(self) -> "LoraSettings":
        if self.layers and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError("'layers' are the first and the last block, counted from 0")
        return self


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

    id: HubId
    precision: Precision = "bfloat16"
    quantization: Literal["none", "8bit", "nf4"] = "none"
    lora: LoraSettings | None = LoraSettings()
    gradient_checkpointing: bool = False
    chat: ChatSettings = ChatSettings()
