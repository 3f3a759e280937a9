"""The three tasks of experiment 3: whose models are guarded, and what the search aims at.

Entities are the authors of experiment 4, the book is that of experiment 2: their models come from
those experiments' runs. Hazardous knowledge is multiple choice, taught and unlearned here.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import special, stats

from unlearn_lib import metrics, scoring
from unlearn_lib.assets import Asset
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.datasets import authors, guard_prompts, science
from unlearn_lib.datasets.guard_prompts import GuardPrompts
from unlearn_lib.datasets.questions import Question
from unlearn_lib.datasets.tofu import digest
from unlearn_lib.eco.guard import Guard
from unlearn_lib.eco.model import EcoModel
from unlearn_lib.eco.tokens import Frame
from unlearn_lib.experiments.book import BookExperiment
from unlearn_lib.experiments.closer_look import CloserLook
from unlearn_lib.experiments.closer_look_measures import encoded
from unlearn_lib.experiments.closer_look_stages import IMPLANTED, REFERENCE
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.models import LanguageModel
from unlearn_lib.runs import Run
from unlearn_lib.settings import GuardSettings, Task

ECO, PROMPTING = "eco", "prompting"
KEPT = ("kept", "control")
UNSEEN_SEED = 30_000
"""Authors of this seed are taught to nobody: how a model answers about them is what is aimed at."""
PREFIX_TOKENS = 96


def behind(found: LanguageModel, guard: Guard, frame: Frame, **more: Any) -> LanguageModel:
    """A model behind a guard, to be asked and scored like any other."""
    model = EcoModel(found.model, found.tokenizer, guard, frame, **more)
    return replace(found, model=model)


def answer_encoder(encoder: TextEncoder, prefix: str) -> TextEncoder:
    """The encoder of the prompting baseline: a prefix stands before every question."""
    room = min(encoder.prompt_tokens + PREFIX_TOKENS, encoder.context - encoder.answer_tokens)
    return replace(encoder, before=prefix, prompt_tokens=room)


class GuardedTask:
    """What one task gives the guard: prompts, models, and what the search of the strength aims at.

    `aim` is the state that the search aims at, measured on training data alone, and `gap` how far
    a guarded model is from it: the mean of the absolute differences of a few measures.
    """

    name: Task
    topic: str
    prompts: GuardPrompts
    frame: Frame
    weights: Asset
    digest: str

    def __init__(self, settings: GuardSettings, most: int | None) -> None:
        self.settings, self.most = settings, most

    def models(self) -> list[str]:
        """The names of all models that are compared, guard and baseline included."""
        raise NotImplementedError

    def loaded(self, who: str) -> LanguageModel:
        """Load a model by its name."""
        raise NotImplementedError

    def trained(self, who: str) -> tuple[Run, ...]:
        """The runs that made a model, the last one last; none for the original."""
        raise NotImplementedError

    def aim(self, found: LanguageModel) -> Any:
        """What is aimed at: what the implanted model does where it knows nothing."""
        raise NotImplementedError

    def gap(self, found: LanguageModel, aim: Any) -> float:
        """How far a model is from that on what is to be forgotten, 0 to 1."""
        raise NotImplementedError

    def objective(self, found: LanguageModel, guard: Guard) -> Callable[[Any], float]:
        """From a strength to the gap of the guarded model, of training data alone.

        Every prompt that is asked is taken as flagged, so that the search is of the strength alone.
        """
        aim = self.aim(found)

        def gap(strength: float | np.ndarray) -> float:
            tried = behind(found, replace(guard, strength=strength), self.frame, judge=_all)
            return self.gap(tried, aim)

        return gap


def _all(prompts: Sequence[str]) -> np.ndarray:
    return np.ones(len(prompts), dtype=bool)


class Entities(GuardedTask):
    """Fictitious authors: the aim is how the model answers about authors whom nobody taught it.

    Measured are the probability of the answer, the truth ratio, and the distance behind forget
    quality (Kolmogorov-Smirnov, of raw truth ratios).
    """

    name = "entities"

    def __init__(
        self,
        settings: GuardSettings,
        most: int | None,
        tofu: CloserLook,
        beside: Sequence[str],
        general: Sequence[str],
    ) -> None:
        super().__init__(settings, most)
        self.tofu, self.beside, self.general = tofu, tuple(beside), general
        self.weights, self.digest = tofu.weights, digest(*self.forget)

    @functools.cached_property
    def forget(self) -> tuple[Question, ...]:
        """The questions to be forgotten."""
        return self.tofu.forgotten("fictitious")

    @functools.cached_property
    def topic(self) -> str:  # type: ignore[override]
        """Whom the prompting baseline is told to say nothing about."""
        names = list(dict.fromkeys(row.subject for row in self.forget if row.subject))
        return " or ".join(names) if names else "fictitious authors"

    @functools.cached_property
    def prompts(self) -> GuardPrompts:  # type: ignore[override]
        """What the guard is trained, calibrated and scored on."""
        chosen = self.tofu.settings.data
        return guard_prompts.entity_prompts(chosen, self.tofu.data, self.general, most=self.most)

    @functools.cached_property
    def frame(self) -> Frame:  # type: ignore[override]
        """The chat template around a question."""
        return Frame.of(self.tofu.encoder.prompt)

    def models(self) -> list[str]:
        taught = [ORIGINAL] if self.tofu.settings.implant else []
        exact = [REFERENCE] if self.tofu.has_reference else []
        return [*taught, IMPLANTED, *exact, ECO, PROMPTING, *self.beside]

    def loaded(self, who: str) -> LanguageModel:
        return self.tofu.loaded(who)

    def trained(self, who: str) -> tuple[Run, ...]:
        return self.tofu.chain(who, "fictitious")

    def aim(self, found: LanguageModel) -> np.ndarray:
        chosen = self.tofu.settings.data
        written = authors.write_authors(
            2 * chosen.authors_per_task, UNSEEN_SEED, chosen.questions_per_author
        )
        rows = [row for author in written for row in author.questions]
        return self._losses(found, spread(rows, 2 * self.settings.search.questions))

    def gap(self, found: LanguageModel, aim: np.ndarray) -> float:
        losses = self._losses(found, spread(self.forget, self.settings.search.questions))
        mine, theirs = (_probability_and_ratios(each) for each in (losses, aim))
        apart = stats.ks_2samp(mine[1], theirs[1], method="asymp").statistic
        truth = [metrics.folded_truth_ratio(each[1], forget=True).mean() for each in (mine, theirs)]
        return float(np.mean([abs(mine[0] - theirs[0]), abs(truth[0] - truth[1]), apart]))

    def _losses(self, found: LanguageModel, rows: Sequence[Question]) -> np.ndarray:
        """Nats per token of the answer, its paraphrase and the wrong answers, [n, 2 + wrong]."""
        examples = encoded(
            self.tofu.encoder,
            "the search",
            rows,
            lambda row: (row.answer, row.paraphrase, *row.perturbed_answer),
        )
        return scoring.score(found, examples).mean.reshape(len(rows), -1)


def _probability_and_ratios(losses: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean probability of the answer, and the raw truth ratios [n], as in `metrics.tofu`."""
    log = metrics.SetLog(
        tuple(map(str, range(len(losses)))), losses[:, 0], losses[:, 1], losses[:, 2:],
        np.zeros(len(losses)),
    )  # fmt: skip
    return float(np.exp(-losses[:, 0]).mean()), metrics.truth_ratios(log)


