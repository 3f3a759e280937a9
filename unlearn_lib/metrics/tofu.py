"""TOFU's metrics (Maini et al. 2024), from logs: ours and those that its authors published.

    log = official_log("tofu_phi-1.5_full_wd0.01.json")
    model_utility(log), forget_quality(log, official_log("tofu_phi-1.5_retain90_wd0.01.json"))

Definitions are those of the released code, which made the published numbers: the truth ratio
takes the geometric mean over the wrong answers and has the right answer on top; the paper writes
an arithmetic mean, and the ratio upside down (which alone would leave forget quality as it is).
"""

import warnings

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics.intervals import RESAMPLES, Estimate
from unlearn_lib.metrics.logs import (
    FORGET,
    REAL_AUTHORS,
    RETAIN,
    WORLD_FACTS,
    SetLog,
    TofuLog,
    first_other,
    official_log,
)
from unlearn_lib.metrics.means import between, harmonic_mean, of_means

__all__ = [
    "SetLog",
    "TofuLog",
    "folded_truth_ratio",
    "forget_distance",
    "forget_quality",
    "measures",
    "model_utility",
    "official_log",
    "probabilities",
    "truth_ratios",
]

UTILITY_SETS = (RETAIN, REAL_AUTHORS, WORLD_FACTS)
OPTION_SETS = (REAL_AUTHORS, WORLD_FACTS)
EXPONENT_LIMIT = 700.0
"""Truth ratios stay within exp(±700), where they and their inverses are still finite numbers:
after gradient ascent losses differ by thousands. No metric can tell larger ratios apart, save the
Kolmogorov-Smirnov test, which sees ties there."""


def truth_ratios(log: SetLog) -> np.ndarray:
    """Raw truth ratio of each question, c = exp(mean_j perturbed_loss_j - paraphrase_loss).

    That is p_paraphrase over the geometric mean of the wrong answers' p, each length-normalised:
    above 1 the model prefers the right answer.

    Returns:
        float64 [n], within exp(±700).
    """
    exponents = log.perturbed_loss.mean(axis=1) - log.paraphrase_loss
    return np.exp(np.clip(exponents, -EXPONENT_LIMIT, EXPONENT_LIMIT))


def folded_truth_ratio(raw: ArrayLike, forget: bool) -> np.ndarray:
    """What is averaged of raw truth ratios: min(c, 1/c) on forget, max(0, 1 - 1/c) elsewhere.

    On forget 1 means that right and wrong answers are alike to the model; elsewhere 1 means that
    it is sure of the right one.

    Args:
        raw: c > 0, [n].
        forget: whether the rows are to be forgotten.

    Returns:
        float64 [n], 0 to 1.

    Raises:
        ValueError: a ratio that is nan, infinite or not above 0.
    """
    ratios = np.asarray(raw, dtype=float)
    wrong = np.flatnonzero(~(np.isfinite(ratios) & (ratios > 0)))
    if len(wrong):
        raise ValueError(
            f"The raw truth ratio in row {wrong[0]} is {ratios.flat[wrong[0]]}: give finite "
            "numbers above 0, as truth_ratios does."
        )
    return np.minimum(ratios, 1 / ratios) if forget else np.maximum(0, 1 - 1 / ratios)


def probabilities(log: SetLog, options: bool) -> np.ndarray:
    """Length-normalised probability of the right answer, p = exp(-answer_loss).

    Args:
        log: of the set.
        options: whether to return p / (p + Σ p_wrong), as TOFU does for real authors and world
            facts, whose questions are scored as multiple choice.

    Returns:
        float64 [n], 0 to 1; exact also where every p is too small for a float.
    """
    if not options:
        return np.exp(-log.answer_loss)
    losses = np.column_stack([log.answer_loss, log.perturbed_loss])
    return special.softmax(-losses, axis=1)[:, 0]


def measures(log: TofuLog, name: str) -> dict[str, np.ndarray]:
    """TOFU's three measures of one set, a value per question: their means are what it reports.

    Returns:
        `rougeL_recall`, `probability` and `truth_ratio` (folded), float64 [n] each, 0 to 1.

    Raises:
        CompanionError: the log lacks the set.
    """
    found = log.get(name)
    return {
        "rougeL_recall": found.rouge,
        "probability": probabilities(found, options=name in OPTION_SETS),
        "truth_ratio": folded_truth_ratio(truth_ratios(found), forget=name == FORGET),
    }


