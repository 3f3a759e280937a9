"""What every experiment's stages share: one model, one seed, the run store, tidy rows.

Keys hold the rows that a stage really reads, so that a change in the profile reruns what it
touches and nothing else.
"""

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from unlearn_lib import assets, models, training
from unlearn_lib.methods import find_method
from unlearn_lib.metrics.tidy import Row, write
from unlearn_lib.profiles import Profile, rows_path
from unlearn_lib.runs import Run, RunStore, merge_provenance, write_text
from unlearn_lib.settings import ExperimentSettings, Settings
from unlearn_lib.tiny import tiny_opt

TINY = "embedded/tiny-opt"
ORIGINAL = "none"


class Stages:
    """One model and one seed of an experiment.

    Args:
        profile: a loaded profile.
        settings: the profile's block of this experiment.
        model_id: one of the experiment's models; None for its first.
        seed: decides the rows of every step, the adapter's start and its dropout.
    """

    experiment: str

    def __init__(
        self, profile: Profile, settings: ExperimentSettings, model_id: str | None, seed: int
    ) -> None:
        self.profile = profile
        self.model_id = model_id or settings.models[0].id
        self.model = settings.model(self.model_id)
        self.seed = seed
        self.store = RunStore(profile.results)
        for method in settings.methods:
            find_method(method.uses)
        self.methods = [method.name for method in settings.methods]
        self.labels = {method.name: method.label for method in settings.methods}

    @functools.cached_property
    def weights(self) -> assets.Asset:
        """The model's files as they were found, or made (profile smoke)."""
        if self.model_id == TINY:
            return tiny_opt(self._texts_for_tiny())
        found = assets.find_model(self.model_id)
        print(f"{self.model_id}: from {found.source}.")
        return found

    def _texts_for_tiny(self) -> list[str]:
        raise NotImplementedError

    def described(self) -> list[tuple[str, Any]]:
        """What a notebook says first: profile, model, how it is trained and held, seed."""
        model, lora = self.model, self.model.lora
        adapter = f"LoRA rank {lora.rank}, α {lora.alpha} on {lora.targets}" if lora else ""
        return [
            ("profile", self.profile.name),
            ("model", model.id),
            ("weights from", self.weights.source),
            ("trained", adapter or "all weights"),
            ("precision", f"{model.precision}, quantisation {model.quantization}"),
            ("seed", self.seed),
            ("methods", ", ".join(self.labels.values())),
        ]

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The original model's tokenizer."""
        return AutoTokenizer.from_pretrained(self.weights.folder, trust_remote_code=False)

    @functools.cached_property
    def context(self) -> int:
        """The model's longest input in tokens."""
        return int(AutoConfig.from_pretrained(self.weights.folder).max_position_embeddings)

    def _fresh(self, asset: assets.Asset) -> models.LanguageModel:
        return models.load(asset, self.model, self.profile.device)

    def _holding(self) -> dict[str, Any]:
        """The settings that decide how the weights are held while the model answers."""
        names = {"id", "precision", "quantization"}
        return self.model.model_dump(mode="json", include=names) | {"all": self.model.lora is None}

    def unlearned(self, name: str, on_step: training.OnStep | None = None) -> Run:
        """Train the model to forget by one of the profile's methods, or return that run."""
        raise NotImplementedError

    def history(self, name: str) -> pd.DataFrame:
        """The loss curve of a method: one row per step."""
        return pd.read_csv(self.unlearned(name).folder / "history.csv")

    def rows(self) -> pd.DataFrame:
        """The tidy rows of everything measured with this model and seed."""
        raise NotImplementedError

    def save_rows(self) -> Path:
        """Write the tidy rows of this model and seed where `collect` finds them."""
        path = rows_path(self.profile, self.experiment, self.model_id, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, self.rows())
        origin = merge_provenance(self.store.visited)
        write_text(path.with_suffix(".json"), json.dumps(origin, indent=1, sort_keys=True) + "\n")
        return path

    def _row(
        self, scenario: str, split: str, stage: str, name: str, metric: str,
        value: dict[str, Any], run: Run,
    ) -> Row:  # fmt: skip
        return Row(
            self.experiment, scenario, self.model_id, name, stage, split, self.seed, metric,
            **value, run=run.key,
        )  # fmt: skip

    def _costs(self, split: str, stage: str, name: str, run: Run) -> list[Row]:
        costs = {"seconds": run.result["seconds"]}
        costs["peak_memory_bytes"] = run.provenance["peak_memory_bytes"]
        return [
            self._row("training", split, stage, name, metric,
                      {"value": v, "low": v, "high": v, "n": 1}, run)
            for metric, v in costs.items()
        ]  # fmt: skip


def keep_outcome(outcome: training.Outcome, folder: Path) -> dict[str, Any]:
    """Write a training's history into a run's folder; return the rest, to be recorded."""
    pd.DataFrame(outcome.history).to_csv(folder / "history.csv", index=False)
    record = asdict(outcome)
    del record["history"]
    return record | {"steps": len(outcome.history)}


def dump(settings: Settings, *leave_out: str) -> dict[str, Any]:
    """Settings as JSON, without those that change no result."""
    return settings.model_dump(mode="json", exclude=set(leave_out))


def digest(*tables: Dataset) -> str:
    """The sha256 of the rows of data sets, in order."""
    text = json.dumps([table.to_list() for table in tables], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
