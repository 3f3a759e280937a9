"""A small run of all six tasks: fewer methods, rows and steps than profile smoke."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from unlearn_lib import profile as profiles
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
    pretrain: {epochs: 2}
    teach: {epochs: 8, probe_every: 8}
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
    """A profile that has run: its items by task, and the experiments that gave them."""

    profile: Profile
    experiments: dict[str, Experiment]
    items: pd.DataFrame


def run_few(root: Path) -> Finished:
    """Run all six tasks; results lie below `root`, which takes the place of the project's."""
    path = root / "few.yaml"
    path.write_text(FEW)
    profile = load_profile(path)
    experiments = {task: Experiment(profile, task) for task in profile.running()}
    import time
    frames=[]
    for k,each in experiments.items():
        t=time.process_time(); frames.append(each.items()); print(k, time.process_time()-t,flush=True)
    return Finished(profile, experiments, pd.concat(frames))
