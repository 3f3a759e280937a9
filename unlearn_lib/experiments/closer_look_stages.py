"""The stages of experiment 4 that train: `implant`, `unlearn`, and the judge of entailment.

A model is the original one with the runs that changed it, in order (a chain): an adapter is
added to the weights before the next one is trained, so that the model before an unlearning is
always the one with its adapter switched off.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unlearn_lib import assets, generation, losses, models, scoring, training
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.classifiers import TrainedJudge, sentence_encoder
from unlearn_lib.classifiers.entailment import held_out
from unlearn_lib.classifiers.entailment_pairs import training_pairs
from unlearn_lib.datasets import authors, people, tofu
from unlearn_lib.datasets.questions import Question
from unlearn_lib.experiments.closer_look_measures import FORGET, RETAIN, encoded
from unlearn_lib.experiments.stages import Stages, dump, keep_outcome
from unlearn_lib.methods import Method, find_method
from unlearn_lib.profiles import Profile
from unlearn_lib.runs import Run, Spec, write_text
from unlearn_lib.settings import Scenario
from unlearn_lib.steps import Pools

VERSION = {"implant": 1, "known": 1, "unlearn": 1, "judge": 1, "score": 1, "compare": 1}
IMPLANTED, REFERENCE = "implanted", "reference"
JUDGE_SEED = 20_000
JUDGE_HELD_OUT = 3
"""One author in so many is held out from the judge's training."""
Chain = tuple[Run, ...]


