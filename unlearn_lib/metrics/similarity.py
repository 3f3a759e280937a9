"""How like the retained model's answers are, and what of a fact is in them (ECO, Liu et al. 2024).

BLEU is in `continuation`, ROUGE-L in `text`, the cosine of embeddings in `closer_look`; METEOR and
the average gap over all four are here.
"""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from unlearn_lib.datasets.overlap import words_of
from unlearn_lib.errors import nearest
from unlearn_lib.metrics.intervals import RESAMPLES, Estimate, bootstrap

SIMILARITIES = ("bleu", "rougeL_recall", "meteor", "cosine_similarity")
"""What the average similarity gap is over."""


class _NoSynonyms:
    """Stands where nltk asks WordNet: no word has a synonym, and nothing is downloaded."""

    def synsets(self, word: str) -> tuple[()]:
        return ()


def meteor(references: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """METEOR of each text against its reference, without synonyms: float64 [n], 0 to 1.

    nltk's single_meteor_score (α .9, β 3, γ .5) on lower-cased words of any script, punctuation
    left out. A word matches itself, then one with the same Porter stem. ECO's released code also
    matches WordNet's synonyms, which are in no package, and counts punctuation marks as words: its
    scores are not quite these. Identical texts of m words score 1 - 1/(2m³): a single word .5.

    Args:
        references, texts: [n] each, same order.

    Returns:
        float64 [n]; 0 where either has no word.

    Raises:
        ValueError: lengths differ, or a single string.
    """
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import single_meteor_score

    pairs = [(words_of(one), words_of(other)) for one, other in _paired(references, texts)]
    stemmer, synonyms = PorterStemmer(), _NoSynonyms()
    scores = [
        single_meteor_score(reference, text, stemmer=stemmer, wordnet=synonyms)
        for reference, text in pairs
    ]
    return np.array(scores, dtype=float)


def unique_token_ratio(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Distinct tokens over tokens of each answer; 1 where none repeats, near 0 in a loop.

    ECO's unique-token ratio; its released code tokenises the decoded answer anew.

    Args:
        rows: token ids of n answers, padding left out.

    Returns:
        float64 [n], 0 to 1; 0 for an answer without tokens.
    """
    return np.array([len(np.unique(row)) / max(1, len(row)) for row in rows], dtype=float)


def leak(texts: Sequence[str], facts: Sequence[str]) -> np.ndarray:
    """Which answers hold the fact: all its words, whole and in a row.

    Case, accents and punctuation make no difference: «Charlotte Bronte, in 1847!» holds «Brontë»
    and «1847», and not «184».

    Args:
        texts, facts: answers, and the words to look for, [n] each, same order.

    Returns:
        bool [n].

    Raises:
        ValueError: lengths differ, a single string, or a fact without a word.
    """
    pairs = [(_plain(fact), _plain(text)) for fact, text in _paired(facts, texts, "facts")]
    for row, (fact, _) in enumerate(pairs):
        if not fact.strip():
            raise ValueError(f"The fact in row {row} has no word: give what is to be looked for.")
    return np.array([fact in text for fact, text in pairs], dtype=bool)


def asg(
    model: Mapping[str, ArrayLike],
    retained: Mapping[str, ArrayLike],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Average similarity gap to the retained model, 0 to 1; 0 is wanted.

    How far apart two models' mean similarities to the true text are, without sign, averaged over
    the four of SIMILARITIES. ECO's captions define the gap, its released code lacks it; that code
    measures BERTScore where the cosine of embeddings stands here.

    Args:
        model, retained: the four of SIMILARITIES -> a value per prompt, 0 to 1, [n]; the same
            prompts in the same order.
        resamples: of the prompts, the same for both models and all four. Default 2000.
        seed: of the resampling. Default 0.

    Returns:
        Estimate with the prompts as n. A gap is never below 0, so that near 0 most resamples lie
        above the value: an interval without 0 does not tell the models apart.

    Raises:
        ValueError: a similarity is missing or unknown, lengths differ, no prompt, or a value that
            is not between 0 and 1.
    """
    ours, theirs = _similarities("model", model), _similarities("retained", retained)
    if len(ours) != len(theirs):
        raise ValueError(
            f"The model has {len(ours)} prompts and the retained model {len(theirs)}: give both "
            "for the same prompts in the same order."
        )
    gaps = ours - theirs
    gaps = gaps[np.lexsort(gaps.T)]

    def average(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.abs(gaps[rows.astype(int)].mean(axis=-2)).mean(axis=-1)

    return bootstrap(np.arange(len(gaps)), average, resamples, seed)


def _similarities(whose: str, measures: Mapping[str, ArrayLike]) -> np.ndarray:
    """A model's values, checked: [prompts, similarities]."""
    for name in measures:
        if name not in SIMILARITIES:
            raise ValueError(f"{whose} has the similarity '{name}'{nearest(name, SIMILARITIES)}.")
    for name in SIMILARITIES:
        if name not in measures:
            raise ValueError(f"{whose} lacks the similarity '{name}': give all of {SIMILARITIES}.")
    columns = [np.asarray(measures[name], dtype=float) for name in SIMILARITIES]
    for name, column in zip(SIMILARITIES, columns, strict=True):
        if column.ndim != 1 or not len(column) or column.shape != columns[0].shape:
            raise ValueError(
                f"'{name}' of {whose} has shape {column.shape}: give one number per prompt, at "
                "least one, and as many of every similarity."
            )
        wrong = np.flatnonzero(~((column >= 0) & (column <= 1)))
        if len(wrong):
            raise ValueError(
                f"'{name}' of {whose} is {column[wrong[0]]} in row {wrong[0]}: give numbers from "
                "0 to 1."
            )
    return np.stack(columns, axis=-1)


def _plain(text: str) -> str:
    """The words without case, accents and punctuation, a space before and after each."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    bare = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return f" {' '.join(words_of(bare))} "


def _paired(
    first: Sequence[str], texts: Sequence[str], name: str = "references"
) -> list[tuple[str, str]]:
    for given, entries in ((name, first), ("texts", texts)):
        if isinstance(entries, str):
            raise ValueError(f"{given} is a single string: give a list of strings.")
    if len(first) != len(texts):
        raise ValueError(
            f"There are {len(first)} {name} and {len(texts)} texts: give one of the {name} per "
            "text in the same order."
        )
    return list(zip(first, texts, strict=True))
