"""Experiment 4: every loss, every metric, one suite (Yuan et al. 2025). Verbs of notebook 04.

Stages, each a run in the store: `implant` (the full set; the retain set only, which is the exact
reference) or `known` (what the unmodified model knows of real people) → `unlearn` per method,
scenario and task → `score` → `compare` (with the exact reference). The stages that train are in
`closer_look_stages.py`.
"""

import functools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib import assets
from unlearn_lib.classifiers import EntailmentJudge, NliJudge, TrainedJudge
from unlearn_lib.datasets import tofu
from unlearn_lib.datasets.questions import Question
from unlearn_lib.experiments.closer_look_measures import (
    FORGET,
    HOLDOUT,
    NEIGHBOURS,
    RETAIN,
    Judges,
    Record,
    ask,
    differences,
    measure,
)
from unlearn_lib.experiments.closer_look_stages import (
    IMPLANTED,
    REFERENCE,
    VERSION,
    CloserLookStages,
)
from unlearn_lib.experiments.stages import ORIGINAL, dump
from unlearn_lib.metrics import Estimate
from unlearn_lib.metrics.tidy import Row, to_frame
from unlearn_lib.profiles import load_profile
from unlearn_lib.results import ORDERINGS
from unlearn_lib.runs import Run, Spec, write_text
from unlearn_lib.settings import SCENARIOS, Scenario
from unlearn_lib.tables import pairs, read_orderings

TRAINED = "trained"


