"""What every task has: settings, weights, tokens; and the hooks by which it bends an experiment."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from unlearn_lib import assets, judges
from unlearn_lib.data.guard_prompts import GuardPrompts, general_prompts
from unlearn_lib.evaluation import FORGET, RETAIN, Item, Record
from unlearn_lib.guard.model import Guard, GuardedModel
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.model.loading import TINY, LanguageModel, LastAdapter, tiny_opt
from unlearn_lib.model.tokens import Example, TextEncoder, context_of, load_tokenizer
from unlearn_lib.settings import LoraSettings, MethodSettings
from unlearn_lib.unlearn import trainer
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools, Step, draw_steps
from unlearn_lib.unlearn.trainer import OnStep
from unlearn_lib.util import say

BASE, TARGET, RETAIN_MODEL = "base", "target", "retain_model"
PREFIX_TOKENS = 96
loaded_encoder = functools.cache(judges.sentence_encoder)
Lessons = list[list[Example]]
"""What a model is taught, as token ids: a list of examples for each time through."""
Own = list[Any] | None
"""What the base model answered itself, for methods that keep its own answers."""


class Task:
    """A task knows its data and what is asked; an `Experiment` runs any method on it.

    Args:
        settings: the profile's block.
        model_id: one of the task's models.
        ask_base: gives the base model's greedy answers to prompts; what it knows decides the data.

    Attributes:
        name: of the task.
        parts: what is forgotten one after another; one empty name where all is forgotten at once.
        starts_from: the model that methods change: `target`, or `base` where nothing is taught.
        last_adapter: how a chain's last adapter is loaded (`model.loading.load_chain`).
    """

    name: str
    parts: tuple[str, ...] = ("",)
    starts_from: str = TARGET
    last_adapter: LastAdapter = "merged"

    def __init__(self, settings: Any, model_id: str, ask_base: Callable[..., list[str]]) -> None:
        self.settings: Any = settings
        self.model = settings.model(model_id)
        self.ask_base = ask_base

    @functools.cached_property
    def weights(self) -> assets.Asset:
        """The base model's files as they were found, or made (profile smoke)."""
        if self.model.id == TINY:
            return tiny_opt(self.texts_for_tiny())
        asset = assets.find_model(self.model.id)
        say(f"{self.model.id}: from {asset.source}.")
        return asset

    def texts_for_tiny(self) -> list[str]:
        """Texts from which the tiny model's tokenizer is made."""
        raise NotImplementedError

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        return load_tokenizer(self.weights)

    @functools.cached_property
    def context(self) -> int:
        """The model's longest input in tokens."""
        config = AutoConfig.from_pretrained(self.weights.folder)
        return context_of(config) or int(self.tokenizer.model_max_length)

    @functools.cached_property
    def encode(self) -> judges.Encoder:
        """The sentence encoder of similarities."""
        return sentence_encoder(assets.find_model(self.settings.evaluation.encoder).folder)

    @functools.cached_property
    def encoder(self) -> Any:
        """Turns questions and answers into tokens, alike in training and evaluation."""
        return self.text_encoder()

    def text_encoder(self, **changed: Any) -> TextEncoder:
        """The encoder of questions and answers, with some of `reading` changed."""
        reading = self.reading() | changed
        return TextEncoder(self.tokenizer, **reading, context=self.context, model_id=self.model.id)

    def reading(self) -> dict[str, Any]:
        """The settings that decide how text becomes tokens."""
        names = {"template", "prompt_tokens", "answer_tokens"}
        reading = self.settings.data.model_dump(mode="json", include=names)
        return reading | {"chat": self.model.chat}

    def before(self) -> list[str]:
        """The models before unlearning that are evaluated."""
        if self.starts_from == BASE:
            return [BASE]
        return [BASE, TARGET] if self.settings.teach else [TARGET]

    def pretraining(self) -> list[Example]:
        """What the tiny model of profile smoke reads before anything else."""
        return []

    def taught(self, kind: str) -> list[Example]:
        """What the target is taught (`target`), or the retain model (`retain_model`)."""
        return []

    @property
    def teach_lora(self) -> LoraSettings | None:
        """The adapter with which the target is taught, the model's where `teach` has no say."""
        return getattr(self.settings.teach, "lora", self.model.lora)

    def lessons(self, kind: str, seed: int) -> Lessons:
        """What `teach` reads of a kind."""
        return [self.taught(kind)]

    def teach(
        self, model: LanguageModel, taught: Lessons, seed: int, folder: Path, on_step: OnStep | None
    ) -> trainer.Outcome:
        """Teach a model what `lessons` gave."""
        settings, place = self.settings.teach, folder / "checkpoints"
        return trainer.teach(model, taught[0], settings, seed, place, on_step)

    def trains_further(self, method: MethodSettings) -> bool:
        """Whether a method trains the target's own adapter instead of one of its own."""
        return False

    def loaded(self, chain: tuple[Any, ...]) -> tuple[Any, ...]:
        """The runs of an unlearned model's chain that are loaded."""
        return chain

    def own_answers(self, method: MethodSettings) -> Callable[[LanguageModel], list[Any]] | None:
        """What lets the base model answer the retain questions itself; None where it need not."""
        return None

    def pools(self, method: Method, settings: MethodSettings, part: str, own: Own) -> Pools:
        """What a method may see: rows to forget and to keep, substitutes, refusals."""
        raise NotImplementedError

    def steps(
        self, method: Method, settings: MethodSettings, pools: Pools, seed: int
    ) -> tuple[Method, Sequence[Step]]:
        """The rows of every step, drawn from the seed."""
        return method, draw_steps(pools, method, settings, seed)

    def asked(self, part: str) -> dict[str, str]:
        """The sha256 of what is asked after a part, and of what judges the answers, by name."""
        raise NotImplementedError

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        """Let a model answer and score everything that is asked after a part.

        Args:
            prefix: what the prompting baseline puts before every question.
            scorer: gives the model under whose fixed weights answers' perplexity is measured.
        """
        raise NotImplementedError

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        """Items of a record; `base`: the base model's, None of the base model itself."""
        return [Item(*row) for row in record["items"]]

    def examples(self, record: Record) -> list[tuple[str, str, str]]:
        """Texts for a reader: split, what was asked, what was answered."""
        rows = []
        for split in (FORGET, RETAIN):
            part = {"asked": (), "texts": ()} | record.get(split, {})
            rows += [(split, *pair) for pair in zip(part["asked"], part["texts"], strict=True)]
        return rows

    # What a guard needs of a task.

    topic: str = ""
    """Whom or what the prompting baseline is told to say nothing about."""

    @functools.cached_property
    def general(self) -> tuple[str, ...]:
        """Ordinary questions that have nothing to do with what is forgotten."""
        return general_prompts(self.settings.guards.eco.general)

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        raise NotImplementedError

    @functools.cached_property
    def frame(self) -> Frame:
        """The chat template around a question."""
        return Frame.of(self.encoder.prompt)

    @property
    def searched_keys(self) -> set[str]:
        """Items to forget that the search of a strength reads: the guard is not evaluated on them.

        The released code searches on what it evaluates (test accuracy of WMDP).
        """
        raise NotImplementedError

    def aim(self, model: LanguageModel) -> Any:
        """What the search of a strength aims at: what the target does where it knows nothing."""
        raise NotImplementedError

    def gap_values(self, model: LanguageModel, aim: Any) -> float:
        """How far a model is from that on what is to be forgotten, 0 to 1; training data alone."""
        raise NotImplementedError

    def objective(self, model: LanguageModel, guard: Guard) -> Callable[[float], float]:
        """From a strength to the gap of the guarded model.

        Every prompt that is asked is taken as flagged, so that the search is of the strength alone.
        """
        aim = self.aim(model)

        def flag_all(prompts: Sequence[str]) -> np.ndarray:
            return np.ones(len(prompts), dtype=bool)

        def gap(strength: float) -> float:
            tried = replace(guard, strength=strength)
            return self.gap_values(behind(model, tried, self.frame, judge=flag_all), aim)

        return gap

    def prefixed(self, prefix: str) -> Any:
        """The encoder of the prompting baseline: a prefix stands before every question."""
        if not prefix:
            return self.encoder
        room = self.encoder.context - self.encoder.answer_tokens
        room = min(self.encoder.prompt_tokens + PREFIX_TOKENS, room)
        return replace(self.encoder, before=prefix, prompt_tokens=room)

    def sentence_data(self) -> dict[str, str]:
        """The sha256 of the sentence encoder."""
        return {"encoder": assets.find_model(self.settings.evaluation.encoder).sha256}


def sentence_encoder(folder: Path) -> judges.Encoder:
    """The encoder of a model's folder, loaded once, when it is given its first text."""
    return lambda texts: loaded_encoder(folder)(texts)


def behind(model: LanguageModel, guard: Guard, frame: Frame, **more: Any) -> LanguageModel:
    """A model behind a guard, to be asked and scored like any other."""
    return replace(model, model=GuardedModel(model.model, model.tokenizer, guard, frame, **more))


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """So many of the rows, spread evenly over all."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))
    return [rows[place] for place in places]
