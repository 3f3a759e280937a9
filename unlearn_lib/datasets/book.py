"""Experiment 2: a book in three parts, and prose that is not the book.

Chapters are dealt by a seed: some are implanted and then forgotten, some are implanted and to be
kept (does forgetting spill over?), and some are never implanted (the control). The book is the
embedded saga, written for this project so that no model has seen it, or the reader's own file,
which stays where it is: nothing of it is written but short excerpts.

The released code of Arora et al. forgets the whole book, so it cannot tell forgetting from
damage.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_lib.datasets.files import EMBEDDED
from unlearn_lib.datasets.harmful import normal_questions
from unlearn_lib.datasets.overlap import Overlap, refuse_overlap
from unlearn_lib.datasets.prose import load_prose
from unlearn_lib.datasets.readers import BookText, Chapter, read_book
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import BookData

SAGA = EMBEDDED / "saga.txt"
PARTS = ("forget", "kept", "control")


@dataclass(frozen=True)
class BookSplits:
    """The texts of experiment 2.

    Attributes:
        book: what was read: title, format, what was dropped.
        forget, kept, control: chapters, in the book's order.
        retain, normal: prose to train on, and held-out prose.
        questions: ordinary questions, in a seeded order; none where normal prompts are prose.
        overlap: what the retain set shares with the book.
        sha256: of the sources.
        dropped: pieces that were left out of the prose, by reason.
    """

    book: BookText
    forget: tuple[Chapter, ...]
    kept: tuple[Chapter, ...]
    control: tuple[Chapter, ...]
    retain: tuple[str, ...]
    normal: tuple[str, ...]
    questions: tuple[str, ...]
    overlap: Overlap
    sha256: dict[str, str]
    dropped: dict[str, int]

    def part(self, name: str) -> tuple[Chapter, ...]:
        """The chapters of `forget`, `kept` or `control`."""
        return getattr(self, name)


def load(settings: BookData) -> BookSplits:
    """Read the book and the prose of a profile, and split both.

    Raises:
        CompanionError: a book that cannot be read or is too short for its parts, prose that
            cannot be had, or prose that contains the book.
    """
    path = settings.file.expanduser() if settings.file else SAGA
    book = read_book(path)
    parts = _deal(book, settings, path)
    prose = load_prose(settings.retain, settings.prose_rows)
    overlap = refuse_overlap([chapter.text for chapter in book.chapters], prose.texts)
    order = np.random.default_rng(settings.split_seed).permutation(len(prose.texts))
    held_out = settings.normal_prompts or max(1, len(order) // 4)
    if held_out >= len(order):
        raise CompanionError(
            f"The prose '{settings.retain}' has {len(order)} texts, and normal_prompts "
            f"{held_out} leaves none to train on; lower it in the profile."
        )
    normal = tuple(prose.texts[i] for i in order[:held_out])
    retain = tuple(prose.texts[i] for i in order[held_out:][: settings.retain_rows])
    sha256 = {"book": book.sha256, settings.retain: prose.sha256}
    questions: tuple[str, ...] = ()
    if settings.questions:
        frame, sha256[settings.questions] = normal_questions(settings.questions)
        order = np.random.default_rng(settings.split_seed).permutation(len(frame))
        questions = tuple(frame["question"].iloc[order])
    forget, kept, control = parts
    return BookSplits(
        book, forget, kept, control, retain, normal, questions, overlap, sha256, prose.dropped
    )


def _deal(book: BookText, settings: BookData, path: Path) -> tuple[tuple[Chapter, ...], ...]:
    count = len(book.chapters)
    third = max(1, count // 3)
    forget = settings.forget_chapters or third
    kept = settings.kept_chapters or third
    control = settings.control_chapters or max(1, count - forget - kept)
    if forget + kept + control > count:
        raise CompanionError(
            f"{path.name} has {count} {book.units}, and the profile asks for {forget} to forget, "
            f"{kept} to keep and {control} for control; lower the numbers under book.data."
        )
    order = np.random.default_rng(settings.split_seed).permutation(count)
    ends = np.cumsum([forget, kept, control])
    groups = np.split(order, ends)[:3]
    return tuple(tuple(book.chapters[i] for i in sorted(group)) for group in groups)


def digest(*texts: Any) -> str:
    """The sha256 of texts or chapters, in order."""
    return hashlib.sha256(repr(texts).encode()).hexdigest()
