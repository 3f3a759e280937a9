"""A small run of all six tasks: fewer methods, rows and steps than profile smoke."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from unlearn_lib.experiment import Experiment
from unlearn_lib.profile import Profile, load_profile
from unlearn_lib.store import Run, RunStore, Spec

FEW = """
name: few
extends: smoke
device: cpu
guards: {eco: {classifier: {epochs: 0.1, maximum_length: 32}, search: {steps: 1}}}
tasks:
  harm:
    pretrain: {epochs: 4}
    data: {evaluation_prompts: 6, normal_prompts: 6}
    methods: [ga, refusal]
    method: {steps: 3}
    overrides: null
    evaluation: {new_tokens: 8}
  book:
    pretrain: {epochs: 3}
    teach: {epochs: 6, probe_every: 6, learning_rate: 2.0e-2}
    data: {evaluation_passages: 4, normal_prompts: 4, retain_rows: 12}
    methods: [ga, merged, retrain, released]
    method: {steps: 2}
    overrides: null
  authors:
    data: {evaluation_rows: 4, questions_per_author: 4}
    methods: [ga_gd, me_gd]
    evaluation: {new_tokens: 12, judge_authors: 4, scaling: [32]}
    overrides: {eco: {classifier: {epochs: 0.6, learning_rate: 1.0e-3}}}
  continual: {methods: [ga_gd]}
  people: {methods: [me_gd], data: {rows: 20}}
  science: {teach: {epochs: 3}, data: {rows: 8, general_rows: 6}}
"""


@dataclass(frozen=True)
class Finished:
    """A profile that has run: its experiments by task, and their items by task."""

    profile: Profile
    experiments: dict[str, Experiment]
    items: dict[str, pd.DataFrame]

    @property
    def runs(self) -> dict[str, int]:
        """When each run was stored: the same as before where nothing was computed since."""
        files = (self.profile.results / "runs").glob("*/run.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in files}


def run_few(root: Path) -> Finished:
    """Run all six tasks; results lie below `profile.ROOT`, which a test puts elsewhere."""
    profile = few(root)
    tasks: list[str] = [*profile.running()]
    experiments = {task: Experiment(profile, task) for task in tasks}
    items = {task: each.items() for task, each in experiments.items()}
    return Finished(profile, experiments, items)


def few(folder: Path, **methods: list[str]) -> Profile:
    """The small profile, or with other methods of some tasks."""
    path = folder / "few.yaml"
    tree = yaml.safe_load(FEW)
    for task, names in methods.items():
        tree["tasks"][task]["methods"] = names
    path.write_text(yaml.safe_dump(tree))
    return load_profile(path)


class Recorder(RunStore):
    """A store that computes nothing: it writes down what it is asked for.

    A run that is not stored has no files, but its key.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: list[Spec] = []

    def get(self, spec: Spec, *_: Any, **__: Any) -> Run:
        """Return the stored run, or one without files."""
        self.asked.append(spec)
        return self.find(spec) or Run(spec.key, self.folder / "runs" / spec.key)


def keys(profile: Profile) -> dict[tuple[str, str, str], list[str]]:
    """The keys of all runs that the items of a profile need, by task, model and stage."""
    needed: dict[tuple[str, str, str], list[str]] = {}
    for task in profile.running():
        experiment = Experiment(profile, task)
        for name in experiment.names():
            experiment.store = store = Recorder(profile.results)
            experiment.measured(name, experiment.task.parts[-1])
            for spec in store.asked:
                needed.setdefault((task, name, spec.stage), []).append(spec.key)
    return needed
