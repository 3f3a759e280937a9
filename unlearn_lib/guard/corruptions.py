"""Corruptions of a prompt's embeddings as pure functions, reproducible prompt by prompt.

A corruption of Liu et al. 2024 is a change (`rand_noise` adds noise of N(0, strength²),
`set_rand_noise` puts it in place of the value, `zero_out`, `flip_sign`, `add_value` and
`sub_value` of the strength) of some components of every chosen row: `first_n` the first `dims`,
`rand_n` as many drawn by the seed and the same for all rows, `top_k` and `least_k` those of the
row with the largest and smallest absolute values, the first of equal ones. `reverse_order` and
`shuffle` move whole chosen rows among their own places and ignore strength and `dims`.

Where the released code differs:
    noise: drawn anew in every forward pass from the global generator, which only some scripts
        seed, so that the answer to a prompt changes from run to run and with the batch around it.
    answer tokens: corrupted too when answers are scored; here `chosen` says what is.
    set_rand_noise_first_n: also zeroes those components of tokens that are not flagged.
    reverse_order, shuffle: move every token, flagged or not, and padding with them.
    add_value, sub_value: rank components by value, not by absolute value; add_value_top_k and
        sub_value_least_k are missing.
    In place: the embeddings given are overwritten.
"""

import hashlib
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from unlearn_lib.settings import CorruptionName
from unlearn_lib.util import CompanionError, nearest

CORRUPTIONS: tuple[str, ...] = get_args(CorruptionName)
CHANGES: dict[str, Callable[[Tensor, float, Tensor], Tensor]] = {
    "rand_noise": lambda rows, strength, normal: rows + strength * normal,
    "set_rand_noise": lambda rows, strength, normal: strength * normal,
    "zero_out": lambda rows, strength, normal: torch.zeros_like(rows),
    "flip_sign": lambda rows, strength, normal: -rows,
    "add_value": lambda rows, strength, normal: rows + strength,
    "sub_value": lambda rows, strength, normal: rows - strength,
}
"""(rows [C, d], strength, numbers of N(0, 1) [C, d]) -> changed rows [C, d]."""


def corrupt(
    embeddings: Tensor,
    chosen: Tensor,
    name: str,
    strength: float,
    dims: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Return a prompt's embeddings with the chosen rows corrupted, every other row bit for bit.

    Computed in float32 (float64 embeddings: float64) and rounded once. The noise, float32 [C, d]
    for C chosen rows, is drawn on the CPU and depends on the seed, C and d only: not on rows that
    are not chosen (padding), on `dims`, nor on the embeddings' device or dtype.

    Args:
        embeddings: float [T, d], one row a token; never written to.
        chosen: bool [T], the rows to corrupt.
        name: one of `CORRUPTIONS`.
        strength: in the unit of the embeddings.
        dims: how many components of a row change, 1 to d. Default None: all.
        seed: of noise, rand_n and shuffle, see `prompt_seed`. Default 0.

    Returns:
        A new tensor [T, d] of the embeddings' dtype and device; an equal copy if none is chosen.

    Raises:
        CompanionError: unknown name; dims outside 1 to d; a result that the embeddings' dtype
            cannot hold.
    """
    width = embeddings.shape[1]
    dims = width if dims is None else dims
    if name not in CORRUPTIONS:
        raise CompanionError(f"There is no corruption '{name}'{nearest(name, CORRUPTIONS)}.")
    if not 1 <= dims <= width:
        raise CompanionError(f"dims is {dims}: give 1 to {width}, an embedding's components.")
    chosen = chosen.to(embeddings.device)
    rows = embeddings[chosen]
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    changed = _corrupted(wide, name, strength, dims, seed).to(rows.dtype)
    if not changed.isfinite().all():
        raise CompanionError(
            f"Strength {strength:g} is beyond what {rows.dtype} holds: take a smaller one."
        )
    return embeddings.index_put((chosen,), changed)


def prompt_seed(text: str, seed: int = 0) -> int:
    """Return a prompt's own seed, 0 to 2³² - 1: the same in every process and on every machine.

    The first four bytes of the sha256 of the seed and the text, as torch's CPU generator reads
    no more than 32 bits of a seed.
    """
    digest = hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


def _corrupted(rows: Tensor, name: str, strength: float, dims: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name == "reverse_order":
        return rows.flip(0)
    if name == "shuffle":
        return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]
    change, *choice = name.rsplit("_", 2)
    # Noise first: it must not depend on how components are chosen.
    normal = torch.randn(rows.shape, generator=generator, dtype=torch.float32).to(rows)
    components = _components(rows, "_".join(choice), dims, generator)
    return torch.where(components, CHANGES[change](rows, strength, normal), rows)


def _components(rows: Tensor, choice: str, dims: int, generator: torch.Generator) -> Tensor:
    """Return which components of each row change: bool, [d] or [C, d]."""
    if choice == "first_n":
        return torch.arange(rows.shape[1], device=rows.device) < dims
    if choice == "rand_n":
        return (torch.randperm(rows.shape[1], generator=generator) < dims).to(rows.device)
    order = rows.abs().argsort(dim=1, descending=choice == "top_k", stable=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :dims], True)
