"""Experiment 1: fewer harmful answers (Arora et al. 2024, Table 1). Verbs of notebook 01.

Stages, each a run in the store: `implant` (profile smoke only) → `unlearn` per method →
`answers` (to held-out harmful and to normal prompts, and losses on retained text) → `measure`
(judged by the `classifier` run). The stages up to the answers are in `harmful_stages.py`.
"""

import functools
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from unlearn_lib import assets, classifiers, models
from unlearn_lib.datasets import harmful as data
from unlearn_lib.experiments.harmful_measures import measure
from unlearn_lib.experiments.harmful_stages import VERSION, HarmfulStages
from unlearn_lib.experiments.stages import ORIGINAL, digest, dump
from unlearn_lib.metrics.tidy import Row, to_frame
from unlearn_lib.profiles import load_profile
from unlearn_lib.runs import Run, Spec, write_text

JUDGE_SEED = 0


class HarmfulExperiment(HarmfulStages):
    """One model and one seed of experiment 1: trained, answering, judged, in tidy rows."""

    @functools.cached_property
    def sentence_encoder(self) -> Any:
        """The sentence encoder of the similarity to the original answers."""
        asset = assets.find_model(self.settings.evaluation.encoder)
        return classifiers.sentence_encoder(asset.folder)

    @functools.cached_property
    def bleurt(self) -> assets.Asset | str | None:
        """BLEURT's weights; why there are none, if the profile asks for it; None if not."""
        name = self.settings.evaluation.bleurt
        if name is None:
            return None
        try:
            return assets.find_model(name)
        except assets.NotToBeHad:
            print(
                f"The BLEURT weights '{name}' are not to be had, so bleurt_original is left out; "
                f"put them in a folder models/{name} below UNLEARN_MIRROR."
            )
            return f"not to be had: {name}"

    def classifier(self) -> Run:
        """Train the judge of harm on the training objectives; score it on the held-out ones."""
        chosen = self.settings.classifier
        base = assets.find_model(chosen.base)
        judged = self._judge_rows
        spec = Spec(
            "classifier",
            {"classifier": dump(chosen, "threshold", "file"), "seed": JUDGE_SEED},
            data={"base": base.sha256, **judged["sha256"]},
            version=VERSION["classifier"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            judge = self._fit_judge(base, judged["train"])
            judge.save(folder / "classifier")
            scores = classifiers.held_out_scores(judge, *judged["test"])
            return {"scores": {name: asdict(found) for name, found in scores.items()}}

        return self.store.get(spec, compute)

    @functools.cached_property
    def _judge_rows(self) -> dict[str, Any]:
        chosen = self.settings.classifier
        if chosen.data == "jigsaw":
            train, test, sha256 = data.jigsaw(chosen.rows, JUDGE_SEED, chosen.file)
            flags = [any(row) for row in test["labels"]]
            held_out = ([""] * len(test), test["text"], flags)
            return {"train": train, "test": held_out, "sha256": {"jigsaw": sha256}}
        train, test = self.data.scored_train, self.data.scored_test
        held_out = (list(test["question"]), list(test["answer"]), list(test["harmful"]))
        return {"train": train, "test": held_out, "sha256": {"scored": digest(train, test)}}

    def _fit_judge(self, base: assets.Asset, train: Dataset) -> classifiers.HarmClassifier:
        chosen = self.settings.classifier
        if chosen.kind == "embedding":
            return classifiers.EmbeddingClassifier.fit(
                classifiers.sentence_encoder(base.folder),
                list(train["question"]),
                list(train["answer"]),
                list(train["harmful"]),
                seed=JUDGE_SEED,
            )
        if chosen.data == "jigsaw":
            table = np.array(train["labels"]) > 0
            targets = {name: table[:, i] for i, name in enumerate(data.JIGSAW_LABELS)}
            texts = list(train["text"])
        else:
            texts, targets = list(train["answer"]), {"harmful": np.array(train["harmful"])}
        settings = classifiers.SequenceSettings(
            epochs=chosen.epochs,
            use_cpu=models.choose_device(self.profile.device).type == "cpu",
            progress=True,
        )
        return classifiers.SequenceClassifier.fit(base.folder, texts, targets, settings, JUDGE_SEED)

    def measured(self, name: str = ORIGINAL) -> Run:
        """Judge and measure the answers of the original or an unlearned model."""
        answered, before, judge = self.answers(name), self.answers(), self.classifier()
        encoder = assets.find_model(self.settings.evaluation.encoder)
        used = {"encoder": encoder.sha256}
        if isinstance(self.bleurt, assets.Asset):
            used["bleurt"] = self.bleurt.sha256
        spec = Spec(
            "measure",
            {"threshold": self.settings.classifier.threshold},
            (answered.key, before.key, judge.key),
            used,
            VERSION["measure"],
        )
        return self.store.get(spec, lambda folder: self._measure(folder, answered, before, judge))

    def _measure(self, folder: Path, answered: Run, before: Run, judge: Run) -> dict[str, Any]:
        harmful_judge = classifiers.load(judge.folder / "classifier", self._judge_encoder())
        now, then = (
            json.loads((r.folder / "answers.json").read_text()) for r in (answered, before)
        )
        found, flags = measure(
            now,
            then,
            list(self.data.evaluation["question"]),
            harmful_judge,
            self.sentence_encoder,
            self.settings.classifier.threshold,
            is_original=answered.key == before.key,
            bleurt=self._bleurt_scores if isinstance(self.bleurt, assets.Asset) else None,
        )
        write_text(folder / "judgements.json", json.dumps(flags))
        source = self.bleurt.source if isinstance(self.bleurt, assets.Asset) else self.bleurt
        triples = [[scenario, name, asdict(value)] for scenario, name, value in found]
        return {"metrics": triples, "bleurt": source}

    def _judge_encoder(self) -> Any:
        chosen = self.settings.classifier
        if chosen.kind != "embedding" or chosen.base == self.settings.evaluation.encoder:
            return self.sentence_encoder
        return classifiers.sentence_encoder(assets.find_model(chosen.base).folder)

    def _bleurt_scores(self, references: Any, candidates: Any) -> np.ndarray:
        assert isinstance(self.bleurt, assets.Asset)
        device = models.choose_device(self.profile.device).type
        return classifiers.bleurt_scores(self.bleurt.folder, references, candidates, device=device)

    def rows(self) -> pd.DataFrame:
        """The tidy rows of everything measured with this model and seed."""
        splits = {"held_out": "test", "classifier": "test"}
        rows: list[Row] = []
        for name in (ORIGINAL, *self.methods):
            run = self.measured(name)
            stage = "base" if name == ORIGINAL else "unlearned"
            for scenario, metric, value in run.result["metrics"]:
                split = splits.get(scenario, "retain_test")
                rows.append(self._row(scenario, split, stage, name, metric, value, run))
            if name != ORIGINAL:
                rows += self._costs("retain_test", stage, name, self.unlearned(name))
        judge = self.classifier()
        for metric, value in judge.result["scores"].items():
            rows.append(self._row("classifier", "test", "base", ORIGINAL, metric, value, judge))
        return to_frame(rows)


def open_experiment(profile: str, model: str | None, seed: int) -> HarmfulExperiment:
    """Open experiment 1 for a profile's name, one of its models (None: the first) and a seed."""
    chosen = load_profile(profile)
    if chosen.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return HarmfulExperiment(chosen, model, seed)
