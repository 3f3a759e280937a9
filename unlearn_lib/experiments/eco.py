"""Experiment 3: a guard in front of a model, beside methods that train (Liu et al. 2024, ECO).

Verbs of notebook 03. Stages, each a run in the store: `guard` → `search` per task (in
`eco_stages.py`) → `ask` (answers, passages, choices of every model) → `compare` (with the retained
model) → `robustness`, `unrelated` and `scaling` (in `eco_costs.py`).
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib import assets, generation, metrics
from unlearn_lib.datasets.tofu import digest
from unlearn_lib.experiments import eco_measures as measures
from unlearn_lib.experiments.closer_look_measures import FORGET, RETAIN, ask, measure
from unlearn_lib.experiments.closer_look_measures import log as tofu_log
from unlearn_lib.experiments.closer_look_stages import REFERENCE
from unlearn_lib.experiments.eco_rows import EcoRows, place_of
from unlearn_lib.experiments.eco_tasks import ECO, PROMPTING, Science
from unlearn_lib.experiments.stages import ORIGINAL, dump
from unlearn_lib.metrics import Estimate
from unlearn_lib.metrics.tidy import Row, to_frame
from unlearn_lib.profiles import load_profile
from unlearn_lib.runs import Run, Spec, write_text
from unlearn_lib.settings import Task

VERSION = {"ask": 1, "compare": 1}
KEPT = "kept"
WANTED = {
    (FORGET, "forget_quality"),
    (FORGET, "refusal_share"),
    ("all", "model_utility"),
    (RETAIN, "rougeL_recall"),
    (RETAIN, "refusal_share"),
}


class Eco(EcoRows):
    """One model and one seed of experiment 3: guarded, compared, attacked, in tidy rows."""

    def answered(self, who: str) -> Run:
        """Ask a model of the entities every question, and score right and wrong answers.

        The models of experiment 4 come from its runs; only guard and prompting are asked here.
        """
        if who not in (ECO, PROMPTING):
            return self.tofu.scored(who)
        sets = self.tofu.sets("fictitious")
        chosen = self.tofu.settings.evaluation
        parents, judged = self.tofu._judge_data()
        spec = Spec(
            "ask",
            {"evaluation": dump(chosen, "bleurt", "encoder", "judge_authors")}
            | {"prefix": self.prefix_of("entities", who), **self.reading("entities")},
            (*self.made("entities", who), *parents),
            {"weights": self.origin("entities", who), **judged}
            | {name: digest(*rows) for name, rows in sets.items()},
            VERSION["ask"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self.model_of("entities", who)
            encoder = self.asking("entities", who, self.tofu.encoder)
            record = ask(found, sets, encoder, chosen, self.tofu.judges, False)
            write_text(folder / "scores.json", json.dumps(record))
            return {"hardware": found.hardware}

        return self.store.get(spec, compute)

    def prefix_of(self, task: Task, who: str) -> str:
        """What stands before a model's questions: something for the prompting baseline only."""
        return self.prefix(task) if who == PROMPTING else ""

    def record(self, who: str) -> dict[str, Any]:
        """What `answered` wrote."""
        return json.loads((self.answered(who).folder / "scores.json").read_text())

    def said(self, who: str) -> Run:
        """Judge a model's answers about what is to be forgotten, as texts."""
        now, scorer = self.answered(who), self.scorer_asset("entities")
        encoder = assets.find_model(self.settings.evaluation.encoder)
        spec = Spec(
            "said",
            {"scorer": self._holding()},
            (now.key,),
            {"encoder": encoder.sha256, "scorer": scorer.sha256},
            VERSION["ask"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            rows = self.tofu.sets("fictitious")[FORGET]
            texts = self.record(who)[FORGET]["texts"]
            tokenizer, encoder = self.tofu.tokenizer, self.tofu.encoder
            given = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            found = measures.said(
                given, [row.answer for row in rows], [encoder.prompt(row.question) for row in rows],
                tokenizer, self.sentence_encoder, self.scorer,
            )  # fmt: skip
            leaked = measures.leaked(texts, rows)
            write_text(folder / "said.json", json.dumps(found))
            return {"leaked": None if leaked is None else leaked.tolist()}

        return self.store.get(spec, compute)

    def entities_measured(self, who: str) -> Run:
        """Measure a model of the entities against the exact reference, where there is one."""
        task = self.tofu
        others = (REFERENCE,) if task.has_reference else ()
        runs = [run for name in (who, *others) for run in (self.answered(name), self.said(name))]
        spec = Spec("compare", {"of": "entities"}, tuple(run.key for run in runs),
                    version=VERSION["compare"])  # fmt: skip

        def compute(folder: Path) -> dict[str, Any]:
            record, said = self.record(who), _read(self.said(who), "said.json")
            exact = self.record(REFERENCE) if others else None
            retained = _read(self.said(REFERENCE), "said.json") if others else None
            found = [each for each in measure(record, exact, who) if each[:2] in WANTED]
            found += [(FORGET, *each) for each in measures.said_measured(said, retained)]
            if exact is not None:
                logs = tofu_log(record, who), tofu_log(exact, REFERENCE)
                found.append((FORGET, "ks_distance", metrics.forget_distance(*logs)))
            leaked = self.said(who).result["leaked"]
            if leaked is not None:
                found.append((FORGET, "leak_share", metrics.proportion(leaked)))
            return {"metrics": _as_json(found)}

        return self.store.get(spec, compute)

    def continued(self, who: str) -> Run:
        """Let a model continue passages to forget and to keep; only numbers are stored."""
        book, chosen = self.book, self.book.settings.evaluation
        encoder = assets.find_model(self.settings.evaluation.encoder)
        parts = {part: book.passages(part) for part in (FORGET, KEPT)}
        spec = Spec(
            "ask",
            {"evaluation": dump(chosen, "bleurt", "encoder"), **self.reading("book")}
            | {"prefix": self.prefix_of("book", who)},
            self.made("book", who),
            {"weights": self.origin("book", who), "scorer": self.scorer_asset("book").sha256}
            | {"encoder": encoder.sha256}
            | {part: digest(*rows) for part, rows in parts.items()},
            VERSION["ask"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self.model_of("book", who)
            lead = tuple(book.encoder.tokens(self.prefix_of("book", who)))
            prompts = [(*lead, *row.prompt) for rows in parts.values() for row in rows]
            size, length = chosen.batch_size, chosen.new_tokens
            given = iter(generation.continuations(found, prompts, length, size))
            record = {part: self._passages(rows, given, length) for part, rows in parts.items()}
            write_text(folder / "continuations.json", json.dumps(record))
            return {"hardware": found.hardware}

        return self.store.get(spec, compute)

    def _passages(self, rows: Sequence[Any], given: Any, length: int) -> dict[str, Any]:
        own = [next(given) for _ in rows]
        truths = [list(row.answers[0][:length]) for row in rows]
        tokenizer = self.book.tokenizer
        found = measures.said(
            own, [tokenizer.decode(truth, skip_special_tokens=True) for truth in truths],
            [row.prompt for row in rows], tokenizer, self.sentence_encoder, self.book_scorer,
        )  # fmt: skip
        return found | {"verbatim": measures.verbatim(own, truths)}

    def book_measured(self, who: str) -> Run:
        """Measure a model of the book against the base model, which never saw it."""
        now, base = self.continued(who), self.continued(ORIGINAL)
        spec = Spec("compare", {"of": "book"}, (now.key, base.key), version=VERSION["compare"])

        def compute(folder: Path) -> dict[str, Any]:
            mine, theirs = (_read(run, "continuations.json") for run in (now, base))
            found = []
            for part, record in mine.items():
                retained = theirs[part] if part == FORGET else None
                found += [(part, *each) for each in measures.said_measured(record, retained)]
                found.append((part, "verbatim_share", metrics.proportion(record["verbatim"])))
            return {"metrics": _as_json(found)}

        return self.store.get(spec, compute)

    def chosen(self, who: str) -> Run:
        """Let a model of the science choose among four answers to questions in other words."""
        splits, settings = self.science, self.settings.science
        task = self.tasks["science"]
        assert isinstance(task, Science)
        sets = {FORGET: splits.reworded(splits.forget), RETAIN: splits.reworded(task.asked_retain)}
        sets["general"] = splits.general
        spec = Spec(
            "ask",
            {"model": self._holding(), "prefix": self.prefix_of("science", who)} | self._encoding(),
            self.made("science", who),
            {"weights": self.weights.sha256} | {name: digest(*rows) for name, rows in sets.items()},
            VERSION["ask"],
        )
        assert settings is not None

        def compute(folder: Path) -> dict[str, Any]:
            found = self.model_of("science", who)
            encoder = self.asking("science", who, self.encoder)
            record = {name: measures.choices(found, encoder, rows) for name, rows in sets.items()}
            write_text(folder / "choices.json", json.dumps(record))
            return {"metrics": _as_json(measures.choices_measured(record, FORGET))}

        return self.store.get(spec, compute)

    def measured(self, task: Task, who: str) -> Run:
        """Measure one model of one task."""
        by_task = {
            "entities": self.entities_measured,
            "book": self.book_measured,
            "science": self.chosen,
        }
        return by_task[task](who)

    def estimates(self, task: Task, who: str) -> dict[tuple[str, str], Estimate]:
        """Every measured value of a model of a task, by split and metric."""
        found = self.measured(task, who).result["metrics"]
        return {(split, metric): Estimate(**value) for split, metric, value in found}

    def rows(self) -> pd.DataFrame:
        """The tidy rows of everything measured with this model and seed."""
        rows: list[Row] = []
        for name, task in self.tasks.items():
            for who in task.models():
                run = self.measured(name, who)
                stage, method = place_of(who)
                for split, metric, value in run.result["metrics"]:
                    rows.append(self._row(name, split, stage, method, metric, value, run))
            rows += self.guard_rows(name)
        rows += self.cost_rows()
        return to_frame(rows)


def _read(run: Run, name: str) -> Any:
    return json.loads((run.folder / name).read_text())


def _as_json(found: Sequence[tuple[str, str, Estimate]]) -> list[list[Any]]:
    return [[split, metric, asdict(value)] for split, metric, value in found]


def open_experiment(profile: str, model: str | None, seed: int) -> Eco:
    """Open experiment 3 for a profile's name, one of its models, and a seed.

    Args:
        model: None: the profile's first.
    """
    chosen = load_profile(profile)
    if chosen.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return Eco(chosen, model, seed)
