"""The published unlearning loop, written plainly: the baseline of `make bench`.

After the definitions of Arora et al. 2024 and Yao et al. 2023, in the manner of their released
loop: two float32 copies of the weights (one in training, one frozen), a separate padded forward
for the forget rows, for the K mismatch answers of each, and for either side of the KL term, and
logits at every position. Answer masks and the divergence are the ones the papers define, so the
losses equal ours and only the way they are computed differs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from unlearn_lib.model.tokens import Example
from unlearn_lib.unlearn.steps import Step

Batch = dict[str, torch.Tensor]


def padded(rows: Sequence[tuple[list[int], int]], pad: int, device: Any) -> Batch:
    """Pad token rows to the longest of the batch.

    Args:
        rows: token ids, and the place of the first token that is scored.

    Returns:
        input_ids, attention_mask, labels: int64 [B, L]; labels are -100 where nothing is scored.
    """
    width = max(len(tokens) for tokens, _ in rows)
    ids = torch.full((len(rows), width), pad)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (tokens, first) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, first : len(tokens)] = torch.tensor(tokens[first:])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _rows(examples: Sequence[Example], answers: slice, first: int | None = None) -> Any:
    return [
        ([*example.prompt, *answer], len(example.prompt) if first is None else first)
        for example in examples
        for answer in example.answers[answers]
    ]


def batches(step: Step, pad: int, device: Any) -> dict[str, Batch]:
    """Make the three padded batches of a step: forget, mismatch (K rows a question), normal."""
    return {
        "forget": padded(_rows(step.forget, slice(0, 1)), pad, device),
        "mismatch": padded(_rows(step.forget, slice(1, None)), pad, device),
        "normal": padded(_rows(step.retain, slice(0, 1), first=1), pad, device),
    }


def _logits(model: Any, batch: Batch) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def cross_entropy(model: Any, batch: Batch) -> torch.Tensor:
    """Mean over rows of the mean cross-entropy of a row's scored tokens, in nats."""
    logits = _logits(model, batch)[:, :-1].float()
    labels = batch["labels"][:, 1:]
    nll = functional.cross_entropy(
        logits.transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    return (nll.sum(1) / (labels != -100).sum(1)).mean()


def divergence(model: Any, frozen: Any, batch: Batch) -> torch.Tensor:
    """KL(frozen ‖ model) of the next-token distribution, mean over real tokens, then rows."""
    log_q = functional.log_softmax(_logits(model, batch)[:, :-1].float(), dim=-1)
    with torch.no_grad():
        log_p = functional.log_softmax(_logits(frozen, batch)[:, :-1].float(), dim=-1)
    scored = batch["labels"][:, 1:] != -100
    values = (log_p.exp() * (log_p - log_q)).sum(-1) * scored
    return (values.sum(1) / scored.sum(1)).mean()


def terms(model: Any, frozen: Any, step: Step, pad: int) -> dict[str, torch.Tensor]:
    """Return L_fgt, L_rdn and L_nor of a step, each from its own padded forward."""
    made = batches(step, pad, model.device)
    return {
        "forget": -cross_entropy(model, made["forget"]),
        "mismatch": cross_entropy(model, made["mismatch"]),
        "retain": divergence(model, frozen, made["normal"]),
    }


def train_step(
    model: Any, frozen: Any, optimizer: Any, step: Step, weights: dict[str, float], pad: int
) -> float:
    """Do one step of the published update with AdamW and return its loss."""
    found = terms(model, frozen, step, pad)
    loss = sum((weights[name] * value for name, value in found.items()), torch.zeros(()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
