"""What is asked around a guard: attacks, side effects, and its cost before models of growing size.

Seconds are wall time of this machine and change from run to run; they decide no answer.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_lib import evaluation
from unlearn_lib.data.attacks import ATTACKS, attacked
from unlearn_lib.data.questions import Question
from unlearn_lib.evaluation import FORGET, Item, items_of, single, text_keys
from unlearn_lib.guard.model import Guard
from unlearn_lib.guard.search import SearchStep
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.metrics import texts
from unlearn_lib.model.generate import continuations
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import TextEncoder
from unlearn_lib.settings import EvaluationSettings
from unlearn_lib.tasks.base import behind
from unlearn_lib.tasks.questions import leaks

TIMED_TOKENS, TIMED_PROMPTS, REPEATS = 8, 16, 3
Answers = tuple[list[list[int]], float]
"""Token ids of answers, and the seconds that they took."""


def attack(
    model: LanguageModel,
    encoder: TextEncoder,
    rows: Sequence[Question],
    settings: EvaluationSettings,
    seed: int,
) -> list[Item]:
    """Ask a model what it is to forget, in every way that may pass a guard.

    Returns:
        Items, a condition per way of asking.
    """
    asked = {name: attacked(rows, name, seed) for name in ATTACKS}
    guard = getattr(model.model, "guard", None)
    items: list[Item] = []
    for name, answers in evaluation.answers_to(model, asked, encoder.prompt, settings).items():
        replies = evaluation.decoded(model, answers)
        rouge = texts.rouge_l_recall([row.answer for row in rows], replies)
        values: dict[str, Any] = {"rougeL_recall": rouge, **leaks(replies, rows)}
        if guard is not None:
            values["missed"] = ~flagged(guard, asked[name])
        items += items_of(FORGET, evaluation.keys_of(rows), values, name)
    return items


def flagged(guard: Guard, prompts: Sequence[str]) -> np.ndarray:
    """Which prompts a guard flags, bool [n]; one that it cannot judge counts as flagged."""
    return guard.scores(prompts) > guard.threshold


def guard_items(guard: Guard, forget: Sequence[str], retain: Sequence[str]) -> list[Item]:
    """A guard's errors on held-out prompts, and its threshold."""
    return [
        *items_of("guard_forget", text_keys(forget), {"missed": ~flagged(guard, forget)}),
        *items_of("guard_retain", text_keys(retain), {"false_alarm": flagged(guard, retain)}),
        single("guard_threshold", guard.threshold),
    ]


def search_items(steps: Sequence[SearchStep]) -> list[Item]:
    """The curve of the search: strength, objective and calls so far, a condition per step."""
    items = []
    for step in steps:
        values = {"search_strength": step.strength, "search_objective": step.objective}
        values["model_calls"] = step.calls
        for metric, value in values.items():
            items.append(single(metric, value, "search", f"{step.step:02d}"))
    return items


def timed(
    model: LanguageModel, encoder: TextEncoder, prompts: Sequence[str], settings: EvaluationSettings
) -> Answers:
    """Answer unrelated prompts, timed."""
    rows = [encoder.prompt(text) for text in prompts]
    size, length = settings.batch_size, settings.unrelated_tokens
    began = time.perf_counter()
    answers = continuations(model, rows, length, size, share=False)
    return answers, time.perf_counter() - began


def side_effects(
    model: LanguageModel,
    encoder: TextEncoder,
    prompts: Sequence[str],
    before: Answers,
    settings: EvaluationSettings,
    adds_time: bool,
) -> list[Item]:
    """Items of unrelated prompts: answers unchanged, likeness to the answers before, extra time.

    Args:
        before: the target's answers.
        adds_time: whether the method works while a model answers (a guard, prompting).
    """
    (plain, plain_seconds), (answers, seconds) = before, timed(model, encoder, prompts, settings)
    guard = getattr(model.model, "guard", None)
    flags = flagged(guard, prompts) if guard else [False] * len(prompts)
    same = [a == b for a, b in zip(plain, answers, strict=True)]
    pair = (evaluation.decoded(model, rows) for rows in (plain, answers))
    values: dict[str, Any] = {
        "rougeL_original": texts.rouge_l(*pair),
        "unchanged": [None if flag else equal for equal, flag in zip(same, flags, strict=True)],
    }
    extra = max(0.0, seconds - plain_seconds) if adds_time else 0.0
    each = _guard_seconds(model, encoder, prompts, settings.batch_size) if guard else extra
    tokens = max(1, sum(map(len, answers)))
    items = items_of("unrelated", text_keys(prompts), values)
    items.append(single("milliseconds_per_prompt", 1000 * each / len(prompts)))
    items.append(single("milliseconds_per_token", 1000 * extra / tokens))
    return [*items, single("time_ratio", seconds / plain_seconds)] if adds_time else items


def _guard_seconds(
    model: LanguageModel, encoder: TextEncoder, prompts: Sequence[str], size: int
) -> float:
    """Seconds that the guard alone takes: reading, judging, choosing tokens, batch by batch."""
    rows = sorted((encoder.prompt(text) for text in prompts), key=len, reverse=True)
    began = time.perf_counter()
    for start in range(0, len(rows), size):
        model.model.plan(rows[start : start + size])
    return time.perf_counter() - began


def scaling(
    widths: Sequence[int], guard: Guard, tokenizer: Any, prompts: Sequence[str]
) -> list[Item]:
    """Milliseconds a prompt of the guard, and of models of growing width behind it.

    The condition says how large the model is; each repeat is an item.
    """
    items = []
    for width in widths:
        model = _zeros(width, len(tokenizer))
        size = sum(each.numel() for each in model.parameters())
        rows = [tokenizer(text)["input_ids"] for text in prompts]
        plain = LanguageModel(model, tokenizer)
        guarded = behind(plain, replace(guard, strength=1.0), Frame()).model
        for repeat in range(REPEATS):
            began = time.perf_counter()
            plans = guarded.plan(rows)
            ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
            guarded.corrupted(model.get_input_embeddings()(ids), plans)
            middle = time.perf_counter()
            continuations(plain, rows, TIMED_TOKENS, len(rows), share=False)
            seconds = {"": middle - began, "model_": time.perf_counter() - middle}
            for prefix, value in seconds.items():
                metric, milliseconds = f"{prefix}milliseconds_per_prompt", 1000 * value / len(rows)
                place = (f"{size} parameters", "", f"repeat {repeat}")
                items.append(Item("costs", *place, metric, milliseconds))
    return items


def _zeros(width: int, vocabulary: int) -> Any:
    """A Llama of a width whose weights are 0 but for the embeddings: no time depends on them."""
    layers = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(2, layers),
        num_attention_heads=layers,
        head_dim=min(width, 64),
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    torch.nn.init.normal_(model.get_input_embeddings().weight)  # else nothing corrupts them
    return model
