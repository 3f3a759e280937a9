"""Packed rows: several prompts with their answers in one row, nothing padded, nothing read twice.

`pack` lays prompts, each with any number of answers, end to end in one row. A block attention
mask lets every answer see its own prompt and itself only, and positions restart at each answer,
so the logits equal those of separate rows. A prompt with K answers is read once, what all
prompts begin with is read once, and logits are asked for only where a scored token is predicted.
The released code of Arora et al. pads, and averages over the padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from unlearn_lib.model.tokens import Example, shared_start
from unlearn_lib.util import CompanionError

Tensor = torch.Tensor
PACKED = "packed"
"""The name by which transformers knows `packed_attention`."""


@dataclass
class Packed:
    """One packed row and what is to be predicted in it.

    Attributes:
        input_ids, position_ids: int64 [1, L].
        attention_mask: bool [1, 1, L, L]; True where a token may look.
        lengths: tokens of the beginning that all prompts share, then of each example without it.
        predictors: int64 [N], the places in the row whose logits predict a scored token.
        labels: int64 [N], the scored tokens.
        rows: int64 [N], which answer (0..R-1, in the order of the examples) each token belongs to.
        prompts: for each example, the places of its prompt's tokens in the row.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    lengths: list[int]
    predictors: Tensor
    labels: Tensor
    rows: Tensor
    prompts: list[list[int]]

    @property
    def tokens(self) -> int:
        """Length of the packed row, L."""
        return self.input_ids.shape[1]


def pack(examples: Sequence[Example], share: bool = True) -> Packed:
    """Lay examples end to end in one row with a block attention mask.

    Args:
        examples: one or more; every prompt and answer has a token.
        share: let the beginning that all prompts share (a chat template's system turn) stand
            once, in front; else every prompt stands whole, as a guard needs it.
    """
    shared = shared_start([example.prompt for example in examples]) if share else 0
    laid = [(token, position, 0) for position, token in enumerate(examples[0].prompt[:shared])]
    scored: list[tuple[int, int, int]] = []  # the place that predicts a token, the token, its row
    lengths, prompts = [shared], []
    row = 0
    for example in examples:
        start, width = len(laid), len(example.prompt)
        prompts.append([*range(shared), *range(start, start + width - shared)])
        laid += [(token, position, 0) for position, token in enumerate(example.prompt)][shared:]
        if example.score_prompt:
            scored += [(p, t, row) for p, t in zip(prompts[-1], example.prompt[1:])]
        for branch, answer in enumerate(example.answers, start=1):
            places = [prompts[-1][-1], *range(len(laid), len(laid) + len(answer) - 1)]
            scored += [(p, t, row) for p, t in zip(places, answer, strict=True)]
            laid += [(token, position, branch) for position, token in enumerate(answer, width)]
            row += 1
        lengths.append(len(laid) - start)
    ids, positions, branches = torch.tensor(laid).T.contiguous()
    mask = _block_mask(torch.tensor(lengths), branches)
    predictors, labels, rows = torch.tensor(scored).T.contiguous()
    return Packed(ids[None], positions[None], mask, lengths, predictors, labels, rows, prompts)


def _block_mask(lengths: Tensor, branches: Tensor) -> Tensor:
    """Bool [1, 1, L, L]: earlier tokens of the shared start, of one's own prompt and answer."""
    groups = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    same_group = (groups[None, :] == 0) | (groups[:, None] == groups[None, :])
    same_branch = (branches[None, :] == 0) | (branches[:, None] == branches[None, :])
    return (same_group & same_branch).tril()[None, None]


def by_length(examples: Sequence[Example], most_tokens: int) -> list[list[int]]:
    """Group example indices, longest first, into packs of at most `most_tokens` tokens.

    An example longer than that gets a pack of its own.
    """
    packs: list[list[int]] = []
    room = 0
    for index in sorted(range(len(examples)), key=lambda index: -examples[index].length):
        if examples[index].length > room:
            packs.append([])
            room = most_tokens
        packs[-1].append(index)
        room -= examples[index].length
    return packs


def packed_logits(model: Any, packed: Packed) -> Tensor:
    """Run one packed row; return logits [N, vocabulary] at the scored places only.

    A model from `loading.load` attends within each example only; another one computes the whole
    row's attention and masks it, which gives the same logits. One that cannot read packed rows
    (`attention.settle_attention`) reads a padded row for each answer. A model behind a guard is
    told which tokens are prompts.
    """
    output, rows, places = _run(model, packed, packed.predictors)
    return output.logits.squeeze(0) if rows is None else output.logits[rows, places]


