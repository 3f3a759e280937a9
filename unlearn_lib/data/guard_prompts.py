"""The prompts that a guard is trained, calibrated and scored on.

A guard (prompt classifier) tells prompts on what is to be forgotten from all others. ECO (Liu et
al. 2024) trains it on the forget set itself, which those who deploy it know, against prompts to be
kept. The released script also picks its checkpoint on the forget set; here what a guard is scored
on was in no training:

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
from dataclasses import dataclass
from itertools import chain

import numpy as np

from unlearn_lib.data.authors import phrasings, write_authors
from unlearn_lib.data.draws import one, shuffled
from unlearn_lib.data.harm import normal_questions
from unlearn_lib.data.people import load_people
from unlearn_lib.data.questions import Question, folded, read_pools
from unlearn_lib.data.tofu import QuestionSplits, numbers_of_authors
from unlearn_lib.data.words import runs_of
from unlearn_lib.settings import AuthorsData
from unlearn_lib.util import CompanionError

LEAST_CALIBRATION = 100
"""A false-positive rate of 1 % needs at least 99 calibration prompts."""
LEAST_HELD_OUT = 25
LEAST_RETAIN = LEAST_CALIBRATION + 2 * LEAST_HELD_OUT
FURTHER_AUTHORS = 400
FURTHER_SEED = 40_000
WINDOW = 24
"""Words of a prompt cut from a text: about 32 tokens."""
SHARED_RUN = 8
"""A window that has so many words in a row in common with a text that is evaluated is left out."""

WORDINGS = read_pools("wordings.csv")
TRAIN_WORDINGS, HELD_OUT_WORDINGS = WORDINGS["guard", "train"], WORDINGS["guard", "held out"]
"""Put around questions that come in one wording only, in the same proportion on both sides, so that
they do not tell one from the other; training and held-out prompts have none in common."""

Texts = tuple[str, ...]
Group = Sequence[str]


@dataclass(frozen=True)
class GuardPrompts:
    """Prompts as plain texts; none is in two sets, whatever its case and white space.

    Attributes:
        forget, retain: to train on.
        calibration: retain prompts that set the threshold; 100 or more.
        held_out_forget: for the false-negative rate.
        held_out_retain: for the false-positive rate.
    """

    forget: Texts
    retain: Texts
    calibration: Texts
    held_out_forget: Texts
    held_out_retain: Texts


def general_prompts(source: str) -> Texts:
    """Return ordinary questions of `truthful_qa` or `embedded`, each once.

    The embedded ones are few, so that questions about known people are added to them.
    """
    texts = list(normal_questions(source)["question"])
    if source == "embedded":
        texts += [row.question for row in load_people()]
    return tuple(_new(texts, set()))


def entity_prompts(
    settings: AuthorsData, splits: QuestionSplits, general: Sequence[str], most: int | None = None
) -> GuardPrompts:
    """Return prompts on fictitious authors: those of the first task are to be detected.

    Embedded authors: every phrasing of every attribute is a wording, whether it was asked or not.
    Questions from files and the hub's TOFU have one wording each; see `TRAIN_WORDINGS`.

    Retained are questions on all other authors of the profile, one each on `FURTHER_AUTHORS` who
    are never taught, the rehearsed real authors and world facts, and general prompts. Questions of
    `retain_evaluation`, `real_authors`, `world_facts` and `holdout` are in no retain set, in no
    wording.

    Args:
        settings, splits: the data of task `authors`, and what it loads.
        general: ordinary prompts.
        most: at most so many prompts in each set; the forget set's questions are trained on, and
            100 prompts calibrate, whatever it is. None: all.

    Raises:
        CompanionError: too few prompts for a set.
    """
    evaluated = (splits.retain_evaluation, splits.real_authors, splits.world_facts, splits.holdout)
    dealer = _Dealer([row.question for row in chain(*evaluated)], most)
    own = [row.question for row in splits.tasks[0]]
    others: list[str] = []
    kept = _alone(row.question for row in chain(*splits.tasks[1:], splits.retain))
    written = write_authors(sum(numbers_of_authors(settings)), settings.seed, questions=0)
    if settings.source == "embedded":
        first = settings.authors_per_task
        others = list(chain(*chain(*map(phrasings, written[:first]))))
        kept = list(chain(*map(phrasings, written[first:])))
    names = {author.name for author in written}
    further = write_authors(FURTHER_AUTHORS, settings.seed + FURTHER_SEED, questions=0)
    strangers = [list(chain(*phrasings(author))) for author in further if author.name not in names]
    single = [one(dealer.random, texts) for texts in strangers]
    rest = _alone((*single, *(row.question for row in splits.rehearsal), *general))
    return dealer.questions(own, others, [*kept, *rest])


def passage_prompts(
    forget: Group, kept: Group, prose: Group, general: Group, asked: Group, most: int | None = None
) -> GuardPrompts:
    """Return prompts from a book: those cut from the chapters to forget are to be detected.

    Windows of the forget chapters start at every third of a window in training, and halfway
    between those starts held out. Retain prompts are windows of the book's other chapters that do
    not overlap, one of each text of the prose (in all no more than those), and general prompts.

    Args:
        forget: texts of the chapters to forget.
        kept: texts of the book's other chapters, taught or not. Give all of them: they share
            people and style with what is to be detected, and few teach a guard style alone.
        prose: texts that are not the book.
        general: ordinary prompts.
        asked: retain prompts that are evaluated; a window that shares 8 words in a row with one of
            them is in no retain set, nor is a general prompt that equals one.
        most: as for `entity_prompts`.

    Raises:
        CompanionError: too few prompts for a set.
    """
    dealer, step = _Dealer(asked, most), WINDOW // 3
    train, held_out = (
        [window for text in forget for window in windows(text, WINDOW, step, offset)]
        for offset in (0, step // 2)
    )
    evaluated = {run for text in asked for run in runs_of(text, SHARED_RUN)}

    def fresh(text: str) -> list[str]:
        cut = windows(text, WINDOW, WINDOW)
        return [window for window in cut if evaluated.isdisjoint(runs_of(window, SHARED_RUN))]

    of_book = list(chain(*map(fresh, kept)))
    of_prose = [one(dealer.random, group) for group in map(fresh, prose) if group]
    of_prose = shuffled(dealer.random, of_prose)[: len(of_book) or None]
    return dealer.deal((), train, held_out, _alone((*of_book, *of_prose, *general)))


def choice_prompts(
    forget: Sequence[Question],
    retain: Sequence[Question],
    rephrased: Mapping[str, Group],
    general: Group,
    asked: Group,
    most: int | None = None,
) -> GuardPrompts:
    """Return prompts of multiple choice: questions to forget, in any phrasing, are to be detected.

    Args:
        forget: questions to forget; all are trained on, with half of their other phrasings.
        retain: questions to keep.
        rephrased: other phrasings by question, of either side; a question may have none. Where no
            question to forget has any, as in WMDP, see `TRAIN_WORDINGS`.
        general: ordinary prompts.
        asked: retain questions that are evaluated; in no retain set, in no phrasing.
        most: as for `entity_prompts`.

    Raises:
        CompanionError: too few prompts for a set.
    """
    own = [row.question for row in forget]
    others = [text for question in own for text in rephrased.get(question, ())]
    kept = [(row.question, *rephrased.get(row.question, ())) for row in retain]
    return _Dealer(asked, most).questions(own, others, [*kept, *_alone(general)])


def windows(text: str, words: int, step: int, offset: int = 0) -> list[str]:
    """Return windows of whole words, with the white space that stands between them.

    Args:
        text: what is cut; with fewer words than a window it has none.
        words: in each window.
        step: words from one window's start to the next one's.
        offset: words before the first window.
    """
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    starts = range(offset, len(spans) - words + 1, step)
    return [text[spans[i][0] : spans[i + words - 1][1]] for i in starts]


class _Dealer:
    """Deals prompts to the five sets at random; what is `asked` goes to no retain set."""

    def __init__(self, asked: Iterable[str], most: int | None) -> None:
        self.random, self.most = np.random.default_rng(0), most
        self.asked = set(map(folded, asked))

    def questions(self, own: Group, others: Group, groups: list[Group]) -> GuardPrompts:
        """Deal the other wordings of `own` in halves, or make some where there are none."""
        if others:
            mixed = shuffled(self.random, _new(others, set(map(folded, own))))
            half = len(mixed) // 2
            return self.deal(own, mixed[:half], mixed[half:], groups)
        train, held_out = (
            [wording.format(text) for wording in wordings for text in own]
            for wordings in (TRAIN_WORDINGS, HELD_OUT_WORDINGS)
        )
        return self.deal(own, train, held_out, groups, worded=True)

    def deal(
        self, own: Group, train: Group, held_out: Group, groups: list[Group], worded: bool = False
    ) -> GuardPrompts:
        """Deal groups of retain prompts; forget prompts go where the arguments say.

        Args:
            worded: whether retain prompts are put into wordings, as forget prompts then are.
        """
        taken: set[str] = set()
        own = _new(own, taken)
        train, held_out = (shuffled(self.random, _new(texts, taken)) for texts in (train, held_out))
        if not (own or train) or not held_out:
            raise CompanionError("The guard has too few prompts to detect; add texts to forget.")
        retain, rest = self._halves(groups, taken)
        middle = max(LEAST_CALIBRATION, len(rest) // 2)
        calibrating = max(LEAST_CALIBRATION, self.most or middle)
        to_train, to_check = (TRAIN_WORDINGS, HELD_OUT_WORDINGS) if worded else ([], [])
        return GuardPrompts(
            forget=(*own, *train)[: self.most and max(self.most, len(own))],
            retain=self._worded(retain[: self.most], to_train),
            calibration=self._worded(rest[:middle][:calibrating], to_check),
            held_out_forget=tuple(held_out[: self.most]),
            held_out_retain=self._worded(rest[middle:][: self.most], to_check),
        )

    def _halves(self, groups: Iterable[Group], taken: set[str]) -> tuple[list[str], list[str]]:
        """Return half of the retain prompts, to train on, and the rest; no group is in both."""
        allowed = [group for group in groups if self.asked.isdisjoint(map(folded, group))]
        left = shuffled(self.random, [texts for group in allowed if (texts := _new(group, taken))])
        sizes = np.cumsum([len(texts) for texts in left], dtype=int)
        count = int(sizes[-1]) if left else 0
        if count < LEAST_RETAIN:
            raise CompanionError(
                f"The guard has {count} retain prompts and needs {LEAST_RETAIN}: give more."
            )
        trained = min(count // 2, count - LEAST_CALIBRATION - LEAST_HELD_OUT)
        cut = int(np.searchsorted(sizes, trained, side="right"))
        retain, rest = list(chain(*left[:cut])), list(chain(*left[cut:]))
        return shuffled(self.random, retain), shuffled(self.random, rest)

    def _worded(self, texts: Sequence[str], wordings: Sequence[str]) -> Texts:
        """Put each text into one of the wordings, or leave it alone, all equally often."""
        order = self.random.integers(len(wordings) + 1, size=len(texts))
        return tuple(("{}", *wordings)[i].format(text) for i, text in zip(order, texts))


def _alone(texts: Iterable[str]) -> list[Group]:
    return [(text,) for text in texts]


def _new(texts: Iterable[str], taken: set[str]) -> list[str]:
    """Return the texts that are not empty and not taken yet, each once; they are taken then."""
    new = []
    for text in texts:
        if (key := folded(text)) and key not in taken:
            taken.add(key)
            new.append(text)
    return new
