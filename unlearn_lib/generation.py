"""Batched greedy answers: sorted by length, padded on the left, cache on."""

from collections.abc import Sequence

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from unlearn_lib.errors import CompanionError
from unlearn_lib.models import LanguageModel


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
) -> list[list[int]]:
    """Return the greedy continuation of each prompt as token ids, in the order given.

    An end token and what pads after it are cut off.

    Args:
        prompts: token ids.
        new_tokens: most tokens an answer may have; prompts do not count.
        batch_size: prompts a forward; longest first, so that too large a batch fails at once.

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
        rows = _generate(language_model, [prompts[place] for place in places], new_tokens)
        for place, row in zip(places, rows.tolist(), strict=True):
            found[place] = row[: row.index(end)] if end in row else row
    return found


def _generate(
    language_model: LanguageModel, prompts: Sequence[Sequence[int]], new_tokens: int
) -> torch.Tensor:
    tokenizer, model = language_model.tokenizer, language_model.model
    width = max(map(len, prompts))
    pad = tokenizer.pad_token_id
    tokens = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    output = model.generate(
        input_ids=tokens.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
    )
    return output[:, width:]
