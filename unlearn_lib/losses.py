"""Unlearning losses as pure functions of logits and labels.

Every loss has the one signature `loss(logits, labels, rows, reference, beta)`:

    logits: float [N, V], one row per scored token (no padding, answer tokens only unless said).
    labels: int64 [N], the scored tokens.
    rows: int64 [N], the answer each scored token belongs to, numbered from 0.
    reference: float [N, V], the original model's logits at the same places, or None.
    beta: the temperature of preference losses; others ignore it.

and returns a scalar in nats. Logits are brought to float32 first. A mean over answers is a mean
of per-answer means, as in the papers: a long answer weighs no more than a short one.
"""

import torch
from torch.nn import functional

Tensor = torch.Tensor


def answer_nll(logits: Tensor, labels: Tensor, rows: Tensor, reduce: str = "mean") -> Tensor:
    """Negative log-likelihood per answer, float32 [R]: mean or sum over the answer's tokens."""
    nll = functional.cross_entropy(logits.float(), labels, reduction="none")
    return per_row(nll, rows, reduce)


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

    Bounded below by 0; its gradient fades once an answer has become unlikely (Yuan et al. 2025,
    after Zhang et al. 2024).
    """
    assert reference is not None, "npo needs the original model's logits"
    with torch.no_grad():
        original = answer_nll(reference, labels, rows, "sum")
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
    divergence = functional.kl_div(
        functional.log_softmax(logits.float(), dim=-1),
        functional.log_softmax(reference.float(), dim=-1),
        log_target=True,
        reduction="none",
    )
    return per_row(divergence.sum(-1), rows).mean()