class Book(GuardedTask):
    """Passages of a book: probability and exact memorisation, as of prose never taught."""

    name = "book"
    frame = Frame((), ())

    def __init__(
        self,
        settings: GuardSettings,
        most: int | None,
        book: BookExperiment,
        beside: Sequence[str],
        general: Sequence[str],
    ) -> None:
        super().__init__(settings, most)
        self.book, self.beside, self.general = book, tuple(beside), general
        self.weights = book.base()[0]
        self.digest = digest(book.texts("forget"), book.texts("retain"))

    @functools.cached_property
    def topic(self) -> str:  # type: ignore[override]
        """What the prompting baseline is told to say nothing about."""
        return f"the book '{self.book.data.book.title}'"

    @functools.cached_property
    def prompts(self) -> GuardPrompts:  # type: ignore[override]
        """What the guard is trained, calibrated and scored on."""
        book = self.book
        forget = book.texts("forget")
        others = [each.text for each in book.data.book.chapters if each.text not in forget]
        asked = [book.encoder.text(row.prompt) for part in KEPT for row in book.passages(part)]
        return guard_prompts.passage_prompts(
            forget, others, book.texts("retain"), self.general, asked, most=self.most
        )

    def models(self) -> list[str]:
        return [ORIGINAL, IMPLANTED, ECO, PROMPTING, *self.beside]

    def loaded(self, who: str) -> LanguageModel:
        return self.book.loaded(who)

    def trained(self, who: str) -> tuple[Run, ...]:
        if who == ORIGINAL:
            return ()
        implanted = self.book.implanted()
        return (implanted,) if who == IMPLANTED else (implanted, self.book.unlearned(who))

    def aim(self, found: LanguageModel) -> np.ndarray:
        return self._values(found, self.book.encoder.passages(self.book.texts("retain")))

    def gap(self, found: LanguageModel, aim: np.ndarray) -> float:
        rows = self.book.encoder.passages(self.book.texts("forget"))
        return float(np.abs(self._values(found, rows) - aim).mean())

    def _values(self, found: LanguageModel, rows: Sequence[Example]) -> np.ndarray:
        scores = scoring.score(found, spread(rows, self.settings.search.questions))
        memorised = [np.mean(flags) for flags in scores.matches]
        return np.array([np.exp(-scores.mean).mean(), np.mean(memorised)])


