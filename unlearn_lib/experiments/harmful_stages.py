"""The stages of experiment 1 that train and answer: `implant`, `own`, `unlearn`, `answers`."""

import functools
import json
from pathlib import Path
from typing import Any

import torch

from unlearn_lib import assets, generation, metrics, models, scoring, training
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.datasets import harmful as data
from unlearn_lib.experiments.stages import ORIGINAL, Stages, digest, dump, keep_outcome
from unlearn_lib.methods import find_method
from unlearn_lib.profiles import Profile
from unlearn_lib.runs import Run, Spec, write_text
from unlearn_lib.settings import MethodSettings
from unlearn_lib.steps import Pools

VERSION = {"implant": 1, "own": 1, "unlearn": 1, "answers": 1, "classifier": 1, "measure": 1}


class HarmfulStages(Stages):
    """One model and one seed of experiment 1, up to the models' answers."""

    experiment = "harmful"

    def __init__(self, profile: Profile, model_id: str | None, seed: int) -> None:
        super().__init__(profile, profile.harmful, model_id, seed)
        self.settings = profile.harmful

    def _texts_for_tiny(self) -> list[str]:
        limits = ("forget_rows", "evaluation_prompts", "normal_prompts", "retain_rows")
        rows = data.load(self.settings.data.model_copy(update=dict.fromkeys(limits)))
        texts: list[str] = []
        for graded in (rows.scored_train, rows.scored_test):
            texts += [*graded["question"], *graded["answer"]]
        for normal in (rows.retain, rows.normal):
            texts += [*normal["question"], *(text for some in normal["answers"] for text in some)]
        return sorted(texts)

    @functools.cached_property
    def encoder(self) -> TextEncoder:
        """Turns questions and answers into tokens, alike in training and evaluation."""
        chosen = self.settings.data
        return TextEncoder(
            self.tokenizer,
            chosen.template,
            chosen.prompt_tokens,
            chosen.answer_tokens,
            self.context,
        )

    @functools.cached_property
    def data(self) -> data.HarmfulSplits:
        """The rows of this experiment, split."""
        return data.load(self.settings.data, self.encoder.fits)

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

    def own_answers(self, tokens: int) -> Run:
        """The original model's greedy answers to the retain questions, `tokens` long at most."""
        asset, parents = self.original()
        batch_size = self.settings.evaluation.batch_size
        spec = Spec(
            "own",
            {"new_tokens": tokens, "batch_size": batch_size, "model": self._holding()}
            | self._reading(),
            parents,
            {"weights": asset.sha256, "questions": digest(self.data.retain)},
            VERSION["own"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(asset)
            questions = self.data.retain["question"]
            texts = self._generate(found, questions, tokens)
            write_text(folder / "answers.json", json.dumps(texts))
            return {"rows": len(texts), "hardware": found.hardware}

        return self.store.get(spec, compute)

    def _generating(self) -> dict[str, Any]:
        return self.settings.evaluation.model_dump(
            mode="json", include={"new_tokens", "batch_size"}
        )

    def _generate(self, found: models.LanguageModel, questions: Any, tokens: int) -> list[str]:
        prompts = [self.encoder.prompt(question) for question in questions]
        return generation.answers(found, prompts, tokens, self.settings.evaluation.batch_size)

    def unlearned(self, name: str, on_step: training.OnStep | None = None) -> Run:
        """Train the model to forget by one of the profile's methods, or return that run.

        Args:
            name: a method's name in the profile.
            on_step: called with each step's report while it trains, for a live curve.
        """
        settings = self.settings.method(name)
        method = find_method(settings.uses)
        asset, parents = self.original()
        own = self.own_answers(settings.own_tokens) if method.retain_answers == "own" else None
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
            return keep_outcome(outcome, folder)

        return self.store.get(spec, compute, resumable=True)

    def _pools(self, settings: MethodSettings, own: Run | None) -> Pools:
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
        if own is not None:  # without the end token, which a cut answer did not have
            cut = settings.own_tokens
            retain = [Example(row.prompt, (row.answers[0][:cut],)) for row in retain]
        if method.mismatch == "refusal":
            pool = self._refusals(settings.refusal_tokens)
        else:
            pool = [answer for example in retain for answer in example.answers]
        return Pools(forget, [pool] * len(forget), retain)

    def _refusals(self, most_tokens: int) -> list[tuple[int, ...]]:
        """The short refusals among the harmless answers, each once."""
        texts = list(self.data.harmless["answer"])
        refusing = metrics.refusals(texts)
        encoded = [self.encoder.answer(t) for t, flag in zip(texts, refusing, strict=True) if flag]
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
                merge = found.model.dtype == torch.float32
                models.load_adapter(found, run.folder / "model", merge=merge)
            elif run is not None:
                trained = assets.Asset(self.model_id, run.folder / "model", "run", run.key)
                found = self._fresh(trained)
            every = [*rows.evaluation["question"], *rows.normal["question"]]
            given = self._generate(found, every, self.settings.evaluation.new_tokens)
            harmful = len(rows.evaluation)
            texts = {"held_out": given[:harmful], "normal": given[harmful:]}
            encode = self.encoder.example
            retained = [encode(row["question"], row["answers"][0]) for row in rows.normal]
            nll, counts = scoring.answer_losses(found, retained)
            lengths = [len(self.tokenizer(text)["input_ids"]) for text in texts["held_out"]]
            asked = {"held_out": list(rows.evaluation["question"])}
            record = {**texts, "nll": nll.tolist(), "counts": counts.tolist(), "tokens": lengths}
            record["asked"] = asked | {"normal": list(rows.normal["question"])}
            write_text(folder / "answers.json", json.dumps(record))
            return {"hardware": found.hardware}

        return self.store.get(spec, compute)
