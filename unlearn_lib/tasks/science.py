"""Tasks science and subjects: know no more of a field than by guessing (Liu et al. 2024).

Multiple choice: an invented science that the target is taught first, or WMDP, which the model knows
by itself. Questions are asked in other words than they were taught in.

A choice is told by the likelihood of its text after the question, or (`form: letters`, as in ECO's
released code on WMDP and MMLU) by the logit of its letter after question and listed choices. What
is forgotten is trained on question and text in both forms; what the guard learns and searches is in
the form in which it is asked.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from unlearn_lib import evaluation
from unlearn_lib.data import science
from unlearn_lib.data.guard_prompts import GuardPrompts, choice_prompts
from unlearn_lib.data.questions import Question, Questions
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
            FORGET: self.in_form(reworded(self.data.forget)),
            RETAIN: self.in_form(reworded(self.asked_retain)),
            GENERAL: self.in_form(self.data.general),
        }

    def in_form(self, rows: Sequence[Question]) -> Questions:
        """Questions as they are asked: as they stand, or with their choices listed."""
        return science.lettered(rows) if self.by_letters else tuple(rows)

    @property
    def by_letters(self) -> bool:
        """Whether choices are listed, and told apart by their letters."""
        return bool(self.settings.data.form == "letters")

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        record: Record = {"items": []}
        for split, rows in self.sets(part).items():
            choices = evaluation.choose(model, self.prefixed(prefix), rows, self.by_letters)
            right = [0] * len(rows)
            values = {
                "choice_right": questions.choice_right(choices.losses, right),
                "choice_right_per_token": questions.choice_right(choices.per_token, right),
            }
            if split == FORGET:
                values["probe_right"] = evaluation.probe_right(choices.losses, choices.first)
            record["items"] += evaluation.items_of(split, evaluation.keys_of(rows), values)
        return record

    @property
    def topic(self) -> str:  # type: ignore[override]
        """What the prompting baseline is told to say nothing about."""
        return self.data.topic

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        data, form = self.data, self.in_form
        asked = [row.question for row in form((*self.asked_retain, *data.general))]
        most = self.settings.guards.eco.classifier.most
        own, kept = form(data.forget), form(data.retain)
        return choice_prompts(own, kept, data.phrasings, self.general, asked, most)

    def aim(self, model: LanguageModel) -> float:
        return 1 / (1 + len(self.data.forget[0].perturbed_answer))

    def gap_values(self, model: LanguageModel, aim: float) -> float:
        """Mean distance of the right choice's share of the probability, and of accuracy."""
        rows = self.searched
        losses = evaluation.choose(model, self.encoder, rows, self.by_letters).losses
        share = special.softmax(-losses, axis=1)[:, 0].mean()
        right = questions.choice_right(losses, [0] * len(rows)).mean()
        return float(np.abs(np.array([share, right]) - aim).mean())


class Subjects(Science):
    """Fields of MMLU to forget, and the fields next to them to keep; nothing is taught."""

    name = "subjects"
