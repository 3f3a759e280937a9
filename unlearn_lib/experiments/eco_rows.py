"""The tidy rows of experiment 3 beside the models' own measures: guard, search, costs, attacks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from unlearn_lib import metrics
from unlearn_lib.experiments.closer_look_stages import IMPLANTED, REFERENCE
from unlearn_lib.experiments.eco_costs import EcoCosts
from unlearn_lib.experiments.eco_tasks import ECO, PROMPTING
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.metrics.tidy import Row
from unlearn_lib.settings import Task

STAGES = {
    ORIGINAL: "base",
    IMPLANTED: "implanted",
    REFERENCE: "reference",
    ECO: "guarded",
    PROMPTING: "guarded",
}


class EcoRows(EcoCosts):
    """One model and one seed of experiment 3: what is not a measure of one model, as rows."""

    def changed(self, task: Task, who: str) -> tuple[float, int, int]:
        """What a model costs once: seconds to make it, parameters changed, bytes stored."""
        if who == PROMPTING:
            return 0.0, 0, len(self.prefix(task).encode())
        if who == ECO:
            trained, searched = self.guard(task), self.searched(task)
            seconds = trained.result["seconds"] + searched.result["seconds"]
            return seconds, 0, _bytes(searched.folder / "guard")
        last = self.tasks[task].trained(who)[-1]
        folder = last.folder / "model"
        return last.result["seconds"], _parameters(folder), _bytes(folder)

    def guard_rows(self, task: Task) -> list[Row]:
        """The tidy rows of a task's guard: its errors on held-out prompts, and the search."""
        trained, searched = self.guard(task), self.searched(task)
        found = dict(trained.result["rates"])
        found["guard_threshold"] = _exact(trained.result["threshold"])
        rows = [
            self._row("guard", task, "guarded", ECO, metric, value, trained)
            for metric, value in found.items()
        ]
        for step in searched.result["steps"]:
            split = f"{task} {step['step']:02d}"
            for metric, value in (
                ("search_strength", step["strength"]),
                ("search_objective", step["objective"]),
                ("model_calls", step["calls"]),
            ):
                rows.append(
                    self._row("search", split, "guarded", ECO, metric, _exact(value), searched)
                )
        return rows

    def cost_rows(self) -> list[Row]:
        """The tidy rows of costs, side effects, attacks and scaling."""
        rows = [row for task in self.task_names for row in self._once_rows(task)]
        if "entities" in self.tasks:
            for who in self.tasks["entities"].models():
                if who not in (ORIGINAL, IMPLANTED):
                    rows += self._unrelated_rows(who)
            for who in self.attacked_models():
                rows += self._robustness_rows(who)
        if self.settings.evaluation.scaling:
            rows += self._scaling_rows()
        return rows

    def _once_rows(self, task: Task) -> list[Row]:
        rows = []
        for who in self.tasks[task].models():
            given = who == REFERENCE and not self.tasks[task].trained(who)
            if who in (ORIGINAL, IMPLANTED) or given:
                continue
            seconds, parameters, stored = self.changed(task, who)
            run = (
                self.searched(task)
                if who in (ECO, PROMPTING)
                else self.tasks[task].trained(who)[-1]
            )
            for metric, value in (
                ("seconds", seconds), ("parameters_changed", parameters), ("bytes_stored", stored),
            ):  # fmt: skip
                rows.append(self._row("costs", task, *place_of(who), metric, _exact(value), run))
        return rows

    def _unrelated_rows(self, who: str) -> list[Row]:
        run, found, place = self.unrelated(who), self.side_effects(who), place_of(who)
        passed = [same for same, flag in zip(found["same"], _flags(found), strict=True) if not flag]
        values = {"unchanged_share": asdict(metrics.proportion(passed))} if passed else {}
        values["rougeL_original"] = asdict(metrics.bootstrap(found["rouge"]))
        rows = [
            self._row("unrelated", "unrelated", *place, metric, value, run)
            for metric, value in values.items()
        ]
        plain, mine = found["seconds"]
        count = len(found["same"])
        extra = max(0.0, mine - plain) if who in (ECO, PROMPTING) else 0.0
        per_prompt = found["guard_seconds"] if who == ECO else extra
        if who in (ECO, PROMPTING):
            ratio = _exact(mine / plain, count)
            rows.append(self._row("unrelated", "unrelated", *place, "time_ratio", ratio, run))
        for metric, value in (
            ("milliseconds_per_prompt", 1000 * per_prompt / count),
            ("milliseconds_per_token", 1000 * extra / max(1, found["tokens"])),
        ):
            rows.append(self._row("costs", "entities", *place, metric, _exact(value, count), run))
        return rows

    def _robustness_rows(self, who: str) -> list[Row]:
        run, rows = self.robustness(who), []
        for name, part in self.attacks(who).items():
            values = {"rougeL_recall": metrics.bootstrap(part["rouge"])}
            if part["leaked"] is not None:
                values["leak_share"] = metrics.proportion(part["leaked"])
            if "missed" in part:
                values["false_negative_rate"] = metrics.proportion(part["missed"])
            rows += [
                self._row("robustness", name, *place_of(who), metric, asdict(value), run)
                for metric, value in values.items()
            ]
        return rows

    def _scaling_rows(self) -> list[Row]:
        run, rows = self.scaling(), []
        for size in run.result["sizes"]:
            split, metric = str(size["parameters"]), "milliseconds_per_prompt"
            for stage, method, times in (
                ("guarded", ECO, size["guard"]), ("base", ORIGINAL, size["model"]),
            ):  # fmt: skip
                value = {"value": float(np.median(times)), "low": min(times), "high": max(times)}
                value |= {"n": len(times)}
                rows.append(self._row("scaling", split, stage, method, metric, value, run))
        return rows


def place_of(who: str) -> tuple[str, str]:
    """The stage and the method of a model in the tidy table."""
    stage = STAGES.get(who, "unlearned")
    return stage, who if stage in ("unlearned", "guarded") else ORIGINAL


def _flags(found: dict[str, Any]) -> list[bool]:
    return found.get("flagged") or [False] * len(found["same"])


def _exact(value: float, count: int = 1) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "n": count}


def _parameters(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            names = list(tensors.keys())
            total += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)
    return total


def _bytes(folder: Path) -> int:
    """Bytes of weights; what lies beside them may name folders, whose length varies."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
