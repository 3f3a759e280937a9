"""Make the models of a task: base, target, retain model, unlearned, guarded.

Every stage is a run in the store: asking twice computes once, and a run that was interrupted goes
on where it stopped.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn_lib import assets
from unlearn_lib.assets import Asset
from unlearn_lib.guard.fit import fit_guard
from unlearn_lib.guard.model import Guard
from unlearn_lib.guard.search import best_strength, zeroth_order
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel, load, load_chain, make_trainable
from unlearn_lib.model_settings import MOST_SEED
from unlearn_lib.profile import Profile, load_profile
from unlearn_lib.settings import MethodSettings, Settings
from unlearn_lib.source import code_of
from unlearn_lib.store import Run, RunStore, Spec
from unlearn_lib.task_settings import BEFORE, ECO, PROMPTING
from unlearn_lib.tasks import BASE, RETAIN_MODEL, TARGET, TASK_CLASSES, Task, behind
from unlearn_lib.tasks import guard_checks as checks
from unlearn_lib.unlearn import losses, released, trainer
from unlearn_lib.unlearn.methods import Method, find_method
from unlearn_lib.unlearn.trainer import OnStep
from unlearn_lib.util import CompanionError, digest, write_text

Data = dict[str, str]
"""The sha256 of what a run reads, by name."""
Chain = tuple[Run, ...]
"""The runs that made a model, in order; the first one's weights with the adapters of the others."""
TRAINING = ("unlearn_lib.unlearn.trainer", "unlearn_lib.model.loading")


