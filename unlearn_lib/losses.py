"""Unlearning losses as pure functions of logits and labels.

Every loss has the one signature `loss(logits, labels, rows, reference, beta)`:

    logits: float [N, V], one row per scored token (no padding, answer tokens only unless said).
    labels: int64 [N], the scored tokens.
    rows: int64 [N], the answer each scored token belongs to, numbered from 0.
    reference: float [N, V], the original model's logits at the same places, or None.
    beta: the temperature of preference losses; others ignore it.

and returns a scalar in nats, computed in float32. A mean over answers is a mean of per-answer
means, as in the papers: a long answer weighs no more than a short one.
"""

from typing import Any

import torch
from torch.nn import functional

Tensor = torch.Tensor
ROWS_AT_ONCE = 32


class _Divergence(torch.autograd.Function):
    """KL(p ‖ softmax(logits)) of each row; p is one-hot (labels) or softmax of other logits.

    With labels it is the cross-entropy. A vocabulary is wide, so the float32 copies are made of
    a few rows at a time and none is kept: the gradient, softmax(logits) - p, is computed from
    the logits as they came.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(logits, target)
        values = [logits.new_zeros(0, dtype=torch.float32)]
        for part, goal in _few_rows(logits, target):
            log_q = part.float().log_softmax(-1)
            if goal.dim() == 1:
                values.append(-log_q.gather(1, goal[:, None])[:, 0])
            else:
                log_p = goal.float().log_softmax(-1)
                values.append((log_p.exp() * log_q.neg_().add_(log_p)).sum(-1))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        logits, target = ctx.saved_tensors
        result = torch.empty_like(logits)
        scales = gradients[0].split(ROWS_AT_ONCE)
        places = zip(_few_rows(logits, target), result.split(ROWS_AT_ONCE), scales, strict=True)
        for (part, goal), out, scale in places:
            q = part.float().softmax(-1)
            if goal.dim() == 1:
                q[torch.arange(len(goal), device=q.device), goal] -= 1
            else:
                q -= goal.float().softmax(-1)
            out.copy_(q.mul_(scale[:, None]))
        return result, None


def _few_rows(logits: Tensor, target: Tensor) -> Any:
    return zip(logits.split(ROWS_AT_ONCE), target.split(ROWS_AT_ONCE), strict=True)


def answer_nll(logits: Tensor, labels: Tensor, rows: Tensor, reduce: str = "mean") -> Tensor:
    """Negative log-likelihood per answer, float32 [R]: mean or sum over the answer's tokens."""
    return per_row(_Divergence.apply(logits, labels), rows, reduce)


def per_row(values: Tensor, rows: Tensor, reduce: str = "mean") -> Tensor:
    """Reduce token values [N] to rows [R] by `mean` or `sum`; rows are numbered without gaps."""
    count = int(rows.max()) + 1
    total = values.new_zeros(count).index_add(0, rows, values)
    if reduce == "sum":
        return total
    return total / torch.bincount(rows, minlength=count)


def gradient_descent(
    logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor | None = None, beta: float = 0.1
) -> Tensor:
    """Cross-entropy of the answers: GD on retain rows, the random mismatch L_rdn on forget rows.

    L_rdn = 1/|Y_rdn| sum over y in Y_rdn of CE(y | x_fgt) (Arora et al. 2024; Yao et al. 2023).
    """
    return answer_nll(logits, labels, rows).mean()


def gradient_ascent(
    logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor | None = None, beta: float = 0.1
) -> Tensor:
    """Negated cross-entropy of the forget answers: L_fgt = -CE(y_fgt | x_fgt) (GA).

    The released code of Arora et al. skips the first answer token, scores padding as zero and
    counts it in the mean.
    """
    return -answer_nll(logits, labels, rows).mean()


def npo(
    logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor | None = None, beta: float = 0.1
) -> Tensor:
    """Negative preference optimisation: -(2/β) E log σ(β (NLL_θ - NLL_ref)), NLL summed.

    `reference` may also be NLL_ref itself, float [R], kept from an earlier pass.

    Bounded below by 0; its gradient fades once an answer has become unlikely (Yuan et al. 2025,
    after Zhang et al. 2024).
    """
    assert reference is not None, "npo needs the original model's logits"
    with torch.no_grad():
        kept = reference.dim() == 1
        original = reference if kept else answer_nll(reference, labels, rows, "sum")
    margin = answer_nll(logits, labels, rows, "sum") - original
    return -2 / beta * functional.logsigmoid(beta * margin).mean()


def forward_kl(
    logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor | None = None, beta: float = 0.1
) -> Tensor:
    """KL(h_θo ‖ h_θ) of the next-token distribution, mean over a row's real tokens, then rows.

    L_nor of Arora et al. 2024 and Yao et al. 2023. The released code computes the cross-entropy
    -Σ p log(q + 1e-12) over all positions with padding, which has a floor above zero; this is
    the divergence itself and is zero when nothing has changed.
    """
    assert reference is not None, "forward_kl needs the original model's logits"
    return per_row(_Divergence.apply(logits, reference), rows).mean()
