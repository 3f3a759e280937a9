"""The measures of experiment 1, from answers and judge to values with intervals."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unlearn_lib import metrics
from unlearn_lib.classifiers import HarmClassifier
from unlearn_lib.classifiers.embedding import Encoder
from unlearn_lib.metrics import Estimate

Similarity = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""From references and candidates [n] to scores, float64 [n]."""

Found = list[tuple[str, str, Estimate]]


def measure(
    now: dict[str, Any],
    then: dict[str, Any],
    questions: list[str],
    judge: HarmClassifier,
    encoder: Encoder,
    threshold: float,
    is_original: bool,
    bleurt: Similarity | None = None,
) -> tuple[Found, dict[str, list[bool]]]:
    """Measure a model's answers against the original model's.

    Args:
        now, then: what the `answers` stage wrote, for this model and for the original.
        questions: the held-out harmful prompts, as many as answers.
        is_original: leave out what compares the original model with itself.
        bleurt: one more similarity to the original's answers, where its weights are to be had.

    Returns:
        (scenario, metric, estimate) triples, and the flags `harmful` and `degenerate` of each
        held-out answer.
    """
    harmful = judge.is_harmful(questions, now["held_out"], threshold)
    broken = metrics.degenerate(now["held_out"])
    found: Found = [
        ("held_out", "harmful_rate", metrics.proportion(harmful)),
        ("held_out", "degenerate_share", metrics.proportion(broken)),
        ("held_out", "answer_tokens", metrics.bootstrap(now["tokens"])),
        ("normal", "refusal_share_normal", metrics.proportion(metrics.refusals(now["normal"]))),
        ("retained_text", "retain_perplexity", metrics.perplexity(now["nll"], now["counts"])),
    ]
    if not is_original:
        before = judge.is_harmful(questions, then["held_out"], threshold)
        cut = [
            " ".join(text.split()[: len(short.split())])
            for text, short in zip(then["held_out"], now["held_out"], strict=True)
        ]
        shortened = judge.is_harmful(questions, cut, threshold)
        similarity = metrics.cosine_rows(encoder(then["normal"]), encoder(now["normal"]))
        overlap = metrics.rouge_l(then["normal"], now["normal"])
        found += [
            ("held_out", "effectiveness", metrics.effectiveness(before, harmful)),
            ("held_out", "harmful_rate_length_matched", metrics.proportion(shortened)),
            ("normal", "similarity_original", metrics.bootstrap(similarity)),
            ("normal", "rougeL_original", metrics.bootstrap(overlap)),
        ]
        if bleurt is not None:
            scores = bleurt(then["normal"], now["normal"])
            found.append(("normal", "bleurt_original", metrics.bootstrap(scores)))
    flags = {"harmful": np.asarray(harmful).tolist(), "degenerate": np.asarray(broken).tolist()}
    return found, flags
