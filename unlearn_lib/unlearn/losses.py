"""Unlearning losses as pure functions of logits and labels.

Every loss is called as `loss(logits, labels, rows, reference, beta)`:

    logits: float [N, V], one row per scored token (no padding, answer tokens only unless said).
    labels: int64 [N], the scored tokens.
    rows: int64 [N], the answer each scored token belongs to, numbered from 0.
    reference: float [N, V], the original model's logits at the same places; None for losses that
        compare with no model.
    beta: the temperature of preference losses, and what wga and undial say.

A loss that needs no reference or no beta takes and ignores them. Each returns a scalar in nats,
computed in float32. A mean over answers is a mean of per-answer means: a long answer weighs no
more than a short one. So it is in the released code of Arora et al., but for its padding. That of
Yuan et al. 2025 (GA, GD, IDK, mismatch, ME) and open-unlearning (GA, GD, WGA) takes one mean over
the batch's answer tokens, where each answer weighs as much as it is long; for answers of one length
both are the same. Losses of summed NLLs (npo, dpo, answer_preservation) are as theirs.

Losses over pairs (answer_preservation, dpo) take two answers to each question, one behind the
other: row 2i is the answer in the data, row 2i + 1 the refusal ("I don't know").
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import logsigmoid

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
        for part, goal, out, scale in _few_rows(logits, target, result, gradients[0]):
            q = part.float().softmax(-1)
            if goal.dim() == 1:
                q[torch.arange(len(goal), device=q.device), goal] -= 1
            else:
                q -= goal.float().softmax(-1)
            out.copy_(q.mul_(scale[:, None]))
        return result, None


def _few_rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(ROWS_AT_ONCE) for tensor in tensors), strict=True)


def per_row(values: Tensor, rows: Tensor, reduce: str = "mean") -> Tensor:
    """Reduce token values [N] to rows [R] by `mean` or `sum`; rows are numbered without gaps."""
    count = int(rows.max()) + 1
    total = values.new_zeros(count).index_add(0, rows, values)
    return total if reduce == "sum" else total / torch.bincount(rows, minlength=count)


def answer_nll(logits: Tensor, labels: Tensor, rows: Tensor, reduce: str = "mean") -> Tensor:
    """Negative log-likelihood per answer, float32 [R]: mean or sum over the answer's tokens."""
    return per_row(_Divergence.apply(logits, labels), rows, reduce)


