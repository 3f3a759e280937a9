"""What the tests of steps, training and released faults share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.settings import MethodSettings
from unlearn_lib.unlearn import steps
from unlearn_lib.unlearn.methods import METHODS
from unlearn_lib.unlearn.steps import Pools, Step

Load = Callable[..., LanguageModel]
Tensor = torch.Tensor
LORA = {"rank": 4, "dropout": 0.0}
DROPOUT = {"rank": 4, "dropout": 0.2}
every_method = pytest.mark.parametrize("name", METHODS)
lora_or_all = pytest.mark.parametrize("lora", [DROPOUT, None], ids=["lora", "all weights"])


def settings_of(**changed: Any) -> MethodSettings:
    values = {
        "steps": 3,
        "learning_rate": 1e-2,
        "batch_size": 2,
        "schedule": "constant",
        "layer": 1,
    }
    return MethodSettings(**{**values, **changed})


def draw(pools: Pools, name: str, seed: int = 0, **changed: Any) -> list[Step]:
    return steps.draw_steps(pools, METHODS[name], settings_of(**changed), seed)


def trained(language_model: LanguageModel) -> dict[str, Tensor]:
    named = language_model.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def change(language_model: LanguageModel, size: float = 0.03) -> None:
    """Move an adapter away from where it does nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in language_model.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=random))


def assert_same(first: Any, second: Any) -> None:
    assert_close(first, second, rtol=0, atol=0)


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.equal(first[name], second[name]) for name in first)
