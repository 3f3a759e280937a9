"""Tasks authors, continual and people: forget facts, keep others (Yuan et al. 2025).

authors: fictitious authors whom the target was taught; a retain model was taught all others.
continual: the same, more authors to forget one after another. people: real people whom the base
model knows by itself; what it answers right is to be forgotten.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from unlearn_lib import assets, evaluation, judges
from unlearn_lib.data import authors, people, tofu
from unlearn_lib.data.guard_prompts import GuardPrompts, entity_prompts
from unlearn_lib.data.questions import Question, Questions
from unlearn_lib.data.words import holds
from unlearn_lib.entailment import TrainedJudge, training_pairs
from unlearn_lib.evaluation import FORGET, HOLDOUT, RETAIN, Item, Record, Values
from unlearn_lib.metrics import questions, texts
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MethodSettings
from unlearn_lib.tasks.base import BASE, RETAIN_MODEL, Own, Task, spread
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools
from unlearn_lib.util import digest

TRAINED = "trained"
JUDGE_SEED = 20_000
JUDGE_HELD_OUT = 3
"""One author in so many is held out from the judge's training."""
UNSEEN_SEED = 30_000
"""Authors of this seed are taught to nobody: how the target answers about them is the aim."""


class QuestionSets(Task):
    """Sets of questions: those to forget, to keep, and those that are asked afterwards."""

    refusals: Sequence[str] = tofu.refusals()

    def forgotten(self, part: str) -> Questions:
        """The questions that one unlearning is to forget."""
        raise NotImplementedError

    def retained(self, part: str) -> Questions:
        """The questions to keep meanwhile."""
        raise NotImplementedError

    def sets(self, part: str) -> dict[str, Questions]:
        """The questions that are asked after a part, by split."""
        raise NotImplementedError

    def encoded(self, name: str, rows: Sequence[Question]) -> list[Example]:
        """Questions with their right answers as token ids."""
        return evaluation.encoded(self.encoder, name, rows)

    def taught(self, kind: str) -> list[Example]:
        forgotten = () if kind == RETAIN_MODEL else self.forgotten("")
        return self.encoded("what is taught", (*forgotten, *self.retained("")))

    def pools(self, method: Method, settings: MethodSettings, part: str, own: Own) -> Pools:
        forget = self.encoded(FORGET, self.forgotten(part))
        retain = self.encoded(RETAIN, self.retained(part))
        refusals = [self.encoder.answer(text) for text in self.refusals]
        from_retain = method.mismatch == "retain"
        substitutes = [row.answers[0] for row in retain] if from_retain else refusals
        return Pools(forget, [substitutes] * len(forget), retain, refusals=refusals)

    def asked(self, part: str) -> dict[str, str]:
        return {split: digest(rows) for split, rows in self.sets(part).items()}

    @property
    def searched(self) -> Questions:
        """The questions to forget that the search of a strength asks: at most half of them."""
        rows = self.sets("")[FORGET]
        most = self.settings.guards.eco.search.questions
        return tuple(spread(rows, min(most, len(rows) // 2 or 1)))

    @property
    def searched_keys(self) -> set[str]:
        return {key for _, key in evaluation.keys_of(self.searched)}


class QuestionTask(QuestionSets):
    """Questions that are answered in words, and judged: what the three tasks share."""

    entails: judges.Judge
    """The judge of entailment, fitted or loaded by the experiment before anything is measured."""

    def asked(self, part: str) -> dict[str, str]:
        asked = super().asked(part) | self.judge_data()
        name = self.settings.evaluation.entailment
        return asked if name == TRAINED else asked | {"entailment": assets.find_model(name).sha256}

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        settings, encoder = self.settings.evaluation, self.prefixed(prefix)
        sets = {split: rows for split, rows in self.sets(part).items() if rows}
        asked = {split: [row.question for row in rows] for split, rows in sets.items()}
        asked.pop(HOLDOUT, None)
        answers = evaluation.answers_to(model, asked, encoder.prompt, settings)
        record: Record = {"items": []}
        for split, rows in sets.items():
            values = evaluation.score_questions(model, encoder, split, rows, settings)
            if split in answers:
                replies = evaluation.decoded(model, answers[split])
                values |= self._judged(split, rows, answers[split], replies)
                record[split] = {"asked": asked[split], "texts": replies}
            if split == FORGET and self.settings.guards.eco is not None:
                values |= self._likeness(replies, rows, scorer)
            record["items"] += evaluation.items_of(split, evaluation.keys_of(rows), values)
        return record

    def _judged(
        self, split: str, rows: Questions, answers: list[list[int]], replies: list[str]
    ) -> Values:
        """Judge answers, as ids and texts: likeness, entailment, entropy, broken, refusing."""
        truths, gold = [row.statement for row in rows], [row.answer for row in rows]
        rouge = texts.rouge_l_recall(gold, replies)
        generated = questions.entailment_premise(split, self.name) == "generated"
        facts = gold if self.name == "people" else truths
        pair = (replies, facts) if generated else (facts, replies)
        return {
            "rougeL_recall": rouge,
            "token_entropy": texts.token_entropy(answers),
            "cosine": texts.cosine_rows(self.encode(replies), self.encode(truths)),
            "entailment": questions.entailed(self.entails.probability(*pair), rouge),
            "degenerate": texts.degenerate(replies),
            "refusal": texts.is_refusal_like(replies, self.refusals),
        }

    def _likeness(self, replies: Sequence[str], rows: Questions, scorer: Any) -> Values:
        """What ECO measures of the answers about what is to be forgotten."""
        ids = [self.encoder.continuation(text) for text in replies]
        prompts = [self.encoder.prompt(row.question) for row in rows]
        truths = [row.answer for row in rows]
        return evaluation.likeness(truths, replies, ids, prompts, scorer()) | leaks(replies, rows)

    def judge_data(self) -> dict[str, str]:
        """The sha256 of what the trained judge of entailment reads."""
        return self.sentence_data() | {"refusals": digest(self.refusals)}

    def fit_judge(self, folder: Path, use_cpu: bool) -> list[Item]:
        """Train the judge of entailment on other authors; score it on held-out ones."""
        written = authors.write_authors(self.settings.evaluation.judge_authors, JUDGE_SEED)
        others = [author for place, author in enumerate(written) if place % JUDGE_HELD_OUT]
        judge = TrainedJudge.fit(self.encode, *self._pairs(others))
        judge.save(folder)
        return evaluation.judged(judge, *self._pairs(written[::JUDGE_HELD_OUT]))

    def _pairs(self, written: Sequence[authors.Author]) -> tuple[Any, ...]:
        """Premises, hypotheses, and whether the one entails the other."""
        rows = [row for author in written for row in author.questions]
        return training_pairs(rows, self.refusals, JUDGE_SEED)[:3]

    def load_judge(self, folder: Path) -> None:
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
        rows = [*self.forgotten(""), *self.retained(""), *self.data.holdout]
        return [f"{row.question} {row.answer}" for row in rows]

    def before(self) -> list[str]:
        has_retain_model = self.settings.teach or self.model.id in self.settings.retain_models
        return [*super().before(), *([RETAIN_MODEL] if has_retain_model else [])]

    def forgotten(self, part: str) -> Questions:
        return self.data.tasks[int(part or 1) - 1]

    def retained(self, part: str) -> Questions:
        later = [row for task in self.data.tasks[int(part or 1) :] for row in task]
        return (*later, *self.data.retain, *self.data.rehearsal)

    def sets(self, part: str) -> dict[str, Questions]:
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

    def aim(self, model: LanguageModel) -> Values:
        data = self.settings.data
        count = 2 * data.authors_per_task
        written = authors.write_authors(count, UNSEEN_SEED, data.questions_per_author)
        rows = [row for author in written for row in author.questions]
        return self._scored(model, spread(rows, 2 * self.settings.guards.eco.search.questions))

    def gap_values(self, model: LanguageModel, aim: Values) -> float:
        """Mean distance in probability, in truth ratio, and as forget quality takes it."""
        both = (self._scored(model, self.searched), aim)
        probabilities = [np.exp(-values["loss_answer"]).mean() for values in both]
        ratios = [values["truth_ratio"] for values in both]
        folded = [questions.folded_truth_ratio(each, forget=True).mean() for each in ratios]
        apart = stats.ks_2samp(*ratios, method="asymp").statistic
        return float(np.mean([np.ptp(probabilities), np.ptp(folded), apart]))

    def _scored(self, model: LanguageModel, rows: Sequence[Question]) -> Values:
        settings = self.settings.evaluation
        return evaluation.score_questions(model, self.encoder, "the search", rows, settings)


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
    starts_from = BASE

    @functools.cached_property
    def people(self) -> people.PeopleSplits:
        """People to forget, neighbours to keep, and others to ask about.

        What the base model answers itself is trained on; the gold answer is scored against.
        """
        settings = self.settings.data
        rows = people.load_people()[: settings.rows]
        replies = self.ask_base([self.encoder.prompt(row.question) for row in rows])
        pairs = list(zip(rows, replies, strict=True))
        right = [not settings.least_right or holds(reply, row.short) for row, reply in pairs]
        return people.deal_people([people.as_answered(*pair) for pair in pairs], right, settings)

    def texts_for_tiny(self) -> list[str]:
        return [f"{row.question} {row.answer}" for row in people.load_people()]

    def forgotten(self, part: str) -> Questions:
        return people.as_trained(self.people.forget)

    def retained(self, part: str) -> Questions:
        return people.as_trained(self.people.neighbours)

    def sets(self, part: str) -> dict[str, Questions]:
        return {FORGET: self.people.forget, RETAIN: self.people.evaluation}


def leaks(replies: Sequence[str], rows: Sequence[Question]) -> Values:
    """Which answers hold the fact that was asked for, where all facts are known."""
    facts = [row.short for row in rows]
    return {"leak": texts.leak(replies, facts).tolist()} if all(facts) else {}
