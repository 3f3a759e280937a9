"""One task, one model, one seed: teach, unlearn or guard, evaluate, measure.

experiment = Experiment("laptop", "authors", seed=1)
experiment.unlearned("npo_gd")    # taught and unlearned now, or from the store
experiment.items()                # one row per question asked of every model
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from unlearn_lib import assets
from unlearn_lib.evaluation import FORGET, Item, Record, single
from unlearn_lib.guard.model import Guard
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.results import COLUMNS
from unlearn_lib.stages import Stages
from unlearn_lib.store import Run, Spec
from unlearn_lib.task_settings import BEFORE, ECO, PROMPTING
from unlearn_lib.tasks import BASE, TARGET
from unlearn_lib.tasks import guard_checks as checks
from unlearn_lib.tasks.harm import Harm
from unlearn_lib.tasks.questions import TRAINED, Authors, QuestionTask
from unlearn_lib.util import digest, write_text

JUDGES = {"harm": "harm_judge", "authors": "entailment_judge"}
"""The names of judges in the item table; continual and people share that of authors."""


class Experiment(Stages):
    """One task of a profile with one model and one seed.

    Args:
        profile: a loaded profile, or its name.
        task: `harm`, `book`, `authors`, `continual`, `people`, `science` or `subjects`.
        model: a hub id of the task's models; default the first.
        seed: decides the rows of every step, the adapter's start and its dropout; default the
            profile's first.
    """

    def names(self) -> list[str]:
        """Every model that is evaluated: those before unlearning, guards, methods."""
        return [*self.task.before(), *self.settings.guard_names, *self.settings.methods]

    @functools.cached_property
    def scorer(self) -> LanguageModel:
        """The model under whose fixed weights the perplexity of answers is measured."""
        name = self.settings.evaluation.scorer
        return self._load((), asset=assets.find_model(name)) if name else self._load(())

    @functools.cached_property
    def judge(self) -> Run | None:
        """The judge of harm or of entailment, trained and loaded into the task; None without."""
        task = self.task
        if isinstance(task, Harm):
            reads = self.settings.judge.model_dump(mode="json", exclude={"threshold", "file"})
        elif not isinstance(task, QuestionTask):
            return None
        elif self.settings.evaluation.entailment == TRAINED:
            reads = {"authors": self.settings.evaluation.judge_authors}
        else:
            task.load_judge(Path())
            return None
        spec = Spec("judge", reads, data=task.judge_data(), code=self._task_code())

        def compute(folder: Path) -> dict[str, Any]:
            return {"items": task.fit_judge(folder / "judge", self.profile.device == "cpu")}

        run = self.store.get(spec, compute)
        task.load_judge(run.folder / "judge")
        return run

    def evaluated(self, name: str, part: str = "") -> Run:
        """Let a model answer and score everything that the task asks; the record is kept."""
        prefix, judge = self._prefix(name), self.judge
        leave_out = {"bleurt", "encoder", "judge_authors", "attacked", "scaling"}
        leave_out |= {"unrelated_prompts", "unrelated_tokens"}
        asked = self.settings.evaluation.model_dump(mode="json", exclude=leave_out)
        reads = {"evaluation": asked, "model": self._holding(), "prefix": prefix}
        reads |= {"task": self.task.name, **self.task.reading()}
        entails = (judge,) if judge and isinstance(self.task, QuestionTask) else ()
        data = {"weights": self._asset(name).sha256, **self.task.asked(part)}
        runs = (*self.chain(name, part), *entails)
        spec = self._spec("evaluate", reads, runs, data, self._task_code())

        def compute(folder: Path) -> dict[str, Any]:
            model = self.load(name, part)
            record = self.task.evaluate(model, part, prefix, lambda: self.scorer)
            write_text(folder / "record.json", json.dumps(record))
            return {"hardware": model.hardware}

        return self.store.get(spec, compute)

    def record(self, name: str, part: str = "") -> Record:
        """What `evaluated` kept."""
        return self.evaluated(name, part).read("record.json")

    def examples(self, names: Sequence[str] | None = None, most: int = 4) -> pd.DataFrame:
        """What models were asked and answered: columns split, asked, and one per model.

        Args:
            names: of models; default: all. `most`: so many of each split.
        """
        columns = {}
        for name in self.names() if names is None else names:
            part = self.task.parts[-1] if name in self.settings.methods else ""
            rows = self.task.examples(self.record(name, part))
            columns[name] = {(split, asked): answer for split, asked, answer in rows}
        table = pd.DataFrame(columns)
        if table.empty:
            return table
        table = table.rename_axis(["split", "asked"]).reset_index()
        return table.groupby("split", sort=False).head(most)

    def measured(self, name: str, part: str = "") -> Run:
        """The items of one model, and what making it cost."""
        now = self.evaluated(name, part)
        compared = BASE in self.task.before() and name != BASE
        before = self.evaluated(BASE) if compared else None
        judge = self.judge
        extra = [*self._checked(name), *(self.guarded() if name == ECO else ())]
        runs = [run for run in (now, before, judge, *extra, *self.chain(name, part)) if run]
        threshold = self.settings.judge.threshold if isinstance(self.task, Harm) else None
        reads = {"name": name, "threshold": threshold, "bleurt": self.settings.evaluation.bleurt}
        data = self.task.sentence_data()
        spec = self._spec("measure", reads, tuple(runs), data, self._task_code())

        def compute(folder: Path) -> dict[str, Any]:
            base = before.read("record.json") if before else None
            items = self.task.measure(now.read("record.json"), base)
            items += [Item(*row) for run in extra for row in run.result["items"]]
            if name == ECO and self.settings.guards.eco.strength is None:
                seen = self.task.searched_keys
                items = [each for each in items if each.split != FORGET or each.item not in seen]
            items += self._costs(name, part)
            return {"items": [each._replace(condition=each.condition or part) for each in items]}

        return self.store.get(spec, compute)

    def _checked(self, name: str) -> list[Run]:
        """The runs of attacks, side effects and scaling of one model of task authors."""
        if self.task.name != "authors":
            return []
        settings, guarded = self.settings.evaluation, ECO in self.settings.guard_names
        runs = []
        if name in settings.attacked:
            runs.append(self._attacked(name))
        if guarded and settings.unrelated_prompts and name not in (BASE, TARGET):
            runs.append(self._side_effects(name))
        if settings.scaling and name == ECO:
            runs.append(self._scaled())
        return runs

    def _attacked(self, name: str) -> Run:
        task, settings = cast(Authors, self.task), self.settings.evaluation
        rows, encoder = task.forgotten(""), task.prefixed(self._prefix(name))
        if name != PROMPTING:
            encoder = replace(encoder, prompt_tokens=encoder.context - encoder.answer_tokens)

        def ask() -> list[Item]:
            return checks.attack(self.load(name), encoder, rows, settings, self.seed)

        return self._check("attack", name, digest(rows), ask)

    def _side_effects(self, name: str) -> Run:
        task, settings = self.task, self.settings.evaluation
        held_out = [text for text in task.guard_prompts.held_out_retain if task.encoder.fits(text)]
        most = settings.unrelated_prompts
        prompts = held_out[: most if name == ECO else max(1, most // 8)]

        def ask() -> list[Item]:
            model, encoder = self.load(name), task.prefixed(self._prefix(name))
            before, adds_time = self._plain(tuple(prompts)), name in (ECO, PROMPTING)
            return checks.side_effects(model, encoder, prompts, before, settings, adds_time)

        return self._check("side_effects", name, digest(prompts), ask)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (an experiment lives as long as its process)
    def _plain(self, prompts: tuple[str, ...]) -> checks.Answers:
        """The target's answers to unrelated prompts, and the seconds that they took."""
        target = self.load(TARGET)
        return checks.timed(target, self.task.encoder, prompts, self.settings.evaluation)

    def _scaled(self) -> Run:
        prompts, half = self.task.guard_prompts, checks.TIMED_PROMPTS // 2
        texts = [*prompts.held_out_forget[:half], *prompts.held_out_retain[:half]]

        def ask() -> list[Item]:
            guard = Guard.load(self.guarded()[-1].folder / "guard", self.task.name)
            widths = self.settings.evaluation.scaling
            return checks.scaling(widths, guard, self.task.tokenizer, texts)

        return self._check("scaling", ECO, digest(texts), ask)

    def _check(self, stage: str, name: str, asked: str, ask: Callable[[], list[Item]]) -> Run:
        """The run of one check of a model; `asked`: the digest of what it is asked."""
        names = {"new_tokens", "batch_size", "unrelated_tokens", "scaling"}
        reads = {"evaluation": self.settings.evaluation.model_dump(mode="json", include=names)}
        reads |= {"model": self._holding(), "prefix": self._prefix(name), "seed": self.seed}
        data = {"weights": self._asset(name).sha256, "asked": asked}
        code = self._task_code("unlearn_lib.tasks.guard_checks")
        spec = self._spec(stage, reads | self.task.reading(), self.chain(name), data, code)
        return self.store.get(spec, lambda folder: {"items": ask()})

    def _costs(self, name: str, part: str) -> list[Item]:
        """What making a model cost once: seconds, memory, parameters changed, bytes stored."""
        if name == PROMPTING:
            stored = len(self._prefix(name).encode())
            values = {"seconds": 0.0, "parameters_changed": 0, "bytes_stored": stored}
        elif runs := self.guarded() if name == ECO else self.chain(name, part)[-1:]:
            last = runs[-1]
            values = {
                "seconds": sum(run.result["seconds"] for run in runs),
                "parameters_changed": last.result.get("parameters_changed", 0),
                "bytes_stored": _bytes(last.folder),
            }
            if name != ECO:
                values["peak_memory_bytes"] = last.provenance["peak_memory_bytes"]
        else:
            return []
        return [single(metric, value) for metric, value in values.items()]

    def items(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """The item table of every model of this task, model and seed, or of some.

        One row per question asked; columns as in `results.COLUMNS`, without any text.
        """
        rows = []
        for name in self.names() if names is None else names:
            for part in self.task.parts if name in self.settings.methods else ("",):
                run = self.measured(name, part)
                rows += [self._row(name, item, run) for item in run.result["items"]]
        judge = self.judge if names is None and self.task.name in JUDGES else None
        if judge is not None:
            name = JUDGES[self.task.name]
            rows += [self._row(name, item, judge) for item in judge.result["items"]]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _row(self, name: str, item: Sequence[Any], run: Run) -> tuple[Any, ...]:
        split, condition, cluster, key, metric, value = item
        stages = dict.fromkeys((ECO, PROMPTING), "guarded") | dict(zip(BEFORE, BEFORE))
        stage = "judge" if name.endswith("_judge") else stages.get(name, "unlearned")
        place = (self.task.name, self.model.id, self.seed, stage, name)
        return (*place, split, condition, cluster, key, metric, value, run.key)

    def history(self, name: str, part: str = "") -> pd.DataFrame:
        """The loss curve of a method: one row per step."""
        return pd.read_csv(self.chain(name, part)[-1].folder / "history.csv")


def _bytes(folder: Path) -> int:
    """Bytes of weights; what lies beside them may name folders, whose length varies."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
