"""Can one tell from the model what it was trained on? Membership inference and memorisation.

Every score says of one answer how likely it was trained on: higher is more likely, and members
are the positive class. Open-unlearning's scores are losses, so theirs are these with the sign
turned.

Scores take, of n answers, the log-probability of each answer token in nats: n arrays, [t] each,
t >= 1, at most 0. They return float64 [n].
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.metrics.intervals import RESAMPLES, Estimate, area_under_curve
from unlearn_lib.metrics.means import between

K = 0.2
"""Share of an answer's tokens that Min-K takes, as in Shi et al. 2024."""
PRIVLEAK_K = 0.4
"""The share behind MUSE's privacy leakage in open-unlearning."""
SMALLEST_DEVIATION = 1e-3
"""Min-K++ divides by no less (open-unlearning: a variance of 1e-6)."""


def exact_memorisation(matches: ArrayLike) -> float:
    """Share of an answer's tokens that are the model's most likely ones, the truth before given.

    As in open-unlearning (memorization.py). Unlike `extraction_strength` it counts right tokens
    wherever they stand.

    Args:
        matches: bool [L], one flag per answer token; L >= 1.

    Raises:
        ValueError: no token, or more than one dimension.
    """
    array = np.asarray(matches, dtype=bool)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"matches has shape {array.shape}: give one flag per answer token.")
    return float(array.mean())


def loss_score(log_probabilities: Sequence[ArrayLike]) -> np.ndarray:
    """Minus the mean loss: the mean log-probability of the answer's tokens (Yeom et al. 2018).

    Raises:
        ValueError: an answer without tokens, nan, infinity, or a log-probability above 0.
    """
    return np.array([row.mean() for row in _log_probabilities(log_probabilities)])


def zlib_score(log_probabilities: Sequence[ArrayLike], texts: Sequence[str]) -> np.ndarray:
    """`loss_score` over the length in bytes of the answer's text, compressed by zlib.

    Texts that any compressor finds easy are easy for every model (Carlini et al. 2021).

    Args:
        log_probabilities: as in `loss_score`.
        texts: the same answers, [n].

    Raises:
        ValueError: as in `loss_score`, or lengths differ.
    """
    scores = loss_score(log_probabilities)
    _same_number(len(scores), "texts", len(texts))
    return scores / np.array([len(zlib.compress(text.encode("utf-8"))) for text in texts])


def min_k_score(log_probabilities: Sequence[ArrayLike], k: float = K) -> np.ndarray:
    """Mean log-probability of an answer's least likely tokens (Min-K% Prob, Shi et al. 2024).

    A text that was trained on has few surprising tokens.

    Args:
        log_probabilities: as in `loss_score`.
        k: share of the tokens, above 0 and at most 1: the floor(k t) lowest of t, at least one.
            Default 0.2; for `privleak` it is 0.4.

    Raises:
        ValueError: as in `loss_score`, or k out of its range.
    """
    return _lowest(_log_probabilities(log_probabilities), k)


def min_k_plus_plus_score(
    log_probabilities: Sequence[ArrayLike],
    means: Sequence[ArrayLike],
    deviations: Sequence[ArrayLike],
    k: float = K,
) -> np.ndarray:
    """`min_k_score` of standardised log-probabilities (Min-K%++, Zhang et al. 2024).

    Each token's is (log p - μ) / σ, with μ and σ the mean and standard deviation of the
    log-probability of a token drawn from the model's own distribution at that place.

    Args:
        log_probabilities: as in `loss_score`.
        means: μ in nats, arrays of the same lengths.
        deviations: σ >= 0 in nats, arrays of the same lengths; taken as at least 0.001.
        k: as in `min_k_score`.

    Raises:
        ValueError: as in `min_k_score`, lengths that differ, or a σ below 0.
    """
    rows = _log_probabilities(log_probabilities)
    centres, widths = _rows("means", means), _rows("deviations", deviations)
    _same_number(len(rows), "means", len(centres))
    _same_number(len(rows), "deviations", len(widths))
    standardised = []
    for i, (row, centre, width) in enumerate(zip(rows, centres, widths, strict=True)):
        if not len(row) == len(centre) == len(width):
            raise ValueError(
                f"Answer {i} has {len(row)} log-probabilities, {len(centre)} means and "
                f"{len(width)} deviations: give one of each per token."
            )
        if (width < 0).any():
            raise ValueError(f"Answer {i} has a deviation below 0: give standard deviations.")
        standardised.append((row - centre) / np.maximum(width, SMALLEST_DEVIATION))
    return _lowest(standardised, k)