class CloserLook(CloserLookStages):
    """One model and one seed of experiment 4: taught, unlearned, measured, in tidy rows."""

    def sets(self, scenario: Scenario, task: int = 1) -> dict[str, tuple[Question, ...]]:
        """The questions that are asked: after a task of the continual scenario, of all so far."""
        if scenario == "real_world":
            return {FORGET: self.people.forget, NEIGHBOURS: self.people.evaluation}
        found = self.data
        return {
            FORGET: tuple(row for each in found.tasks[:task] for row in each),
            RETAIN: found.retain_evaluation,
            "real_authors": found.real_authors,
            "world_facts": found.world_facts,
            HOLDOUT: found.holdout,
        }

    @functools.cached_property
    def judges(self) -> Judges:
        """The judges of texts, loaded once."""
        chosen = self.settings.evaluation.entailment
        if chosen == TRAINED:
            folder = self.judge().folder / "judge"
            judge: EntailmentJudge = TrainedJudge.load(folder, self.sentence_encoder)
        else:
            judge = NliJudge.load(assets.find_model(chosen).folder)
        return Judges(self.sentence_encoder, judge, self.data.refusals)

    def _judge_data(self) -> tuple[tuple[str, ...], dict[str, str]]:
        chosen = self.settings.evaluation
        found = {"encoder": assets.find_model(chosen.encoder).sha256}
        if chosen.entailment == TRAINED:
            return (self.judge().key,), found
        return (), found | {"entailment": assets.find_model(chosen.entailment).sha256}

    def scored(self, who: str, scenario: Scenario = "fictitious", task: int = 1) -> Run:
        """Let a model answer and score every question of a scenario.

        Args:
            who: `none` for the original model, `implanted`, `reference`, or a method's name.
            task: of the continual scenario, the last one that was to be forgotten.
        """
        chain, sets = self.chain(who, scenario, task), self.sets(scenario, task)
        asset = self._asset(who)
        parents, judged = self._judge_data()
        evaluation = dump(self.settings.evaluation, "bleurt", "encoder", "judge_authors")
        spec = Spec(
            "score",
            {"evaluation": evaluation, "model": self._holding(), **self._encoding()}
            | {"real_world": scenario == "real_world"},
            (*(run.key for run in chain), *parents),
            {"weights": asset.sha256, "refusals": tofu.digest(*self.data.refusals), **judged}
            | {name: tofu.digest(*rows) for name, rows in sets.items()},
            VERSION["score"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self.loaded(who, scenario, task)
            chosen, real = self.settings.evaluation, scenario == "real_world"
            record = ask(found, sets, self.encoder, chosen, self.judges, real)
            write_text(folder / "scores.json", json.dumps(record))
            return {"hardware": found.hardware}

        return self.store.get(spec, compute)

    def record(self, who: str, scenario: Scenario = "fictitious", task: int = 1) -> Record:
        """What `scored` wrote."""
        return _read(self.scored(who, scenario, task))

    @functools.cached_property
    def has_reference(self) -> bool:
        """Whether there is a model that was trained on the retain set only."""
        return self.settings.implant is not None or self.model_id in self.settings.references

    def measured(self, who: str, scenario: Scenario = "fictitious", task: int = 1) -> Run:
        """Measure a model; in the fictitious scenario also against the exact reference."""
        now = self.scored(who, scenario, task)
        compared = self.has_reference and scenario == "fictitious"
        exact = self.scored(REFERENCE) if compared else None
        parents = (now.key, *((exact.key,) if exact else ()))
        spec = Spec("compare", {}, parents, version=VERSION["compare"])

        def compute(folder: Path) -> dict[str, Any]:
            found = measure(_read(now), _read(exact) if exact else None, who)
            return {"metrics": [[*place, asdict(value)] for *place, value in found]}

        return self.store.get(spec, compute)

    def estimates(
        self, who: str, scenario: Scenario = "fictitious", task: int = 1
    ) -> dict[tuple[str, str], Estimate]:
        """Every measured value of a model, by split and metric."""
        found = self.measured(who, scenario, task).result["metrics"]
        return {(split, metric): Estimate(**value) for split, metric, value in found}

    def models_of(self, scenario: Scenario) -> list[tuple[str, int]]:
        """Every model of a scenario that is measured, with the tasks it was to forget."""
        methods = self.settings.methods_of(scenario, self.model_id)
        if not methods:
            return []
        if scenario == "continual":
            tasks = range(1, len(self.data.tasks) + 1)
            return [(name, task) for name in methods for task in tasks]
        before = [ORIGINAL]
        if scenario == "fictitious":
            before = [*([ORIGINAL] if self.settings.implant else []), IMPLANTED]
            before += [REFERENCE] if self.has_reference else []
        return [(name, 1) for name in (*before, *methods)]

    def rows(self) -> pd.DataFrame:
        """The tidy rows of everything measured with this model and seed."""
        rows: list[Row] = []
        for scenario in SCENARIOS:
            for who, task in self.models_of(scenario):
                rows += self._rows_of(who, scenario, task)
            rows += self._differences(scenario)
        rows += self._judge_rows()
        return to_frame(rows)

    def _rows_of(self, who: str, scenario: Scenario, task: int) -> list[Row]:
        stages = {ORIGINAL: "base", IMPLANTED: "implanted", REFERENCE: "reference"}
        stage = stages.get(who, "unlearned")
        method = who if stage == "unlearned" else ORIGINAL
        place = f"continual {task}" if scenario == "continual" else scenario
        run = self.measured(who, scenario, task)
        rows = [
            self._row(place, split, stage, method, metric, value, run)
            for split, metric, value in run.result["metrics"]
        ]
        if stage == "unlearned":
            trained = self.unlearned(who, None, scenario, task)
            rows += self._costs(place, stage, method, trained)
        return rows

    def _differences(self, scenario: Scenario) -> list[Row]:
        """MU and FE of one method minus another's on the same questions, where a claim needs it.

        In the continual scenario after the last task.
        """
        names = self.settings.methods_of(scenario, self.model_id)
        task = len(self.data.tasks) if names and scenario == "continual" else 1
        place = f"continual {task}" if scenario == "continual" else scenario
        rows = []
        for better, other in pairs(read_orderings(ORDERINGS), scenario, names):
            first, second = (self.record(who, scenario, task) for who in (better, other))
            run = self.measured(better, scenario, task)
            for metric, found in differences(first, second):
                value = asdict(found)
                rows.append(self._row(place, other, "unlearned", better, metric, value, run))
        return rows

    def _judge_rows(self) -> list[Row]:
        if self.settings.evaluation.entailment != TRAINED:
            return []
        run = self.judge()
        return [
            self._row("judge", "held_out", "base", ORIGINAL, name, value, run)
            for name, value in run.result["held_out"].items()
            if name in ("judge_accuracy", "judge_auc")
        ]


def _read(scored: Run) -> Record:
    return json.loads((scored.folder / "scores.json").read_text())


def open_experiment(profile: str, model: str | None, seed: int) -> CloserLook:
    """Open experiment 4 for a profile's name, one of its models, and a seed.

    Args:
        model: None: the profile's first.
    """
    chosen = load_profile(profile)
    if chosen.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return CloserLook(chosen, model, seed)
