"""Task harm: answer fewer harmful prompts, stay as before on normal ones (Arora et al. 2024)."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_lib import assets, judges
from unlearn_lib.data import harm as data
from unlearn_lib.evaluation import FORGET, RETAIN, Item, Record, items_of, text_keys
from unlearn_lib.metrics import texts
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel, choose_device
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MethodSettings
from unlearn_lib.tasks.base import BASE, Task
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools
from unlearn_lib.util import digest

JUDGE_SEED = 0


class Harm(Task):
    """Harmful prompts to refuse or evade, normal ones to answer as before."""

    name = "harm"
    starts_from = BASE  # type: ignore[assignment]
    last_adapter = "float32"
    judge: judges.HarmJudge
    """Fitted or loaded by the experiment before anything is measured."""

    @functools.cached_property
    def data(self) -> data.HarmSplits:
        """The rows, split; prompts that are too long are left out."""
        return data.load(self.settings.data, self.encoder.fits)

    def texts_for_tiny(self) -> list[str]:
        limits = ("forget_rows", "evaluation_prompts", "normal_prompts", "retain_rows")
        rows = data.load(self.settings.data.model_copy(update=dict.fromkeys(limits)))
        graded = [*rows.scored_train, *rows.scored_test]
        normal = [*rows.retain, *rows.normal]
        words = [text for row in graded for text in (row.question, row.answer)]
        words += [text for row in normal for text in (row.question, *row.answers)]
        return sorted(words)

    def before(self) -> list[str]:
        return [BASE]

    def pretraining(self) -> list[Example]:
        encode = self.encoder.example
        rows = [encode(row.question, row.answer) for row in self.data.forget]
        return rows + [encode(row.question, row.answers[0]) for row in self.data.retain]

    def own_answers(self, method: MethodSettings) -> Callable[[LanguageModel], list[str]]:
        prompts = [self.encoder.prompt(row.question) for row in self.data.retain]
        size = self.settings.evaluation.batch_size
        return lambda model: generate.answers(model, prompts, method.own_tokens, size)

    def pools(
        self, method: Method, settings: MethodSettings, part: str, own: list[Any] | None
    ) -> Pools:
        encode, rows = self.encoder, self.data
        forget = [encode.example(row.question, row.answer) for row in rows.forget]
        answers: list[Sequence[str]] = [row.answers for row in rows.retain]
        if own is not None:
            answers = [[text] if text else given for text, given in zip(own, answers, strict=True)]
        retain = [
            encode.example(row.question, *each)
            for row, each in zip(rows.retain, answers, strict=True)
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
        answers = [row.answer for row in self.data.harmless]
        refusing = texts.refusals(answers)
        rows = [self.encoder.answer(t) for t, flag in zip(answers, refusing, strict=True) if flag]
        return sorted({row for row in rows if len(row) <= most_tokens})

    def asked(self, part: str) -> dict[str, str]:
        return {"rows": digest(self.data.evaluation, self.data.normal)}

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        harmful, normal = list(self.data.evaluation), self.data.normal
        questions = [*harmful, *(row.question for row in normal)]
        prompts = [self.encoder.prompt(text) for text in questions]
        settings = self.settings.evaluation
        answers = generate.answers(model, prompts, settings.new_tokens, settings.batch_size)
        replies = answers[: len(harmful)]
        retained = [self.encoder.example(row.question, row.answers[0]) for row in normal]
        losses, counts = scoring.answer_losses(model, retained)
        return {
            FORGET: {
                "keys": text_keys(harmful),
                "asked": harmful,
                "texts": replies,
                "answer_tokens": [len(self.tokenizer(text)["input_ids"]) for text in replies],
            },
            RETAIN: {
                "keys": text_keys(questions[len(harmful) :]),
                "asked": questions[len(harmful) :],
                "texts": answers[len(harmful) :],
                "loss_text": losses.tolist(),
                "tokens_text": counts.tolist(),
            },
        }

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        now, normal = record[FORGET], record[RETAIN]
        values = {
            "harmful": self._harmful(now["asked"], now["texts"]),
            "degenerate": texts.degenerate(now["texts"]),
            "answer_tokens": now["answer_tokens"],
        }
        kept: dict[str, Any] = {
            "refusal": texts.refusals(normal["texts"]),
            "loss_text": normal["loss_text"],
            "tokens_text": normal["tokens_text"],
        }
        if base is not None:
            before = base[FORGET]["texts"]
            cut = [
                " ".join(text.split()[: len(short.split())])
                for text, short in zip(before, now["texts"], strict=True)
            ]
            values["harmful_length_matched"] = self._harmful(now["asked"], cut)
            kept |= self._likeness(base[RETAIN]["texts"], normal["texts"])
        return [*items_of(FORGET, now["keys"], values), *items_of(RETAIN, normal["keys"], kept)]

    def examples(self, record: Record) -> list[tuple[str, str, str]]:
        return [
            (split, asked, answer)
            for split in (FORGET, RETAIN)
            for asked, answer in zip(record[split]["asked"], record[split]["texts"], strict=True)
        ]

    def _harmful(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        return self.judge.probability(prompts, answers) > self.settings.judge.threshold

    def _likeness(self, before: list[str], now: list[str]) -> dict[str, np.ndarray]:
        values = {
            "similarity_original": texts.cosine_rows(self.encode(before), self.encode(now)),
            "rougeL_original": texts.rouge_l(before, now),
        }
        if self.bleurt is not None:
            folder, device = self.bleurt.folder, choose_device("auto").type
            values["bleurt_original"] = judges.bleurt_scores(folder, before, now, device=device)
        return values

    @functools.cached_property
    def bleurt(self) -> assets.Asset | None:
        """BLEURT's weights; None where the profile names none, or they are missing."""
        name = self.settings.evaluation.bleurt
        if name is None:
            return None
        try:
            return assets.find_model(name)
        except assets.AssetMissing:
            print(
                f"The BLEURT weights '{name}' are missing, so bleurt_original is left out; put "
                f"them in a folder models/{name} below UNLEARN_MIRROR."
            )
            return None

    def judge_data(self) -> dict[str, str]:
        """The sha256 of what the judge of harm is trained and scored on."""
        judge = self.settings.judge
        base = assets.find_model(judge.base)
        if judge.data == "jigsaw":
            return {
                "base": base.sha256,
                "jigsaw": data.jigsaw(judge.rows, JUDGE_SEED, judge.file)[2],
            }
        return {
            "base": base.sha256,
            "scored": digest(self.data.scored_train, self.data.scored_test),
        }

    def fit_judge(self, folder: Path, use_cpu: bool) -> list[Item]:
        """Train the judge of harm on the training objectives; score it on the held-out ones."""
        settings = self.settings.judge
        base = assets.find_model(settings.base).folder
        if settings.data == "jigsaw":
            train, test, _ = data.jigsaw(settings.rows, JUDGE_SEED, settings.file)
            prompts, answers = [""] * len(train), [row.text for row in train]
            held_out = [("", row.text, any(row.labels)) for row in test]
            truth = np.array([row.labels for row in train])
        else:
            graded = self.data.scored_train
            prompts, answers = [row.question for row in graded], [row.answer for row in graded]
            scored = self.data.scored_test
            held_out = [(row.question, row.answer, row.harmful) for row in scored]
            truth = np.array([row.harmful for row in graded])
        judge = judges.fit_harm_judge(settings, base, prompts, answers, truth, JUDGE_SEED, use_cpu)
        judge.save(folder)
        first, second, flags = zip(*held_out, strict=True)
        return judged(judge, first, second, flags)

    def load_judge(self, folder: Path) -> None:
        """Load the judge of harm."""
        self.judge = judges.load_harm_judge(folder, self.judge_encoder)

    @functools.cached_property
    def judge_encoder(self) -> judges.Encoder:
        """The sentence encoder of the judge; that of similarities where they are the same."""
        settings = self.settings.judge
        if settings.kind != "embedding" or settings.base == self.settings.evaluation.encoder:
            return self.encode
        return judges.sentence_encoder(assets.find_model(settings.base).folder)


def judged(
    judge: judges.Judge, first: Sequence[str], second: Sequence[str], truth: Any
) -> list[Item]:
    """Items of a judge on held-out pairs: its score, and whether it is right."""
    flags = np.asarray(truth, bool)
    scores, right = judges.held_out(judge, list(first), list(second), flags)
    pairs = [f"{one}\n{other}" for one, other in zip(first, second, strict=True)]
    rows = []
    for split, chosen in (("positive", flags), ("negative", ~flags)):
        places = np.flatnonzero(chosen)
        keys = text_keys([f"{place} {pairs[place]}" for place in places])
        values = {"judge_score": scores[places], "judge_right": right[places]}
        rows += items_of(split, keys, values)
    return rows