def attack_auc(
    members: ArrayLike, non_members: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Area under the ROC curve of telling members from non-members by a score, 0 to 1.

    0.5 is chance and 1 tells all apart. Of a model that has forgotten, one expects the area of
    the model trained on the retain set only, which need not be 0.5.

    Args:
        members: scores of the answers to be forgotten, [n], higher meaning more likely trained on.
        non_members: scores of like answers that no model was trained on, [m].
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate with n + m as n.

    Raises:
        ValueError: either is empty, nan or infinity.
    """
    inside, outside = _scores("members", members), _scores("non_members", non_members)
    flags = np.repeat([True, False], [len(inside), len(outside)])
    return area_under_curve(np.concatenate([inside, outside]), flags, resamples, seed)


def privleak(auc: float, reference_auc: float) -> float:
    """MUSE's privacy leakage in PER CENT: (A - A_ref) / A_ref * 100 with A = 1 - auc.

    MUSE writes (AUC(f_unlearn) - AUC(f_retrain)) / AUC(f_retrain), its AUC being that of the
    non-members; with the usual AUC of the members, as here and in open-unlearning, that is
    (reference_auc - auc) / (1 - reference_auc). 0 is best. Below it members are still told apart
    (under-unlearning), to -100 where all are; above it they stand out by being too unlikely.

    Args:
        auc: of Min-K with k = 0.4 on the unlearned model, members being the forget set.
        reference_auc: of the model trained on the retain set only.

    Raises:
        ValueError: an area outside 0 to 1, or a reference of 1, against which nothing is relative.
    """
    for name, area in (("auc", auc), ("reference_auc", reference_auc)):
        if not 0 <= area <= 1:
            raise ValueError(f"{name} is {area}: give an area between 0 and 1.")
    if reference_auc == 1:
        raise ValueError(
            "reference_auc is 1: the retained model tells all members apart, so leakage relative "
            "to it is undefined; give non-members that are like the members."
        )
    return float(_leakage(np.asarray(auc), np.asarray(reference_auc)))


def privleak_estimate(
    members: ArrayLike,
    non_members: ArrayLike,
    reference_members: ArrayLike,
    reference_non_members: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """`privleak` from both models' scores, in per cent, with its interval.

    Members and non-members are resampled apart from each other, each in pairs: the same answers
    of both models. Resamples in which the reference tells all apart are left out.

    Args:
        members, non_members: scores of the unlearned model, [n] and [m], `min_k_score` with
            PRIVLEAK_K for MUSE's metric.
        reference_members, reference_non_members: of the retained model on the same answers in
            the same order.
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Raises:
        ValueError: an empty set, lengths that differ between the models, nan or infinity, no
            resamples, or a reference that tells all apart.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: give at least 1.")
    inside = _pairs("members", members, reference_members)
    outside = _pairs("non_members", non_members, reference_non_members)
    wins = [_wins(inside[:, i], outside[:, i]) for i in (0, 1)]
    value = privleak(*(float(table.mean()) for table in wins))
    random = np.random.default_rng(seed)
    rows, columns = (_shares(len(part), resamples, random) for part in (inside, outside))
    auc, reference = (((rows @ table) * columns).sum(axis=-1) for table in wins)
    kept = reference < 1 - 1e-12
    leakages = _leakage(auc[kept], reference[kept]) if kept.any() else np.array([value])
    return between(value, leakages, len(inside) + len(outside))


def _leakage(auc: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return 100 * (reference - auc) / (1 - reference)


def _wins(members: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 where a member scores above a non-member, 0.5 at a tie: [n, m]; the mean is the AUC."""
    first, second = members[:, None], others[None, :]
    return (first > second) + 0.5 * (first == second)


def _shares(count: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How much each row weighs in each resample: [resamples, count], rows sum to 1."""
    return random.multinomial(count, np.full(count, 1 / count), size=resamples) / count


def _pairs(name: str, scores: ArrayLike, reference: ArrayLike) -> np.ndarray:
    """Both models' scores side by side, [n, 2], sorted: their order must not matter."""
    both = [_scores(name, scores), _scores(f"reference_{name}", reference)]
    _same_number(len(both[0]), f"reference_{name}", len(both[1]))
    return np.stack(both, axis=-1)[np.lexsort(both)]


def _scores(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"{name} has shape {array.shape}: give a score per answer, at least one.")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name} is nan or infinite in row {wrong[0]}: mend or drop it.")
    return array


def _lowest(rows: Sequence[np.ndarray], k: float) -> np.ndarray:
    if not 0 < k <= 1:
        raise ValueError(f"k is {k}: give a share of the tokens, above 0 and at most 1.")
    return np.array([np.sort(row)[: max(1, int(k * len(row)))].mean() for row in rows])


def _log_probabilities(rows: Sequence[ArrayLike]) -> list[np.ndarray]:
    arrays = _rows("log_probabilities", rows)
    for i, row in enumerate(arrays):
        if (row > 1e-4).any():
            raise ValueError(
                f"log_probabilities has {row.max()} in answer {i}: give logarithms, at most 0, "
                "and neither losses nor probabilities."
            )
    return arrays


def _rows(name: str, rows: Sequence[ArrayLike]) -> list[np.ndarray]:
    arrays = [np.asarray(row, dtype=float) for row in rows]
    for i, row in enumerate(arrays):
        if row.ndim != 1 or len(row) == 0:
            raise ValueError(
                f"{name} has shape {row.shape} for answer {i}: give a number per token, at least "
                "one."
            )
        if not np.isfinite(row).all():
            raise ValueError(f"{name} is nan or infinite in answer {i}: mend or drop it.")
    return arrays


def _same_number(count: int, name: str, other: int) -> None:
    if count != other:
        raise ValueError(f"There are {count} answers and {other} {name}: give one per answer.")
