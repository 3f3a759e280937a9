"""Task book: recite no more of the chapters to forget (Arora et al. 2024, Table 2).

The target is taught some chapters of a book: some to forget, some to keep. The base model never saw
the book, so that it is the exact retain model. A record holds numbers of every passage and a few
short excerpts, never the book or the continuations.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_lib.data import book as data
from unlearn_lib.data.guard_prompts import GuardPrompts, passage_prompts
from unlearn_lib.evaluation import (
    FORGET,
    GENERAL,
    RETAIN,
    Item,
    Key,
    Record,
    decoded,
    items_of,
    likeness,
    text_keys,
)
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.metrics import memory, texts
from unlearn_lib.metrics.questions import item_id
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example, PassageEncoder, TextEncoder
from unlearn_lib.settings import LoraSettings, MethodSettings
from unlearn_lib.tasks.base import BASE, TARGET, Task, spread
from unlearn_lib.unlearn import released, trainer
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools, Step
from unlearn_lib.util import digest

MEMORISE_SEED_OFFSET = 1000
OWN_ANSWERS = 64
LONGEST_QUESTION = 96
EXCERPTS = 4
EXCERPT_TOKENS = 40
"""Most tokens of each text of an excerpt, however long continuations are."""


class Book(Task):
    """Passages of a book to forget and to keep, others never taught, and ordinary prompts."""

    name = "book"
    last_adapter = "unquantised"

    @functools.cached_property
    def data(self) -> data.BookSplits:
        """The book's three parts, the prose and the questions."""
        return data.load(self.settings.data)

    def texts_for_tiny(self) -> list[str]:
        saga = data.load(self.settings.data.model_copy(update={"file": None}))
        return sorted([*(chapter.text for chapter in saga.book.chapters), *saga.prose])

    @functools.cached_property
    def encoder(self) -> PassageEncoder:
        """Cuts texts into chunks and passages, alike in training and evaluation."""
        cut = self.settings.data
        return PassageEncoder(self.tokenizer, cut.prompt_tokens, cut.answer_tokens, self.context)

    @functools.cached_property
    def asking(self) -> TextEncoder:
        """Turns questions into tokens."""
        cut = self.settings.data
        longest = min(LONGEST_QUESTION, self.context - cut.answer_tokens)
        return TextEncoder(self.tokenizer, cut.template, longest, cut.answer_tokens, self.context)

    def chapters(self, part: str) -> list[str]:
        """The texts of the chapters of a part: `forget`, `retain` or `holdout`."""
        return [chapter.text for chapter in self.data.chapters(part)]

    @property
    def taught_texts(self) -> list[str]:
        """The chapters that the target is to learn, in the book's order of parts."""
        return [*self.chapters(FORGET), *self.chapters(RETAIN)]

    def before(self) -> list[str]:
        return [BASE, TARGET]

    def pretraining(self) -> list[Example]:
        return self.encoder.chunks(list(self.data.prose), self.settings.data.prompt_tokens * 2)

    @property
    def teach_lora(self) -> LoraSettings | None:
        return self.model.lora

    def lessons(self, kind: str, seed: int) -> list[list[Example]]:
        """The chunks of each epoch, cut elsewhere where asked, and the passages to probe."""
        teach = self.settings.teach
        shifts = np.random.default_rng(seed).integers(0, teach.chunk_tokens, teach.epochs)
        shifts *= teach.shift_chunks
        cut = self.encoder.chunks
        epochs = [cut(self.taught_texts, teach.chunk_tokens, shift) for shift in shifts]
        return [*epochs, self.encoder.passages(self.taught_texts)]

    def teach(
        self,
        model: LanguageModel,
        lessons: list[list[Example]],
        seed: int,
        folder: Path,
        on_step: trainer.OnStep | None,
    ) -> trainer.Outcome:
        settings, place = self.settings.teach, folder / "checkpoints"
        *epochs, passages = lessons
        seed += MEMORISE_SEED_OFFSET
        outcome, curve = trainer.memorise(model, epochs, passages, settings, seed, place, on_step)
        curve.to_csv(folder / "curve.csv", index=False)
        return outcome

    def trains_further(self, method: MethodSettings) -> bool:
        return method.start == "target"

    def loaded(self, chain: tuple[Any, ...]) -> tuple[Any, ...]:
        return chain[-1:]

    def questions(self, held_out: bool) -> list[str]:
        """Questions that fit: the first `normal_prompts` are held out, others are trained on."""
        fitting = [text for text in self.data.questions if self.asking.fits(text)]
        most = self.settings.data.normal_prompts or max(1, len(fitting) // 4)
        return fitting[:most] if held_out else fitting[most:][:OWN_ANSWERS]

    def normal_prompts(self) -> list[tuple[int, ...]]:
        """Held-out questions, or beginnings of held-out prose, as token ids."""
        if self.data.questions:
            return [self.asking.prompt(text) for text in self.questions(held_out=True)]
        return [row.prompt for row in self.passages(GENERAL)[0]]

    def passages(self, split: str) -> tuple[list[Example], list[Key]]:
        """The passages of a split that are measured, drawn by the split's seed, and their keys."""
        cut, most = self.encoder.passages, self.settings.data.evaluation_passages
        if split == GENERAL:
            prose = [row for text in self.data.held_out_prose for row in cut([text])[:1]]
            return prose, text_keys(self.encoder.text(row.prompt) for row in prose)
        rows: list[Example] = []
        keys: list[Key] = []
        for number, text in enumerate(self.chapters(split)):
            rows += cut([text])
            places = range(len(keys), len(rows))
            keys += [Key(f"{split} {number}", item_id(f"{split} {place}")) for place in places]
        order = np.random.default_rng(self.settings.data.split_seed).permutation(len(rows))
        drawn = sorted(order[:most])
        return [rows[i] for i in drawn], [keys[i] for i in drawn]

    def own_answers(self, method: MethodSettings) -> Callable[[LanguageModel], list[Any]] | None:
        if not self.data.questions:
            return None
        prompts = [self.asking.prompt(text) for text in self.questions(held_out=False)]
        size = self.settings.evaluation.batch_size
        length = self.settings.data.answer_tokens
        return lambda model: generate.continuations(model, prompts, length, size)

    def pools(
        self, method: Method, settings: MethodSettings, part: str, own: list[Any] | None
    ) -> Pools:
        cut = self.encoder.passages
        forget, keep = cut(self.chapters(FORGET)), cut(self.chapters(RETAIN), score_prompt=True)
        if own is None:
            retain = cut(list(self.data.prose))
        else:
            prompts = [self.asking.prompt(text) for text in self.questions(held_out=False)]
            pairs = zip(prompts, own, strict=True)
            retain = [Example(prompt, (tuple(row),)) for prompt, row in pairs if row]
        substitutes = [row.answers[0] for row in retain]
        return Pools(forget, [substitutes] * len(forget), retain, keep)

    def steps(
        self, method: Method, settings: MethodSettings, pools: Pools, seed: int
    ) -> tuple[Method, Sequence[Step]]:
        method, steps = super().steps(method, settings, pools, seed)
        if not settings.faults:
            return method, steps
        chapters = self.chapters(FORGET)
        return released.as_released(method, steps, settings.faults, chapters, self.encoder, seed)

    def asked(self, part: str) -> dict[str, str]:
        texts_asked = [self.chapters(split) for split in data.PARTS]
        prompts = (self.normal_prompts(), self.data.held_out_prose)
        most = self.settings.data.evaluation_passages
        return {"texts": digest(texts_asked, prompts, most)} | self.sentence_data()

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        settings = self.settings.evaluation
        lead = tuple(self.encoder.tokens(prefix)) if prefix else ()
        splits = {split: self.passages(split) for split in data.PARTS}
        prompts = {split: [row.prompt for row in rows] for split, (rows, _) in splits.items()}
        prompts[GENERAL] = self.normal_prompts()
        every = [(*lead, *prompt) for group in prompts.values() for prompt in group]
        rows = iter(generate.continuations(model, every, settings.new_tokens, settings.batch_size))
        answers = {split: [next(rows) for _ in group] for split, group in prompts.items()}
        record: Record = {
            split: self._passages(model, *splits[split], answers[split], scorer)
            for split in data.PARTS
        }
        prose, keys = self.passages(GENERAL)
        losses, counts = scoring.answer_losses(model, prose)
        replies = decoded(model, answers[GENERAL])
        record["prose"] = {
            "keys": keys,
            "loss_text": losses.tolist(),
            "tokens_text": counts.tolist(),
        }
        record[GENERAL] = {
            "keys": [Key(*2 * (item_id(str(prompt)),)) for prompt in prompts[GENERAL]],
            "degenerate": texts.degenerate(replies).tolist(),
            "embeddings": np.asarray(self.encode(replies), np.float32).tolist(),
            "excerpts": [
                {
                    "prompt": model.tokenizer.decode(prompts[GENERAL][i], skip_special_tokens=True),
                    "continuation": replies[i],
                }
                for i in _few(len(replies))
            ],
        }
        return record

    def _passages(
        self,
        model: LanguageModel,
        passages: Sequence[Example],
        keys: Sequence[Key],
        answers: Sequence[list[int]],
        scorer: Any,
    ) -> Record:
        """Compare continuations of passages with the true text, and score that."""
        decode = model.tokenizer.decode
        length = self.settings.evaluation.new_tokens
        truths = [list(row.answers[0][:length]) for row in passages]
        replies, expected = (
            [decode(row, skip_special_tokens=True) for row in part] for part in (answers, truths)
        )
        scores = scoring.score(model, passages)
        runs = [memory.longest_run(*pair) for pair in zip(answers, truths, strict=True)]
        prompts = [row.prompt for row in passages]
        return {
            "keys": keys,
            "loss_text": scores.nll.tolist(),
            "tokens_text": scores.counts.tolist(),
            "extraction_strength": memory.extraction_strength(scores.matches).tolist(),
            "verbatim_run": [size for _, size in runs],
            "verbatim": memory.verbatim(answers, truths).tolist(),
            "rougeL_recall": texts.rouge_l_recall(expected, replies).tolist(),
            "cosine": texts.cosine_rows(self.encode(expected), self.encode(replies)).tolist(),
            "degenerate": texts.degenerate(replies).tolist(),
            **likeness(expected, replies, answers, prompts, scorer()),
            "excerpts": [
                {
                    "prompt": decode(prompts[i][-EXCERPT_TOKENS:], skip_special_tokens=True),
                    "truth": decode(truths[i][:EXCERPT_TOKENS], skip_special_tokens=True),
                    "continuation": [decode(part) for part in _around(answers[i], *runs[i])],
                }
                for i in _few(len(answers))
            ],
        }

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        items: list[Item] = []
        for split, part in record.items():
            values = {k: v for k, v in part.items() if k not in ("keys", "excerpts", "embeddings")}
            items += items_of(GENERAL if split == "prose" else split, part["keys"], values)
        if base is not None:
            pair = (np.asarray(each[GENERAL]["embeddings"]) for each in (base, record))
            values = {"similarity_original": texts.cosine_rows(*pair)}
            items += items_of(GENERAL, record[GENERAL]["keys"], values)
        return items

    def examples(self, record: Record) -> list[tuple[str, str, str]]:
        return [
            (split, excerpt["prompt"], "".join(excerpt["continuation"]))
            for split in (FORGET, RETAIN, GENERAL)
            for excerpt in record[split]["excerpts"]
        ]

    @property
    def topic(self) -> str:  # type: ignore[override]
        """What the prompting baseline is told to say nothing about."""
        return f"the book '{self.data.book.title}'"

    @functools.cached_property
    def frame(self) -> Frame:
        """Passages have no template around them."""
        return Frame((), ())

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        forget = self.chapters(FORGET)
        others = [each.text for each in self.data.book.chapters if each.text not in forget]
        rows = [row for split in data.PARTS[1:] for row in self.passages(split)[0]]
        asked = [self.encoder.text(row.prompt) for row in rows]
        most = self.settings.guards.eco.classifier.most
        prose = list(self.data.prose)
        return passage_prompts(forget, others, prose, self.general, asked, most=most)

    def aim(self, model: LanguageModel) -> np.ndarray:
        return self._memorised(model, self.encoder.passages(list(self.data.prose)))

    def gap_values(self, model: LanguageModel, aim: np.ndarray) -> float:
        rows = self.encoder.passages(self.chapters(FORGET))
        return float(np.abs(self._memorised(model, rows) - aim).mean())

    def _memorised(self, model: LanguageModel, rows: Sequence[Example]) -> np.ndarray:
        """Mean probability and exact memorisation of a few passages."""
        few = spread(rows, self.settings.guards.eco.search.questions)
        scores = scoring.score(model, few)
        memorised = memory.exact_memorisation(scores.matches)
        return np.array([np.exp(-scores.mean).mean(), np.mean(memorised)])


def _around(row: Sequence[int], start: int, length: int) -> tuple[list[int], ...]:
    """What stands before, within and after the longest verbatim run."""
    tokens = list(row[:EXCERPT_TOKENS])
    return tokens[:start], tokens[start : start + length], tokens[start + length :]


def _few(count: int) -> list[int]:
    """A few places spread over so many."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(EXCERPTS, count))})
