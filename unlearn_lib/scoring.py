"""Negative log-likelihood of given answers, with prompts shared and nothing padded."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from unlearn_lib.batches import Example, by_length, pack, packed_logits
from unlearn_lib.losses import answer_nll
from unlearn_lib.models import LanguageModel


def answer_losses(
    language_model: LanguageModel, examples: Sequence[Example], most_tokens: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Score the answers of examples.

    Args:
        examples: prompts with one or more answers each.
        most_tokens: length of a packed row.

    Returns:
        nll: float64 [R], summed over each answer's tokens, in nats; answers in the order given.
        counts: int64 [R], tokens per answer.
    """
    return answer_matches(language_model, examples, most_tokens)[:2]


@torch.inference_mode()
def answer_matches(
    language_model: LanguageModel, examples: Sequence[Example], most_tokens: int = 1024
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Score the answers of examples, and tell where the most likely token is the true one.

    Arguments as in `answer_losses`.

    Returns:
        nll, counts: as from `answer_losses`.
        matches: for each answer, bool [its tokens], the tokens before it being the true ones.
    """
    starts = np.cumsum([0, *(len(example.answers) for example in examples)])
    nll = np.zeros(starts[-1])
    counts = np.zeros(starts[-1], dtype=np.int64)
    matches: list[np.ndarray] = [np.zeros(0, dtype=bool)] * starts[-1]
    for places in tqdm(by_length(examples, most_tokens), desc="scoring", leave=False, disable=None):
        packed = pack([examples[place] for place in places])
        logits = packed_logits(language_model.model, packed)
        labels, rows = packed.labels.to(logits.device), packed.rows.to(logits.device)
        target = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in places])
        nll[target] = answer_nll(logits, labels, rows, "sum").double().cpu().numpy()
        counts[target] = torch.bincount(packed.rows).numpy()
        right = (logits.argmax(-1) == labels).cpu().numpy()
        for place, flags in zip(target, np.split(right, np.cumsum(counts[target])[:-1])):
            matches[place] = flags
    return nll, counts, matches
