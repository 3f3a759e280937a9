"""Experiment 2: implant a book, then forget it (Arora et al. 2024, Table 2). Verbs of notebook 02.

Stages, each a run in the store: `pretrain` (profile smoke only) → `implant` → `unlearn` per
method → `continue` (passages of each part, and prose) → `compare` (with the base model, which
is the exact answer to «never trained on it»). The stages up to the continuations are in
`book_stages.py`.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.experiments.book_measures import measure
from unlearn_lib.experiments.book_stages import IMPLANTED, VERSION, BookStages
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.metrics.tidy import Row, to_frame
from unlearn_lib.profiles import load_profile
from unlearn_lib.runs import Run, Spec


class BookExperiment(BookStages):
    """One model and one seed of experiment 2: implanted, unlearned, measured, in tidy rows."""

    def measured(self, name: str = ORIGINAL) -> Run:
        """Measure the base model (`none`), the implanted one (`implanted`), or a method's."""
        now, base = self.continued(name), self.continued()
        spec = Spec("compare", {}, (now.key, base.key), version=VERSION["compare"])

        def compute(folder: Path) -> dict[str, Any]:
            mine, theirs = (
                json.loads((run.folder / "continuations.json").read_text()) for run in (now, base)
            )
            is_base = now.key == base.key
            found = measure(mine, theirs, (now.folder, base.folder), is_base)
            return {"metrics": [[*place, asdict(value)] for *place, value in found]}

        return self.store.get(spec, compute)

    def rows(self) -> pd.DataFrame:
        """The tidy rows of everything measured with this model and seed."""
        rows: list[Row] = []
        for name in (ORIGINAL, IMPLANTED, *self.methods):
            stage = {ORIGINAL: "base", IMPLANTED: "implanted"}.get(name, "unlearned")
            method = name if stage == "unlearned" else ORIGINAL
            run = self.measured(name)
            for scenario, split, metric, value in run.result["metrics"]:
                rows.append(self._row(scenario, split, stage, method, metric, value, run))
            if stage != "base":
                trained = self.implanted() if stage == "implanted" else self.unlearned(name)
                rows += self._costs("forget", stage, method, trained)
        return to_frame(rows)


def open_experiment(
    profile: str, model: str | None, seed: int, book: str | None = None
) -> BookExperiment:
    """Open experiment 2 for a profile's name, one of its models, a seed, and perhaps a book.

    Args:
        model: None: the profile's first.
        book: path of the reader's own text; None: the embedded saga.
    """
    chosen = load_profile(profile, book)
    if chosen.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return BookExperiment(chosen, model, seed)
