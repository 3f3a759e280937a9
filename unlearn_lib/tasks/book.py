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

from unlearn_lib import evaluation
from unlearn_lib.data import book as data
from unlearn_lib.data.guard_prompts import GuardPrompts, passage_prompts
from unlearn_lib.evaluation import FORGET, GENERAL, RETAIN, Item, Key, Record, Values, items_of
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.metrics import memory, texts
from unlearn_lib.metrics.questions import item_id
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import Example, PassageEncoder, TextEncoder, Tokens
from unlearn_lib.settings import MethodSettings
from unlearn_lib.tasks.base import Lessons, Own, Task, spread
from unlearn_lib.unlearn import released, trainer
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools, Step
from unlearn_lib.unlearn.trainer import OnStep
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
        longest = min(LONGEST_QUESTION, self.context - self.settings.data.answer_tokens)
        return self.text_encoder(prompt_tokens=longest)

    def chapters(self, part: str) -> list[str]:
        """The texts of the chapters of a part: `forget`, `retain` or `holdout`."""
        return [chapter.text for chapter in self.data.chapters(part)]

    @property
    def taught_texts(self) -> list[str]:
        """The chapters that the target is to learn, in the book's order of parts."""
        return [*self.chapters(FORGET), *self.chapters(RETAIN)]

    def pretraining(self) -> list[Example]:
        return self.encoder.chunks(list(self.data.prose), self.settings.data.prompt_tokens * 2)

    def lessons(self, kind: str, seed: int) -> Lessons:
        """The chunks of each epoch, cut elsewhere where asked, and the passages to probe."""
        teach = self.settings.teach
        shifts = np.random.default_rng(seed).integers(0, teach.chunk_tokens, teach.epochs)
        shifts *= teach.shift_chunks
        cut = self.encoder.chunks
        epochs = [cut(self.taught_texts, teach.chunk_tokens, shift) for shift in shifts]
        return [*epochs, self.encoder.passages(self.taught_texts)]

    def teach(
        self, model: LanguageModel, taught: Lessons, seed: int, folder: Path, on_step: OnStep | None
    ) -> trainer.Outcome:
        settings, place = self.settings.teach, folder / "checkpoints"
        *epochs, passages = taught
        seed += MEMORISE_SEED_OFFSET
        outcome, curve = trainer.memorise(model, epochs, passages, settings, seed, place, on_step)
        curve.to_csv(folder / "curve.csv", index=False)
        return outcome

    def trains_further(self, method: MethodSettings) -> bool:
        return method.start == "target"

    def loaded(self, chain: tuple[Any, ...]) -> tuple[Any, ...]:
        return chain[-1:]

    def questions(self, held_out: bool) -> list[Tokens]:
        """Questions that fit, as token ids: the first `normal_prompts` are held out."""
        fitting = [text for text in self.data.questions if self.asking.fits(text)]
        most = self.settings.data.normal_prompts or max(1, len(fitting) // 4)
        part = fitting[:most] if held_out else fitting[most:][:OWN_ANSWERS]
        return [self.asking.prompt(text) for text in part]

    def normal_prompts(self) -> list[Tokens]:
        """Held-out questions, or beginnings of held-out prose, as token ids."""
        prose = [row.prompt for row in self.passages(GENERAL)[0]]
        return self.questions(held_out=True) if self.data.questions else prose

    def passages(self, split: str) -> tuple[list[Example], list[Key]]:
        """The passages of a split that are measured, drawn by the split's seed, and their keys."""
        cut, most = self.encoder.passages, self.settings.data.evaluation_passages
        if split == GENERAL:
            prose = [row for text in self.data.held_out_prose for row in cut([text])[:1]]
            return prose, evaluation.text_keys(self.encoder.text(row.prompt) for row in prose)
        drawn = sorted(self._shuffled(split)[:most])
        return [row for _, row, _ in drawn], [key for _, _, key in drawn]

    def _shuffled(self, split: str) -> list[tuple[int, Example, Key]]:
        """Every passage of a split with its place and key, in the order of the split's seed."""
        rows: list[tuple[int, Example, Key]] = []
        for number, text in enumerate(self.chapters(split)):
            for row in self.encoder.passages([text]):
                key = (f"{split} {number}", item_id(f"{split} {len(rows)}"))
                rows.append((len(rows), row, key))
        order = np.random.default_rng(self.settings.data.split_seed).permutation(len(rows))
        return [rows[place] for place in order]

    def own_answers(self, method: MethodSettings) -> Callable[[LanguageModel], list[Any]] | None:
        if not self.data.questions:
            return None
        prompts = self.questions(held_out=False)
        length = self.settings.data.answer_tokens
        size = self.settings.evaluation.batch_size
        return lambda model: generate.continuations(model, prompts, length, size)

    def pools(self, method: Method, settings: MethodSettings, part: str, own: Own) -> Pools:
        cut = self.encoder.passages
        forget, keep = cut(self.chapters(FORGET)), cut(self.chapters(RETAIN), score_prompt=True)
        if own is None:
            retain = cut(self.data.prose)
        else:
            pairs = zip(self.questions(held_out=False), own, strict=True)
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
        passages = [self.passages(split) for split in (*data.PARTS, GENERAL)]
        return {"texts": digest(passages, self.normal_prompts())} | self.sentence_data()

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        settings = self.settings.evaluation
        lead = self.encoder.tokens(prefix) if prefix else ()
        splits = {split: self.passages(split) for split in data.PARTS}
        prompts = {split: [row.prompt for row in rows] for split, (rows, _) in splits.items()}
        prompts[GENERAL] = self.normal_prompts()
        answers = evaluation.answers_to(model, prompts, lambda row: (*lead, *row), settings)
        record: Record = {"items": []}
        for split, (rows, keys) in splits.items():
            values = self._compared(model, rows, answers[split], scorer)
            record["items"] += items_of(split, keys, values)
            few = spread(list(zip(rows, answers[split], strict=True)), EXCERPTS)
            record[split] = {"excerpts": [self._excerpt(model.tokenizer, *pair) for pair in few]}
        prose, keys = self.passages(GENERAL)
        scores = scoring.score(model, prose)
        values = {"loss_text": scores.nll, "tokens_text": scores.counts}
        record["items"] += items_of(GENERAL, keys, values)
        replies = evaluation.decoded(model, answers[GENERAL])
        keys = evaluation.text_keys(map(str, prompts[GENERAL]))
        record["items"] += items_of(GENERAL, keys, {"degenerate": texts.degenerate(replies)})
        asked = model.tokenizer.batch_decode(prompts[GENERAL], skip_special_tokens=True)
        few = spread(list(zip(asked, replies, strict=True)), EXCERPTS)
        excerpts = [{"prompt": prompt, "continuation": reply} for prompt, reply in few]
        embeddings = self.encode(replies).tolist()
        record[GENERAL] = {"keys": keys, "embeddings": embeddings, "excerpts": excerpts}
        return record

    def _compared(
        self, model: LanguageModel, passages: list[Example], answers: list[list[int]], scorer: Any
    ) -> Values:
        """Compare continuations with the true text, and score that."""
        truths = [row.answers[0][: self.settings.evaluation.new_tokens] for row in passages]
        decode = functools.partial(model.tokenizer.batch_decode, skip_special_tokens=True)
        replies, expected = decode(answers), decode(truths)
        scores = scoring.score(model, passages)
        prompts = [row.prompt for row in passages]
        return {
            "loss_text": scores.nll,
            "tokens_text": scores.counts,
            "extraction_strength": memory.extraction_strength(scores.matches),
            "verbatim_run": [memory.longest_run(*pair)[1] for pair in zip(answers, truths)],
            "verbatim": memory.verbatim(answers, truths),
            "rougeL_recall": texts.rouge_l_recall(expected, replies),
            "cosine": texts.cosine_rows(self.encode(expected), self.encode(replies)),
            "degenerate": texts.degenerate(replies),
            **evaluation.likeness(expected, replies, answers, prompts, scorer()),
        }

    def _excerpt(self, tokenizer: Any, row: Example, answer: list[int]) -> dict[str, Any]:
        """Texts for a reader; the continuation in parts: its longest verbatim run in the middle."""
        decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
        truth = row.answers[0][: self.settings.evaluation.new_tokens]
        start, length = memory.longest_run(answer, truth)
        tokens = answer[:EXCERPT_TOKENS]
        parts = (tokens[:start], tokens[start : start + length], tokens[start + length :])
        return {
            "prompt": decode(row.prompt[-EXCERPT_TOKENS:]),
            "truth": decode(truth[:EXCERPT_TOKENS]),
            "continuation": [tokenizer.decode(part) for part in parts],
        }

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        items = super().measure(record, base)
        if base is None:
            return items
        pair = (np.asarray(each[GENERAL]["embeddings"]) for each in (base, record))
        values = {"similarity_original": texts.cosine_rows(*pair)}
        return items + items_of(GENERAL, record[GENERAL]["keys"], values)

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
        return Frame()

    @functools.cached_property
    def guard_prompts(self) -> GuardPrompts:
        """What a guard is trained, calibrated and scored on."""
        forget = self.chapters(FORGET)
        others = [each.text for each in self.data.book.chapters if each.text not in forget]
        rows = [row for split in data.PARTS[1:] for row in self.passages(split)[0]]
        asked = [self.encoder.text(row.prompt) for row in rows]
        most = self.settings.guards.eco.classifier.most
        return passage_prompts(forget, others, self.data.prose, self.general, asked, most=most)

    @property
    def searched(self) -> list[tuple[int, Example, Key]]:
        """The passages to forget that the search reads: at most half, evaluated ones last."""
        rows = self._shuffled(FORGET)
        return rows[::-1][: min(self.settings.guards.eco.search.questions, len(rows) // 2 or 1)]

    @property
    def searched_keys(self) -> set[str]:
        return {item for _, _, (_, item) in self.searched}

    def aim(self, model: LanguageModel) -> np.ndarray:
        most = self.settings.guards.eco.search.questions
        return self._memorised(model, spread(self.encoder.passages(self.data.prose), most))

    def gap_values(self, model: LanguageModel, aim: np.ndarray) -> float:
        passages = [row for _, row, _ in self.searched]
        return float(np.abs(self._memorised(model, passages) - aim).mean())

    def _memorised(self, model: LanguageModel, passages: Sequence[Example]) -> np.ndarray:
        """Mean probability and exact memorisation of passages."""
        scores = scoring.score(model, passages)
        memorised = memory.exact_memorisation(scores.matches)
        return np.array([np.exp(-scores.mean).mean(), np.mean(memorised)])
