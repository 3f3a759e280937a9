"""What experiment 3 measures around the models: side effects, attacks, costs, scaling, the guard.

Seconds are wall time of this machine and change from run to run; they decide no answer.
"""

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_lib import assets, classifiers, generation, metrics
from unlearn_lib.batches import TextEncoder
from unlearn_lib.datasets.attacks import ATTACKS, attacked
from unlearn_lib.datasets.tofu import digest
from unlearn_lib.eco.calibration import flagged
from unlearn_lib.eco.guard import Guard, judged
from unlearn_lib.eco.tokens import Frame
from unlearn_lib.experiments import eco_measures as measures
from unlearn_lib.experiments.closer_look_stages import IMPLANTED
from unlearn_lib.experiments.eco_stages import EcoStages
from unlearn_lib.experiments.eco_tasks import ECO, PROMPTING, behind
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.models import LanguageModel
from unlearn_lib.runs import Run, Spec, write_text
from unlearn_lib.settings import Task

VERSION = {"robustness": 1, "unrelated": 1, "scaling": 1}
TIMED_TOKENS, TIMED_PROMPTS, REPEATS = 8, 16, 3
AS_ASKED = "as asked"


class EcoCosts(EcoStages):
    """One model and one seed of experiment 3: what the guard costs, and where it breaks."""

    @functools.cached_property
    def sentence_encoder(self) -> Any:
        """The sentence encoder of cosine similarity."""
        found = assets.find_model(self.settings.evaluation.encoder)
        return classifiers.sentence_encoder(found.folder)

    def scorer_asset(self, task: Task) -> assets.Asset:
        """The model whose fixed weights measure perplexity."""
        chosen = self.settings.evaluation.scorer
        return assets.find_model(chosen) if chosen else self.tasks[task].weights

    @functools.cached_property
    def scorer(self) -> LanguageModel:
        """The scorer, loaded once; the original model of the task unless the profile names one."""
        return self._fresh(self.scorer_asset("entities"))

    @functools.cached_property
    def book_scorer(self) -> LanguageModel:
        """As `scorer`, for the book."""
        chosen = self.settings.evaluation.scorer
        return self.scorer if chosen else self.book.loaded(ORIGINAL)

    @functools.cached_property
    def _long(self) -> TextEncoder:
        """The encoder of the entities' questions, with all the room that the context gives."""
        encoder = self.tofu.encoder
        return replace(encoder, prompt_tokens=encoder.context - encoder.answer_tokens)

    def attacked_models(self) -> list[str]:
        """Which models are attacked: those that the profile names, or all of the entities'."""
        every = self.tasks["entities"].models() if "entities" in self.tasks else []
        chosen = self.settings.evaluation.robustness_models or tuple(every)
        return [who for who in every if who in chosen and who != ORIGINAL]

    def robustness(self, who: str) -> Run:
        """Ask a model what it is to forget, in every way that may dodge a guard."""
        rows = self.tofu.forgotten("fictitious")
        texts = {name: attacked(rows, name, self.seed) for name in ATTACKS}
        chosen = self.tofu.settings.evaluation
        spec = Spec(
            "robustness",
            {"new_tokens": chosen.new_tokens, "batch_size": chosen.batch_size}
            | {"prefix": self.prefix("entities") if who == PROMPTING else ""}
            | self.reading("entities"),
            self.made("entities", who),
            {"weights": self.origin("entities", who), "questions": digest(*rows)}
            | {"texts": digest(*texts.items())},
            VERSION["robustness"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            found = self.model_of("entities", who)
            encoder = self.asking("entities", who, self._long)
            every = [text for part in texts.values() for text in part]
            size, length = chosen.batch_size, chosen.new_tokens
            given = iter(measures.answers_to(found, encoder, every, length, size))
            flags = iter(_flagged(found, every)) if who == ECO else None
            record: dict[str, Any] = {}
            for name, part in texts.items():
                own = [next(given) for _ in part]
                said = [found.tokenizer.decode(row, skip_special_tokens=True) for row in own]
                leaked = measures.leaked(said, rows)
                rouge = metrics.rouge_l_recall([row.answer for row in rows], said)
                record[name] = {"asked": part, "said": said, "rouge": rouge.tolist()}
                record[name]["leaked"] = None if leaked is None else leaked.tolist()
                if flags is not None:
                    record[name]["missed"] = [not bool(next(flags)) for _ in part]
            write_text(folder / "attacks.json", json.dumps(record))
            return {"hardware": found.hardware}

        return self.store.get(spec, compute)

    def attacks(self, who: str) -> dict[str, Any]:
        """What `robustness` wrote: for each way of asking, what was asked and said."""
        return json.loads((self.robustness(who).folder / "attacks.json").read_text())

    def unrelated_prompts(self, who: str) -> list[str]:
        """Prompts on other things; fewer for models without a guard."""
        most = self.settings.evaluation.unrelated_prompts
        held_out = self.tasks["entities"].prompts.held_out_retain
        fitting = [text for text in held_out if self.tofu.encoder.fits(text)]
        return fitting[: most if who == ECO else max(1, most // 8)]

    def unrelated(self, who: str) -> Run:
        """Answer unrelated prompts with a model and with the implanted one, side by side, timed."""
        prompts, chosen = self.unrelated_prompts(who), self.settings.evaluation
        size, length = chosen.batch_size, chosen.unrelated_tokens
        spec = Spec(
            "unrelated",
            {"new_tokens": length, "batch_size": size, **self.reading("entities")}
            | {"prefix": self.prefix("entities") if who == PROMPTING else ""},
            self.made("entities", who),
            {"weights": self.origin("entities", who), "prompts": digest(*prompts)},
            VERSION["unrelated"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            mine = self.model_of("entities", who)
            before = self._plain(tuple(prompts))
            encoder = self.asking("entities", who, self.tofu.encoder)
            after = _timed(mine, encoder, prompts, length, size)
            texts = [
                [mine.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
                for rows, _ in (before, after)
            ]
            record: dict[str, Any] = {
                "same": [a == b for a, b in zip(before[0], after[0], strict=True)],
                "rouge": metrics.rouge_l(*texts).tolist(),
                "tokens": sum(map(len, after[0])),
                "seconds": [before[1], after[1]],
            }
            if who == ECO:
                record |= {"flagged": _flagged(mine, prompts).tolist()}
                record |= {"guard_seconds": _guard_seconds(mine, encoder, prompts, size)}
            write_text(folder / "unrelated.json", json.dumps(record | {"texts": texts[1][:4]}))
            return {"hardware": mine.hardware}

        return self.store.get(spec, compute)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (an experiment lives as long as its process)
    def _plain(self, prompts: tuple[str, ...]) -> tuple[list[list[int]], float]:
        """The implanted model's answers, and the seconds that they took."""
        chosen = self.settings.evaluation
        size, length = chosen.batch_size, chosen.unrelated_tokens
        found = self.tofu.loaded(IMPLANTED)
        return _timed(found, self.tofu.encoder, prompts, length, size)

    def side_effects(self, who: str) -> dict[str, Any]:
        """What `unrelated` wrote."""
        return json.loads((self.unrelated(who).folder / "unrelated.json").read_text())

    def scaling(self) -> Run:
        """Time the same guard before random models of growing size."""
        sizes, task = self.settings.evaluation.scaling, self.task_names[0]
        spec = Spec(
            "scaling",
            {"sizes": sizes, "tokens": TIMED_TOKENS, "prompts": TIMED_PROMPTS, "repeats": REPEATS},
            (self.searched(task).key,),
            version=VERSION["scaling"],
        )

        def compute(folder: Path) -> dict[str, Any]:
            guard = Guard.load(self.searched(task).folder / "guard", task)
            guard = replace(guard, strength=1.0)
            prompts = self.tasks[task].prompts
            half = TIMED_PROMPTS // 2
            texts = [*prompts.held_out_forget[:half], *prompts.held_out_retain[:half]]
            tokenizer = self.tasks[task].loaded(IMPLANTED).tokenizer
            return {"sizes": [_timed_at(width, guard, tokenizer, texts) for width in sizes]}

        return self.store.get(spec, compute)


def _flagged(found: LanguageModel, prompts: Sequence[str]) -> np.ndarray:
    guard = found.model.guard
    return flagged(judged(guard.classifier, prompts), guard.threshold)


def _timed(
    found: LanguageModel, encoder: TextEncoder, prompts: Sequence[str], length: int, size: int
) -> tuple[list[list[int]], float]:
    encoded = [encoder.prompt(text) for text in prompts]
    began = time.perf_counter()
    rows = generation.continuations(found, encoded, length, size, share=False)
    return rows, time.perf_counter() - began


def _guard_seconds(
    found: LanguageModel, encoder: TextEncoder, prompts: Sequence[str], size: int
) -> float:
    """Seconds that the guard alone takes: reading, judging, choosing tokens, batch by batch."""
    encoded = sorted((encoder.prompt(text) for text in prompts), key=len, reverse=True)
    began = time.perf_counter()
    for start in range(0, len(encoded), size):
        found.model.plan(encoded[start : start + size])
    return time.perf_counter() - began


def _timed_at(width: int, guard: Guard, tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Time a model of a width and the guard before it, in milliseconds a prompt.

    The weights are zeros: what a product takes does not depend on its factors.
    """
    layers, heads = max(2, width // 64), max(1, width // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    found = behind(LanguageModel(model, tokenizer), guard, Frame((), ()))
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    plain, guarded = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        parts = found.model.parts_of(prompts)
        embedded = model.get_input_embeddings()(torch.zeros(len(texts), 64, dtype=torch.long))
        found.model.corrupted(embedded, parts)
        middle = time.perf_counter()
        generation.continuations(
            LanguageModel(model, tokenizer), prompts, TIMED_TOKENS, len(texts), share=False
        )
        plain.append(1000 * (time.perf_counter() - middle) / len(texts))
        guarded.append(1000 * (middle - began) / len(texts))
    parameters = sum(each.numel() for each in model.parameters())
    return {"parameters": parameters, "guard": guarded, "model": plain}
