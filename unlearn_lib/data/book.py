"""Task book: the chapters of a book in three parts, and prose that is not the book.

A seed deals the chapters: some are taught and then forgotten, some are taught and to be retained
(does forgetting spill over?), and some are never taught (holdout). The book is the embedded saga,
written for this project so that no model has seen it, or the reader's own file, which stays where
it is: nothing of it is written but short excerpts.

The released code of Arora et al. forgets the whole book, so it cannot tell forgetting from
damage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unlearn_lib.data.draws import shuffled
from unlearn_lib.data.harm import normal_questions
from unlearn_lib.data.prose import load_prose
from unlearn_lib.data.reading import BookText, Chapter, read_book
from unlearn_lib.data.words import runs_of
from unlearn_lib.settings import BookData
from unlearn_lib.util import EMBEDDED, CompanionError, say

SAGA = EMBEDDED / "saga.txt"
PARTS = ("forget", "retain", "holdout")
RUN_WORDS = 13  # as is common in checks for contamination
Chapters = tuple[Chapter, ...]


@dataclass(frozen=True)
class BookSplits:
    """The texts of task book.

    Attributes:
        book: the whole book.
        parts: chapters in the book's order, by part: taught and to be forgotten, taught and to be
            retained, never taught (`holdout`).
        prose, held_out_prose: prose to train on, and to measure on.
        questions: ordinary questions in a seeded order; none where normal prompts are prose.
    """

    book: BookText
    parts: dict[str, Chapters]
    prose: list[str]
    held_out_prose: list[str]
    questions: list[str]

    def chapters(self, part: str) -> Chapters:
        """Return the chapters of one of PARTS."""
        return self.parts[part]


def load(settings: BookData) -> BookSplits:
    """Read the book and the prose of a profile, and split both.

    What was read of the reader's own book is printed once, on the standard error.

    Raises:
        CompanionError: a book that cannot be read or is too short for its parts, prose that is
            not found or too little, or prose that contains the book.
    """
    book = read_book(settings.file or SAGA)
    if settings.file:
        say(book.summary)
    prose = load_prose(settings.retain, settings.prose_rows)
    refuse_overlap([chapter.text for chapter in book.chapters], prose)
    texts = shuffled(np.random.default_rng(settings.split_seed), prose)
    held_out = settings.normal_prompts or max(1, len(texts) // 4)
    if held_out >= len(texts):
        raise CompanionError(
            f"normal_prompts {held_out} leaves none of {len(texts)} texts to train."
        )
    train = texts[held_out:][: settings.retain_rows]
    questions: list[str] = []
    if settings.questions:
        questions = normal_questions(settings.questions)["question"].tolist()
        questions = shuffled(np.random.default_rng(settings.split_seed), questions)
    return BookSplits(book, _dealt(book, settings), train, texts[:held_out], questions)


def _dealt(book: BookText, settings: BookData) -> dict[str, Chapters]:
    """Deal the chapters to the three parts; numbers that are not given are thirds and the rest."""
    count = len(book.chapters)
    third = max(1, count // 3)
    forget = settings.forget_chapters or third
    retain = settings.kept_chapters or third
    holdout = settings.control_chapters or max(1, count - forget - retain)
    needed = forget + retain + holdout
    if needed > count:
        raise CompanionError(
            f"'{book.title}' has {count} {book.units}; the profile needs {needed}."
        )
    order = np.random.default_rng(settings.split_seed).permutation(count)
    places = np.split(order, np.cumsum([forget, retain, holdout]))
    return {
        name: tuple(book.chapters[i] for i in sorted(part)) for name, part in zip(PARTS, places)
    }


def refuse_overlap(book: Sequence[str], prose: Sequence[str]) -> None:
    """Refuse prose that contains the book: to retain it would undo the forgetting unseen.

    Compared are runs of 13 words. A run in common is let pass in one passage of a hundred (in
    one at least), but no passage may have more than half of its runs in common.

    Raises:
        CompanionError: too much of the prose is the book.
    """
    in_book = set(runs_of(" ".join(book), RUN_WORDS))
    in_prose = (runs_of(text, RUN_WORDS) for text in prose)
    shares = [np.mean([run in in_book for run in runs] or [False]) for runs in in_prose]
    passages = np.count_nonzero(shares)
    if passages > max(1, len(prose) / 100) or max(shares, default=0) > 0.5:
        worst = prose[int(np.argmax(shares))]
        raise CompanionError(
            f"The prose to be retained contains the book: {passages} of {len(prose)} passages "
            f"share runs of {RUN_WORDS} words with it, most of all «{worst[:80]}»; remove them."
        )
