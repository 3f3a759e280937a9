"""From one value per question to one number with its interval: the only statistics there are.

A statistic is a function of the questions' values and of how much each question weighs. Its
uncertainty is that of drawing other seeds, other clusters (authors, chapters, people) and other
questions; see `spread`.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats

from unlearn_lib.metrics import questions

CONFIDENCE = 0.95
RESAMPLES = 1000
FORGET, RETAIN, HOLDOUT = "forget", "retain", "holdout"
OPTION_SPLITS = ("real_authors", "world_facts")
"""Splits whose probability is a share among the options, as in TOFU."""

Weights = np.ndarray
"""How much each question weighs in each resample, [resamples, n]."""


@dataclass(frozen=True, eq=False)
class Sample:
    """The questions of one seed: values by item metric, and the split and cluster of each.

    Attributes:
        values: item metric -> float [n], nan where a question has none. A metric of a model that
            is compared with is called `<metric>@<model>`.
        split, cluster: str [n].
        other: the same questions, asked of the model that is subtracted in a comparison.
    """

    values: Mapping[str, np.ndarray]
    split: np.ndarray
    cluster: np.ndarray
    other: "Sample | None" = None

    def __len__(self) -> int:
        return len(self.split)

    @property
    def columns(self) -> list[np.ndarray]:
        """The values of each item metric, in the order in which they are read."""
        return list(self.values.values())


Estimator = Callable[[Sample, Weights], np.ndarray]
"""A statistic of a sample in each resample, [resamples]."""


def mean(values: np.ndarray, weights: Weights) -> np.ndarray:
    """Weighted means over the questions that have a value, [resamples]; nan where there is none."""
    known = np.isfinite(values)
    total = weights[:, known].sum(axis=1)
    sums = weights[:, known] @ values[known]
    return np.divide(sums, total, out=np.full(len(total), np.nan), where=total > 0)


def _in(sample: Sample, values: np.ndarray, split: str) -> np.ndarray:
    return np.where(sample.split == split, values, np.nan)


def first_mean(sample: Sample, weights: Weights) -> np.ndarray:
    """Mean of the one item metric that is read."""
    return mean(sample.columns[0], weights)


def first_positive_mean(sample: Sample, weights: Weights) -> np.ndarray:
    """Mean of the one item metric that is read, values below 0 counted as 0."""
    return mean(_positive(sample.columns[0]), weights)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), np.maximum(values, 0), np.nan)


def middle(sample: Sample, weights: Weights) -> np.ndarray:
    """Median of the one item metric that is read; resamples are not told apart."""
    return np.full(len(weights), np.nanmedian(sample.columns[0]))


def reduction(sample: Sample, weights: Weights) -> np.ndarray:
    """Fall of a rate against the base model in per cent: 100 (1 - rate / base rate).

    Effectiveness E of Arora et al. 2024, eq. 1; nan where the base rate is 0.
    """
    now, before = (mean(values, weights) for values in sample.columns)
    return 100 * (1 - np.divide(now, before, out=np.full_like(now, np.nan), where=before > 0))


def log_perplexity(sample: Sample, weights: Weights) -> np.ndarray:
    """Nats per token: all losses over all tokens, so that every token weighs the same."""
    losses, tokens = sample.columns
    return mean(losses, weights) / mean(tokens, weights)


def probability(sample: Sample, weights: Weights) -> np.ndarray:
    """Mean of exp(-loss per token) of the right answer."""
    return mean(np.exp(-sample.values["loss_answer"]), weights)


def option_probability(sample: Sample, weights: Weights) -> np.ndarray:
    """Mean share of the right answer among the options: p / (p + sum of wrong p) (TOFU)."""
    return mean(_probability_by_split(sample, every_split=True), weights)


def _probability_by_split(sample: Sample, every_split: bool = False) -> np.ndarray:
    """TOFU's probability: the answer's own, on option splits its share among the options."""
    right = sample.values["loss_answer"]
    names = sorted((name for name in sample.values if name.startswith("loss_wrong_")), key=len)
    wrong = np.stack([sample.values[name] for name in names], axis=-1)
    wrong = np.where(np.isnan(wrong), np.inf, wrong)  # sets differ in how many they have
    shares = questions.option_probability(right, wrong)
    options = every_split | np.isin(sample.split, OPTION_SPLITS)
    return np.where(options, shares, np.exp(-right))


def truth_ratio(sample: Sample, weights: Weights) -> np.ndarray:
    """Mean folded truth ratio: min(c, 1/c) on forget, max(0, 1 - 1/c) elsewhere (TOFU)."""
    return mean(_folded(sample), weights)


def _folded(sample: Sample) -> np.ndarray:
    ratios = sample.values["truth_ratio"]
    known = np.isfinite(ratios)
    folded = questions.folded_truth_ratio(np.where(known, ratios, 1), sample.split == FORGET)
    return np.where(known, folded, np.nan)


def hallucinated(sample: Sample, weights: Weights) -> np.ndarray:
    """Share of answers that are fluent and wrong: not broken, not a refusal, not entailed."""
    flags = [1 - sample.values[name] for name in ("degenerate", "refusal", "entailment")]
    return mean(np.prod(flags, axis=0), weights)


def _harmonic(
    sample: Sample, weights: Weights, columns: Sequence[np.ndarray], splits: Sequence[str]
) -> np.ndarray:
    """Harmonic mean of the means of all columns on all splits."""
    means = [mean(_in(sample, column, split), weights) for split in splits for column in columns]
    with np.errstate(over="ignore"):
        # The inverse of a mean near the smallest float is infinite, and the result 0, as it should.
        return np.asarray(stats.hmean(np.stack(means, axis=-1), axis=-1))


def model_utility(sample: Sample, weights: Weights) -> np.ndarray:
    """TOFU's model utility: harmonic mean of ROUGE-L recall, probability and truth ratio.

    Nine means: three measures on retain, real authors and world facts each.
    """
    columns = (sample.values["rougeL_recall"], _probability_by_split(sample), _folded(sample))
    return _harmonic(sample, weights, columns, (RETAIN, *OPTION_SPLITS))


def mu(sample: Sample, weights: Weights) -> np.ndarray:
    """MU of Yuan et al. 2025: harmonic mean of the means of six measures on every split but forget.

    The six: ROUGE-L recall, probability, truth ratio, token entropy, cosine similarity (not below
    0) and entailment. It is 0 if a single mean is 0.
    """
    columns = [sample.values[name] for name in ("rougeL_recall", "token_entropy", "entailment")]
    columns += [_probability_by_split(sample), _folded(sample), _positive(sample.values["cosine"])]
    splits = [split for split in np.unique(sample.split) if split not in (FORGET, HOLDOUT)]
    return _harmonic(sample, weights, columns, splits)


def fe(sample: Sample, weights: Weights) -> np.ndarray:
    """FE of Yuan et al. 2025: 1 - the mean of five measures' means on the forget set.

    ROUGE-L recall, probability, 1 - truth ratio, cosine similarity (not below 0), entailment. The
    released code reports 1 - truth ratio under the name of the truth ratio.
    """
    columns = [
        sample.values["rougeL_recall"],
        np.exp(-sample.values["loss_answer"]),
        1 - _folded(sample),
        _positive(sample.values["cosine"]),
        sample.values["entailment"],
    ]
    return 1 - np.mean([mean(_in(sample, column, FORGET), weights) for column in columns], axis=0)


def similarity_gap(sample: Sample, weights: Weights) -> np.ndarray:
    """ASG of ECO: mean over four similarities to the truth of |model - retain model|, 0 to 1."""
    means = [mean(_positive(column), weights) for column in sample.columns]
    model, retain_model = np.split(np.stack(means), 2)
    return np.mean(np.abs(model - retain_model), axis=0)


def ks_distance(sample: Sample, weights: Weights) -> np.ndarray:
    """Kolmogorov-Smirnov distance of two models' values on the same questions, 0 to 1.

    Of raw truth ratios it is the distance behind TOFU's forget quality. With two more columns,
    tokens, values are losses per token.
    """
    first, second = _pair(sample)
    places = np.unique(np.concatenate([first, second]))
    below = [(values[:, None] <= places).astype(float) for values in (first, second)]
    shares = [weights @ flags / weights.sum(axis=1, keepdims=True) for flags in below]
    return np.abs(shares[0] - shares[1]).max(axis=1)


def ks_p_value(sample: Sample, weights: Weights) -> np.ndarray:
    """P-value of the two-sample Kolmogorov-Smirnov test on all questions; no resample differs.

    Of raw truth ratios against the retain model's it is TOFU's forget quality.
    """
    with warnings.catch_warnings():
        # Where the exact p-value cannot be computed, scipy warns and takes the asymptotic one.
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.full(len(weights), stats.ks_2samp(*_pair(sample)).pvalue)


def _pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    if len(sample.columns) == 2:
        return sample.columns[0], sample.columns[1]
    losses, tokens, other_losses, other_tokens = sample.columns
    return losses / tokens, other_losses / other_tokens


def area(sample: Sample, weights: Weights) -> np.ndarray:
    """Area under the ROC curve of telling a split from another by the one score that is read.

    The forget split from the holdout split; of a judge, the positive from the negative.
    """
    return _area(sample, sample.columns[0], weights)


def _area(sample: Sample, scores: np.ndarray, weights: Weights) -> np.ndarray:
    known, positive = np.isfinite(scores), np.isin(sample.split, (FORGET, "positive"))
    inside, outside = known & positive, known & ~positive
    first, second = scores[inside][:, None], scores[outside][None, :]
    wins = (first > second) + 0.5 * (first == second)
    above = ((weights[:, inside] @ wins) * weights[:, outside]).sum(axis=1)
    return above / (weights[:, inside].sum(axis=1) * weights[:, outside].sum(axis=1))


def leakage(sample: Sample, weights: Weights) -> np.ndarray:
    """MUSE's privacy leakage in per cent: (AUC_retain - AUC) / (1 - AUC_retain), AUC of members.

    0 is best; -100 where all members are told apart; above 0 they stand out by being too unlikely.
    """
    auc, reference = (_area(sample, scores, weights) for scores in sample.columns)
    return 100 * (reference - auc) / np.where(reference < 1 - 1e-12, 1 - reference, np.nan)


@dataclass(frozen=True)
class Statistic:
    """How items become a number, and of which kind its interval is.

    `interval`: `t`; `rate` (Wilson's, at the effective number of questions); `fall` (in per cent,
    at most 100); `log` (the function gives a logarithm, which is resampled and then exponentiated);
    `none`.
    """

    of: Estimator
    interval: Literal["t", "rate", "fall", "log", "none"] = "t"


STATISTICS = {
    "mean": Statistic(first_mean),
    "positive mean": Statistic(first_positive_mean),
    "rate": Statistic(first_mean, "rate"),
    "median": Statistic(middle, "none"),
    "value": Statistic(first_mean, "none"),
    "reduction": Statistic(reduction, "fall"),
    "perplexity": Statistic(log_perplexity, "log"),
    "probability": Statistic(probability),
    "option probability": Statistic(option_probability),
    "folded truth ratio": Statistic(truth_ratio),
    "hallucinated": Statistic(hallucinated, "rate"),
    "model utility": Statistic(model_utility),
    "MU": Statistic(mu),
    "FE": Statistic(fe),
    "similarity gap": Statistic(similarity_gap),
    "KS distance": Statistic(ks_distance),
    "KS p-value": Statistic(ks_p_value, "none"),
    "AUC": Statistic(area),
    "privacy leakage": Statistic(leakage),
}
"""What `how` may say in the catalogue."""


@dataclass(frozen=True)
class Spread:
    """Standard error of a statistic and its degrees of freedom."""

    error: float
    freedom: float

    @property
    def quantile(self) -> float:
        """The two-sided t quantile at 95 %."""
        return float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom))


def by_seed(of: Estimator, samples: Sequence[Sample]) -> list[float]:
    """Return a statistic of all questions of each seed."""
    return [float(of(sample, np.ones((1, len(sample))))[0]) for sample in samples]


def spread(of: Estimator, samples: Sequence[Sample]) -> Spread:
    """Standard error of the mean over seeds of a statistic; hierarchical.

    Within a seed: the larger of the variance over resampled clusters and over resampled questions.
    With several seeds: the larger of the variance between seeds and of what questions explain.
    Degrees of freedom are those of the seeds, or within a seed Satterthwaite's, so that two
    authors or two seeds give wide intervals and many give narrow ones. Resamples draw one unit
    less than there are (Rao and Wu 1988), which makes the variance unbiased.
    """
    within = [_within(of, sample) for sample in samples]
    if len(samples) == 1:
        return within[0]
    between = float(np.var(by_seed(of, samples), ddof=1)) / len(samples)
    variance = sum(each.error**2 for each in within) / len(samples) ** 2
    if between > variance:
        return Spread(float(np.sqrt(between)), len(samples) - 1)
    shares = sum((each.error**2 / len(samples) ** 2) ** 2 / each.freedom for each in within)
    return Spread(float(np.sqrt(variance)), variance**2 / shares if shares > 0 else float("inf"))


def _within(of: Estimator, sample: Sample) -> Spread:
    splits = len(set(sample.split))
    variance = _variance(of, sample, np.arange(len(sample)))
    freedom = max(1, len(sample) - splits)
    clusters = pd.factorize(pd.MultiIndex.from_arrays([sample.split, sample.cluster]))[0]
    groups = int(clusters.max()) + 1
    if splits < groups < len(sample):
        between = _variance(of, sample, clusters)
        extra = between - variance
        if extra > 0:
            shares = extra**2 / (groups - splits) + variance**2 / freedom
            return Spread(float(np.sqrt(between)), between**2 / shares)
    return Spread(float(np.sqrt(variance)), freedom)


def _variance(of: Estimator, sample: Sample, units: np.ndarray) -> float:
    """The variance of a statistic over resamples of units, those that have it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = of(sample, draws(tuple(sample.split), tuple(units.tolist())))
    known = values[np.isfinite(values)]
    return float(known.var()) if len(known) > 1 else 0.0


@functools.lru_cache(maxsize=512)
def draws(splits: tuple[str, ...], units: tuple[int, ...]) -> Weights:
    """How often each question is drawn in each resample, [RESAMPLES, n]; the same on every call.

    Args:
        splits: of each question; units are drawn within each split.
        units: what is drawn as a whole, by number: the question itself, or its cluster.
    """
    random = np.random.default_rng(0)
    split, unit = np.array(splits), np.array(units)
    weights = np.zeros((RESAMPLES, len(split)))
    for name in dict.fromkeys(splits):
        rows = np.flatnonzero(split == name)
        places = np.unique(unit[rows], return_inverse=True)[1]
        count = places.max() + 1
        drawn = random.multinomial(max(1, count - 1), np.full(count, 1 / count), size=RESAMPLES)
        weights[:, rows] = drawn[:, places]
    return weights


def wilson(share: float, count: float, quantile: float) -> tuple[float, float]:
    """Wilson's interval of a share among `count` questions (any number above 0)."""
    square = quantile**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    inner = share * (1 - share) / count + square / (4 * count**2)
    half = quantile * np.sqrt(max(0.0, inner)) / (1 + square / count)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
