"""Corruptions of a prompt's embeddings as pure functions, reproducible prompt by prompt.

A corruption of Liu et al. 2024 is a change (`rand_noise` adds noise of N(0, strength²),
`set_rand_noise` puts it in place of the value, `zero_out`, `flip_sign`, `add_value` and
`sub_value` of the strength) of some components of every chosen row: `first_n` the first `dims`,
`rand_n` as many drawn by the seed and the same for all rows, `top_k` and `least_k` those of the
row with the largest and smallest absolute values, the first of equal ones. `reverse_order` and
`shuffle` move whole chosen rows among their own places and heed neither strength nor `dims`.

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

import numpy as np
import torch

from unlearn_lib.errors import CompanionError, nearest

Tensor = torch.Tensor
Change = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(rows [C, d], strength [d], generator) -> changed rows [C, d]."""
Choice = Callable[[Tensor, int, torch.Generator], Tensor]
"""(rows [C, d], dims, generator) -> which components change, bool, broadcast to [C, d]."""
Corruption = Callable[[Tensor, Tensor, int, torch.Generator], Tensor]
"""(rows [C, d], strength [d], dims, generator) -> corrupted rows [C, d]; pure."""


def corrupt(
    embeddings: Tensor,
    chosen: Tensor,
    name: str,
    strength: float | Tensor | np.ndarray,
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
        name: a key of `CORRUPTIONS`.
        strength: at least 0, in the unit of the embeddings; or one for each component, [d].
        dims: how many components of a row change, 1 to d. Default None: all.
        seed: of noise, rand_n and shuffle, see `prompt_seed`. Default 0.

    Returns:
        A new tensor [T, d] of the embeddings' dtype and device; an equal copy if none is chosen.

    Raises:
        CompanionError: unknown name; strength negative, nan, infinite or of another length than
            d; dims outside 1 to d; a result that the embeddings' dtype cannot hold.
        ValueError: embeddings or chosen of another shape or kind, or chosen rows not finite.
    """
    _check_tensors(embeddings, chosen)
    if name not in CORRUPTIONS:
        raise CompanionError(f"There is no corruption '{name}'{nearest(name, CORRUPTIONS)}.")
    width = embeddings.shape[1]
    dims = width if dims is None else dims
    if not 1 <= dims <= width:
        raise CompanionError(
            f"dims is {dims}, but an embedding of this model has {width} components: give 1 to "
            f"{width}, or null for all."
        )
    strengths = _strengths(strength, width)
    chosen = chosen.to(embeddings.device)
    rows = embeddings[chosen]
    wide = torch.promote_types(rows.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    changed = CORRUPTIONS[name](rows.to(wide), strengths.to(rows.device, wide), dims, generator)
    changed = changed.to(rows.dtype)
    _check_finite(rows, changed, chosen, float(strengths.max()))
    result = embeddings.clone()
    result[chosen] = changed
    return result


def prompt_seed(text: str, seed: int = 0) -> int:
    """Return a prompt's own seed, 0 to 2³² - 1: the same in every process and on every machine.

    The first four bytes of the sha256 of the seed and the text, as torch's CPU generator reads
    no more than 32 bits of a seed.
    """
    digest = hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


def _noise(rows: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    normal = torch.randn(rows.shape, generator=generator, dtype=torch.float32, device="cpu")
    return strength * normal.to(rows.device, rows.dtype)


def _add_noise(rows: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return rows + _noise(rows, strength, generator)


def _zero_out(rows: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return torch.zeros_like(rows)


def _flip_sign(rows: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return -rows


def _add_value(rows: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return rows + strength


def _sub_value(rows: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return rows - strength


def _first_n(rows: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    return torch.arange(rows.shape[1], device=rows.device) < dims


def _rand_n(rows: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(rows.shape[1], generator=generator, device="cpu")
    return (order < dims).to(rows.device)


def _top_k(rows: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    return _leading(rows.abs().argsort(dim=1, descending=True, stable=True), dims)


def _least_k(rows: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    return _leading(rows.abs().argsort(dim=1, stable=True), dims)


def _leading(order: Tensor, dims: int) -> Tensor:
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :dims], True)


def _on(change: Change, choice: Choice) -> Corruption:
    def corruption(rows: Tensor, strength: Tensor, dims: int, generator: torch.Generator) -> Tensor:
        # The change first: its noise must not depend on how components are chosen.
        changed = change(rows, strength, generator)
        return torch.where(choice(rows, dims, generator), changed, rows)

    return corruption


def _reverse_order(rows: Tensor, strength: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    return rows.flip(0)


def _shuffle(rows: Tensor, strength: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(rows), generator=generator, device="cpu")
    return rows[order.to(rows.device)]


CORRUPTIONS: dict[str, Corruption] = {
    "rand_noise_first_n": _on(_add_noise, _first_n),
    "rand_noise_rand_n": _on(_add_noise, _rand_n),
    "rand_noise_top_k": _on(_add_noise, _top_k),
    "set_rand_noise_first_n": _on(_noise, _first_n),
    "zero_out_first_n": _on(_zero_out, _first_n),
    "zero_out_top_k": _on(_zero_out, _top_k),
    "flip_sign_first_n": _on(_flip_sign, _first_n),
    "flip_sign_top_k": _on(_flip_sign, _top_k),
    "reverse_order": _reverse_order,
    "shuffle": _shuffle,
    "add_value_first_n": _on(_add_value, _first_n),
    "add_value_top_k": _on(_add_value, _top_k),
    "add_value_least_k": _on(_add_value, _least_k),
    "sub_value_first_n": _on(_sub_value, _first_n),
    "sub_value_top_k": _on(_sub_value, _top_k),
    "sub_value_least_k": _on(_sub_value, _least_k),
}
"""Every corruption by its name in a profile."""


def _strengths(strength: float | Tensor | np.ndarray, width: int) -> Tensor:
    """The strength of each component, float64 [d], on the CPU."""
    given = torch.as_tensor(strength, dtype=torch.float64, device="cpu").detach()
    if given.shape not in ((), (width,)):
        raise CompanionError(
            f"The strength has shape {tuple(given.shape)}, but an embedding of this model has "
            f"{width} components: give one number, or {width} of them."
        )
    bad = given[~(given.isfinite() & (given >= 0))]
    if len(bad):
        raise CompanionError(
            f"The strength is {bad[0].item():g}: give a finite number, 0 or larger."
        )
    return given.expand(width)


def _check_tensors(embeddings: Tensor, chosen: Tensor) -> None:
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"The embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}: give the "
            "floating-point embeddings of one prompt, [tokens, components]."
        )
    if chosen.dtype != torch.bool or chosen.shape != embeddings.shape[:1]:
        raise ValueError(
            f"chosen is {chosen.dtype} of shape {tuple(chosen.shape)}: give one true or false for "
            f"each of the prompt's {len(embeddings)} rows."
        )


def _check_finite(rows: Tensor, changed: Tensor, chosen: Tensor, strength: float) -> None:
    broken = ~changed.isfinite().all(dim=1)
    if not broken.any():
        return
    places, given = chosen.nonzero()[:, 0], ~rows.isfinite().all(dim=1)
    if given.any():
        raise ValueError(
            f"Row {int(places[given][0])} of the embeddings holds nan or infinity before it is "
            "corrupted: look at the model's weights."
        )
    wider = ", or load the model in bfloat16 or float32" if rows.dtype == torch.float16 else ""
    raise CompanionError(
        f"Strength {strength:g} takes row {int(places[broken][0])} of the embeddings beyond what "
        f"{rows.dtype} holds, {torch.finfo(rows.dtype).max:g}: take a smaller strength{wider}."
    )
