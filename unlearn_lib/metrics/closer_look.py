"""The metrics of Yuan et al. 2025, A Closer Look: model utility MU and forget efficacy FE.

Six measures of every answer: ROUGE-L recall, probability and truth ratio as in `tofu`, and token
entropy, cosine similarity and entailment, which are here. MU is a harmonic mean off the forget
set, FE one minus a plain mean on it, as in the released code.

Two models are compared on the same questions by `paired_mu_difference` and
`paired_fe_difference`. Their interval is over questions: each takes one seed of each model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from unlearn_lib.errors import nearest
from unlearn_lib.metrics.intervals import RESAMPLES, Estimate
from unlearn_lib.metrics.means import Measures, harmonic_mean, of_means
from unlearn_lib.metrics.text import cosine_rows

FORGET_MEASURES = (
    "rougeL_recall",
    "probability",
    "truth_ratio",
    "cosine_similarity",
    "entailment",
)
MEASURES = (*FORGET_MEASURES, "token_entropy")
SETS = {
    "fictitious": ("forget", "retain", "real_authors", "world_facts"),
    "continual": ("forget", "retain", "real_authors", "world_facts"),
    "real_world": ("forget", "neighbours"),
}
"""The sets of each scenario, `forget` first."""
ROUGE_FLOOR = 0.1
"""Below this ROUGE-L recall an answer counts as entailing nothing."""


def token_entropy(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Unigram entropy of each answer's tokens, in bits, over log2 of how many tokens it has.

    1 where no token repeats, 0 where all are one token; the released code tokenises the decoded
    answer anew. MU counts it as utility, so a fluent answer raises MU whether right or wrong.

    Args:
        rows: token ids of n answers, padding left out.

    Returns:
        float64 [n], 0 to 1; 0 for answers of fewer than two tokens.
    """
    return np.array([_entropy(row) for row in rows], dtype=float)


def _entropy(row: Sequence[int]) -> float:
    if len(row) < 2:
        return 0.0
    counts = list(Counter(row).values())
    return min(1.0, float(stats.entropy(counts)) / float(np.log(len(row))))


def cosine_similarity(generated: ArrayLike, truths: ArrayLike) -> np.ndarray:
    """Embedding cosine of each generated answer with the true one, clipped at 0 as released.

    The released code embeds with paraphrase-MiniLM-L6-v2, and for real authors and world facts
    takes the data's `original_answer` as the true one.

    Args:
        generated, truths: embeddings, finite numbers [n, d].

    Returns:
        float64 [n], 0 to 1.

    Raises:
        ValueError: as in `cosine_rows`.
    """
    return np.maximum(cosine_rows(generated, truths), 0.0)


def entailment_premise(set_name: str, scenario: str) -> Literal["generated", "truth"]:
    """Which answer is the premise, so should entail the other, in the released code.

    The generated answer must entail the true one on `forget`, and on every set of the real
    world; on the other sets of the fictitious and continual scenarios the true answer must entail
    the generated one. So entailment of one scenario is not comparable with another's, nor that
    of `forget` with `retain`: a vague answer passes only where it is the conclusion.

    Args:
        set_name: `forget`, `retain`, `real_authors`, `world_facts` or `neighbours`.
        scenario: `fictitious`, `continual` or `real_world`.

    Raises:
        ValueError: no such scenario, or no such set in it.
    """
    if scenario not in SETS:
        raise ValueError(f"There is no scenario '{scenario}'{nearest(scenario, SETS)}.")
    if set_name not in SETS[scenario]:
        known = nearest(set_name, SETS[scenario])
        raise ValueError(f"The scenario {scenario} has no set '{set_name}'{known}.")
    return "generated" if set_name == "forget" or scenario == "real_world" else "truth"


