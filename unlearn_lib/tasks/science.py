"""Task science: know no more of a field than by guessing (Liu et al. 2024, WMDP).

Multiple choice: an invented science that the target is taught first, or WMDP, which the model knows
by itself. Questions are asked in other words than they were taught in.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from unlearn_lib.data import science, tofu
from unlearn_lib.data.guard_prompts import GuardPrompts, choice_prompts
from unlearn_lib.data.questions import Question
from unlearn_lib.evaluation import (
    FORGET,
    GENERAL,
    RETAIN,
    Item,
    Record,
    choice_items,
    choose,
    encoded,
)
from unlearn_lib.metrics import questions
from unlearn_lib.model import scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MethodSettings
from unlearn_lib.tasks.base import BASE, TARGET, Task, spread
from unlearn_lib.tasks.questions import question_pools
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools
from unlearn_lib.util import digest


class Science(Task):
    """Multiple choice of a field to forget, of its neighbours, and of general knowledge."""

    name = "science"

    @functools.cached_property
    def data(self) -> science.ScienceSplits:
        """The questions: to forget, to keep, of general knowledge."""
        return science.load(self.settings.data)

    def texts_for_tiny(self) -> list[str]:
        splits = self.data
        rows = [*splits.forget, *splits.retain, *splits.general, *splits.rehearsal]
        return [f"{row.question} {row.answer}" for row in rows]

    def before(self) -> list[str]:
        return [*([BASE] if self.settings.teach else []), TARGET]

    def taught(self, kind: str) -> list[Example]:
        splits = self.data
        rows = (*splits.taught(splits.forget), *splits.taught(splits.retain), *splits.rehearsal)
        return encoded(self.encoder, "what is taught", rows)

    def pools(
        self, method: Method, settings: MethodSettings, part: str, own: list[Any] | None
    ) -> Pools:
        splits = self.data
        forget = encoded(self.encoder, FORGET, splits.taught(splits.forget))
        kept = (*splits.taught(splits.retain), *splits.rehearsal)
        retain = encoded(self.encoder, RETAIN, kept)
        return question_pools(self.encoder, method, forget, retain, tofu.refusals())

    @property
    def asked_retain(self) -> tuple[Question, ...]:
        """Every other question to keep: these are asked, and a guard is trained on the rest."""
        return self.data.retain[1::2]

    def sets(self) -> dict[str, tuple[Question, ...]]:
        """The questions that are asked, by split."""
        reworded = self.data.reworded
        return {
            FORGET: reworded(self.data.forget),
            RETAIN: reworded(self.asked_retain),
            GENERAL: self.data.general,
        }

    def asked(self, part: str) -> dict[str, str]:
        return {split: digest(rows) for split, rows in self.sets().items()}

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        encoder = self.prefixed(prefix)
        return {split: choose(model, encoder, rows) for split, rows in self.sets().items()}

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        items: list[Item] = []
        for split, part in record.items():
            items += choice_items(split, part, probed=split == FORGET)
        return items

    @property
    def topic(self) -> str:  # type: ignore[override]
        """What the prompting baseline is told to say nothing about."""
        return self.data.topic

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        splits = self.data
        asked = [row.question for row in (*self.asked_retain, *splits.general)]
        most = self.settings.guards.eco.classifier.most
        return choice_prompts(
            splits.forget, splits.retain, splits.phrasings, self.general, asked, most=most
        )

    def aim(self, model: LanguageModel) -> np.ndarray:
        choices = 1 + len(self.data.forget[0].perturbed_answer)
        return np.full(2, 1 / choices)

    def gap_values(self, model: LanguageModel, aim: np.ndarray) -> float:
        """Mean distance of the right choice's share of the probability, and of accuracy."""
        rows = spread(self.data.forget, self.settings.guards.eco.search.questions)
        losses = self._choice_losses(model, rows)
        share = special.softmax(-losses, axis=1)[:, 0].mean()
        right = questions.choice_right(losses, np.zeros(len(losses), int)).mean()
        return float(np.abs(np.array([share, right]) - aim).mean())

    def _choice_losses(self, model: LanguageModel, rows: Sequence[Question]) -> np.ndarray:
        """Nats of each question's choices, summed over tokens, the right one first."""
        examples = encoded(
            self.encoder, "multiple choice", rows, lambda row: (row.answer, *row.perturbed_answer)
        )
        return scoring.score(model, examples).nll.reshape(len(rows), -1)
