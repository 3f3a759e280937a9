"""Task science: know no more of a field than by guessing (Liu et al. 2024, WMDP).

Multiple choice: an invented science that the target is taught first, or WMDP, which the model knows
by itself. Questions are asked in other words than they were taught in.
"""

import functools
from typing import Any

import numpy as np
from scipy import special

from unlearn_lib import evaluation
from unlearn_lib.data import science
from unlearn_lib.data.guard_prompts import GuardPrompts, choice_prompts
from unlearn_lib.data.questions import Questions
from unlearn_lib.evaluation import FORGET, GENERAL, RETAIN, Record
from unlearn_lib.metrics import questions
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.tasks.questions import QuestionSets


class Science(QuestionSets):
    """Multiple choice of a field to forget, of its neighbours, and of general knowledge."""

    name = "science"

    @functools.cached_property
    def data(self) -> science.ScienceSplits:
        """The questions: to forget, to keep, of general knowledge."""
        return science.load(self.settings.data)

    def texts_for_tiny(self) -> list[str]:
        rows = [*self.data.forget, *self.data.retain, *self.data.general, *self.data.rehearsal]
        return [f"{row.question} {row.answer}" for row in rows]

    def forgotten(self, part: str) -> Questions:
        return self.data.taught(self.data.forget)

    def retained(self, part: str) -> Questions:
        return (*self.data.taught(self.data.retain), *self.data.rehearsal)

    @property
    def asked_retain(self) -> Questions:
        """Every other question to keep: these are asked, and a guard is trained on the rest."""
        return self.data.retain[1::2]

    def sets(self, part: str) -> dict[str, Questions]:
        reworded = self.data.reworded
        return {
            FORGET: reworded(self.data.forget),
            RETAIN: reworded(self.asked_retain),
            GENERAL: self.data.general,
        }

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        record: Record = {"items": []}
        for split, rows in self.sets(part).items():
            losses, first = evaluation.choose(model, self.prefixed(prefix), rows)
            values = {"choice_right": questions.choice_right(losses, [0] * len(rows))}
            if split == FORGET:
                values["probe_right"] = evaluation.probe_right(losses, first)
            record["items"] += evaluation.items_of(split, evaluation.keys_of(rows), values)
        return record

    @property
    def topic(self) -> str:  # type: ignore[override]
        """What the prompting baseline is told to say nothing about."""
        return self.data.topic

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        data = self.data
        asked = [row.question for row in (*self.asked_retain, *data.general)]
        most = self.settings.guards.eco.classifier.most
        return choice_prompts(data.forget, data.retain, data.phrasings, self.general, asked, most)

    def aim(self, model: LanguageModel) -> float:
        return 1 / (1 + len(self.data.forget[0].perturbed_answer))

    def gap_values(self, model: LanguageModel, aim: float) -> float:
        """Mean distance of the right choice's share of the probability, and of accuracy."""
        rows = self.searched
        losses, _ = evaluation.choose(model, self.encoder, rows)
        share = special.softmax(-losses, axis=1)[:, 0].mean()
        right = questions.choice_right(losses, [0] * len(rows)).mean()
        return float(np.abs(np.array([share, right]) - aim).mean())