class CloserLookStages(Stages):
    """One model and one seed of experiment 4, up to the unlearned models."""

    experiment = "tofu"

    def __init__(self, profile: Profile, model_id: str | None, seed: int) -> None:
        super().__init__(profile, profile.tofu, model_id, seed)
        self.settings = profile.tofu

    @functools.cached_property
    def data(self) -> tofu.TofuSplits:
        """The questions: tasks to forget, to retain, held out, and those about the world."""
        return tofu.load(self.settings.data)

    def _texts_for_tiny(self) -> list[str]:
        rows = [*self._taught(IMPLANTED), *self.data.holdout]
        return [f"{row.question} {row.answer}" for row in rows]

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """Questions and answers to token ids, the same way in training and evaluation."""
        chosen = self.settings.data
        return TextEncoder(
            self.tokenizer,
            chosen.template,
            chosen.prompt_tokens,
            chosen.answer_tokens,
            self.context,
        )

    def _encoding(self) -> dict[str, Any]:
        chosen = self.settings.data
        names = {"template", "prompt_tokens", "answer_tokens"}
        return chosen.model_dump(mode="json", include=names)

    def examples(self, rows: Sequence[Question], name: str) -> list[Example]:
        """Each question with its right answer, as token ids; a bad row is named with its set."""
        return encoded(self.encoder, name, rows)

    def _taught(self, kind: str) -> tuple[Question, ...]:
        """What the implanted model is taught, or the exact reference: all but the first task."""
        tasks = self.data.tasks if kind == IMPLANTED else self.data.tasks[1:]
        return (*[row for task in tasks for row in task], *self.data.retain, *self.data.rehearsal)

    def taught(self, kind: str, on_step: training.OnStep | None = None) -> Chain:
        """Teach the model the full set (`implanted`), or the retain set only (`reference`)."""
        chosen = self.settings.implant
        if chosen is None:
            return ()
        rows = self._taught(kind)
        model = self.model.model_copy(update={"lora": chosen.lora})
        spec = Spec(
            "implant",
            {"implant": dump(chosen), "model": dump(model), "seed": self.seed, **self._encoding()},
            data={"weights": self.weights.sha256, "questions": taught_digest(rows)},
            version=VERSION["implant"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = models.load(self.weights, model, self.profile.device)
            models.make_trainable(found, model, self.seed)
            place = folder / "checkpoints"
            outcome = training.implant(
                found, self.examples(rows, "what is taught"), chosen, self.seed, place, on_step
            )
            models.save(found.model, found.tokenizer, folder / "model")
            return keep_outcome(outcome, folder) | {"rows": len(rows)}

        return (self.store.get(spec, compute, resumable=True),)

    def _asset(self, who: str) -> assets.Asset:
        """The weights that a model's chain begins with."""
        given = self.settings.references.get(self.model_id)
        return assets.find_model(given) if given and who == REFERENCE else self.weights

    def loaded(
        self, who: str, scenario: Scenario = "fictitious", task: int = 1
    ) -> models.LanguageModel:
        """Load a model by its name: `none`, `implanted`, `reference`, or a method's."""
        return self._stack(self.chain(who, scenario, task), self._asset(who))

    def _stack(self, chain: Chain, asset: assets.Asset) -> models.LanguageModel:
        return models.stack(asset, [run.folder for run in chain], self._fresh)

    def known(self) -> Run:
        """Ask the unmodified model about known people; keep its answers."""
        rows, digest = people.load_people()
        assert self.settings.people is not None
        rows = rows[: self.settings.people.rows]
        length, size = self.settings.evaluation.new_tokens, self.settings.evaluation.batch_size
        spec = Spec(
            "known",
            {"model": self._holding(), "new_tokens": length, "batch_size": size}
            | {"rows": len(rows), **self._encoding()},
            data={"weights": self.weights.sha256, "people": digest},
            version=VERSION["known"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(self.weights)
            prompts = [self.encoder.prompt(row.question) for row in rows]
            texts = generation.answers(found, prompts, length, size)
            right = [people.is_right(*pair) for pair in zip(rows, texts, strict=True)]
            write_text(folder / "answers.json", json.dumps({"texts": texts, "right": right}))
            counts = {"asked": len(rows), "right": sum(right)}
            return counts | {"hardware": found.hardware}

        return self.store.get(spec, compute)

    @functools.cached_property
    def people(self) -> people.PeopleSplits:
        """Known people to forget, neighbours to keep, and others to ask about.

        The right answer is what the unmodified model says itself, as in the paper.
        """
        assert self.settings.people is not None
        rows, _ = people.load_people()
        found = json.loads((self.known().folder / "answers.json").read_text())
        said = [people.as_answered(*pair) for pair in zip(rows, found["texts"])]
        right = found["right"] if self.settings.people.least_right else [True] * len(said)
        return people.deal_people(said, right, self.settings.people)

    def forgotten(self, scenario: Scenario, task: int = 1) -> tuple[Question, ...]:
        """The questions that one unlearning is to forget."""
        if scenario == "real_world":
            return self.people.forget
        return self.data.tasks[task - 1]

    def kept(self, scenario: Scenario, task: int = 1) -> tuple[Question, ...]:
        """The questions to be kept meanwhile: all that nobody has asked to forget so far."""
        if scenario == "real_world":
            return self.people.neighbours
        later = [row for each in self.data.tasks[task:] for row in each]
        return (*later, *self.data.retain, *self.data.rehearsal)

    def chain(self, who: str, scenario: Scenario, task: int = 1) -> Chain:
        """The runs behind a model: `none`, `implanted`, `reference`, or a method after a task."""
        if who == REFERENCE:
            return self.taught(REFERENCE)
        start = () if scenario == "real_world" or who == "none" else self.taught(IMPLANTED)
        if who in ("none", IMPLANTED):
            return start
        tasks = range(1, task + 1) if scenario == "continual" else (1,)
        return (*start, *(self.unlearned(who, None, scenario, each) for each in tasks))

    def unlearned(
        self,
        name: str,
        on_step: training.OnStep | None = None,
        scenario: Scenario = "fictitious",
        task: int = 1,
    ) -> Run:
        """Make the model forget by one of the profile's methods, or return that run.

        Args:
            name: a method's name in the profile.
            on_step: called with each step's report while it trains, for a live curve.
            scenario: `fictitious`, `continual` or `real_world`.
            task: which task of the continual scenario; it starts from the one before.
        """
        settings = self.settings.method(name).within(scenario)
        if scenario == "continual" and task > 1:
            before = self.chain(name, scenario, task - 1)
        else:
            before = self.chain(IMPLANTED, scenario)
        method = find_method(settings.uses)
        forget, retain = self.forgotten(scenario, task), self.kept(scenario, task)
        spec = Spec(
            "unlearn",
            {"method": dump(settings, "name", "label", "checkpoint_every", "scenarios")}
            | {"model": dump(self.model), "seed": self.seed, **self._encoding()},
            tuple(run.key for run in before),
            {"weights": self.weights.sha256, "forget": taught_digest(forget)}
            | {"retain": taught_digest(retain), "refusals": tofu.digest(*self.data.refusals)},
            VERSION["unlearn"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._stack(before, self.weights)
            refusals = self.data.refusals
            pools = question_pools(found, method, self.encoder, forget, retain, refusals)
            models.make_trainable(found, self.model, self.seed)
            place = folder / "checkpoints"
            outcome = training.unlearn(found, method, settings, pools, self.seed, place, on_step)
            models.save(found.model, found.tokenizer, folder / "model")
            return keep_outcome(outcome, folder)

        return self.store.get(spec, compute, resumable=True)

    @functools.cached_property
    def sentence_encoder(self) -> Any:
        """The sentence encoder of cosine similarity and of the trained judge."""
        found = assets.find_model(self.settings.evaluation.encoder)
        return sentence_encoder(found.folder)

    def judge(self) -> Run:
        """Train the judge of entailment on other authors, and measure it on held-out ones."""
        chosen = self.settings.evaluation
        encoder = assets.find_model(chosen.encoder)
        spec = Spec(
            "judge",
            {"authors": chosen.judge_authors, "seed": JUDGE_SEED},
            data={"encoder": encoder.sha256, "refusals": tofu.digest(*self.data.refusals)},
            version=VERSION["judge"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            written = authors.write_authors(chosen.judge_authors, JUDGE_SEED)
            train, test = (
                training_pairs(
                    [row for each in part for row in each.questions], self.data.refusals, JUDGE_SEED
                )
                for part in (
                    [each for i, each in enumerate(written) if i % JUDGE_HELD_OUT],
                    written[::JUDGE_HELD_OUT],
                )
            )
            fitted = TrainedJudge.fit(self.sentence_encoder, *train[:3])
            fitted.save(folder / "judge")
            found = held_out(fitted, *test)
            return {"held_out": {name: asdict(value) for name, value in found.items()}}

        return self.store.get(spec, compute)


def question_pools(
    found: models.LanguageModel,
    method: Method,
    encoder: TextEncoder,
    forget: Sequence[Question],
    retain: Sequence[Question],
    refusals: Sequence[str],
) -> Pools:
    """What a method may see of questions: those to forget and to keep, substitutes, refusals."""
    said = [encoder.answer(text) for text in refusals]
    rows, kept = encoded(encoder, FORGET, forget), encoded(encoder, RETAIN, retain)
    substitutes = [row.answers[0] for row in kept] if method.mismatch == "retain" else said
    before = None
    if method.forget is losses.npo:
        before = scoring.answer_losses(found, rows)[0].tolist()
    return Pools(rows, [substitutes] * len(rows), kept, before=before, refusals=said)


def taught_digest(rows: Sequence[Question]) -> str:
    """The sha256 of what training reads of questions: not their wrong answers."""
    return tofu.digest(*((row.question, row.answer) for row in rows))
