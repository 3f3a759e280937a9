"""The stages of experiment 3 that make models: the guards, and the invented science.

`guard` (the prompt classifier, calibrated) → `search` (the strength, on training data) per task;
`implant` → `unlearn` for the science. The models of the other tasks come from the runs of
experiments 2 and 4.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from unlearn_lib import assets, models, training
from unlearn_lib.batches import TextEncoder
from unlearn_lib.datasets import guard_prompts, science, tofu
from unlearn_lib.datasets.questions import Question
from unlearn_lib.eco.calibration import conformal_threshold, rates
from unlearn_lib.eco.classifier import PromptClassifier
from unlearn_lib.eco.guard import Guard, judged
from unlearn_lib.eco.search import zeroth_order
from unlearn_lib.experiments.book import BookExperiment
from unlearn_lib.experiments.closer_look import CloserLook
from unlearn_lib.experiments.closer_look_measures import encoded
from unlearn_lib.experiments.closer_look_stages import IMPLANTED, question_pools, taught_digest
from unlearn_lib.experiments.eco_tasks import (
    ECO,
    PROMPTING,
    Book,
    Entities,
    GuardedTask,
    Science,
    answer_encoder,
    behind,
)
from unlearn_lib.experiments.stages import ORIGINAL, Stages, dump, keep_outcome
from unlearn_lib.methods import find_method
from unlearn_lib.models import LanguageModel
from unlearn_lib.profiles import Profile
from unlearn_lib.runs import Run, Spec
from unlearn_lib.settings import Task

VERSION = {"guard": 2, "search": 1, "implant": 1, "unlearn": 1}


class EcoStages(Stages):
    """One model and one seed of experiment 3, up to the guarded and unlearned models."""

    experiment = "eco"

    def __init__(self, profile: Profile, model_id: str | None, seed: int) -> None:
        super().__init__(profile, profile.eco, model_id, seed)
        self.settings = profile.eco
        self.labels = profile.labels("eco")
        self.task_names: tuple[Task, ...] = profile.guarded_tasks(self.model_id)

    @functools.cached_property
    def tofu(self) -> CloserLook:
        """Experiment 4 with the same model and seed; its runs are this experiment's too."""
        found = CloserLook(self.profile, self.model_id, self.seed)
        found.store = self.store
        return found

    @functools.cached_property
    def book(self) -> BookExperiment:
        """Experiment 2 with the same model and seed; its runs are this experiment's too."""
        found = BookExperiment(self.profile, self.model_id, self.seed)
        found.store = self.store
        return found

    @functools.cached_property
    def general(self) -> tuple[str, ...]:
        """Ordinary questions that have nothing to do with what is forgotten."""
        return guard_prompts.general_prompts(self.settings.general)[0]

    @functools.cached_property
    def tasks(self) -> dict[Task, GuardedTask]:
        """The tasks of this model, by name."""
        return {name: self._task(name) for name in self.task_names}

    def _task(self, name: Task) -> GuardedTask:
        chosen = self.settings.guards[name]
        most = (chosen.classifier or self.settings.classifier).most
        if name == "entities":
            return Entities(chosen, most, self.tofu, self._beside(name), self.general)
        if name == "book":
            return Book(chosen, most, self.book, self._beside(name), self.general)
        taught = [ORIGINAL] if self.settings.implant else []
        names = [*taught, IMPLANTED, ECO, PROMPTING, *self.methods]
        return Science(
            chosen, most, self.science, self.encoder, self.weights, self.general, self.scientist,
            self.taught, names,
        )  # fmt: skip

    def _beside(self, name: str) -> tuple[str, ...]:
        return self.settings.beside.get(name, ())  # type: ignore[call-overload]

    @functools.cached_property
    def science(self) -> science.ScienceSplits:
        """The multiple-choice questions: to forget, to keep, of general knowledge."""
        assert self.settings.science is not None
        return science.load(self.settings.science)

    def _texts_for_tiny(self) -> list[str]:
        splits = self.science
        rows = [*splits.forget, *splits.retain, *splits.general, *splits.rehearsal]
        return [f"{row.question} {row.answer}" for row in rows]

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """Questions of the science and their answers to token ids."""
        chosen = self.settings.science
        assert chosen is not None
        return TextEncoder(
            self.tokenizer,
            chosen.template,
            chosen.prompt_tokens,
            chosen.answer_tokens,
            self.context,
        )

    def _encoding(self) -> dict[str, Any]:
        chosen = self.settings.science
        assert chosen is not None
        names = {"template", "prompt_tokens", "answer_tokens"}
        return chosen.model_dump(mode="json", include=names)

    def guard(self, task: Task) -> Run:
        """Train a task's prompt classifier, calibrate it, score it on held-out prompts."""
        found = self.tasks[task]
        chosen = found.settings.classifier or self.settings.classifier
        prompts, base = found.prompts, assets.find_model(chosen.base)
        wanted = {
            "threshold": found.settings.threshold,
            "false_positive_rate": found.settings.false_positive_rate,
        }
        spec = Spec(
            "guard",
            {"classifier": dump(chosen), "seed": self.seed, **wanted},
            data={"base": base.sha256, "prompts": prompts.digest},
            version=VERSION["guard"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            began = time.perf_counter()
            fitted = PromptClassifier.fit(
                base.folder, prompts.forget, prompts.retain, chosen, self.seed,
                use_cpu=self.profile.device == "cpu",
            )  # fmt: skip
            threshold = found.settings.threshold
            if threshold is None:
                scores = judged(fitted, prompts.calibration)
                threshold = conformal_threshold(scores, found.settings.false_positive_rate)
            seconds = time.perf_counter() - began
            forget, retain = (
                judged(fitted, part) for part in (prompts.held_out_forget, prompts.held_out_retain)
            )
            fitted.save(folder / "classifier")
            found_rates = rates(forget, retain, threshold)
            measured = {name: asdict(value) for name, value in found_rates.items()}
            return {"threshold": threshold, "rates": measured, "seconds": seconds}

        return self.store.get(spec, compute)

    def searched(self, task: Task) -> Run:
        """Search the strength of a task's corruption on the implanted model; keep the guard."""
        found, trained = self.tasks[task], self.guard(task)
        chosen = found.settings
        spec = Spec(
            "search",
            {"task": task, "corruption": dump(chosen.corruption), "strength": chosen.strength}
            | {"search": dump(chosen.search), "seed": self.seed, **self.reading(task)},
            (trained.key, *(run.key for run in found.trained(IMPLANTED))),
            {"weights": found.weights.sha256, "aim": found.digest},
            VERSION["search"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            began = time.perf_counter()
            model = found.loaded(IMPLANTED)
            classifier = PromptClassifier.load(trained.folder / "classifier")
            threshold, strength = trained.result["threshold"], chosen.strength or 0.0
            guard = Guard(task, classifier, threshold, chosen.corruption, strength, self.seed)
            steps, calls = [], 0
            if chosen.strength is None:
                width = model.model.get_input_embeddings().weight.shape[-1]
                objective = found.objective(model, guard)
                best = zeroth_order(objective, chosen.search, width, self.seed)
                guard = replace(guard, strength=best.strength)
                steps, calls = [asdict(step) for step in best.steps], best.calls
            behind(model, guard, found.frame).model.save_pretrained(folder / "guard")
            return {"steps": steps, "calls": calls, "seconds": time.perf_counter() - began}

        return self.store.get(spec, compute)

    def guarded(self, task: Task) -> LanguageModel:
        """The implanted model of a task behind its guard, as it was saved."""
        guard = Guard.load(self.searched(task).folder / "guard", task)
        found = self.tasks[task]
        return behind(found.loaded(IMPLANTED), guard, found.frame)

    def model_of(self, task: Task, who: str) -> LanguageModel:
        """A model of a task by its name: `eco` and `prompting` are the implanted one."""
        if who == ECO:
            return self.guarded(task)
        return self.tasks[task].loaded(IMPLANTED if who == PROMPTING else who)

    def made(self, task: Task, who: str) -> tuple[str, ...]:
        """The keys of the runs that a model rests on."""
        runs = self.tasks[task].trained(IMPLANTED if who in (ECO, PROMPTING) else who)
        guard = (self.searched(task).key,) if who == ECO else ()
        return (*(run.key for run in runs), *guard)

    def reading(self, task: Task) -> dict[str, Any]:
        """The settings that decide how a task's model is held and how it reads a prompt."""
        if task == "book":
            return {"model": self.book._holding(), **self.book._cutting()}
        owner: CloserLook | EcoStages = self.tofu if task == "entities" else self
        return {"model": owner._holding(), **owner._encoding()}

    def origin(self, task: Task, who: str) -> str:
        """The sha256 of the weights that a model begins with; a reference may have its own."""
        found = self.tofu._asset(who) if task == "entities" else self.tasks[task].weights
        return found.sha256

    def prefix(self, task: Task) -> str:
        """What the prompting baseline puts before every question."""
        return self.settings.evaluation.prefix.format(topic=self.tasks[task].topic)

    def asking(self, task: Task, who: str, encoder: TextEncoder) -> TextEncoder:
        """The encoder that a model is asked with: the prompting baseline's adds its prefix."""
        return answer_encoder(encoder, self.prefix(task)) if who == PROMPTING else encoder

    def taught(self, who: str, on_step: training.OnStep | None = None) -> tuple[Run, ...]:
        """The runs behind a model of the science: taught, then unlearned by a method."""
        chosen = self.settings.implant
        if who == ORIGINAL or (chosen is None and who == IMPLANTED):
            return ()
        if who != IMPLANTED:
            before = self.taught(IMPLANTED)
            return (*before, self.unlearned(who, on_step))
        assert chosen is not None
        rows = self._taught_rows()
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
            outcome = training.implant(
                found, encoded(self.encoder, "what is taught", rows), chosen, self.seed,
                folder / "checkpoints", on_step,
            )  # fmt: skip
            models.save(found.model, found.tokenizer, folder / "model")
            return keep_outcome(outcome, folder) | {"rows": len(rows)}

        return (self.store.get(spec, compute, resumable=True),)

    def _taught_rows(self) -> tuple[Question, ...]:
        splits = self.science
        return (*splits.taught(splits.forget), *splits.taught(splits.retain), *splits.rehearsal)

    def scientist(self, who: str) -> LanguageModel:
        """Load a model of the science by its name."""
        return models.stack(self.weights, [run.folder for run in self.taught(who)], self._fresh)

    def unlearned(self, name: str, on_step: training.OnStep | None = None) -> Run:
        """Make the model forget the science by one of the profile's methods."""
        settings, before = self.settings.method(name), self.taught(IMPLANTED)
        method, refusals = find_method(settings.uses), self._refusals
        splits = self.science
        forget, retain = splits.taught(splits.forget), splits.taught(splits.retain)
        retain = (*retain, *splits.rehearsal)
        spec = Spec(
            "unlearn",
            {"method": dump(settings, "name", "label", "checkpoint_every")}
            | {"model": dump(self.model), "seed": self.seed, **self._encoding()},
            tuple(run.key for run in before),
            {"weights": self.weights.sha256, "forget": taught_digest(forget)}
            | {"retain": taught_digest(retain), "refusals": tofu.digest(*refusals)},
            VERSION["unlearn"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self.scientist(IMPLANTED)
            pools = question_pools(found, method, self.encoder, forget, retain, refusals)
            models.make_trainable(found, self.model, self.seed)
            place = folder / "checkpoints"
            outcome = training.unlearn(found, method, settings, pools, self.seed, place, on_step)
            models.save(found.model, found.tokenizer, folder / "model")
            return keep_outcome(outcome, folder)

        return self.store.get(spec, compute, resumable=True)

    @functools.cached_property
    def _refusals(self) -> Sequence[str]:
        return tofu.refusals()
