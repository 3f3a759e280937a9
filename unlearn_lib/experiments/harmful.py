"""Experiment 1: fewer harmful answers (Arora et al. 2024, Table 1). Verbs of notebook 01.

Stages, each a run in the store: `implant` (profile smoke only) → `unlearn` per method →
`answers` (to held-out harmful and to normal prompts, and losses on retained text) → `measure`
(judged by the `classifier` run). Keys hold the rows that a stage really reads, so that a change
in the profile reruns what it touches and nothing else.
"""

import functools
import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from unlearn_lib import assets, classifiers, generation, metrics, models, scoring, training
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.datasets import harmful as data
from unlearn_lib.experiments.harmful_measures import measure
from unlearn_lib.methods import find_method
from unlearn_lib.metrics.tidy import Row, to_frame, write
from unlearn_lib.profiles import MethodSettings, Profile, Settings, load_profile, slug
from unlearn_lib.runs import Run, RunStore, Spec, merge_provenance, write_text

TINY = "embedded/tiny-opt"
ORIGINAL = "none"
JUDGE_SEED = 0
VERSION = {"implant": 1, "own": 1, "unlearn": 1, "answers": 1, "classifier": 1, "measure": 1}


class HarmfulExperiment:
    """One model and one seed of experiment 1.

    Args:
        profile: a loaded profile.
        model_id: one of the profile's models; None for its first.
        seed: decides the rows of every step, the adapter's start and its dropout.
    """

    def __init__(self, profile: Profile, model_id: str | None, seed: int) -> None:
        self.profile = profile
        self.settings = profile.harmful
        self.model_id = model_id or self.settings.models[0].id
        self.model = self.settings.model(self.model_id)
        self.seed = seed
        self.store = RunStore(profile.results)
        for method in self.settings.methods:
            find_method(method.uses)
        self.methods = [method.name for method in self.settings.methods]
        self.labels = {method.name: method.label for method in self.settings.methods}

    @functools.cached_property
    def weights(self) -> assets.Asset:
        """The original model's files: found, or made (profile smoke) and implanted."""
        if self.model_id != TINY:
            found = assets.find_model(self.model_id)
            print(f"{self.model_id}: from {found.source}.")
            return found
        limits = ("forget_rows", "evaluation_prompts", "normal_prompts", "retain_rows")
        rows = data.load(self.settings.data.model_copy(update=dict.fromkeys(limits)))
        texts: list[str] = []
        for graded in (rows.scored_train, rows.scored_test):
            texts += [*graded["question"], *graded["answer"]]
        for normal in (rows.retain, rows.normal):
            texts += [*normal["question"], *(text for some in normal["answers"] for text in some)]
        return models.tiny_opt(sorted(texts))

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The original model's tokenizer."""
        return AutoTokenizer.from_pretrained(self.weights.folder, trust_remote_code=False)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """Turns questions and answers into tokens, alike in training and evaluation."""
        chosen = self.settings.data
        context = AutoConfig.from_pretrained(self.weights.folder).max_position_embeddings
        return TextEncoder(
            self.tokenizer, chosen.template, chosen.prompt_tokens, chosen.answer_tokens, context
        )

    @functools.cached_property
    def data(self) -> data.HarmfulSplits:
        """The rows of this experiment, split."""
        return data.load(self.settings.data, self.encoder.fits)

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

    def original(self) -> tuple[assets.Asset, tuple[str, ...]]:
        """The model before unlearning: its files, and the keys of the runs that made it."""
        if self.settings.implant is None:
            return self.weights, ()
        rows = self.data
        spec = Spec(
            "implant",
            {"implant": dump(self.settings.implant), **self._reading()},
            data={"weights": self.weights.sha256, "rows": digest(rows.forget, rows.retain)},
            version=VERSION["implant"],
        )
        run = self.store.get(spec, self._implant)
        return assets.Asset(self.model_id, run.folder / "model", "run", run.key), (run.key,)

    def _implant(self, folder: Path) -> dict[str, Any]:
        whole = self.model.model_copy(update={"lora": None, "quantization": "none"})
        found = models.load(self.weights, whole, self.profile.device)
        models.make_trainable(found, whole, seed=0)
        encode, rows = self.encoder.example, self.data
        examples = [encode(row["question"], row["answer"]) for row in rows.forget]
        examples += [encode(row["question"], row["answers"][0]) for row in rows.retain]
        assert self.settings.implant is not None
        outcome = training.implant(
            found, examples, self.settings.implant, seed=0, folder=folder / "checkpoints"
        )
        models.save(found.model, found.tokenizer, folder / "model")
        return {"loss": outcome.history[-1]["total"], "hardware": found.hardware}

    def _reading(self) -> dict[str, Any]:
        """The settings that decide how text becomes tokens."""
        chosen = self.settings.data
        names = {"template", "prompt_tokens", "answer_tokens"}
        return {"reading": chosen.model_dump(mode="json", include=names)}

    def _fresh(self, asset: assets.Asset) -> models.LanguageModel:
        return models.load(asset, self.model, self.profile.device)

    def own_answers(self) -> Run:
        """The original model's greedy answers to the retain questions (for methods that ask)."""
        asset, parents = self.original()
        spec = Spec(
            "own",
            {"evaluation": self._generating(), "model": self._holding(), **self._reading()},
            parents,
            {"weights": asset.sha256, "questions": digest(self.data.retain)},
            VERSION["own"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(asset)
            questions = self.data.retain["question"]
            texts = self._generate(found, questions, "own answers")
            write_text(folder / "answers.json", json.dumps(texts))
            return {"rows": len(texts), "hardware": found.hardware}

        return self.store.get(spec, compute)

    def _generating(self) -> dict[str, Any]:
        return self.settings.evaluation.model_dump(
            mode="json", include={"new_tokens", "batch_size"}
        )

    def _holding(self) -> dict[str, Any]:
        names = {"id", "precision", "quantization"}
        return self.model.model_dump(mode="json", include=names) | {"all": self.model.lora is None}

    def _generate(self, found: models.LanguageModel, questions: Any, label: str) -> list[str]:
        chosen = self.settings.evaluation
        prompts = [self.encoder.prompt(question) for question in questions]
        return generation.answers(found, prompts, chosen.new_tokens, chosen.batch_size, label)

    def unlearned(self, name: str, on_step: training.OnStep | None = None) -> Run:
        """Train the model to forget by one of the profile's methods, or return that run.

        Args:
            name: a method's name in the profile.
            on_step: called with each step's report while it trains, for a live curve.
        """
        settings = self.settings.method(name)
        method = find_method(settings.uses)
        asset, parents = self.original()
        own = self.own_answers() if method.retain_answers == "own" else None
        read = {
            "forget": method.forget or method.mismatch,
            "retain": method.retain or method.mismatch == "retain",
            "harmless": method.mismatch == "refusal",
        }
        rows = {name: digest(getattr(self.data, name)) for name, needed in read.items() if needed}
        spec = Spec(
            "unlearn",
            {
                "method": dump(settings, "name", "label", "checkpoint_every"),
                "model": dump(self.model),
                "seed": self.seed,
                **self._reading(),
            },
            parents + ((own.key,) if own else ()),
            {"weights": asset.sha256, **rows},
            VERSION["unlearn"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(asset)
            models.make_trainable(found, self.model, self.seed)
            pools = self._pools(settings, own)
            outcome = training.unlearn(
                found, method, settings, pools, self.seed, folder / "checkpoints", on_step
            )
            models.save(found.model, found.tokenizer, folder / "model")
            pd.DataFrame(outcome.history).to_csv(folder / "history.csv", index=False)
            record = asdict(outcome)
            del record["history"]
            return record | {"steps": len(outcome.history)}

        return self.store.get(spec, compute, resumable=True)

    def _pools(self, settings: MethodSettings, own: Run | None) -> training.Pools:
        method, rows, encode = find_method(settings.uses), self.data, self.encoder
        forget = [encode.example(row["question"], row["answer"]) for row in rows.forget]
        given = [row["answers"] for row in rows.retain]
        if own is not None:
            texts = json.loads((own.folder / "answers.json").read_text())
            given = [
                [text] if text else answers for text, answers in zip(texts, given, strict=True)
            ]
        retain = [
            encode.example(question, *answers)
            for question, answers in zip(rows.retain["question"], given, strict=True)
        ]
        if own is not None:
            cut = settings.own_tokens
            retain = [Example(row.prompt, (row.answers[0][:cut],)) for row in retain]
        if method.mismatch == "refusal":
            pool = self._refusals(settings.refusal_tokens)
        else:
            pool = [answer for example in retain for answer in example.answers]
        return training.Pools(forget, [pool] * len(forget), retain)

    def _refusals(self, most_tokens: int) -> list[tuple[int, ...]]:
        """The short refusals among the harmless answers, each once."""
        texts = np.array(self.data.harmless["answer"])
        encoded = [self.encoder.answer(text) for text in texts[metrics.refusals(texts)]]
        return sorted({answer for answer in encoded if len(answer) <= most_tokens})

    def answers(self, name: str = ORIGINAL) -> Run:
        """Let the original or an unlearned model answer, and score retained text."""
        asset, parents = self.original()
        run = None if name == ORIGINAL else self.unlearned(name)
        rows = self.data
        spec = Spec(
            "answers",
            {"evaluation": self._generating(), "model": self._holding(), **self._reading()},
            (run.key,) if run else parents,
            {"weights": asset.sha256, "rows": digest(rows.evaluation, rows.normal)},
            VERSION["answers"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(asset)
            if run is not None and self.model.lora is not None:
                models.load_adapter(found, run.folder / "model")
            elif run is not None:
                trained = assets.Asset(self.model_id, run.folder / "model", "run", run.key)
                found = self._fresh(trained)
            texts = {
                "held_out": self._generate(found, rows.evaluation["question"], "harmful prompts"),
                "normal": self._generate(found, rows.normal["question"], "normal prompts"),
            }
            encode = self.encoder.example
            retained = [encode(row["question"], row["answers"][0]) for row in rows.normal]
            nll, counts = scoring.answer_losses(found, retained)
            lengths = [len(self.tokenizer(text)["input_ids"]) for text in texts["held_out"]]
            record = {**texts, "nll": nll.tolist(), "counts": counts.tolist(), "tokens": lengths}
            write_text(folder / "answers.json", json.dumps(record))
            return {"hardware": found.hardware}

        return self.store.get(spec, compute)

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
        rows: list[Row] = []
        for name in (ORIGINAL, *self.methods):
            run = self.measured(name)
            stage = "base" if name == ORIGINAL else "unlearned"
            for scenario, metric, value in run.result["metrics"]:
                rows.append(self._row(scenario, name, stage, metric, value, run))
            if name != ORIGINAL:
                rows += self._costs(name)
        judge = self.classifier()
        for metric, value in judge.result["scores"].items():
            rows.append(self._row("classifier", ORIGINAL, "base", metric, value, judge))
        return to_frame(rows)

    def _row(
        self, scenario: str, name: str, stage: str, metric: str, value: dict[str, Any], run: Run
    ) -> Row:
        split = {"held_out": "test", "classifier": "test"}.get(scenario, "retain_test")
        return Row(
            "harmful", scenario, self.model_id, name, stage, split, self.seed, metric,
            **value, run=run.key,
        )  # fmt: skip

    def _costs(self, name: str) -> list[Row]:
        run = self.unlearned(name)
        costs = {"seconds": run.result["seconds"]}
        costs["peak_memory_bytes"] = run.provenance["peak_memory_bytes"]
        return [
            self._row("training", name, "unlearned", metric,
                      {"value": v, "low": v, "high": v, "n": 1}, run)
            for metric, v in costs.items()
        ]  # fmt: skip

    def history(self, name: str) -> pd.DataFrame:
        """The loss curve of a method: one row per step."""
        return pd.read_csv(self.unlearned(name).folder / "history.csv")

    def save_rows(self) -> Path:
        """Write the tidy rows of this model and seed where `collect` finds them."""
        path = rows_path(self.profile, self.model_id, self.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, self.rows())
        origin = merge_provenance(self.store.visited)
        write_text(path.with_suffix(".json"), json.dumps(origin, indent=1, sort_keys=True) + "\n")
        return path


def open_experiment(profile: str, model: str | None, seed: int) -> HarmfulExperiment:
    """Open experiment 1 for a profile's name, one of its models (None: the first) and a seed."""
    chosen = load_profile(profile)
    if chosen.offline:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return HarmfulExperiment(chosen, model, seed)


def rows_path(profile: Profile, model_id: str, seed: int) -> Path:
    """Where the tidy rows of one model and seed lie."""
    return profile.results / "rows" / f"harmful__{slug(model_id)}__s{seed}.csv"


def dump(settings: Settings, *leave_out: str) -> dict[str, Any]:
    """Settings as JSON, without those that change no result."""
    return settings.model_dump(mode="json", exclude=set(leave_out))


def digest(*tables: Dataset) -> str:
    """The sha256 of the rows of data sets, in order."""
    text = json.dumps([table.to_list() for table in tables], sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