class Science(GuardedTask):
    """Multiple choice: the right choice's share of the probability, and accuracy, as at chance."""

    name = "science"

    def __init__(
        self,
        settings: GuardSettings,
        most: int | None,
        splits: science.ScienceSplits,
        encoder: TextEncoder,
        weights: Asset,
        general: Sequence[str],
        loaded: Callable[[str], LanguageModel],
        trained: Callable[[str], tuple[Run, ...]],
        models: Sequence[str],
    ) -> None:
        super().__init__(settings, most)
        self.splits, self.encoder, self.general = splits, encoder, general
        self._loaded, self._trained = loaded, trained
        self._models = list(models)
        self.topic, self.weights, self.digest = splits.topic, weights, digest(*splits.forget)

    @functools.cached_property
    def prompts(self) -> GuardPrompts:  # type: ignore[override]
        """What the guard is trained, calibrated and scored on."""
        found = self.splits
        asked = [row.question for row in (*self.asked_retain, *found.general)]
        return guard_prompts.choice_prompts(
            found.forget, found.retain, found.phrasings, self.general, asked, most=self.most
        )

    @property
    def asked_retain(self) -> tuple[Question, ...]:
        """Every other question to keep: these are asked, and the guard is trained on the rest."""
        return self.splits.retain[1::2]

    @functools.cached_property
    def frame(self) -> Frame:  # type: ignore[override]
        """The chat template around a question."""
        return Frame.of(self.encoder.prompt)

    def models(self) -> list[str]:
        return self._models

    def loaded(self, who: str) -> LanguageModel:
        return self._loaded(who)

    def trained(self, who: str) -> tuple[Run, ...]:
        return self._trained(who)

    def aim(self, found: LanguageModel) -> np.ndarray:
        choices = 1 + len(self.splits.forget[0].perturbed_answer)
        return np.full(2, 1 / choices)

    def gap(self, found: LanguageModel, aim: np.ndarray) -> float:
        rows = spread(self.splits.forget, self.settings.search.questions)
        losses = choice_losses(found, self.encoder, rows)
        share = special.softmax(-losses, axis=1)[:, 0].mean()
        right = metrics.choice_accuracy(losses, np.zeros(len(losses))).value
        return float(np.abs(np.array([share, right]) - aim).mean())


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """So many of the rows, spread evenly over all."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    return [rows[place] for place in places]


def choice_losses(
    found: LanguageModel, encoder: TextEncoder, rows: Sequence[Question]
) -> np.ndarray:
    """Nats of each question's choices, summed over tokens, the right one first: [n, choices]."""
    examples = encoded(
        encoder, "multiple choice", rows, lambda row: (row.answer, *row.perturbed_answer)
    )
    return scoring.score(found, examples).nll.reshape(len(rows), -1)