def _original_nll(reference: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Summed NLL per answer, float32 [R], of logits or as it was kept; without gradient."""
    reference = reference.detach()
    return reference if reference.dim() == 1 else answer_nll(reference, labels, rows, "sum")


def _refusal_cost(nll: Tensor) -> Tensor:
    """NLL(refusal) - NLL(answer) of each pair, float32 [R / 2], from NLLs [R]."""
    return nll[1::2] - nll[::2]


def gradient_descent(logits: Tensor, labels: Tensor, rows: Tensor, *_: Any) -> Tensor:
    """Cross-entropy of the answers: GD on retain rows, the random mismatch L_rdn on forget rows.

    L_rdn = 1/|Y_rdn| sum over y in Y_rdn of CE(y | x_fgt) (Arora et al. 2024; Yao et al. 2023).
    IDK is this loss of refusals. Yuan et al. 2025 and open-unlearning take the mean over the
    batch's tokens: see the module.
    """
    return answer_nll(logits, labels, rows).mean()


def gradient_ascent(logits: Tensor, labels: Tensor, rows: Tensor, *_: Any) -> Tensor:
    """Negated cross-entropy of the forget answers: L_fgt = -CE(y_fgt | x_fgt) (GA).

    The released code of Arora et al. skips the first answer token, scores padding as zero and
    counts it in the mean. Yuan et al. 2025 and open-unlearning take the mean over the batch's
    tokens: of two answers that cost 2 and 1 nats per token and are 1 and 9 tokens long, -1.1
    instead of -1.5.
    """
    return -answer_nll(logits, labels, rows).mean()


def npo(logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation: -(2/β) E log σ(β (NLL_θ - NLL_ref)), NLL summed.

    `reference` may also be NLL_ref itself, float [R], kept from an earlier pass.

    Bounded below by 0; its gradient fades once an answer has become unlikely (Yuan et al. 2025,
    after Zhang et al. 2024).
    """
    margin = answer_nll(logits, labels, rows, "sum") - _original_nll(reference, labels, rows)
    return -2 / beta * logsigmoid(beta * margin).mean()


def forward_kl(logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, *_: Any) -> Tensor:
    """KL(h_θo ‖ h_θ) of the next-token distribution, mean over a row's real tokens, then rows.

    L_nor of Arora et al. 2024 and Yao et al. 2023. The released code computes the cross-entropy
    -Σ p log(q + 1e-12) over all positions with padding, which has a floor above zero; this is
    the divergence itself and is zero when nothing has changed.
    """
    return per_row(_Divergence.apply(logits, reference), rows).mean()


def maximum_entropy(logits: Tensor, labels: Tensor, rows: Tensor, *_: Any) -> Tensor:
    """KL(U_V ‖ h_θ), U_V uniform over the vocabulary, mean over a row's tokens, then rows (ME).

    Zero where every token is equally likely; `labels` do not matter (Yuan et al. 2025). The
    released code adds 1e-12 inside the logarithm, which flattens the gradient of unlikely tokens,
    and weighs long answers more (one mean over the batch). With `mask: false`, the paper's
    setting, its mean runs over question, answer and all padding up to 500 tokens; here over the
    real tokens that are scored.
    """
    uniform = logits.new_zeros(1).expand_as(logits)
    return per_row(_Divergence.apply(logits, uniform), rows).mean()


def answer_preservation(
    logits: Tensor, labels: Tensor, rows: Tensor, reference: Any, beta: float
) -> Tensor:
    """-(1/β) E log σ(β (NLL(y_idk | x_r) - NLL(y_r | x_r))) on retain questions, NLL summed (AP).

    Rows are pairs: row 2i is y_r, row 2i + 1 the refusal y_idk. No original model is needed
    (Yuan et al. 2025; the released code sums over tokens too, with the helper of its NPO).
    """
    margin = _refusal_cost(answer_nll(logits, labels, rows, "sum"))
    return -1 / beta * logsigmoid(beta * margin).mean()


def dpo(logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Direct preference of a refusal: -(2/β) E log σ(β (Δ_θ - Δ_ref)) on forget questions.

    Δ = log p(y_idk) - log p(y_fgt) = NLL(y_fgt) - NLL(y_idk), NLL summed. Rows are pairs: row 2i
    is y_fgt, the answer to be forgotten, row 2i + 1 the refusal y_idk. `reference` may also be
    the summed NLLs themselves, float [R], kept from an earlier pass. The factor 2/β, which puts
    it on NPO's scale, is in Yuan et al. 2025 and not in Rafailov et al. 2023.
    """
    now = _refusal_cost(answer_nll(logits, labels, rows, "sum"))
    before = _refusal_cost(_original_nll(reference, labels, rows))
    return -2 / beta * logsigmoid(beta * (before - now)).mean()


def simnpo(logits: Tensor, labels: Tensor, rows: Tensor, reference: Any, beta: float) -> Tensor:
    """Simple NPO: -(2/β) E log σ(β NLL / |y|), the mean NLL in place of the ratio to a reference.

    The margin δ is 0, open-unlearning's default, where β is 4.5 (Fan et al. 2024).
    """
    return -2 / beta * logsigmoid(beta * answer_nll(logits, labels, rows)).mean()


def wga(logits: Tensor, labels: Tensor, rows: Tensor, reference: Any, beta: float) -> Tensor:
    """Weighted gradient ascent: p^β log p of each token, mean over a row's tokens, then rows.

    The weight p_θ(y_t)^β is a constant to the gradient: what is unlikely already is left alone.
    β = 0 is gradient ascent (Wang et al. 2025). open-unlearning takes one mean over the batch's
    answer tokens, which weighs long answers more.
    """
    nll = _Divergence.apply(logits, labels)
    weight = (-beta * nll.detach()).exp()
    return per_row(-weight * nll, rows).mean()


def undial(logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Self-distillation: KL(softmax(h_θo - β e_y) ‖ h_θ), mean over a row's tokens, then rows.

    e_y is one at the label: the target is the original model with the answer's logit lowered by
    β, 10 in open-unlearning (Dong et al. 2025). The published loss is the cross-entropy with the
    same target, which has the same gradient and a floor above zero. open-unlearning averages over
    prompt and padding as well, and lowers the logit that label -100 wraps round to there; here
    only scored tokens count.
    """
    target = reference.detach().clone()
    target[torch.arange(len(labels), device=labels.device), labels] -= beta
    return per_row(_Divergence.apply(logits, target), rows).mean()


def activation_distance(
    logits: Tensor, labels: Tensor, rows: Tensor, reference: Tensor, *_: Any
) -> Tensor:
    """RMU's term: mean over d of (a - target)², mean over a row's tokens, then rows; no unit.

    Here `logits` are the activations a of one layer, float [N, d], and `reference` is their
    target, [N, d] or what broadcasts to it: the steering vector c u on forget rows, the original
    model's activations on retain rows (Li et al. 2024). `labels` do not matter.

    The places are those that predict the scored tokens: from the prompt's last token to the
    answer's last but one. open-unlearning takes the places of the scored tokens themselves, one to
    the right, so that it moves the end token's activation and not the prompt's last; it also
    divides each answer's sum by every length of the batch in turn. Li et al.'s own code takes
    every place of a text.
    """
    distance = (logits.float() - reference.detach().float()).square().mean(-1)
    return per_row(distance, rows).mean()
