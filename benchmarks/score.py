"""Scoring a question's right, paraphrased and wrong answers: prompt shared, or a row for each."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from unlearn_lib.data.authors import write_authors
from unlearn_lib.model import loading, scoring
from unlearn_lib.model.tokens import Example, TextEncoder

AUTHORS, QUESTIONS, SEED = 4, 8, 0
REPEATS, BATCH = 3, 16


def candidates(found: loading.LanguageModel) -> list[Example]:
    """Questions about fictitious authors, each with its seven answers."""
    encoder = TextEncoder(found.tokenizer, "chat", 96, 40, found.context)
    rows = [row for each in write_authors(AUTHORS, SEED, QUESTIONS) for row in each.questions]
    return [
        encoder.example(row.question, row.answer, row.paraphrase, *row.perturbed_answer)
        for row in rows
    ]


@torch.inference_mode()
def row_per_candidate(model: Any, examples: Sequence[Example], pad: int) -> np.ndarray:
    """Nats per token of every answer as TOFU's evaluation finds them: a padded row for each.

    Batches of `BATCH` rows in the order given, padded to the longest of the batch, logits at
    every place.
    """
    rows = [(example.prompt, answer) for example in examples for answer in example.answers]
    losses = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = max(len(prompt) + len(answer) for prompt, answer in batch)
        tokens = torch.full((len(batch), width), pad)
        labels = torch.full((len(batch), width), -100)
        for place, (prompt, answer) in enumerate(batch):
            length = len(prompt) + len(answer)
            tokens[place, :length] = torch.tensor([*prompt, *answer])
            labels[place, len(prompt) : length] = torch.tensor(answer)
        mask = torch.arange(width) < torch.tensor([[len(p) + len(a)] for p, a in batch])
        tokens, labels, mask = (t.to(model.device) for t in (tokens, labels, mask))
        logits = model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits
        true = labels[:, 1:]
        nll = functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), true.flatten(), reduction="none"
        )
        losses.append(nll.view(true.shape).sum(1) / (true != -100).sum(1))
    return torch.cat(losses).cpu().numpy()


def measured(found: loading.LanguageModel) -> dict[str, Any]:
    """Time both ways in turn, and say how far apart their losses are, in nats per token."""
    examples = candidates(found)
    pad = found.tokenizer.pad_token_id

    def shared() -> np.ndarray:
        return scoring.score(found, examples).mean

    def separate() -> np.ndarray:
        return row_per_candidate(found.model, examples, pad)

    difference = _apart(shared(), separate())
    seconds = [(_timed(shared), _timed(separate)) for _ in range(REPEATS)]
    ours, baseline = (statistics.median(column) for column in zip(*seconds, strict=True))
    answers = sum(len(example.answers) for example in examples)
    return {
        "ours": answers / ours,
        "baseline": answers / baseline,
        "difference": difference,
        "repeats": REPEATS,
    }


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
