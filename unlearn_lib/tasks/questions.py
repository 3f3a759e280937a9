"""Tasks authors, continual and people: forget facts, keep others (Yuan et al. 2025).

authors: fictitious authors whom the target was taught; a retain model was taught all others.
continual: the same, more authors to forget one after another. people: real people whom the base
model knows by itself; what it answers right is to be forgotten.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from unlearn_lib import assets, judges
from unlearn_lib.data import authors, people, tofu
from unlearn_lib.data.guard_prompts import GuardPrompts, entity_prompts
from unlearn_lib.data.questions import Question
from unlearn_lib.entailment import TrainedJudge, training_pairs
from unlearn_lib.evaluation import (
    FORGET,
    HOLDOUT,
    RETAIN,
    Item,
    Record,
    encoded,
    items_of,
    judge_answers,
    likeness,
    score_questions,
)
from unlearn_lib.metrics import questions, texts
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example, TextEncoder
from unlearn_lib.settings import MethodSettings
from unlearn_lib.tasks.base import BASE, RETAIN_MODEL, TARGET, Task, spread
from unlearn_lib.tasks.harm import judged
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools
from unlearn_lib.util import digest

TRAINED = "trained"
JUDGE_SEED = 20_000
JUDGE_HELD_OUT = 3
"""One author in so many is held out from the judge's training."""
UNSEEN_SEED = 30_000
"""Authors of this seed are taught to nobody: how the target answers about them is the aim."""
Rows = tuple[Question, ...]


class QuestionTask(Task):
    """Questions with right and wrong answers: what the three tasks share."""

    entails: Any
    """The judge of entailment, fitted or loaded by the experiment before anything is measured."""
    refusals: Sequence[str] = tofu.refusals()

    def forgotten(self, part: str) -> Rows:
        """The questions that one unlearning is to forget."""
        raise NotImplementedError

    def retained(self, part: str) -> Rows:
        """The questions to keep meanwhile."""
        raise NotImplementedError

    def sets(self, part: str) -> dict[str, Rows]:
        """The questions that are asked after a part, by split."""
        raise NotImplementedError

    def encoded(self, name: str, rows: Sequence[Question]) -> list[Example]:
        """Questions with their right answers as token ids."""
        return encoded(self.encoder, name, rows)

    def pools(
        self, method: Method, settings: MethodSettings, part: str, own: list[Any] | None
    ) -> Pools:
        forget = self.encoded(FORGET, self.forgotten(part))
        retain = self.encoded(RETAIN, self.retained(part))
        return question_pools(self.encoder, method, forget, retain, self.refusals)

    def asked(self, part: str) -> dict[str, str]:
        sets = {split: digest(rows) for split, rows in self.sets(part).items()}
        sets |= self.sentence_data() | {"refusals": digest(self.refusals)}
        entailment = self.settings.evaluation.entailment
        if entailment == TRAINED:
            return sets
        return sets | {"entailment": assets.find_model(entailment).sha256}

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        settings, encoder = self.settings.evaluation, self.prefixed(prefix)
        sets = {split: rows for split, rows in self.sets(part).items() if rows}
        asked = {split: rows for split, rows in sets.items() if split != HOLDOUT}
        prompts = [encoder.prompt(row.question) for rows in asked.values() for row in rows]
        answers = iter(
            generate.continuations(model, prompts, settings.new_tokens, settings.batch_size)
        )
        record: Record = {}
        for split, rows in sets.items():
            record[split] = score_questions(model, encoder, split, rows, settings)
            if split == HOLDOUT:
                continue
            premise = questions.entailment_premise(split, self.name)
            own = [next(answers) for _ in rows]
            record[split] |= judge_answers(
                model, rows, own, self.encode, self.entails.probability, self.refusals, premise
            )
        if self.settings.guards.eco is not None:
            record[FORGET] |= self._likeness(record[FORGET]["texts"], sets[FORGET], scorer)
        return record

    def _likeness(self, replies: Sequence[str], rows: Rows, scorer: Any) -> Record:
        """What ECO measures of the answers about what is to be forgotten."""
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in replies]
        prompts = [self.encoder.prompt(row.question) for row in rows]
        values = likeness([row.answer for row in rows], replies, ids, prompts, scorer())
        return values | leaks(replies, rows)

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        items: list[Item] = []
        for split, part in record.items():
            values = {
                name: column for name, column in part.items() if name not in ("keys", "texts")
            }
            items += items_of(split, part["keys"], values)
        return items

    def examples(self, record: Record) -> list[tuple[str, str, str]]:
        sets = self.sets(self.parts[-1])
        return [
            (split, row.question, answer)
            for split in (FORGET, RETAIN)
            for row, answer in zip(sets[split], record[split]["texts"], strict=True)
        ]

    def judge_data(self) -> dict[str, str]:
        """The sha256 of what the trained judge of entailment reads."""
        return self.sentence_data() | {"refusals": digest(self.refusals)}

    def fit_judge(self, folder: Any, use_cpu: bool) -> list[Item]:
        """Train the judge of entailment on other authors; score it on held-out ones."""
        written = authors.write_authors(self.settings.evaluation.judge_authors, JUDGE_SEED)
        train, test = (
            training_pairs(
                [row for author in part for row in author.questions], self.refusals, JUDGE_SEED
            )
            for part in (
                [author for i, author in enumerate(written) if i % JUDGE_HELD_OUT],
                written[::JUDGE_HELD_OUT],
            )
        )
        judge = TrainedJudge.fit(self.encode, *train[:3])
        judge.save(folder)
        first, second, truth = test[:3]
        return judged(judge, first, second, truth)

    def load_judge(self, folder: Any) -> None:
        """Load the judge of entailment: the trained one from a folder, or the profile's model."""
        name = self.settings.evaluation.entailment
        if name == TRAINED:
            self.entails = TrainedJudge.load(folder, self.encode)
        else:
            self.entails = judges.NliJudge.load(assets.find_model(name).folder)


