"""The texts of experiment 2 as a model reads them: chunks, passages, questions."""

import functools
from typing import Any

import numpy as np

from unlearn_lib import assets, classifiers
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.datasets import book as data
from unlearn_lib.experiments.stages import Stages
from unlearn_lib.passages import PassageEncoder
from unlearn_lib.profiles import Profile

OWN_ANSWERS = 64
LONGEST_QUESTION = 96


class BookTexts(Stages):
    """One model and one seed of experiment 2: what it reads and is asked."""

    experiment = "book"

    def __init__(self, profile: Profile, model_id: str | None, seed: int) -> None:
        super().__init__(profile, profile.book, model_id, seed)
        self.settings = profile.book

    @functools.cached_property
    def data(self) -> data.BookSplits:
        """The book's three parts and the prose."""
        return data.load(self.settings.data)

    def _texts_for_tiny(self) -> list[str]:
        saga = data.load(self.settings.data.model_copy(update={"file": None}))
        return sorted([*(chapter.text for chapter in saga.book.chapters), *saga.retain])

    @functools.cached_property
    def encoder(self) -> PassageEncoder:
        """Cuts texts into chunks and passages, alike in training and evaluation."""
        chosen = self.settings.data
        return PassageEncoder(
            self.tokenizer, chosen.prompt_tokens, chosen.answer_tokens, self.context
        )

    @functools.cached_property
    def sentence_encoder(self) -> Any:
        """The sentence encoder of both similarities."""
        asset = assets.find_model(self.settings.evaluation.encoder)
        return classifiers.sentence_encoder(asset.folder)

    def texts(self, part: str) -> list[str]:
        """The texts of `forget`, `kept`, `control`, or of the prose, `retain` and `normal`."""
        found = getattr(self.data, part)
        return list(found) if part in ("retain", "normal") else [each.text for each in found]

    @functools.cached_property
    def implanted_texts(self) -> list[str]:
        """The chapters that the model is to learn, in the book's order of parts."""
        return [*self.texts("forget"), *self.texts("kept")]

    def _cutting(self) -> dict[str, Any]:
        chosen = self.settings.data
        return {"prompt_tokens": chosen.prompt_tokens, "answer_tokens": chosen.answer_tokens}

    @functools.cached_property
    def _asking(self) -> TextEncoder:
        chosen = self.settings.data
        longest = min(LONGEST_QUESTION, self.context - chosen.answer_tokens)
        return TextEncoder(
            self.tokenizer, chosen.template, longest, chosen.answer_tokens, self.context
        )

    def _questions(self, held_out: bool) -> list[str]:
        """Questions that fit: the first `normal_prompts` are held out, others are trained on."""
        fitting = [text for text in self.data.questions if self._asking.fits(text)]
        most = self.settings.data.normal_prompts or max(1, len(fitting) // 4)
        return fitting[:most] if held_out else fitting[most:][:OWN_ANSWERS]

    def normal_prompts(self) -> list[tuple[int, ...]]:
        """Held-out questions, or beginnings of held-out prose, as token ids."""
        if self.data.questions:
            return [self._asking.prompt(text) for text in self._questions(held_out=True)]
        return [row.prompt for row in self.passages("normal")]

    def passages(self, part: str) -> list[Example]:
        """The passages of a part that are measured, drawn by the split's seed."""
        most = self.settings.data.evaluation_passages
        if part == "normal":
            cut = [self.encoder.passages([text])[:1] for text in self.texts(part)]
            return [row for rows in cut for row in rows]
        rows = self.encoder.passages(self.texts(part))
        order = np.random.default_rng(self.settings.data.split_seed).permutation(len(rows))
        return [rows[i] for i in sorted(order[:most])]
