"""Negative log-likelihood of given answers, with prompts shared and nothing padded."""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from unlearn_lib.batches import Example, by_length, pack, packed_logits
from unlearn_lib.losses import answer_nll
from unlearn_lib.models import LanguageModel


@torch.inference_mode()
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
    starts = np.cumsum([0, *(len(example.answers) for example in examples)])
    nll = np.zeros(starts[-1])
    counts = np.zeros(starts[-1], dtype=np.int64)
    for places in tqdm(by_length(examples, most_tokens), desc="scoring", leave=False, disable=None):
        packed = pack([examples[place] for place in places])
        logits = packed_logits(language_model.model, packed)
        labels, rows = packed.labels.to(logits.device), packed.rows.to(logits.device)
        target = np.concatenate([np.arange(starts[p], starts[p + 1]) for p in places])
        nll[target] = answer_nll(logits, labels, rows, "sum").double().cpu().numpy()
        counts[target] = torch.bincount(packed.rows).numpy()
    return nll, counts