class Authors(QuestionTask):
    """Fictitious authors: to forget, to keep, never taught."""

    name = "authors"

    @functools.cached_property
    def data(self) -> tofu.QuestionSplits:
        """The questions: tasks to forget, to retain, held out, and those about the world."""
        return tofu.load(self.settings.data)

    @property
    def refusals(self) -> Sequence[str]:  # type: ignore[override]
        """Answers that say «I don't know»."""
        return self.data.refusals

    def texts_for_tiny(self) -> list[str]:
        rows = [*self._taught(TARGET), *self.data.holdout]
        return [f"{row.question} {row.answer}" for row in rows]

    @property
    def has_retain_model(self) -> bool:
        """Whether there is a model that was taught the retain set only."""
        return self.settings.teach is not None or self.model.id in self.settings.retain_models

    def before(self) -> list[str]:
        base = [BASE] if self.settings.teach else []
        return [*base, TARGET, *([RETAIN_MODEL] if self.has_retain_model else [])]

    def _taught(self, kind: str) -> Rows:
        """What the target is taught, or the retain model: all but the first task."""
        tasks = self.data.tasks if kind == TARGET else self.data.tasks[1:]
        return (*[row for task in tasks for row in task], *self.data.retain, *self.data.rehearsal)

    def taught(self, kind: str) -> list[Example]:
        return self.encoded("what is taught", self._taught(kind))

    def forgotten(self, part: str) -> Rows:
        return self.data.tasks[int(part or 1) - 1]

    def retained(self, part: str) -> Rows:
        later = [row for task in self.data.tasks[int(part or 1) :] for row in task]
        return (*later, *self.data.retain, *self.data.rehearsal)

    def sets(self, part: str) -> dict[str, Rows]:
        tasks = self.data.tasks[: int(part or 1)]
        return {
            FORGET: tuple(row for task in tasks for row in task),
            RETAIN: self.data.retain_evaluation,
            "real_authors": self.data.real_authors,
            "world_facts": self.data.world_facts,
            HOLDOUT: self.data.holdout if not part else (),
        }

    @functools.cached_property
    def topic(self) -> str:  # type: ignore[override]
        """Whom the prompting baseline is told to say nothing about."""
        names = list(dict.fromkeys(row.subject for row in self.forgotten("") if row.subject))
        return " or ".join(names) if names else "fictitious authors"

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        most = self.settings.guards.eco.classifier.most
        return entity_prompts(self.settings.data, self.data, self.general, most=most)

    def aim(self, model: LanguageModel) -> np.ndarray:
        data = self.settings.data
        written = authors.write_authors(
            2 * data.authors_per_task, UNSEEN_SEED, data.questions_per_author
        )
        rows = [row for author in written for row in author.questions]
        return self._losses(model, rows, 2 * self.settings.guards.eco.search.questions)

    def gap_values(self, model: LanguageModel, aim: np.ndarray) -> float:
        """Mean distance in probability, in truth ratio, and as forget quality takes it."""
        most = self.settings.guards.eco.search.questions
        mine = _probability_and_ratios(self._losses(model, self.forgotten(""), most))
        theirs = _probability_and_ratios(aim)
        apart = stats.ks_2samp(mine[1], theirs[1], method="asymp").statistic
        folded = [questions.folded_truth_ratio(each[1], True).mean() for each in (mine, theirs)]
        return float(np.mean([abs(mine[0] - theirs[0]), abs(folded[0] - folded[1]), apart]))

    def _losses(self, model: LanguageModel, rows: Sequence[Question], most: int) -> np.ndarray:
        """Nats per token of the answer, its paraphrase and the wrong answers, [n, 2 + wrong]."""
        few = spread(rows, most)
        examples = encoded(
            self.encoder,
            "the search",
            few,
            lambda row: (row.answer, row.paraphrase, *row.perturbed_answer),
        )
        return scoring.score(model, examples).mean.reshape(len(few), -1)


