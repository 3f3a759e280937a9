"""Task harm: answer fewer harmful prompts, stay as before on normal ones (Arora et al. 2024)."""

import functools
from collections.abc import Callable, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np

from unlearn_lib import assets, evaluation, judges
from unlearn_lib.data import harm as data
from unlearn_lib.evaluation import FORGET, RETAIN, Item, Record, Values, items_of, text_keys
from unlearn_lib.metrics import texts
from unlearn_lib.model import generate, scoring
from unlearn_lib.model.loading import LanguageModel, choose_device
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import MethodSettings
from unlearn_lib.tasks.base import BASE, Own, Task, sentence_encoder
from unlearn_lib.unlearn.methods import Method
from unlearn_lib.unlearn.steps import Pools
from unlearn_lib.util import digest, say

JUDGE_SEED = 0


class Harm(Task):
    """Harmful prompts to refuse or evade, normal ones to answer as before."""

    name = "harm"
    starts_from = BASE
    last_adapter = "float32"
    judge: judges.Judge
    """Fitted or loaded by the experiment before anything is measured."""

    @functools.cached_property
    def data(self) -> data.HarmSplits:
        """The rows, split; prompts that are too long are left out."""
        return data.load(self.settings.data, self.encoder.fits)

    def texts_for_tiny(self) -> list[str]:
        limits = ("forget_rows", "evaluation_prompts", "normal_prompts", "retain_rows")
        rows = data.load(self.settings.data.model_copy(update=dict.fromkeys(limits)))
        graded = [row[:2] for row in (*rows.scored_train, *rows.scored_test)]
        normal = [(row.question, *row.answers) for row in (*rows.retain, *rows.normal)]
        return sorted(chain(*graded, *normal))

    def pretraining(self) -> list[Example]:
        encode = self.encoder.example
        rows = [encode(row.question, row.answer) for row in self.data.forget]
        return rows + [encode(row.question, row.answers[0]) for row in self.data.retain]

    def own_answers(self, method: MethodSettings) -> Callable[[LanguageModel], list[str]]:
        prompts = [self.encoder.prompt(row.question) for row in self.data.retain]
        size = self.settings.evaluation.batch_size
        return lambda model: generate.answers(model, prompts, method.own_tokens, size)

    def pools(self, method: Method, settings: MethodSettings, part: str, own: Own) -> Pools:
        encode, rows = self.encoder, self.data
        forget = [encode.example(row.question, row.answer) for row in rows.forget]
        retain = [encode.example(row.question, *row.answers) for row in rows.retain]
        if own is not None:  # without the end token, which a cut answer did not have
            cut = settings.own_tokens
            pairs = zip(rows.retain, own, strict=True)
            answers = [encode.answer(text or row.answers[0])[:cut] for row, text in pairs]
            retain = [Example(row.prompt, (answer,)) for row, answer in zip(retain, answers)]
        pool = [answer for example in retain for answer in example.answers]
        if method.mismatch == "refusal":  # the short ones among the harmless answers, each once
            harmless = [row.answer for row in rows.harmless]
            refusals = map(encode.answer, compress(harmless, texts.refusals(harmless)))
            pool = sorted({row for row in refusals if len(row) <= settings.refusal_tokens})
        return Pools(forget, [pool] * len(forget), retain)

    def asked(self, part: str) -> dict[str, str]:
        return {"rows": digest(self.data.evaluation, self.data.normal)}

    def evaluate(self, model: LanguageModel, part: str, prefix: str, scorer: Any) -> Record:
        normal, settings = self.data.normal, self.settings.evaluation
        asked = {FORGET: [*self.data.evaluation], RETAIN: [row.question for row in normal]}
        answers = evaluation.answers_to(model, asked, self.encoder.prompt, settings)
        record: Record = {}
        for split, rows in answers.items():
            record[split] = {"asked": asked[split], "texts": evaluation.decoded(model, rows)}
        ids = self.tokenizer(record[FORGET]["texts"])["input_ids"]
        record[FORGET]["answer_tokens"] = [len(row) for row in ids]
        retained = [self.encoder.example(row.question, row.answers[0]) for row in normal]
        scores = scoring.score(model, retained)
        values = {"refusal": texts.refusals(record[RETAIN]["texts"])}
        values |= {"loss_text": scores.nll, "tokens_text": scores.counts}
        return record | {"items": items_of(RETAIN, text_keys(asked[RETAIN]), values)}

    def measure(self, record: Record, base: Record | None) -> list[Item]:
        now, normal = record[FORGET], record[RETAIN]
        values = {
            "harmful": self._harmful(now["asked"], now["texts"]),
            "degenerate": texts.degenerate(now["texts"]),
            "answer_tokens": now["answer_tokens"],
        }
        compared = {}
        if base is not None:
            pairs = zip(base[FORGET]["texts"], now["texts"], strict=True)
            cut = [" ".join(text.split()[: len(short.split())]) for text, short in pairs]
            values["harmful_length_matched"] = self._harmful(now["asked"], cut)
            compared = self._compared(base[RETAIN]["texts"], normal["texts"])
        items = items_of(FORGET, text_keys(now["asked"]), values) + super().measure(record, base)
        return items + items_of(RETAIN, text_keys(normal["asked"]), compared)

    def _harmful(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        return self.judge.probability(prompts, answers) > self.settings.judge.threshold

    def _compared(self, before: list[str], now: list[str]) -> Values:
        values = {
            "similarity_original": texts.cosine_rows(self.encode(before), self.encode(now)),
            "rougeL_original": texts.rouge_l(before, now),
        }
        if self.bleurt is not None:
            device = choose_device("auto").type
            values["bleurt_original"] = judges.bleurt_scores(self.bleurt, before, now, device)
        return values

    @functools.cached_property
    def bleurt(self) -> Path | None:
        """The folder of BLEURT's weights; None where they are not asked for, or missing."""
        name = self.settings.evaluation.bleurt
        try:
            return assets.find_model(name).folder if name else None
        except assets.AssetMissing:
            say(
                f"The BLEURT weights '{name}' are missing, so bleurt_original is left out; put "
                f"them in a folder models/{name} below UNLEARN_MIRROR."
            )
            return None

    @functools.cached_property
    def graded(self) -> list[Any]:
        """What the judge is trained on, and held-out rows: prompt, answer, whether harmful."""
        settings = self.settings.judge
        if settings.data != "jigsaw":
            return [self.data.scored_train, self.data.scored_test]
        train, test, _ = data.jigsaw(settings.rows, JUDGE_SEED, settings.file)
        return [[("", *comment) for comment in part] for part in (train, test)]

    def judge_data(self) -> dict[str, str]:
        """The sha256 of what the judge of harm is trained and scored on."""
        base = assets.find_model(self.settings.judge.base)
        return {"base": base.sha256, "graded": digest(self.graded)}

    def fit_judge(self, folder: Path, use_cpu: bool) -> list[Item]:
        """Train the judge of harm on the training objectives; score it on the held-out ones."""
        settings = self.settings.judge
        base = assets.find_model(settings.base).folder
        (asked, answers, harmful), test = (zip(*rows, strict=True) for rows in self.graded)
        judge = judges.fit_harm_judge(settings, base, asked, answers, harmful, JUDGE_SEED, use_cpu)
        judge.save(folder)
        return evaluation.judged(judge, *test)

    def load_judge(self, folder: Path) -> None:
        """Load the judge of harm; one of kind `sequence` needs no encoder."""
        settings = self.settings.judge
        name = settings.base if settings.kind == "embedding" else self.settings.evaluation.encoder
        encoder = sentence_encoder(assets.find_model(name).folder)
        self.judge = judges.load_harm_judge(folder, encoder)
