"""Find out at load how a model's rows can be laid so that every logit is that of a plain row.

Packed rows are right only where a model takes a caller's own attention mask and positions, and
looks at all tokens that these allow. Any other model gets padded rows and its own attention.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from unlearn_lib.model.packing import PACKED, pack, packed_logits
from unlearn_lib.model.tokens import Example, Tokens, special_ids
from unlearn_lib.util import CompanionError, say

TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
"""Up to here a difference of two logits is rounding: the largest one in float32, the mean one in
half precision or on quantised weights; in standard deviations of the logits over the vocabulary."""
WINDOWS = ("window", "window_size", "window_len", "attention_chunk_size", "index_topk")
"""How names end of settings that say how many tokens an attention sees."""
Tensor = torch.Tensor


def settle_attention(model: Any, tokenizer: Any, context: int, name: str) -> str:
    """Choose how rows are laid; return `packed`, or `padded` with the reason.

    A few tokens are run through the model in eager attention, one answer a row, and compared.

    Args:
        model: in evaluation mode; loaded with `packing.PACKED`, unless it does not know that.
        context: the longest row in tokens; a shorter window makes packed rows wrong.
        name: the model's, for messages.

    Raises:
        CompanionError: the model is not causal, or padded rows differ from plain ones too.
    """
    kind = model.config.model_type
    refusal = f"'{name}' is of type '{kind}', which cannot be measured right: "
    own = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    knows = model.config._attn_implementation == PACKED
    if knows and not model._can_set_attn_implementation():
        model.config._attn_implementation, knows = "eager", False  # it reads masks, and no more
    window = _window(model.config)
    reason = "its attention is its own" if not knows else "packed rows or batches give other logits"
    if window < context:
        reason = f"its attention has a window of {window} tokens"
    try:
        examples = _examples(model, tokenizer)
        packed = pack(examples)
        _attend_by(model, "eager")
        with torch.no_grad():
            rows = [_plain(model, example) for example in examples]
    except Exception as error:
        raise CompanionError(f"{refusal}it does not read plain rows ({error!r:.150}).") from error
    expected = torch.cat([logits for row in rows for logits in row])
    if not expected.isfinite().all():
        raise CompanionError(f"{refusal}its logits are not finite.")
    if not _close(rows[0][0][:1], rows[0][1][:1], model):
        raise CompanionError(f"{refusal}it is not causal: later tokens change earlier logits.")
    prompts = [example.prompt for example in examples]
    ways = [PACKED] if knows and window >= context else []
    for attention in dict.fromkeys((*ways, own, "eager")):
        model.padded = attention != PACKED
        _attend_by(model, attention)
        # Prompts padded on the left are for models that read packed rows; others have one length.
        asked = prompts[:1] if model.padded else prompts
        right = _close(_tried(model, packed), expected, model)
        if right and _answers(model, tokenizer, asked, attention):
            if not model.padded:
                return PACKED
            say(f"{name} ({kind}): {reason}, so rows are padded, which takes longer.")
            return f"padded ({reason})"
    raise CompanionError(f"{refusal}what it gives in batches differs from plain rows.")


@torch.no_grad()
def _answers(model: Any, tokenizer: Any, prompts: Sequence[Tokens], attention: str) -> bool:
    """Tell whether `generate` sees the logits of plain rows, for two tokens after prompts."""
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id
    rows = [[*[pad] * (width - len(p)), *p] for p in prompts]
    real = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    tokens, mask = (torch.tensor(part, device=model.device) for part in (rows, real))
    shape: dict[str, Any] = {"min_new_tokens": 2, "max_new_tokens": 2, "output_logits": True}
    shape |= {"do_sample": False, "return_dict_in_generate": True} | special_ids(tokenizer)
    try:
        output = model.generate(tokens, GenerationConfig(**shape), attention_mask=mask)
    except Exception:  # as in `_tried`
        return False
    _attend_by(model, "eager")
    new = output.sequences[:, width:].tolist()
    plain = [_plain(model, Example(p, (tuple(row),)))[0] for p, row in zip(prompts, new)]
    _attend_by(model, attention)
    logits = torch.stack(output.logits, dim=1).to(model.device)
    return _close(logits, torch.stack(plain), model)


def _examples(model: Any, tokenizer: Any) -> list[Example]:
    """Two prompts that begin alike, three answers; tokens from all over the vocabulary."""
    size = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    usable = sorted(set(range(size)) - set(tokenizer.all_special_ids))
    tokens = tuple(usable[place * 7919 % len(usable)] for place in range(1, 25))
    first = Example(tokens[:9], (tokens[9:14], tokens[14:16]))
    return [first, Example((*tokens[:3], *tokens[16:20]), (tokens[20:],))]


def _window(config: Any) -> float:
    """The shortest window of a model's attention in tokens; infinite where it sees everything."""
    config = config.get_text_config(decoder=True)
    if set(getattr(config, "layer_types", None) or ["?"]) == {"full_attention"}:
        return torch.inf
    sizes = [
        value
        for name, value in config.to_dict().items()
        if name.endswith(WINDOWS) and type(value) is int and value > 0
    ]
    return min(sizes, default=torch.inf)


def _attend_by(model: Any, attention: str) -> None:
    if model.config._attn_implementation != attention and model._can_set_attn_implementation():
        model.set_attn_implementation(attention)


def _plain(model: Any, example: Example) -> Sequence[Tensor]:
    """For each answer the logits [n, vocabulary] at its tokens, from a row of its own."""
    parts = []
    for answer in example.answers:
        row = torch.tensor([[*example.prompt, *answer]], device=model.device)
        parts.append(model(input_ids=row).logits[0, len(example.prompt) - 1 : -1])
    return parts


def _tried(model: Any, packed: Any) -> Tensor | None:
    """The logits of a packed row, or None where the model cannot read it."""
    try:
        with torch.no_grad():
            return packed_logits(model, packed)
    except Exception:  # whatever a model raises over a mask that it does not know
        return None


def _close(logits: Tensor | None, expected: Tensor, model: Any) -> bool:
    if logits is None or logits.shape != expected.shape:
        return False
    distance = (logits.float() - expected.float()).abs()
    spread = float(expected.float().std(-1).mean())
    if model.dtype == torch.float32 and not getattr(model, "is_quantized", False):
        return float(distance.max()) <= TOLERANCE * spread + 1e-6
    return float(distance.mean()) <= HALF_TOLERANCE * spread
