"""A guard in front of a model: what it adds to answering ordinary prompts, and its own time."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from unlearn_lib import assets
from unlearn_lib.data.authors import write_authors
from unlearn_lib.data.guard_prompts import general_prompts
from unlearn_lib.guard.fit import fit_guard
from unlearn_lib.guard.model import Guard, GuardedModel
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.model import generate, loading
from unlearn_lib.model.tokens import TextEncoder
from unlearn_lib.settings import CorruptionSettings, GuardSettings, TextClassifierSettings

PROMPTS, NEW_TOKENS, BATCH, REPEATS = 200, 32, 48, 3
GUARDED = 2 * BATCH
"""Questions by which the guard's own time is measured: of the kind that it flags."""
TRAINED, KEPT = 96, 160
PUBLISHED_MILLISECONDS = 21.0
"""Liu et al. 2024: the classifier takes less than this a prompt, on their hardware."""
CLASSIFIER = TextClassifierSettings(
    base="sentence-transformers/all-MiniLM-L6-v2", epochs=2, learning_rate=3e-4, maximum_length=128
)
CORRUPTION = CorruptionSettings(name="rand_noise_first_n")
SEED, OTHER_AUTHORS = 0, 1

Result = TypeVar("Result")


def author_questions(count: int, seed: int) -> list[str]:
    """So many questions about fictitious authors, ten for each."""
    written = write_authors(-(-count // 10), seed)
    return [row.question for author in written for row in author.questions][:count]


def fitted_guard(kept: Sequence[str]) -> Guard:
    """A guard of fictitious authors, fitted in few steps against ordinary prompts."""
    encoder = assets.find_model(CLASSIFIER.base).folder
    forget = author_questions(TRAINED, SEED)
    settings = GuardSettings(
        classifier=CLASSIFIER, corruption=CORRUPTION, threshold=0.5, strength=1.0
    )
    return fit_guard("authors", encoder, forget, kept, (), settings, SEED)


def measured(found: loading.LanguageModel) -> dict[str, Any]:
    """Time plain and guarded answers in turn, then the guard alone, in milliseconds a prompt.

    The guard was fitted on none of the ordinary prompts that are answered.
    """
    encoder = TextEncoder(found.tokenizer, "chat", 96, NEW_TOKENS, found.context)
    ordinary = [text for text in general_prompts("truthful_qa") if encoder.fits(text)]
    guard = fitted_guard(ordinary[PROMPTS : PROMPTS + KEPT])
    model = GuardedModel(found.model, found.tokenizer, guard, Frame.of(encoder.prompt))
    detected = author_questions(GUARDED, OTHER_AUTHORS)
    prompts, questions = (
        [encoder.prompt(text) for text in texts] for texts in (ordinary[:PROMPTS], detected)
    )
    return {
        **answering(replace(found, model=model), found, prompts),
        "flagged": int(guard.flags(ordinary[:PROMPTS]).sum()),
        "guard_milliseconds": {size: milliseconds(model, questions, size) for size in (1, BATCH)},
        "guard_prompts": len(questions),
        "guard_flagged": int(guard.flags(detected).sum()),
        "repeats": REPEATS,
    }


def answering(
    guarded: loading.LanguageModel, plain: loading.LanguageModel, prompts: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Seconds to answer guarded and plain, warmed up on a batch, and how many answers are equal."""
    ways = (guarded, plain)
    for way in ways:
        _answers(way, prompts[:BATCH])
    timed = [[_timed(_answers, way, prompts) for way in ways] for _ in range(REPEATS)]
    ours, baseline = ([pair[i][1] for pair in timed] for i in (0, 1))
    return {
        "ours": statistics.median(ours),
        "baseline": statistics.median(baseline),
        "ratio": statistics.median(a / b for a, b in zip(ours, baseline, strict=True)),
        "prompts": len(prompts),
        "equal": sum(a == b for a, b in zip(timed[0][0][0], timed[0][1][0], strict=True)),
    }


def milliseconds(model: GuardedModel, prompts: Sequence[Sequence[int]], size: int) -> float:
    """What the guard takes a prompt at a batch size: reading, judging, choosing tokens."""
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    seconds = [sum(_timed(model.plan, batch)[1] for batch in batches) for _ in range(REPEATS)]
    return 1000 * statistics.median(seconds) / len(prompts)


def records(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of `results/bench.json`: guarded against plain, the guard against the paper."""
    shared = {key: found[key] for key in ("where", "precision", "repeats")}
    count = found["prompts"]
    answering = {
        "name": f"guard, SmolLM2-135M: {count} ordinary prompts, guarded against plain",
        **{key: found[key] for key in ("ours", "baseline", "ratio", "prompts", "equal", "flagged")},
        "unit": "s",
        "ratio_is": f"of the plain time; {found['equal']} of {count} answers equal to the token",
        **shared,
    }
    own = [
        {
            "name": f"guard: its own time a prompt, batch {size}, against the paper's bound",
            "ours": value,
            "baseline": PUBLISHED_MILLISECONDS,
            "ratio": value / PUBLISHED_MILLISECONDS,
            "unit": "ms",
            "ratio_is": "of the bound, which was measured on other hardware",
            "flagged": found["guard_flagged"],
            **shared,
        }
        for size, value in found["guard_milliseconds"].items()
    ]
    return [answering, *own]


def _answers(found: loading.LanguageModel, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    return generate.continuations(found, prompts, NEW_TOKENS, BATCH, share=False)


def _timed(call: Callable[..., Result], *given: Any) -> tuple[Result, float]:
    began = time.perf_counter()
    result = call(*given)
    return result, time.perf_counter() - began
