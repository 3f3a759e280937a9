"""What a model has by heart, and whether one can tell from it what it was trained on.

Memorisation compares tokens: a continuation with the true text, or the model's most likely tokens
with the true ones. Membership inference scores answers: higher means more likely trained on, and
members are the positive class. Open-unlearning's scores are losses, so theirs are these with the
sign turned. The scores take, for each of n answers, the log-probability of its tokens in nats: n
arrays [t], t >= 1, at most 0. They return float64 [n].

An answer's tokens are all that are scored, the end of the text included: not to stop is a
difference too. Open-unlearning leaves the last one out of exact memorisation, extraction strength,
Min-K and Min-K++; leave it out of every row to get its numbers.
"""

import zlib
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.metrics.texts import each
from unlearn_lib.util import CompanionError

VERBATIM_TOKENS = 20
"""A continuation that shares a run of so many tokens with the true text is verbatim."""
K = 0.2
"""Share of an answer's tokens that Min-K takes, as in Shi et al. 2024. MUSE's privacy leakage
takes 0.4."""
SMALLEST_DEVIATION = 1e-3
"""Min-K++ divides by no less (open-unlearning: a variance of 1e-6)."""


def longest_run(continuation: Sequence[int], truth: Sequence[int]) -> tuple[int, int]:
    """Return start and length of the longest run of tokens that two texts share, wherever it is.

    Returns:
        start: of the run in the continuation.
        length: in tokens; 0 if they share none.
    """
    matcher = SequenceMatcher(None, list(continuation), list(truth), autojunk=False)
    match = matcher.find_longest_match()
    return match.a, match.size


def verbatim(continuations: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]) -> np.ndarray:
    """Return which continuations hold a run of VERBATIM_TOKENS of the true text, bool [n].

    A shorter true text must be there as a whole.

    Raises:
        CompanionError: lengths differ.
    """
    return each(_is_verbatim, continuations, truths, dtype=bool)


def _is_verbatim(continuation: Sequence[int], truth: Sequence[int]) -> bool:
    needed = min(VERBATIM_TOKENS, max(1, len(truth)))
    return longest_run(continuation, truth)[1] >= needed


def extraction_strength(matches: Sequence[ArrayLike]) -> np.ndarray:
    """Return the share of each answer that follows from a prefix of it word for word, float64 [n].

    1 - k/L, with k the fewest answer tokens that must be given, after the prompt, for the model's
    most likely tokens to be right to the end (Carlini et al. 2021, as used in the field). 1 when
    the prompt alone suffices, 0 when even the last token is wrong. open-unlearning's code has a
    floor of 1/L instead, and leaves the end token out: where all is right but the end, its score
    is 1 and this one 0.

    Args:
        matches: for each of n answers bool [L], L >= 1: at each answer token whether the model's
            most likely token, the true text before it given, is the true one.
    """
    return each(_right_end, matches)


def _right_end(matches: Sequence[bool]) -> float:
    wrong = np.flatnonzero(np.logical_not(matches))
    return 1.0 - (wrong[-1] + 1) / len(matches) if len(wrong) else 1.0


def exact_memorisation(matches: Sequence[ArrayLike]) -> np.ndarray:
    """Return the share of each answer's tokens that are the model's most likely ones, float64 [n].

    As in open-unlearning (memorization.py), which leaves the end token out. Unlike
    `extraction_strength` it counts right tokens wherever they are.

    Args:
        matches: as in `extraction_strength`.
    """
    return each(np.mean, matches)


def loss_score(log_probabilities: Sequence[ArrayLike]) -> np.ndarray:
    """Return minus the mean loss: the mean log-probability of the tokens (Yeom et al. 2018).

    Raises:
        CompanionError: a log-probability above 0.
    """
    return each(np.mean, _log_rows(log_probabilities))


def zlib_score(log_probabilities: Sequence[ArrayLike], texts: Sequence[str]) -> np.ndarray:
    """Return `loss_score` over the length in bytes of the answer's text, compressed by zlib.

    Every model finds a text easy that any compressor finds easy (Carlini et al. 2021).

    Args:
        log_probabilities: as in `loss_score`.
        texts: the same answers, [n].

    Raises:
        CompanionError: as in `loss_score`, lengths differ, or a single string.
    """
    scores = loss_score(log_probabilities)
    return each(lambda score, text: score / len(zlib.compress(text.encode())), scores, texts)


def min_k_score(log_probabilities: Sequence[ArrayLike], k: float = K) -> np.ndarray:
    """Return the mean log-probability of an answer's least likely tokens (Shi et al. 2024).

    A text that was trained on has few surprising tokens. The end token counts, as it does not in
    open-unlearning.

    Args:
        log_probabilities: as in `loss_score`.
        k: share of the tokens, above 0 and at most 1: the floor(k t) lowest of t, at least one.
            Default 0.2.

    Raises:
        CompanionError: as in `loss_score`.
    """
    return _mean_of_lowest(_log_rows(log_probabilities), k)


def min_k_plus_plus_score(
    log_probabilities: Sequence[ArrayLike],
    means: Sequence[ArrayLike],
    deviations: Sequence[ArrayLike],
    k: float = K,
) -> np.ndarray:
    """Return `min_k_score` of standardised log-probabilities (Min-K%++, Zhang et al. 2024).

    Each token's is (log p - μ) / σ, with μ and σ the mean and standard deviation of the
    log-probability of a token drawn from the model's own distribution at that place. The end token
    counts, as it does not in open-unlearning.

    Args:
        log_probabilities: as in `loss_score`.
        means: μ in nats, arrays of the same lengths.
        deviations: σ >= 0 in nats, arrays of the same lengths; taken as at least 0.001.
        k: as in `min_k_score`.

    Raises:
        CompanionError: as in `loss_score`.
    """
    rows = zip(_log_rows(log_probabilities), means, deviations, strict=True)
    standardised = [
        np.subtract(row, mean) / np.maximum(deviation, SMALLEST_DEVIATION)
        for row, mean, deviation in rows
    ]
    return _mean_of_lowest(standardised, k)


def _log_rows(log_probabilities: Sequence[ArrayLike]) -> list[np.ndarray]:
    rows = [np.asarray(row, dtype=float) for row in log_probabilities]
    if any((row > 1e-4).any() for row in rows):
        raise CompanionError(
            "A log-probability is above 0: give logarithms, neither losses nor probabilities."
        )
    return rows


def _mean_of_lowest(rows: Sequence[np.ndarray], k: float) -> np.ndarray:
    return each(lambda row: np.sort(row)[: max(1, int(k * len(row)))].mean(), rows)