class Continual(Authors):
    """The authors of one task after another, each starting from the model before."""

    name = "continual"

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """The tasks, counted from 1."""
        return tuple(str(number + 1) for number in range(len(self.data.tasks)))

    def before(self) -> list[str]:
        return []


class People(QuestionTask):
    """Known people: the base model forgets what it answers right about some of them."""

    name = "people"
    starts_from = BASE  # type: ignore[assignment]

    @functools.cached_property
    def people(self) -> people.PeopleSplits:
        """People to forget, neighbours to keep, and others to ask about.

        The right answer is what the base model answers itself, as in the paper.
        """
        settings = self.settings.data
        rows = people.load_people()[: settings.rows]
        replies = self.ask_base([self.encoder.prompt(row.question) for row in rows])
        right = [people.is_right(*pair) for pair in zip(rows, replies, strict=True)]
        answered = [people.as_answered(*pair) for pair in zip(rows, replies, strict=True)]
        return people.deal_people(
            answered, right if settings.least_right else [True] * len(right), settings
        )

    def texts_for_tiny(self) -> list[str]:
        return [f"{row.question} {row.answer}" for row in people.load_people()]

    def before(self) -> list[str]:
        return [BASE]

    def forgotten(self, part: str) -> Rows:
        return self.people.forget

    def retained(self, part: str) -> Rows:
        return self.people.neighbours

    def sets(self, part: str) -> dict[str, Rows]:
        return {FORGET: self.people.forget, RETAIN: self.people.evaluation}


def question_pools(
    encoder: TextEncoder,
    method: Method,
    forget: Sequence[Example],
    retain: Sequence[Example],
    refusals: Sequence[str],
) -> Pools:
    """What a method may see of questions: those to forget and to keep, substitutes, refusals."""
    refusal_ids = [encoder.answer(text) for text in refusals]
    from_retain = method.mismatch == "retain"
    substitutes = [row.answers[0] for row in retain] if from_retain else refusal_ids
    return Pools(forget, [substitutes] * len(forget), retain, refusals=refusal_ids)


def leaks(replies: Sequence[str], rows: Sequence[Question]) -> Record:
    """Which answers hold the fact that was asked for, where all facts are known."""
    facts = [row.short for row in rows]
    return {"leak": texts.leak(replies, facts).tolist()} if all(facts) else {}


def _probability_and_ratios(losses: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean probability of the answer, and the raw truth ratios [n]."""
    ratios = questions.truth_ratios(losses[:, 2:], losses[:, 1])
    return float(np.exp(-losses[:, 0]).mean()), ratios
