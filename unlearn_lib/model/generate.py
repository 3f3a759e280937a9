"""Batched greedy answers: sorted by length, no more padding than needed, cache on.

What all prompts of a batch begin with (a chat template's system turn) is read once, and an answer
that has ended leaves the batch.
"""

from collections.abc import Sequence
from itertools import groupby, takewhile

import torch
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig

from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import shared_start, special_ids
from unlearn_lib.util import CompanionError

Prompts = Sequence[Sequence[int]]
TOKENS_AT_ONCE = 8
"""So many tokens are generated before answers that have ended are taken out of the batch."""


def answers(
    language_model: LanguageModel, prompts: Prompts, new_tokens: int, batch_size: int = 32
) -> list[str]:
    """Return the greedy answer to each prompt, in the order of the prompts, without end token.

    Arguments and errors as in `continuations`.
    """
    rows = continuations(language_model, prompts, new_tokens, batch_size)
    return [language_model.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


@torch.inference_mode()
def continuations(
    language_model: LanguageModel,
    prompts: Prompts,
    new_tokens: int,
    batch_size: int = 32,
    share: bool = True,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt as token ids, in the order of the prompts.

    An end token (`LanguageModel.ends`) and what pads after it are cut off.

    Args:
        prompts: token ids.
        new_tokens: most tokens an answer may have; prompts do not count.
        batch_size: prompts a forward; longest first, so that too large a batch fails at once.
        share: read what a batch's prompts begin with once, and take out answers that have ended.
            A guard reads every prompt whole and in one call, so compare times with `share` off.
            So does a model with padded rows (`attention.settle_attention`), as its prompts may
            not be padded on the left: its batches hold prompts of one length.

    Raises:
        CompanionError: a prompt and its answer do not fit the model's context, or a prompt is
            empty; names its place.
    """
    known = range(language_model.model.get_input_embeddings().weight.shape[0])
    for place, prompt in enumerate(prompts):
        if strange := [token for token in prompt if token not in known]:
            raise CompanionError(f"Prompt {place} holds token {strange[0]} of {len(known)}.")
        if not prompt or len(prompt) + new_tokens > language_model.context:
            raise CompanionError(
                f"Prompt {place} has {len(prompt)} tokens; with new_tokens {new_tokens} it must "
                f"have at least one and fit the model's context of {language_model.context}."
            )
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    results: dict[int, list[int]] = {}
    padded = getattr(language_model.model, "padded", False)
    groups = groupby(order, lambda place: len(prompts[place]) if padded else 0)
    sets = [list(places) for _, places in groups]
    batches = [own[i : i + batch_size] for own in sets for i in range(0, len(own), batch_size)]
    for places in tqdm(batches, desc="answers", leave=False, disable=None):
        rows = _generate(language_model, [prompts[place] for place in places], new_tokens, share)
        results |= zip(places, rows, strict=True)
    return [results[place] for place in range(len(prompts))]


def _generate(
    language_model: LanguageModel, prompts: Prompts, new_tokens: int, share: bool
) -> list[list[int]]:
    """Answer one batch. A guard, a window or a recurrent state needs every prompt in one piece."""
    tokenizer, model = language_model.tokenizer, language_model.model
    if any(getattr(model, name, False) for name in ("guarded", "padded", "_is_stateful")):
        share = False
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id
    shared = min(shared_start(prompts), min(map(len, prompts)) - 1) if share else 0
    rows = [[*p[:shared], *[pad] * (width - len(p)), *p[shared:]] for p in prompts]
    # The mask reaches beyond the answer; as much of it is used as there are tokens.
    real = [[1] * shared + [0] * (width - len(p)) + [1] * (len(p) + new_tokens) for p in prompts]
    tokens, mask = (torch.tensor(part, device=model.device) for part in (rows, real))
    cache = None
    if shared:
        cache = DynamicCache(config=model.config)
        model(tokens[:1, :shared], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.batch_repeat_interleave(len(prompts))
    at_once = TOKENS_AT_ONCE if share else new_tokens
    ends = language_model.ends
    results: list[list[int]] = [[] for _ in prompts]
    open_places = list(range(len(prompts)))
    special = special_ids(tokenizer) | {"eos_token_id": ends}
    greedy = GenerationConfig(do_sample=False, return_dict_in_generate=True, **special)
    for start in range(0, new_tokens, at_once):
        greedy.max_new_tokens = min(at_once, new_tokens - start)
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask[:, : tokens.shape[1]],
            past_key_values=cache,
            generation_config=greedy,
        )
        tokens, cache = output.sequences, output.past_key_values
        for place, row in zip(open_places, tokens[:, width:].tolist(), strict=True):
            results[place] = row
        going = [i for i, place in enumerate(open_places) if not set(ends) & set(results[place])]
        if not going or not share:
            break
        open_places = [open_places[i] for i in going]
        tokens, mask = tokens[going], mask[going]
        cache.batch_select_indices(going)
    return [list(takewhile(lambda token: token not in ends, row)) for row in results]