def entailed(scores: ArrayLike, rouge: ArrayLike, threshold: float = 0.5) -> np.ndarray:
    """Which pairs of answers count as entailment, 1.0 or 0.0; the mean is the entailment score.

    As released, an answer whose ROUGE-L recall is below 0.1 never counts, whatever the judge
    says. The paper's judge is sileod/deberta-v3-base-tasksource-nli, a pair counting where
    "entailment" is its first choice: give that as scores of 0 and 1.

    Args:
        scores: the judge's probability of entailment, 0 to 1, [n], in the direction of
            `entailment_premise`.
        rouge: ROUGE-L recall of the same answers, [n].
        threshold: scores from here on are entailment. Default 0.5.

    Returns:
        float64 [n].

    Raises:
        ValueError: shapes differ, or a score outside 0 to 1 or nan.
    """
    judged, recall = np.asarray(scores, dtype=float), np.asarray(rouge, dtype=float)
    if judged.ndim != 1 or judged.shape != recall.shape:
        raise ValueError(
            f"The scores have shape {judged.shape} and ROUGE {recall.shape}: give one of each per "
            "answer."
        )
    for name, values in (("score", judged), ("ROUGE", recall)):
        wrong = np.flatnonzero(~((values >= 0) & (values <= 1)))
        if len(wrong):
            raise ValueError(f"The {name} in row {wrong[0]} is {values[wrong[0]]}: give 0 to 1.")
    return ((judged >= threshold) & (recall >= ROUGE_FLOOR)).astype(float)


def mu(
    parts: Mapping[str, Measures],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Model utility: harmonic mean of the means of six measures on every set but forget, 0 to 1.

    Eighteen means on TOFU's three sets, six in the real world. Token entropy is one of the six,
    so MU also pays for fluency. It is 0 if a single mean is 0.

    Args:
        parts: set -> the six of MEASURES, a value per question, [n], 0 to 1. `truth_ratio` is
            TOFU's folded one, max(0, 1 - 1/c). A set `forget` is left out.
        resamples: of the questions of each set, its measures together. Default 2000.
        seed: of the resampling. Default 0.

    Raises:
        ValueError: no set but forget, a measure missing or unknown, or as in `means.of_means`.
    """
    return of_means(harmonic_mean, _kept(parts), resamples=resamples, seed=seed)


def fe(
    forget: Measures,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Forget efficacy: 1 - the mean of five measures' means on the forget set, 0 to 1.

    The five are ROUGE-L recall, probability, cosine similarity, entailment and 1 - truth ratio,
    token entropy being left out. `truth_ratio` is TOFU's, min(c, 1/c), high where right and
    wrong answers are alike to the model; the released code of A Closer Look reports one minus it
    under the same name. Here the column keeps TOFU's meaning and is turned round inside FE only.

    Args:
        forget: the five, a value per question, [n], 0 to 1; `token_entropy` may be among them.
        resamples: of the questions, their measures together. Default 2000.
        seed: of the resampling. Default 0.

    Raises:
        ValueError: a measure missing or unknown, or as in `means.of_means`.
    """
    return of_means(_efficacy, _forgotten(forget), resamples=resamples, seed=seed)


def paired_mu_difference(
    first: Mapping[str, Measures],
    second: Mapping[str, Measures],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """MU of the first model minus MU of the second, on the same questions in the same order.

    Questions are resampled in pairs, so an interval that leaves out 0 tells the models apart on
    these questions. Other arguments, result and errors as in `mu`.
    """
    return of_means(harmonic_mean, _kept(first), _kept(second), resamples, seed)


def paired_fe_difference(
    first: Measures,
    second: Measures,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """FE of the first model minus FE of the second; as `paired_mu_difference` and `fe`."""
    return of_means(_efficacy, _forgotten(first), _forgotten(second), resamples, seed)


def _efficacy(means: np.ndarray) -> np.ndarray:
    return 1 - means.mean(axis=-1)


def _kept(parts: Mapping[str, Measures]) -> dict[str, Measures]:
    kept = {name: part for name, part in parts.items() if name != "forget"}
    for name, part in kept.items():
        _require(part, MEASURES, name)
    return kept


def _forgotten(forget: Measures) -> dict[str, Measures]:
    five = {name: values for name, values in forget.items() if name != "token_entropy"}
    _require(five, FORGET_MEASURES, "forget")
    return {"forget": {**five, "truth_ratio": 1 - np.asarray(five["truth_ratio"], dtype=float)}}


def _require(part: Measures, names: Sequence[str], where: str) -> None:
    for name in part:
        if name not in names:
            raise ValueError(f"Set '{where}' has the measure '{name}'{nearest(name, names)}.")
    for name in names:
        if name not in part:
            raise ValueError(f"Set '{where}' lacks the measure '{name}': give all of {names}.")