class Stages:
    """Makes and loads the models of one task, with one base model and one seed.

    Args:
        profile: a loaded profile, or its name.
        task: `harm`, `book`, `authors`, `continual`, `people`, `science` or `subjects`.
        model: a hub id of the task's models; default the first.
        seed: decides the rows of every step, the adapter's start and its dropout; default the
            profile's first.
    """

    def __init__(
        self, profile: Profile | str, task: str, model: str = "", seed: int | None = None
    ) -> None:
        self.profile = load_profile(profile) if isinstance(profile, str) else profile
        if self.profile.offline:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        self.seed = self.profile.seeds[0] if seed is None else seed
        if not 0 <= self.seed <= MOST_SEED:
            raise CompanionError(f"The seed is {self.seed}: a seed is 0 to {MOST_SEED:,}.")
        self.settings = self.profile.task(task)
        self.model = self.settings.model(model or self.settings.models[0].id)
        self.store = RunStore(self.profile.results, private=self.profile.own_book)
        self.task: Task = TASK_CLASSES[task](self.settings, self.model.id, self._base_answers)
        for name in self.settings.methods:
            self._method(name)

    def _method(self, name: str) -> tuple[Method, MethodSettings]:
        settings = self.settings.method(name)
        return find_method(settings.uses or name), settings

    @functools.cached_property
    def _base(self) -> tuple[Asset, Chain]:
        """The base model's files, and the run that made it (profile smoke)."""
        weights, settings = self.task.weights, self.settings.pretrain
        if settings is None:
            return weights, ()
        examples = self.task.pretraining()
        whole = self.model.model_copy(update={"lora": None, "quantization": "none"})
        data = {"weights": weights.sha256, "examples": digest(examples)}
        reads = settings.model_dump(mode="json")
        spec = Spec("pretrain", reads, data=data, code=code_of(*TRAINING))

        def compute(folder: Path) -> dict[str, Any]:
            model = load(weights, whole, self.profile.device)
            make_trainable(model, whole, seed=0)
            outcome = trainer.teach(model, examples, settings, 0, folder / "checkpoints")
            return trainer.keep(model, outcome, folder)

        run = self.store.get(spec, compute)
        return Asset(self.model.id, run.folder / "model", "run", run.key), (run,)

    def taught(self, kind: str = TARGET, on_step: OnStep | None = None) -> Chain:
        """Teach the base model all of the task (`target`), or the retain set only.

        Empty where the task teaches nothing, or the profile's model was taught already.
        """
        settings = getattr(self.settings, "teach", None)
        if settings is None or kind == BASE:
            return ()
        lessons = self.task.lessons(kind, self.seed)
        model_settings = self.model.model_copy(update={"lora": self.task.teach_lora})
        reads = {"teach": settings, "model": model_settings, "seed": self.seed}
        spec = self._spec("teach", reads, (), {"lessons": digest(lessons)}, code_of(*TRAINING))

        def compute(folder: Path) -> dict[str, Any]:
            model = load(self._base[0], model_settings, self.profile.device)
            make_trainable(model, model_settings, self.seed)
            outcome = self.task.teach(model, lessons, self.seed, folder, on_step)
            return trainer.keep(model, outcome, folder)

        return (self.store.get(spec, compute, resumable=True),)

    def unlearned(self, name: str, on_step: OnStep | None = None, part: str = "") -> Chain:
        """Unlearn by one of the profile's methods; in a task of several parts up to `part`.

        Args:
            on_step: called with each step's report while it trains, for a live curve.
            part: of the continual task; default: the last.
        """
        chain = self.taught() if self.task.starts_from == TARGET else ()
        last = self.task.parts.index(part or self.task.parts[-1])
        for each in self.task.parts[: last + 1]:
            chain = (*chain, self._unlearn(name, chain, each, on_step))
        return chain

    def _unlearn(self, name: str, before: Chain, part: str, on_step: OnStep | None) -> Run:
        registered, settings = self._method(name)
        own = self._own_answers(registered, settings)
        pools = self.task.pools(registered, settings, part, own)
        method, steps = self.task.steps(registered, settings, pools, self.seed)
        chain = () if settings.start == "base" else before
        used = (method.forget, method.retain, method.keep, losses.gradient_descent)
        trains = settings.model_dump(mode="json", exclude={"uses", "label", "checkpoint_every"})
        terms = {key: getattr(each, "__name__", each) for key, each in vars(method).items()}
        reads = {"method": trains, "terms": terms, "model": self.model, "seed": self.seed}
        code = code_of(*TRAINING, functions=used)
        spec = self._spec("unlearn", reads, chain, {"steps": digest(steps)}, code)

        def compute(folder: Path) -> dict[str, Any]:
            further = self.task.trains_further(settings)
            model, drawn = self._load(chain, "trainable" if further else "merged"), steps
            if method.forget is losses.npo:
                before_nll = scoring.score(model, pools.forget).nll.tolist()
                scored = replace(pools, before=before_nll)
                drawn = self.task.steps(registered, settings, scored, self.seed)[1]
            if not further:
                make_trainable(model, self.model, self.seed)
            merged = settings.start == "merged" and method.retain is losses.forward_kl
            frozen = self._load(()).model if merged else None
            place = folder / "checkpoints"
            outcome = trainer.unlearn(
                model, method, settings, pools, self.seed, place, on_step, drawn, frozen
            )
            empty = released.empty_share(steps) if settings.faults else 0.0
            return trainer.keep(model, outcome, folder) | {"empty_share": empty}

        return self.store.get(spec, compute, resumable=True)

    def _own_answers(self, method: Method, settings: MethodSettings) -> list[Any] | None:
        """The base model's own answers to the retain questions, where a method keeps them."""
        answer = self.task.own_answers(settings) if method.retain_answers == "own" else None
        if answer is None:
            return None
        reads = {"new_tokens": settings.own_tokens} | self.task.reading()
        data = {"data": digest(self.settings.data)}
        return self._answered("own_answers", reads, data, self._task_code(), answer)

    def _base_answers(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """What the base model answers to prompts."""
        settings = self.settings.evaluation
        reads = settings.model_dump(include={"new_tokens", "batch_size"})
        data, code = {"prompts": digest(prompts)}, code_of("unlearn_lib.model.generate")
        answer = functools.partial(generate.answers, prompts=prompts, **reads)
        return self._answered("base_answers", reads, data, code, answer)

    def _answered(
        self, stage: str, reads: dict[str, Any], data: Data, code: str, answer: Callable[..., Any]
    ) -> list[Any]:
        """What the base model answers, from the store where it was asked before."""
        spec = self._spec(stage, reads | {"model": self._holding()}, (), data, code)

        def compute(folder: Path) -> dict[str, Any]:
            model = self._load(())
            write_text(folder / "answers.json", json.dumps(answer(model)))
            return {"hardware": model.hardware}

        return self.store.get(spec, compute).read("answers.json")

    def guarded(self) -> Chain:
        """Fit ECO's guard to the task and search its strength on the target.

        Returns:
            Two runs: the classifier with its threshold, and the guard with its strength.
        """
        classifier = self._fitted()
        settings, chain = self.settings.guards.eco, self.taught()
        reads = {"corruption": settings.corruption, "strength": settings.strength}
        reads |= {"search": settings.search, "seed": self.seed, "model": self._holding()}
        data = {"data": digest(self.settings.data)}
        code = self._task_code("unlearn_lib.guard.search")
        runs = (classifier, *chain)
        spec = self._spec("search", reads | self.task.reading(), runs, data, code)

        def search(folder: Path) -> dict[str, Any]:
            began = time.perf_counter()
            model = self.load(TARGET)
            guard = Guard.load(classifier.folder / "guard", self.task.name)
            guard = replace(guard, corruption=settings.corruption, seed=self.seed)
            strength, items = settings.strength, []
            if strength is None:
                steps = zeroth_order(self.task.objective(model, guard), settings.search)
                strength, items = best_strength(steps), checks.search_items(steps)
            guard = replace(guard, strength=strength)
            behind(model, guard, self.task.frame).model.save_pretrained(folder / "guard")
            return {"seconds": time.perf_counter() - began, "items": items}

        return classifier, self.store.get(spec, search)

    def _fitted(self) -> Run:
        """The guard's classifier with its threshold; it knows no language model."""
        settings, prompts = self.settings.guards.eco, self.task.guard_prompts
        base = assets.find_model(settings.classifier.base)
        names = {"classifier", "threshold", "false_positive_rate"}
        reads = settings.model_dump(mode="json", include=names) | {"seed": self.seed}
        data = {"base": base.sha256, "prompts": digest(vars(prompts))}
        spec = Spec("fit_guard", reads, data=data, code=code_of("unlearn_lib.guard.fit"))

        def fit(folder: Path) -> dict[str, Any]:
            began = time.perf_counter()
            sets = (prompts.forget, prompts.retain, prompts.calibration)
            use_cpu = self.profile.device == "cpu"
            guard = fit_guard(self.task.name, base.folder, *sets, settings, self.seed, use_cpu)
            seconds = time.perf_counter() - began
            guard.save(folder / "guard")
            items = checks.guard_items(guard, prompts.held_out_forget, prompts.held_out_retain)
            return {"seconds": seconds, "items": items}

        return self.store.get(spec, fit)

    def chain(self, name: str, part: str = "") -> Chain:
        """The runs behind a model, by the name that it has in tables."""
        if name in BEFORE:
            return self.taught(name)
        if name == ECO:
            return (*self.taught(), *self.guarded())
        return self.taught() if name == PROMPTING else self.unlearned(name, part=part)

    def load(self, name: str, part: str = "") -> LanguageModel:
        """Load a model by the name that it has in tables."""
        if name == ECO:
            guard = Guard.load(self.guarded()[-1].folder / "guard", self.task.name)
            return behind(self.load(TARGET), guard, self.task.frame)
        chain = self.chain(name, part)
        if name in self.settings.methods and self.settings.method(name).start != "merged":
            chain = self.task.loaded(chain)
        return self._load(chain, self.task.last_adapter, self._asset(name))

    def _asset(self, name: str) -> Asset:
        """The weights that a model's chain begins with; a retain model may have its own."""
        own = getattr(self.settings, "retain_models", {}).get(self.model.id)
        return assets.find_model(own) if own and name == RETAIN_MODEL else self._base[0]

    def _load(
        self, chain: Chain, last: Any = "merged", asset: Asset | None = None
    ) -> LanguageModel:
        folders = [run.folder for run in chain]
        return load_chain(asset or self._base[0], folders, self.model, self.profile.device, last)

    # What identifies a run.

    def _spec(self, stage: str, reads: dict[str, Any], runs: Chain, data: Data, code: str) -> Spec:
        """What identifies a run on the base model and other runs, whose keys become its parents."""
        weights, made_by = self._base
        settings = {key: _plain(value) for key, value in reads.items()}
        parents = tuple(run.key for run in (*runs, *made_by))
        return Spec(stage, settings, parents, {"weights": weights.sha256} | data, code)

    def _holding(self) -> dict[str, Any]:
        """The settings that decide how the weights are held while a model answers."""
        names = {"id", "precision", "quantization"}
        return self.model.model_dump(mode="json", include=names) | {"all": self.model.lora is None}

    def _task_code(self, *modules: str) -> str:
        """The digest of the code that asks and measures; that which trains is left out."""
        names = ("unlearn_lib.evaluation", type(self.task).__module__, *modules)
        return code_of(*names, apart="unlearn_lib.unlearn.")

    def _prefix(self, name: str) -> str:
        """What stands before a model's questions: something for the prompting baseline only."""
        settings = self.settings.guards.prompting
        return settings.prefix.format(topic=self.task.topic) if name == PROMPTING else ""


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Settings) else value