def _run(model: Any, packed: Packed, logits_at: Tensor) -> tuple[Any, Tensor | None, Tensor]:
    """Run a model; return its output, and rows (None: one packed row) and places of what is scored.

    Args:
        logits_at: where a packed row's logits are asked for; padded rows give all.
    """
    if getattr(model, "padded", False):
        return _run_padded(model, packed)
    names = ("input_ids", "position_ids", "attention_mask")
    options: dict[str, Any] = {name: getattr(packed, name).to(model.device) for name in names}
    options["logits_to_keep"] = logits_at.to(model.device)
    if getattr(model, "guarded", False):
        options["prompts"] = packed.prompts
    output = model(use_cache=False, packed_lengths=packed.lengths, **options)
    return output, None, packed.predictors.to(model.device)


def _run_padded(model: Any, packed: Packed) -> tuple[Any, Tensor, Tensor]:
    """Run each answer as a row of its own, padded on the right, by the model's own attention."""
    mask, count = packed.attention_mask[0, 0], int(packed.rows.max()) + 1
    last = [packed.predictors[packed.rows == row].max() for row in range(count)]
    seen = [mask[place].nonzero()[:, 0] for place in last]
    ids = pad_sequence([packed.input_ids[0, places] for places in seen], batch_first=True)
    real = pad_sequence([torch.ones_like(places) for places in seen], batch_first=True)
    pairs = zip(packed.rows.tolist(), packed.predictors)
    places = torch.stack([torch.searchsorted(seen[row], place) for row, place in pairs])
    options: dict[str, Any] = {"input_ids": ids, "attention_mask": real}
    options = {name: values.to(model.device) for name, values in options.items()}
    if getattr(model, "guarded", False):
        rows = [places.tolist() for places in seen]
        own = [next(p for p in packed.prompts if p[-1] in row) for row in rows]
        options["prompts"] = [range(len(prompt)) for prompt in own]
    return model(**options), packed.rows.to(model.device), places.to(model.device)


def packed_activations(model: Any, packed: Packed, layer: int) -> Tensor:
    """Run one packed row; return the activations [N, d] after block `layer` at scored places.

    They are taken from the block itself: transformers' `hidden_states` hold those of the last
    block only after the final normalisation.

    Raises:
        CompanionError: the model has fewer blocks.
    """
    count = model.config.num_hidden_layers
    if layer >= count:
        raise CompanionError(
            f"The method's 'layer' is {layer}, but the model's blocks are 0 to {count - 1}."
        )
    lists = (part for part in model.modules() if isinstance(part, torch.nn.ModuleList))
    blocks = next(part for part in lists if len(part) == count)
    outputs: list[Any] = []
    with blocks[layer].register_forward_hook(lambda block, _, output: outputs.append(output)):
        _, rows, places = _run(model, packed, packed.predictors[:1])
    states = outputs[0] if isinstance(outputs[0], Tensor) else outputs[0][0]
    return states[0 if rows is None else rows.to(states.device), places.to(states.device)]


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attention (SDPA) that never multiplies tokens of one packed example with another's.

    Args:
        options: `packed_lengths`, the `Packed.lengths` of a packed row (ordinary batches have
            none), and those of transformers' own attention.
    """
    lengths = options.pop("packed_lengths", None)
    if lengths is None or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    queries, keys, values = (part.split(lengths, dim=2) for part in (query, key, value))
    masks = [rows.split(lengths, dim=3) for rows in attention_mask.split(lengths, dim=2)]
    outputs = []
    for place, length in enumerate(lengths):
        seen = [0, place] if place > 0 else [0]  # the beginning that all share, and its own tokens
        own_keys = torch.cat([keys[i] for i in seen], 2)
        own_values = torch.cat([values[i] for i in seen], 2)
        mask = torch.cat([masks[place][i] for i in seen], 3)
        if length > 0:
            outputs.append(_attend(module, queries[place], own_keys, own_values, mask, **options))
    return torch.cat(outputs, dim=1), None


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **options: Any
) -> Tensor:
    """Attention of one packed example, [1, n, heads, width].

    On a CPU in bf16 the products are written out, with scores and softmax in float32: for a few
    hundred tokens SDPA's fused kernel takes two to three times as long there, backward above all.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or options.get("dropout"):
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    key, value = (repeat_kv(part, query.shape[1] // part.shape[1])[0] for part in (key, value))
    bias = torch.zeros(mask.shape[1:]).masked_fill(~mask[0], -torch.inf)
    scores = torch.baddbmm(bias, query[0].float(), key.float().transpose(1, 2), alpha=scale)
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(0, 1)[None]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
