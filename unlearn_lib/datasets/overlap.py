"""Does the retain set contain the book? Runs of words that both share.

Keeping the very text that is to be forgotten would undo the forgetting unseen. Both texts are
compared as runs of lower-cased words without punctuation, 13 of them by default, the length that is
common in checks for contamination. Runs are found by their hashes and then compared word for word,
so that no two different runs are ever taken for one.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from unlearn_lib.errors import CompanionError

WORD = re.compile(r"[^\W_]+")
SHOWN_WORDS = 13
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
SIEVE_BITS = 24
SIEVE_SHIFT = np.uint64(64 - SIEVE_BITS)

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Overlap:
    """How much of a retain set stands in the book.

    Attributes:
        words: length of the runs that were compared.
        passages: how many passages share a run with the book.
        of: how many passages there are.
        largest: the largest share of one passage's runs that stand in the book.
        example: words of a run that the passage with the largest share has in common with the
            book (13 words at most); empty where there is none.
    """

    words: int
    passages: int
    of: int
    largest: float
    example: str

    @property
    def share(self) -> float:
        """The share of passages that have a run in common with the book."""
        return self.passages / self.of if self.of else 0.0


def shared_runs(book: Sequence[str], prose: Sequence[str], words: int = 13) -> Overlap:
    """Count the passages of `prose` that share a run of words with the book.

    Args:
        book: its parts in their order; runs go on from one part to the next.
        prose: passages; those shorter than `words` words have no run and share none.
        words: length of a run.
    """
    vocabulary: dict[str, int] = {}
    parts = (words_of(part) for part in book)
    told = _numbers(vocabulary.setdefault(w, len(vocabulary) + 1) for w in chain(*parts))
    passages = [list(map(vocabulary.get, words_of(text), repeat(0))) for text in prose]
    lengths = _numbers(len(passage) for passage in passages)
    kept = _numbers(chain.from_iterable(passages))
    owner = np.repeat(np.arange(len(passages)), lengths)
    starts = _starts(kept, owner, words)
    starts = starts[_found(told, kept, starts, words)]
    hits = np.bincount(owner[starts], minlength=len(passages))
    shares = hits / np.maximum(lengths - words + 1, 1)
    example = ""
    if len(starts):
        names = ["", *vocabulary]
        first = starts[owner[starts] == shares.argmax()][0]
        example = " ".join(names[i] for i in kept[first : first + min(words, SHOWN_WORDS)])
    largest = float(shares.max(initial=0.0))
    return Overlap(words, int((hits > 0).sum()), len(passages), largest, example)


def refuse_overlap(
    book: Sequence[str], prose: Sequence[str], most: float = 0.01, words: int = 13
) -> Overlap:
    """Refuse a retain set that contains the book; a few stock phrases are let pass.

    Args:
        book, prose: as in `shared_runs`.
        most: the share of passages that may have a run in common with the book; one passage
            always may, but none may have more than half of its runs in common.
        words: as in `shared_runs`.

    Returns:
        The overlap, to be shown.

    Raises:
        CompanionError: too much of the retain set is the book; shows a run of it.
    """
    found = shared_runs(book, prose, words)
    if found.passages > max(1, most * found.of) or found.largest > 0.5:
        share, the_most = ("shares", "") if found.passages == 1 else ("share", "up to ")
        raise CompanionError(
            f"The retain set contains the book: {found.passages} of {found.of} passages {share} "
            f"runs of {words} words with it ({the_most}{found.largest:.0%} of a passage's runs), "
            f"for example «{found.example}»; choose another retain set or remove them."
        )
    return found


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation, ligatures spelt out."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _numbers(values: Iterable[int]) -> Numbers:
    return np.fromiter(values, dtype=np.int64)


def _starts(kept: Numbers, owner: Numbers, words: int) -> Numbers:
    """Where runs start that lie in one passage and hold no word that the book lacks."""
    ends = np.arange(words, len(kept) + 1)
    unknown = np.concatenate(([0], np.cumsum(kept == 0)))
    known = unknown[ends] == unknown[ends - words]
    return np.flatnonzero(known & (owner[ends - 1] == owner[ends - words]))


def _found(told: Numbers, kept: Numbers, starts: Numbers, words: int) -> NDArray[np.bool_]:
    """Whether the run of `kept` at each start stands anywhere in `told`."""
    found = np.zeros(len(starts), dtype=bool)
    if len(told) < words or not len(starts):
        return found
    values = np.random.default_rng(0).integers(2**64, size=told.max() + 1, dtype=np.uint64)
    in_book, in_prose = _hashes(values[told], words), _hashes(values[kept], words)[starts]
    seen = np.zeros(2**SIEVE_BITS, dtype=bool)
    seen[in_book >> SIEVE_SHIFT] = True
    likely = np.flatnonzero(seen[in_prose >> SIEVE_SHIFT])
    order = np.argsort(in_book)
    place = np.searchsorted(in_book, in_prose[likely], sorter=order)
    match = order[np.minimum(place, len(order) - 1)]
    same = np.ones(len(likely), dtype=bool)
    for offset in range(words):
        same &= told[match + offset] == kept[starts[likely] + offset]
    found[likely] = same
    return found


def _hashes(values: NDArray[np.uint64], words: int) -> NDArray[np.uint64]:
    """Polynomial hashes, modulo 2^64, of all runs of so many words."""
    count = len(values) - words + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(words):
        hashes = hashes * MULTIPLIER + values[offset : offset + count]
    return hashes
