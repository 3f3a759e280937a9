"""The stages of experiment 2 that train and continue: `pretrain`, `implant`, `unlearn`, `continue`.

The text stays with its reader: a run holds numbers for every passage and a few short excerpts,
never the book or the continuations.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unlearn_lib import (
    assets,
    generation,
    losses,
    memorising,
    models,
    released,
    scoring,
    training,
)
from unlearn_lib.batches import Example
from unlearn_lib.datasets import book as data
from unlearn_lib.experiments.book_measures import normal_measured, passages_measured
from unlearn_lib.experiments.book_texts import BookTexts
from unlearn_lib.experiments.stages import ORIGINAL, dump, keep_outcome
from unlearn_lib.methods import find_method
from unlearn_lib.runs import Run, Spec, write_text
from unlearn_lib.settings import BookMethodSettings
from unlearn_lib.steps import Pools, Step, draw_steps

IMPLANTED = "implanted"
VERSION = {"pretrain": 1, "own": 1, "implant": 1, "unlearn": 1, "continue": 1, "compare": 1}
IMPLANT_SEED_OFFSET = 1000


class BookStages(BookTexts):
    """One model and one seed of experiment 2, up to the models' continuations."""

    def base(self) -> tuple[assets.Asset, tuple[str, ...]]:
        """The model that never saw the book: its files, and the keys of the runs that made it."""
        if self.settings.pretrain is None:
            return self.weights, ()
        texts = self.texts("retain")
        spec = Spec(
            "pretrain",
            {"pretrain": dump(self.settings.pretrain), **self._cutting()},
            data={"weights": self.weights.sha256, "texts": data.digest(texts)},
            version=VERSION["pretrain"],
        )
        run = self.store.get(spec, lambda folder: self._pretrain(folder, texts))
        return assets.Asset(self.model_id, run.folder / "model", "run", run.key), (run.key,)

    def _pretrain(self, folder: Path, texts: list[str]) -> dict[str, Any]:
        whole = self.model.model_copy(update={"lora": None, "quantization": "none"})
        found = models.load(self.weights, whole, self.profile.device)
        models.make_trainable(found, whole, seed=0)
        assert self.settings.pretrain is not None
        rows = self.encoder.chunks(texts, self.settings.data.prompt_tokens * 2)
        outcome = training.implant(
            found, rows, self.settings.pretrain, seed=0, folder=folder / "checkpoints"
        )
        models.save(found.model, found.tokenizer, folder / "model")
        return {"loss": outcome.history[-1]["total"], "hardware": found.hardware}

    def own_answers(self) -> Run:
        """The base model's greedy answers to the questions that are trained on."""
        asset, parents = self.base()
        questions, length = self._questions(held_out=False), self.settings.data.answer_tokens
        spec = Spec(
            "own",
            {"model": self._holding(), "template": self.settings.data.template}
            | {"new_tokens": length, "batch_size": self.settings.evaluation.batch_size},
            parents,
            {"weights": asset.sha256, "questions": data.digest(questions)},
            VERSION["own"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(asset)
            prompts = [self._asking.prompt(text) for text in questions]
            size = self.settings.evaluation.batch_size
            rows = generation.continuations(found, prompts, length, size)
            write_text(folder / "answers.json", json.dumps(rows))
            return {"rows": len(rows), "hardware": found.hardware}

        return self.store.get(spec, compute)

    def _own_rows(self, own: Run) -> list[Example]:
        answers = json.loads((own.folder / "answers.json").read_text())
        prompts = [self._asking.prompt(text) for text in self._questions(held_out=False)]
        pairs = zip(prompts, answers, strict=True)
        return [Example(prompt, (tuple(answer),)) for prompt, answer in pairs if answer]

    def implanted(self, on_step: training.OnStep | None = None) -> Run:
        """Teach the base model the chapters to forget and to keep, or return that run."""
        asset, parents = self.base()
        chosen = self.settings.implant
        spec = Spec(
            "implant",
            {"implant": dump(chosen), "model": dump(self.model), "seed": self.seed}
            | self._cutting(),
            parents,
            {"weights": asset.sha256, "texts": data.digest(self.implanted_texts)},
            VERSION["implant"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._fresh(asset)
            models.make_trainable(found, self.model, self.seed)
            size, epochs = chosen.chunk_tokens, range(chosen.epochs)
            shifts = np.random.default_rng(self.seed).integers(0, size, chosen.epochs)
            shifts *= chosen.shift_chunks
            chunks = [self.encoder.chunks(self.implanted_texts, size, shifts[e]) for e in epochs]
            held_in = self.encoder.passages(self.implanted_texts)
            seed = self.seed + IMPLANT_SEED_OFFSET
            outcome, curve = memorising.memorise(
                found, chunks, held_in, chosen, seed, folder / "checkpoints", on_step
            )
            models.save(found.model, found.tokenizer, folder / "model")
            curve.to_csv(folder / "curve.csv", index=False)
            return keep_outcome(outcome, folder) | {"epochs": len(curve), "chunks": len(chunks[0])}

        return self.store.get(spec, compute, resumable=True)

    def curve(self) -> pd.DataFrame:
        """The implant's curve: epoch, loss, verbatim share."""
        return pd.read_csv(self.implanted().folder / "curve.csv")

    def unlearned(self, name: str, on_step: training.OnStep | None = None) -> Run:
        """Make the implanted model forget by one of the profile's methods, or return that run.

        Args:
            name: a method's name in the profile.
            on_step: called with each step's report while it trains, for a live curve.
        """
        settings = self.settings.method(name)
        asset, _ = self.base()
        implanted = self.implanted()
        own = self._own(settings)
        read = [part for part in ("forget", "kept", "retain") if self._reads(settings, part)]
        leave_out = ["name", "label", "checkpoint_every"]
        if settings.variant == "published":
            leave_out.append("faults")
        spec = Spec(
            "unlearn",
            {"method": dump(settings, *leave_out), "model": dump(self.model), "seed": self.seed}
            | self._cutting(),
            (implanted.key, *((own.key,) if own else ())),
            {part: data.digest(self.texts(part)) for part in read},
            VERSION["unlearn"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self._begin(asset, implanted, settings)
            method, steps = self._steps(settings, found, own)
            needs_base = settings.start == "merged" and method.retain is losses.forward_kl
            outcome = training.unlearn(
                found,
                method,
                settings,
                Pools((), (), ()),
                self.seed,
                folder / "checkpoints",
                on_step,
                steps=steps,
                frozen=self._fresh(asset).model if needs_base else None,
            )
            models.save(found.model, found.tokenizer, folder / "model")
            empty = released.empty_share(steps) if method.forget else 0.0
            return keep_outcome(outcome, folder) | {"empty_share": empty}

        return self.store.get(spec, compute, resumable=True)

    def _own(self, settings: BookMethodSettings) -> Run | None:
        wanted = find_method(settings.uses).retain_answers == "own" and self.data.questions
        return self.own_answers() if wanted else None

    @staticmethod
    def _reads(settings: BookMethodSettings, part: str) -> bool:
        method = find_method(settings.uses)
        return {
            "forget": bool(method.forget or method.mismatch),
            "kept": bool(method.keep),
            "retain": bool(method.retain or method.mismatch),
        }[part]

    def _begin(
        self, asset: assets.Asset, implanted: Run, settings: BookMethodSettings
    ) -> models.LanguageModel:
        """The model that a method begins with, trainable."""
        found = self._fresh(asset)
        if settings.start == "implanted":
            models.load_adapter(found, implanted.folder / "model", trainable=True)
            return found
        if settings.start == "merged":
            models.load_adapter(found, implanted.folder / "model", merge=True)
        models.make_trainable(found, self.model, self.seed)
        return found

    def _steps(
        self, settings: BookMethodSettings, found: models.LanguageModel, own: Run | None
    ) -> tuple[Any, Sequence[Step]]:
        method = find_method(settings.uses)
        cut = self.encoder.passages
        forget, keep = cut(self.texts("forget")), cut(self.texts("kept"), score_prompt=True)
        retain = self._own_rows(own) if own else cut(self.texts("retain"))
        substitutes = [row.answers[0] for row in retain]
        before = None
        if method.forget is losses.npo:
            before = scoring.answer_losses(found, forget)[0].tolist()
        pools = Pools(forget, [substitutes] * len(forget), retain, keep, before)
        steps: Sequence[Step] = draw_steps(pools, method, settings, self.seed)
        if settings.variant == "released":
            method, steps = released.as_released(
                method, steps, settings.faults, self.texts("forget"), self.encoder, self.seed
            )
        return method, steps

    def continued(self, name: str = ORIGINAL) -> Run:
        """Let a model continue the parts' passages and the prose, and score the true text.

        Args:
            name: `none` for the base model, `implanted`, or a method's name.
        """
        asset, parents = self.base()
        implanted = None if name == ORIGINAL else self.implanted()
        unlearned = None if name in (ORIGINAL, IMPLANTED) else self.unlearned(name)
        last = unlearned or implanted
        rows = {part: self.texts(part) for part in (*data.PARTS, "normal")}
        encoder = assets.find_model(self.settings.evaluation.encoder)
        evaluation = dump(self.settings.evaluation, "bleurt", "encoder")
        spec = Spec(
            "continue",
            {"evaluation": evaluation, "model": self._holding(), **self._cutting()}
            | {"passages": self.settings.data.evaluation_passages},
            (last.key,) if last else parents,
            {"weights": asset.sha256, "encoder": encoder.sha256}
            | {part: data.digest(texts) for part, texts in rows.items()}
            | {"prompts": data.digest(self.normal_prompts())},
            VERSION["continue"],
        )

        return self.store.get(spec, lambda folder: self._continue(self.loaded(name), folder))

    def loaded(self, name: str = ORIGINAL) -> models.LanguageModel:
        """Load a model by its name: `none` for the base model, `implanted`, or a method's."""
        found = self._fresh(self.base()[0])
        unlearned = None if name in (ORIGINAL, IMPLANTED) else self.unlearned(name)
        start = self.settings.method(name).start if unlearned else None
        merge = not getattr(found.model, "is_quantized", False)
        if name != ORIGINAL and start in (None, "merged"):
            folder = self.implanted().folder / "model"
            models.load_adapter(found, folder, merge=merge or bool(start))
        if unlearned is not None:
            models.load_adapter(found, unlearned.folder / "model", merge=merge)
        return found

    def _continue(self, found: models.LanguageModel, folder: Path) -> dict[str, Any]:
        """Continue all prompts in one go, batches as full as can be, then measure part by part."""
        chosen, encode = self.settings.evaluation, self.sentence_encoder
        passages = {part: self.passages(part) for part in data.PARTS}
        prompts = {part: [row.prompt for row in rows] for part, rows in passages.items()}
        prompts["normal"] = self.normal_prompts()
        every = [prompt for group in prompts.values() for prompt in group]
        rows = iter(generation.continuations(found, every, chosen.new_tokens, chosen.batch_size))
        given = {part: [next(rows) for _ in group] for part, group in prompts.items()}
        record = {
            part: passages_measured(found, passages[part], given[part], encode, chosen.new_tokens)
            for part in data.PARTS
        }
        prose = self.passages("normal")
        record["normal"] = normal_measured(
            found, prompts["normal"], given["normal"], prose, encode, folder
        )
        write_text(folder / "continuations.json", json.dumps(record))
        return {"hardware": found.hardware}
