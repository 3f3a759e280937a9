"""Batched greedy answers: sorted by length, no more padding than needed, cache on.

What all prompts of a batch begin with (a chat template's system turn) is read once, and an answer
that has ended leaves the batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig

from unlearn_lib.errors import CompanionError
from unlearn_lib.models import LanguageModel

TOKENS_AT_ONCE = 8
"""So many tokens are generated before answers that have ended are taken out of the batch."""


def answers(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Return the greedy answer to each prompt, in the order given, without prompt or end token.

    Arguments and errors as in `continuations`.
    """
    rows = continuations(language_model, prompts, new_tokens, batch_size)
    return [language_model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


@torch.inference_mode()
def continuations(
    language_model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    batch_size: int = 32,
    share: bool = True,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt as token ids, in the order given.

    An end token and what pads after it are cut off.

    Args:
        prompts: token ids.
        new_tokens: most tokens an answer may have; prompts do not count.
        batch_size: prompts a forward; longest first, so that too large a batch fails at once.
        share: read what a batch's prompts begin with once, and take out answers that have ended.
            A guard reads every prompt whole and in one call, so that times are compared without.

    Raises:
        CompanionError: a prompt and its answer do not fit the model's context, or a prompt is
            empty; names its place.
    """
    for place, prompt in enumerate(prompts):
        if not prompt or len(prompt) + new_tokens > language_model.context:
            raise CompanionError(
                f"Prompt {place} has {len(prompt)} tokens; with new_tokens {new_tokens} it must "
                f"have at least one and fit the model's context of {language_model.context}."
            )
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    found: list[list[int]] = [[] for _ in prompts]
    end = language_model.tokenizer.eos_token_id
    for start in tqdm(range(0, len(order), batch_size), desc="answers", leave=False, disable=None):
        places = order[start : start + batch_size]
        rows = _generate(language_model, [prompts[place] for place in places], new_tokens, share)
        for place, row in zip(places, rows, strict=True):
            found[place] = row[: row.index(end)] if end in row else row
    return found


def _generate(
    language_model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int, share: bool
) -> list[list[int]]:
    """Answer one batch: what all prompts begin with is read once, answers that ended drop out."""
    tokenizer, model = language_model.tokenizer, language_model.model
    share = share and not _reads_whole(model)
    shared = shared_start(prompts) if share else 0
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id
    rows = [[*p[:shared], *[pad] * (width - len(p)), *p[shared:]] for p in prompts]
    real = [[1] * shared + [0] * (width - len(p)) + [1] * (len(p) - shared) for p in prompts]
    tokens, mask = (torch.tensor(part).to(model.device) for part in (rows, real))
    cache = _read(model, tokens[:1, :shared], len(prompts)) if shared else None
    at_once = TOKENS_AT_ONCE if share else new_tokens
    found: list[list[int]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for start in range(0, new_tokens, at_once):
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=_greedy(tokenizer, min(at_once, new_tokens - start)),
        )
        tokens, cache = output.sequences, output.past_key_values
        for place, row in zip(open_rows, tokens[:, width:].tolist(), strict=True):
            found[place] = row
        keep = [i for i, p in enumerate(open_rows) if tokenizer.eos_token_id not in found[p]]
        if not keep:
            break
        if len(keep) < len(open_rows):
            chosen = torch.tensor(keep).to(model.device)
            tokens, mask = tokens[chosen], mask[chosen]
            cache.batch_select_indices(chosen)
            open_rows = [open_rows[i] for i in keep]
        mask = torch.cat((mask, mask.new_ones(len(mask), tokens.shape[1] - mask.shape[1])), 1)
    return found


def _reads_whole(model: Any) -> bool:
    """Whether prompts must be read in one piece: behind a guard, or with a recurrent state."""
    return getattr(model, "guarded", False) or getattr(model, "_is_stateful", False)


def shared_start(prompts: Sequence[Sequence[int]]) -> int:
    """Count the leading tokens that all prompts share; of each prompt a token is left over."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts)) - 1
    columns = zip(*(prompt[:shortest] for prompt in prompts))
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), shortest)


def _read(model: Any, tokens: torch.Tensor, copies: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(copies)
    return cache


def _greedy(tokenizer: Any, new_tokens: int) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
