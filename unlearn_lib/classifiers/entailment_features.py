"""What the trained judge of entailment reads off a pair of texts: wordings, names and numbers."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.preprocessing import normalize

from unlearn_lib.classifiers.embedding import Encoder

FEATURES = ("sentence_cosine", "words", "numbers", "names", "negation", "premise_overlap")
"""What a TrainedJudge reads off a pair; see `features`."""

_NUMBER_WORDS = frozenset(
    "two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty "
    "sixty hundred thousand million".split()
)
_NEGATION = re.compile(
    r"\b(no|not|none|nor|never|nothing|cannot|unable|unclear|uncertain|unknown|unsure)\b|n['’]t\b",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"(?<=\d)(st|nd|rd|th)\b")
_SENTENCE_END = re.compile(
    r"(?:(?<=[a-z\d\"'”’)]{3}[.!?])|(?<=[a-z\d]{2}[.!?][\"'”’]))\s+(?=[A-Z\d\"'“‘])|\s*\n\s*"
)


def features(encoder: Encoder, premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
    """Read FEATURES off each pair; questions are left out of a text, for they state nothing.

    `sentence_cosine`: for each sentence of the hypothesis the highest cosine with a sentence of
    the premise, averaged. `words`, `numbers`, `names`: share of the hypothesis's content words,
    numbers and capitalised words that are in the premise, stemmed and without accents; 1 where it
    has no number or name. `negation`: 1 where both or neither of the hypothesis and the nearest
    sentences of the premise have one ("not", "unsure"), else 0. `premise_overlap`: longest common
    subsequence with those sentences, as a share of their words. All are 0 where either text has
    no content word.

    Fitted, `premise_overlap` has a negative weight: of two pairs as close in meaning, the one in
    other words is the likelier paraphrase, the one in the same words the likelier wrong answer.
    Differences and products of embeddings are left out: they raise accuracy on the wordings of
    the fit and lower it on others.

    Args:
        encoder: from sentences to embeddings, called once, with each distinct sentence.
        premises, hypotheses: [n] each.

    Returns:
        float64 [n, 6], 0 to 1 save the cosine.

    Raises:
        ValueError: lengths differ.
    """
    check_pairs(premises, hypotheses)
    texts = {text: _read(text) for text in dict.fromkeys([*premises, *hypotheses])}
    statements = list(dict.fromkeys(s for text in texts.values() for s in text.statements))
    place = {statement: row for row, statement in enumerate(statements)}
    vectors = normalize(np.asarray(encoder(statements), dtype=float)) if statements else None
    rows = {text: [place[s] for s in read.statements] for text, read in texts.items()}
    found = np.zeros((len(premises), len(FEATURES)))
    for row, (premise, hypothesis) in enumerate(zip(premises, hypotheses)):
        source, claim = texts[premise], texts[hypothesis]
        if vectors is not None and source.words and claim.words:
            cosines = vectors[rows[hypothesis]] @ vectors[rows[premise]].T
            nearest = " ".join(dict.fromkeys(source.statements[i] for i in cosines.argmax(axis=1)))
            said = " ".join(claim.statements)
            found[row] = (
                cosines.max(axis=1).mean(),
                _share(claim.words, source.words),
                _share(claim.numbers, source.words),
                _share(claim.names, source.words),
                bool(_NEGATION.search(nearest)) == bool(_NEGATION.search(said)),
                _ROUGE.score(said, nearest)["rougeL"].precision,
            )
    return found


def check_pairs(premises: Sequence[str], hypotheses: Sequence[str]) -> None:
    """ValueError when there is not one hypothesis per premise."""
    if len(premises) != len(hypotheses):
        raise ValueError(
            f"There are {len(premises)} premises and {len(hypotheses)} hypotheses: give one "
            "hypothesis per premise in the same order."
        )


@dataclass(frozen=True)
class _Reading:
    """What `features` needs of one text; words are stemmed."""

    statements: tuple[str, ...]
    words: frozenset[str]
    numbers: frozenset[str]
    names: frozenset[str]


def _read(text: str) -> _Reading:
    sentences = (part.strip() for part in _SENTENCE_END.split(text))
    statements = tuple(part for part in sentences if part and not part.endswith("?"))
    words = frozenset(_stems(" ".join(statements))) - _stop_stems()
    numbers = {w for w in words if w in _number_stems() or any(c.isdigit() for c in w)}
    names = words & frozenset(_stems(" ".join(_capitalised(statements))))
    return _Reading(statements, words, frozenset(numbers), names)


def _capitalised(statements: Sequence[str]) -> Iterator[str]:
    """Words with a capital; the first of a sentence only before another ("Ada Lovelace")."""
    for statement in statements:
        words = re.findall(r"[^\W_]+", statement)
        start = 0 if len(words) > 1 and words[1][0].isupper() else 1
        yield from (word for word in words[start:] if word[0].isupper())


class _Words(Tokenizer):
    """ROUGE's own words, stemmed, but read without accents and ordinal endings."""

    def tokenize(self, text: str) -> tuple[str, ...]:
        return _stems(text)


_ROUGE = RougeScorer(["rougeL"], tokenizer=_Words())


@lru_cache(maxsize=2**15)
def _stems(text: str) -> tuple[str, ...]:
    letters = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return tuple(DefaultTokenizer(use_stemmer=True).tokenize(_ORDINAL.sub("", plain)))


@lru_cache(maxsize=1)
def _stop_stems() -> frozenset[str]:
    return frozenset(_stems(" ".join(ENGLISH_STOP_WORDS - _NUMBER_WORDS - {"one"}))) | {"s"}


@lru_cache(maxsize=1)
def _number_stems() -> frozenset[str]:
    return frozenset(_stems(" ".join(_NUMBER_WORDS)))


def _share(wanted: frozenset[str], there: frozenset[str]) -> float:
    return len(wanted & there) / len(wanted) if wanted else 1.0