def model_utility(log: TofuLog, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """TOFU's model utility: harmonic mean of three measures of each of three sets, 0 to 1.

    The sets are retain, real authors and world facts, the measures those of `measures`. It is 0
    if one of the nine is. Questions are resampled within each set, its three measures together.

    Args:
        log: of the model.
        resamples: how many resamples. Default 2000.
        seed: of the resampling. Default 0.

    Raises:
        CompanionError: the log lacks one of the three sets.
    """
    sets = {name: measures(log, name) for name in UTILITY_SETS}
    return of_means(harmonic_mean, sets, resamples=resamples, seed=seed)


def forget_quality(log: TofuLog, reference: TofuLog) -> Estimate:
    """TOFU's forget quality: is the model to be told from one that never saw the forget set?

    The p-value of the two-sample Kolmogorov-Smirnov test on the raw truth ratios (not folded) of
    the forget set; 1 for the reference against itself.

    Args:
        log: of the unlearned model.
        reference: of the model trained on the retain set only.

    Returns:
        Estimate of the p-value; low and high are nan, because it has no interval:
        `forget_distance` gives the distance behind it with one. n counts the log's questions.

    Raises:
        CompanionError: a log lacks the forget set, or the two hold other questions; names the
            first such row. Between two official logs that is a warning instead: the authors' own
            numbers compare a model's forget10 rows with the forget01 rows of another.
    """
    found, other, _ = _ratios(log, reference)
    with warnings.catch_warnings():
        # Where the exact p-value cannot be had, scipy warns and takes the asymptotic one.
        warnings.simplefilter("ignore", RuntimeWarning)
        p_value = float(stats.ks_2samp(found, other).pvalue)
    return Estimate(p_value, np.nan, np.nan, len(found))


def forget_distance(
    log: TofuLog, reference: TofuLog, resamples: int = RESAMPLES // 4, seed: int = 0
) -> Estimate:
    """The Kolmogorov-Smirnov distance behind `forget_quality`, 0 to 1, with its interval.

    Questions are resampled in pairs where both logs hold the same, else in each log by itself.
    The distance of resamples is biased upwards, so a small one lies at the interval's low end.

    Args:
        log, reference: as in `forget_quality`.
        resamples: how many resamples. Default 500.
        seed: of the resampling. Default 0.

    Raises:
        CompanionError: as in `forget_quality`.
        ValueError: no resamples.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: give at least 1.")
    found, other, same = _ratios(log, reference)
    random = np.random.default_rng(seed)
    distances = np.empty(resamples)
    for i in range(resamples):
        rows = random.integers(len(found), size=len(found))
        others = rows if same else random.integers(len(other), size=len(other))
        distances[i] = _distance(found[rows], other[others])
    return between(_distance(found, other), distances, len(found))


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(stats.ks_2samp(first, second, method="asymp").statistic)


def _ratios(log: TofuLog, reference: TofuLog) -> tuple[np.ndarray, np.ndarray, bool]:
    """Raw ratios of both forget sets, sorted so that rows of one question meet, if all do."""
    found, other = log.get(FORGET), reference.get(FORGET)
    problem = _mismatch(log, reference)
    if problem and not (log.official and reference.official):
        raise CompanionError(f"{problem}; score both on the same forget split.")
    if problem:
        warnings.warn(
            f"{problem}; forget quality compares their distributions all the same, as TOFU's "
            "authors do.",
            stacklevel=3,
        )
    ratios, others = truth_ratios(found), truth_ratios(other)
    return ratios[_by_question(found, ratios)], others[_by_question(other, others)], not problem


def _by_question(log: SetLog, ratios: np.ndarray) -> list[int]:
    return sorted(range(len(ratios)), key=lambda row: (log.questions[row], ratios[row]))


def _mismatch(log: TofuLog, reference: TofuLog) -> str:
    """What differs between the forget questions of two logs; empty where nothing does."""
    for one, other in ((log, reference), (reference, log)):
        questions, others = one.get(FORGET).questions, other.get(FORGET).questions
        row = first_other(questions, others)
        if row is not None:
            return (
                f"The forget sets differ: row {row} of {one.name} ({len(questions)} rows), "
                f"'{questions[row]}', is not in {other.name} ({len(others)} rows)"
            )
    return ""
