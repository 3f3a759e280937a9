"""How much arithmetic a step asks for: products with the frozen weights, 2 per weight and token.

Forward, and for trained rows once more for the gradient of the inputs; the weights are frozen
and have no gradient of their own. The adapter (half a percent) and attention are left out.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks import published
from unlearn_lib.model.packing import pack
from unlearn_lib.unlearn.steps import Step


def widths(weights: Path) -> tuple[int, int]:
    """The hidden and the inner width of the model in a folder."""
    config = json.loads((weights / "config.json").read_text())
    return config["hidden_size"], config.get("intermediate_size") or config["ffn_dim"]


def _sizes(model: Any) -> tuple[int, int]:
    """Weights of the blocks, and of the output layer."""
    blocks = sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and not any(word in name for word in ("lora_", "embed", "lm_head"))
    )
    return blocks, model.get_output_embeddings().weight.numel()


def packed_step(model: Any, step: Step) -> float:
    """Floating-point operations of one of our steps."""
    blocks, head = _sizes(model)
    both, reference = pack([*step.forget, *step.retain]), pack(step.retain)
    trained = 4 * (blocks * both.tokens + head * len(both.labels))
    return trained + 2 * (blocks * reference.tokens + head * len(reference.labels))


def padded_step(model: Any, step: Step) -> float:
    """Floating-point operations of one step of the published loop, padding included."""
    sizes = {
        name: batch["input_ids"].numel()
        for name, batch in published.batches(step, 0, "cpu").items()
    }
    return sum(_sizes(model)) * (4 * sum(sizes.values()) + 2 * sizes["normal"])


def real_tokens(step: Step) -> int:
    """Tokens of a step's rows, each with its prompt, without padding."""
    return sum(
        len(example.prompt) + len(answer)
        for example in (*step.forget, *step.retain)
        for answer in example.answers
    )
