"""Steps that implant a book and make a model forget it, at a precision or on an 8-bit base."""

import tempfile
from pathlib import Path
from typing import Any

from unlearn_lib.data.book import SAGA
from unlearn_lib.data.reading import read_book
from unlearn_lib.model import loading
from unlearn_lib.model.tokens import PassageEncoder
from unlearn_lib.settings import LoraSettings, MethodSettings
from unlearn_lib.unlearn import trainer
from unlearn_lib.unlearn.methods import METHODS, Method
from unlearn_lib.unlearn.steps import Pools, Step, draw_steps

LORA = LoraSettings(rank=16, alpha=32, dropout=0.05)
CHUNK_TOKENS, CHUNKS = 128, 3
SEED = 0


def _settings(uses: str) -> MethodSettings:
    return MethodSettings(
        uses=uses, steps=6, learning_rate=1e-4, forget_weight=0.5, mismatch_answers=2
    )


def implant_steps(found: loading.LanguageModel) -> tuple[Method, MethodSettings, list[Step]]:
    """Causal language modelling on three chunks of the embedded saga a step."""
    settings = _settings("retain_only")
    encoder = PassageEncoder(found.tokenizer, 32, 32, found.context)
    rows = encoder.chunks([chapter.text for chapter in read_book(SAGA).chapters], CHUNK_TOKENS)
    whole = [row for row in rows if row.length >= CHUNK_TOKENS]
    groups = (whole[i : i + CHUNKS] for i in range(0, CHUNKS * settings.steps, CHUNKS))
    return METHODS["retain_only"], settings, [Step((), tuple(group)) for group in groups]


def forget_steps(found: loading.LanguageModel) -> tuple[Method, MethodSettings, list[Step]]:
    """The published update on passages of the saga; other passages stand in for prose."""
    settings = _settings("ga_mismatch_kl")
    encoder = PassageEncoder(found.tokenizer, 32, 32, found.context)
    chapters = [chapter.text for chapter in read_book(SAGA).chapters]
    forget, retain = encoder.passages(chapters[:4]), encoder.passages(chapters[4:8])
    pools = Pools(forget, [[row.answers[0] for row in retain]] * len(forget), retain)
    method = METHODS["ga_mismatch_kl"]
    return method, settings, draw_steps(pools, method, settings, SEED)


def measured(found: loading.LanguageModel, kind: str) -> dict[str, Any]:
    """Time the steps of `implant` or `forget` in `trainer.unlearn`; the first warms up."""
    draw = {"implant": implant_steps, "forget": forget_steps}[kind]
    method, settings, steps = draw(found)
    with tempfile.TemporaryDirectory() as folder:
        outcome = trainer.unlearn(
            found, method, settings, Pools(), SEED, Path(folder) / "run", steps=steps
        )
    seconds = [row["seconds"] for row in outcome.history][1:]
    tokens = [row["tokens"] for row in outcome.history][1:]
    return {"seconds": seconds, "tokens": tokens, "flops": [0.0] * len(seconds)}
