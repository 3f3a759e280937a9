"""Experiment 3: the prompts that a guard is trained, calibrated and scored on.

A guard (prompt classifier) tells prompts on what is to be forgotten from all others. ECO (Liu et
al. 2024) trains it on the forget set itself, for that is what whoever deploys it knows, against
prompts to be kept. The released script also picks its checkpoint on the forget set; here what a
guard is scored on was in no training:

forget: what is to be forgotten, and half of its other wordings, to train; other wordings are
    held out for the false-negative rate.
retain: half to train; the rest is dealt at random, prompt by prompt, into those that set the
    threshold and those that are scored for the false-positive rate. The two are exchangeable,
    which is what split-conformal calibration asks for. All wordings of a question are either
    trained on or not.

What the guarded model is asked later is in no retain set: the guard never saw what it is judged on.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Literal, TypeVar

import numpy as np

from unlearn_lib.datasets import tofu
from unlearn_lib.datasets.authors import Author, phrasings, write_authors
from unlearn_lib.datasets.harmful import normal_questions
from unlearn_lib.datasets.overlap import words_of
from unlearn_lib.datasets.people import load_people
from unlearn_lib.datasets.question_sets import folded
from unlearn_lib.datasets.questions import Question
from unlearn_lib.errors import CompanionError
from unlearn_lib.settings import TofuData

LEAST_CALIBRATION = 100
"""A false-positive rate of 1 % needs at least 99 calibration prompts."""
LEAST_HELD_OUT = 25
LEAST_RETAIN = LEAST_CALIBRATION + 2 * LEAST_HELD_OUT
FURTHER_AUTHORS = 400
FURTHER_SEED = 40_000
SHARED_RUN = 8
"""A window that has so many words in a row in common with a text that is evaluated is left out."""

TRAIN_WORDINGS = (
    "Please answer: {}", "I would like to know: {}", "{} Please keep it short.", "Question: {}",
)  # fmt: skip
HELD_OUT_WORDINGS = (
    "A friend asked me this: {}", "Could you help me with something? {}",
    "{} Thank you in advance.", "Here is what I want to find out. {}",
)  # fmt: skip
"""Put around questions that come in one wording only, in the same proportion on both sides, so that
they do not tell one from the other; training and held-out prompts have none in common."""

Texts = tuple[str, ...]
Item = TypeVar("Item")
Group = Sequence[str]
"""The wordings of one question."""


@dataclass(frozen=True)
class GuardPrompts:
    """Prompts as plain texts; none is in two sets, whatever its case and white space.

    Attributes:
        forget, retain: to train on.
        calibration: retain prompts that set the threshold; 100 or more.
        held_out_forget: for the false-negative rate.
        held_out_retain: for the false-positive rate.

    Raises:
        CompanionError: an empty set, too few to calibrate, or a prompt that is in two sets.
    """

    forget: Texts
    retain: Texts
    calibration: Texts
    held_out_forget: Texts
    held_out_retain: Texts

    def __post_init__(self) -> None:
        sets = {field.name: set(map(folded, getattr(self, field.name))) for field in fields(self)}
        for name, texts in sets.items():
            if len(texts) < (least := LEAST_CALIBRATION if name == "calibration" else 1):
                raise CompanionError(
                    f"The guard's set '{name}' has {len(texts)} prompts and needs {least} or "
                    f"more; give more {'forget' if 'forget' in name else 'retain'} texts, or "
                    "other wordings of them."
                )
        if len(set().union(*sets.values())) < sum(map(len, sets.values())):
            raise CompanionError("A guard's prompt is in two of its sets; take it out of one.")

    @property
    def digest(self) -> str:
        """The sha256 of all prompts, in order."""
        return tofu.digest(*(getattr(self, field.name) for field in fields(self)))


def general_prompts(source: Literal["truthful_qa", "embedded"]) -> tuple[Texts, str]:
    """Return ordinary questions, each once, and their sha256; CompanionError where there are none.

    The embedded ones are few, so that questions about known people are added to them.
    """
    texts = list(normal_questions(source)[0]["question"])
    if source == "embedded":
        texts += (row.question for row in load_people()[0])
    return (found := tuple(_new(texts, set()))), tofu.digest(*found)


def entity_prompts(
    settings: TofuData,
    splits: tofu.TofuSplits,
    general: Sequence[str],
    asked: Sequence[str] = (),
    seed: int = 0,
    most: int | None = None,
) -> GuardPrompts:
    """Prompts on fictitious authors: those of the first task are to be detected.

    Embedded authors: every phrasing of every attribute is a wording, whether it was asked or not.
    The hub's TOFU has one wording of each question; see `TRAIN_WORDINGS`.

    Retained are questions on all other authors of the profile, one each on `FURTHER_AUTHORS` who
    are never taught, the rehearsed real authors and world facts, and general prompts. Questions of
    `retain_evaluation`, `real_authors`, `world_facts` and `holdout` are in no retain set, in no
    wording.

    Args:
        settings, splits: the profile's `tofu.data`, and what it loads.
        general: ordinary prompts.
        asked: other prompts that are evaluated; in no retain set.
        seed: of the deal.
        most: at most so many prompts in each set; the forget set's questions are trained on, and
            100 prompts calibrate, whatever it is. None: all.

    Raises:
        CompanionError: too few prompts for a set.
        ValueError: `most` below 1.
    """
    evaluated = (splits.retain_evaluation, splits.real_authors, splits.world_facts, splits.holdout)
    dealer = _Dealer([*asked, *(row.question for row in chain(*evaluated))], seed, most)
    own, forgotten = zip(*((row.question, row.subject) for row in splits.tasks[0]), strict=True)
    written, further = _authors(settings)
    others: list[str] = []
    kept = _alone(row.question for row in chain(*splits.tasks[1:], splits.retain))
    if settings.source == "embedded":
        about = {author.name: phrasings(author) for author in written}
        others = [text for name in about if name in forgotten for text in chain(*about[name])]
        kept = list(chain(*(about[name] for name in about if name not in forgotten)))
    pools = [list(chain(*phrasings(author))) for author in further]
    single = [texts[dealer.random.integers(len(texts))] for texts in pools]
    rest = _alone((*single, *(row.question for row in splits.rehearsal), *general))
    return dealer.questions(own, others, [*kept, *rest])


def passage_prompts(
    forget: Sequence[str],
    kept: Sequence[str],
    prose: Sequence[str],
    general: Sequence[str],
    asked: Sequence[str] = (),
    words: int = 24,
    seed: int = 0,
    most: int | None = None,
) -> GuardPrompts:
    """Prompts from a book: those cut from the chapters to forget are to be detected.

    Windows of the forget chapters start at every third of a window in training, and halfway
    between those starts held out. Retain prompts are windows of the book's other chapters that do
    not overlap, one of each text of the prose (in all no more than those), and general prompts.

    Args:
        forget: texts of the chapters to forget.
        kept: texts of the book's other chapters, implanted or not. Give all of them: they share
            people and style with what is to be detected, and few teach a guard style alone.
        prose: texts that are not the book.
        general: ordinary prompts.
        asked: retain prompts that are evaluated; a window that shares 8 words in a row with one of
            them is in no retain set, nor is a general prompt that equals one.
        words: in a window; 24 are about 32 tokens.
        seed, most: as for `entity_prompts`.

    Raises:
        CompanionError: too few prompts for a set.
        ValueError: `words` below 6, or `most` below 1.
    """
    if words < 6:
        raise ValueError(f"'words' is {words}; windows need 6 or more to be cut in other places.")
    dealer, step = _Dealer(asked, seed, most), words // 3
    train, held_out = (
        [cut for text in forget for cut in windows(text, words, step, offset)]
        for offset in (0, step // 2)
    )
    run = min(SHARED_RUN, words)
    evaluated = set(chain.from_iterable(_runs(text, run) for text in asked))
    others, plain = (
        [[w for w in windows(t, words, words) if not evaluated & _runs(w, run)] for t in texts]
        for texts in (kept, prose)
    )
    own = list(chain(*others))
    once = dealer.shuffled([each[dealer.random.integers(len(each))] for each in plain if each])
    groups = _alone((*own, *once[: len(own) or None], *general))
    return dealer.deal((), train, held_out, groups)


def choice_prompts(
    forget: Sequence[Question],
    retain: Sequence[Question],
    rephrased: Mapping[str, Sequence[str]],
    general: Sequence[str],
    asked: Sequence[str] = (),
    seed: int = 0,
    most: int | None = None,
) -> GuardPrompts:
    """Prompts of multiple choice: questions to forget, in any phrasing, are to be detected.

    Args:
        forget: questions to forget; all are trained on, with half of their other phrasings.
        retain: questions to keep.
        rephrased: other phrasings by question, of either side; a question may have none. Where no
            question to forget has any, as in WMDP, see `TRAIN_WORDINGS`.
        general: ordinary prompts.
        asked: retain questions that are evaluated; in no retain set, in no phrasing.
        seed, most: as for `entity_prompts`.

    Raises:
        CompanionError: too few prompts for a set.
        ValueError: `most` below 1.
    """
    own = [row.question for row in forget]
    others = [text for question in own for text in rephrased.get(question, ())]
    kept = [(row.question, *rephrased.get(row.question, ())) for row in retain]
    return _Dealer(asked, seed, most).questions(own, others, [*kept, *_alone(general)])


def windows(text: str, words: int, step: int, offset: int = 0) -> list[str]:
    """Cut a text into windows of whole words, with the white space that stands between them.

    Args:
        words: in each window; a text with fewer has none.
        step: words from one window's start to the next one's.
        offset: words before the first window.

    Raises:
        ValueError: `words` or `step` below 1, or a negative offset.
    """
    if words < 1 or step < 1 or offset < 0:
        raise ValueError("'words' and 'step' must be 1 or more, and 'offset' 0 or more.")
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    starts = range(offset, len(spans) - words + 1, step)
    return [text[spans[i][0] : spans[i + words - 1][1]] for i in starts]


class _Dealer:
    """Deals prompts to the five sets by a seed; what is `asked` goes to no retain set."""

    def __init__(self, asked: Iterable[str], seed: int, most: int | None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"'most' is {most}; give 1 or more, or None for all.")
        self.random, self.most = np.random.default_rng(seed), most
        self.asked = set(map(folded, asked))

    def questions(self, own: Group, others: Group, groups: list[Group]) -> GuardPrompts:
        """Deal the other wordings of `own` in halves, or make some where there are none."""
        if others:
            mixed = self.shuffled(_new(others, set(map(folded, own))))
            half = len(mixed) // 2
            return self.deal(own, mixed[:half], mixed[half:], groups)
        train, held_out = (
            [wording.format(text) for wording in wordings for text in own]
            for wordings in (TRAIN_WORDINGS, HELD_OUT_WORDINGS)
        )
        found = self.deal(own, train, held_out, groups)
        return replace(
            found,
            retain=self._worded(found.retain, TRAIN_WORDINGS),
            calibration=self._worded(found.calibration, HELD_OUT_WORDINGS),
            held_out_retain=self._worded(found.held_out_retain, HELD_OUT_WORDINGS),
        )

    def deal(self, own: Group, train: Group, held_out: Group, groups: list[Group]) -> GuardPrompts:
        """Forget prompts go where they are told to; wordings of retain prompts are dealt."""
        taken: set[str] = set()
        own = _new(own, taken)
        train, held_out = (self.shuffled(_new(texts, taken)) for texts in (train, held_out))
        retain, rest = self._halves(groups, taken)
        middle = max(LEAST_CALIBRATION, len(rest) // 2)
        most = self.most or len(own) + len(train) + len(held_out) + len(retain) + len(rest)
        return GuardPrompts(
            forget=(*own, *train[: max(0, most - len(own))]),
            retain=tuple(retain[:most]),
            calibration=tuple(rest[:middle][: max(most, LEAST_CALIBRATION)]),
            held_out_forget=tuple(held_out[:most]),
            held_out_retain=tuple(rest[middle:][:most]),
        )

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        return [items[i] for i in self.random.permutation(len(items))]

    def _halves(self, groups: Iterable[Group], taken: set[str]) -> tuple[list[str], list[str]]:
        """Half of the retain prompts, to train on, and the rest; no group is in both."""
        whole = [group for group in groups if self.asked.isdisjoint(map(folded, group))]
        left = self.shuffled([texts for group in whole if (texts := _new(group, taken))])
        sizes = np.cumsum([len(texts) for texts in left], dtype=int)
        count = int(sizes[-1]) if left else 0
        if count < LEAST_RETAIN:
            raise CompanionError(
                f"The guard has {count} retain prompts that are not evaluated and needs "
                f"{LEAST_RETAIN}, {LEAST_CALIBRATION} of them to calibrate; give more retain "
                "texts or general prompts."
            )
        trained = min(count // 2, count - LEAST_CALIBRATION - LEAST_HELD_OUT)
        cut = int(np.searchsorted(sizes, trained, side="right"))
        retain, rest = (self.shuffled(list(chain(*part))) for part in (left[:cut], left[cut:]))
        return retain, rest

    def _worded(self, texts: Sequence[str], wordings: Sequence[str]) -> Texts:
        """Put each text into one of the wordings, or leave it alone, all equally often."""
        chosen = self.random.integers(len(wordings) + 1, size=len(texts))
        return tuple(("{}", *wordings)[i].format(text) for i, text in zip(chosen, texts))


def _authors(settings: TofuData) -> tuple[list[Author], list[Author]]:
    """The authors of the profile, and further ones whose names are none of theirs."""
    count = settings.tasks * settings.authors_per_task
    count += settings.retain_authors + settings.holdout_authors
    written = write_authors(count, settings.seed, questions=0)
    names = {author.name for author in written}
    further = write_authors(FURTHER_AUTHORS, settings.seed + FURTHER_SEED, questions=0)
    return list(written), [author for author in further if author.name not in names]


def _alone(texts: Iterable[str]) -> list[Group]:
    return [(text,) for text in texts]


def _runs(text: str, length: int) -> set[Texts]:
    words = words_of(text)
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def _new(texts: Iterable[str], taken: set[str]) -> list[str]:
    """The texts that are not empty and not taken yet, each once; they are taken then."""
    found = []
    for text in texts:
        if (key := folded(text)) and key not in taken:
            taken.add(key)
            found.append(text)
    return found
