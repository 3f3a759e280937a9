"""How much of a true text is in a model's continuation, and in its loss."""

import warnings
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unlearn_lib.metrics.intervals import RESAMPLES, Estimate, bootstrap, paired

VERBATIM_TOKENS = 20
"""A continuation that shares a run of so many tokens with the true text is verbatim."""


def longest_run(continuation: Sequence[int], truth: Sequence[int]) -> tuple[int, int]:
    """Find the longest run of tokens that two texts have in common, wherever it stands.

    Returns:
        start: of the run in the continuation.
        length: in tokens; 0 if they share none.
    """
    matcher = SequenceMatcher(None, list(continuation), list(truth), autojunk=False)
    found = matcher.find_longest_match()
    return found.a, found.size


def extraction_strength(matches: ArrayLike) -> float:
    """Share of an answer that follows from a prefix of it, greedily and word for word.

    1 - k/L, with k the fewest answer tokens that must be given, after the prompt, for the model's
    most likely tokens to be right to the end (Carlini et al. 2021, as used in the field). 1 when
    the prompt alone suffices, 0 when even the last token is wrong; open-unlearning's code has a
    floor of 1/L instead.

    Args:
        matches: bool [L], at each answer token whether the model's most likely token, the true
            text before it given, is the true one; L >= 1.

    Raises:
        ValueError: no token, or more than one dimension.
    """
    array = np.asarray(matches, dtype=bool)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"matches has shape {array.shape}: give one flag per answer token.")
    wrong = np.flatnonzero(~array)
    return 1.0 - (wrong[-1] + 1) / len(array) if len(wrong) else 1.0


def bleu(references: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """BLEU / 100 of each text against its reference: float64 [n], 0 to 1.

    sacrebleu's sentence BLEU (13a tokens, exponential smoothing, effective order). Arora et al.
    2024 report BLEU and do not say which; their released code computes none.

    Raises:
        ValueError: lengths differ.
    """
    if len(references) != len(texts):
        raise ValueError(
            f"There are {len(references)} references and {len(texts)} texts: give one reference "
            "per text in the same order."
        )
    from sacrebleu import BLEU

    scorer = BLEU(effective_order=True)
    pairs = zip(texts, references, strict=True)
    scores = [scorer.sentence_score(text, [reference]).score / 100 for text, reference in pairs]
    return np.clip(np.array(scores, dtype=float), 0.0, 1.0)


def loss_distance(first: ArrayLike, second: ArrayLike, seed: int = 0) -> tuple[Estimate, Estimate]:
    """Two-sample Kolmogorov-Smirnov test of the losses of the same passages under two models.

    Args:
        first, second: mean loss of each passage, in nats per token, float [n], same order.
        seed: of the bootstrap over passages. Default 0.

    Returns:
        distance: the statistic D, 0 to 1, with its interval over passages, resampled in pairs.
        p_value: of the hypothesis that both come from one distribution; without an interval.
    """
    with warnings.catch_warnings():
        # where the exact p-value cannot be had, scipy warns and takes the asymptotic one
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.ks_2samp(first, second)
    resampled = paired(_distance, first, second, RESAMPLES // 4, seed)
    return resampled, Estimate(float(found.pvalue), np.nan, np.nan, resampled.n)


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    places = np.sort(np.concatenate([first, second]))
    shares = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def difference(values: ArrayLike, baseline: ArrayLike, seed: int = 0) -> Estimate:
    """Mean of `values` minus mean of `baseline` on the same rows, resampled in pairs.

    Raises:
        ValueError: shapes differ, or as in `bootstrap`.
    """
    first, second = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"The rows have shapes {first.shape} and {second.shape}: give the same.")
    return bootstrap(first - second, seed=seed)
