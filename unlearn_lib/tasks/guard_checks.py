"""What is asked around a guard: attacks, side effects, and its cost before models of growing size.

Seconds are wall time of this machine and change from run to run; they decide no answer.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn_lib.data.attacks import ATTACKS, attacked
from unlearn_lib.data.questions import Question
from unlearn_lib.evaluation import (
    FORGET,
    Item,
    answers_to,
    decoded,
    items_of,
    keys_of,
    single,
    text_keys,
)
from unlearn_lib.guard.model import Guard
from unlearn_lib.guard.tokens import Frame
from unlearn_lib.metrics import texts
from unlearn_lib.model import generate
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.tokens import TextEncoder
from unlearn_lib.settings import EvaluationSettings
from unlearn_lib.tasks.base import behind
from unlearn_lib.tasks.questions import leaks

TIMED_TOKENS, TIMED_PROMPTS, REPEATS = 8, 16, 3
UNRELATED = "unrelated"
Answers = tuple[list[list[int]], float]
"""Token ids of answers, and the seconds that they took."""


def attack(
    model: LanguageModel,
    encoder: TextEncoder,
    rows: Sequence[Question],
    settings: EvaluationSettings,
    seed: int,
) -> tuple[list[Item], dict[str, Any]]:
    """Ask a model what it is to forget, in every way that may pass a guard.

    Returns:
        Items, a condition per way of asking; and what was asked and answered, for a reader.
    """
    asked = {name: attacked(rows, name, seed) for name in ATTACKS}
    every = [text for part in asked.values() for text in part]
    size, length = settings.batch_size, settings.new_tokens
    answers = iter(answers_to(model, encoder, every, length, size))
    guard = getattr(model.model, "guard", None)
    flags = None if guard is None else iter(flagged(guard, every))
    items: list[Item] = []
    replies: dict[str, Any] = {}
    for name, part in asked.items():
        answer_texts = decoded(model, [next(answers) for _ in part])
        rouge = texts.rouge_l_recall([row.answer for row in rows], answer_texts)
        values: dict[str, Any] = {"rougeL_recall": rouge, **leaks(answer_texts, rows)}
        if flags is not None:
            values["missed"] = [not next(flags) for _ in part]
        items += items_of(FORGET, keys_of(rows), values, name)
        replies[name] = {"asked": part, "answers": answer_texts}
    return items, replies


def flagged(guard: Guard, prompts: Sequence[str]) -> list[bool]:
    """Which prompts a guard flags; one that it cannot judge counts as flagged."""
    return [bool(score > guard.threshold) for score in guard.scores(prompts)]


def guard_items(guard: Guard, forget: Sequence[str], retain: Sequence[str]) -> list[Item]:
    """A guard's errors on held-out prompts, and its threshold."""
    missed = [not flag for flag in flagged(guard, forget)]
    return [
        *items_of("guard_forget", text_keys(forget), {"missed": missed}),
        *items_of("guard_retain", text_keys(retain), {"false_alarm": flagged(guard, retain)}),
        single("guard_threshold", guard.threshold),
    ]


def timed(
    model: LanguageModel, encoder: TextEncoder, prompts: Sequence[str], settings: EvaluationSettings
) -> Answers:
    """Answer unrelated prompts, timed."""
    rows = [encoder.prompt(text) for text in prompts]
    size, length = settings.batch_size, settings.unrelated_tokens
    began = time.perf_counter()
    answers = generate.continuations(model, rows, length, size, share=False)
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
    after = timed(model, encoder, prompts, settings)
    guard = getattr(model.model, "guard", None)
    flags = flagged(guard, prompts) if guard else [False] * len(prompts)
    same = [a == b for a, b in zip(before[0], after[0], strict=True)]
    values: dict[str, Any] = {
        "rougeL_original": texts.rouge_l(decoded(model, before[0]), decoded(model, after[0])),
        "unchanged": [None if flag else equal for equal, flag in zip(same, flags, strict=True)],
    }
    extra = max(0.0, after[1] - before[1]) if adds_time else 0.0
    each = _guard_seconds(model, encoder, prompts, settings.batch_size) if guard else extra
    tokens = max(1, sum(map(len, after[0])))
    items = items_of(UNRELATED, text_keys(prompts), values)
    items.append(single("milliseconds_per_prompt", 1000 * each / len(prompts)))
    items.append(single("milliseconds_per_token", 1000 * extra / tokens))
    return [*items, single("time_ratio", after[1] / before[1])] if adds_time else items


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
        parameters, *times = _timed_at(width, replace(guard, strength=1.0), tokenizer, prompts)
        condition = f"{parameters} parameters"
        names = ("milliseconds_per_prompt", "model_milliseconds_per_prompt")
        for metric, values in zip(names, times, strict=True):
            for number, value in enumerate(values):
                items.append(Item("costs", condition, "", f"repeat {number}", metric, value))
    return items


def _timed_at(
    width: int, guard: Guard, tokenizer: Any, prompts: Sequence[str]
) -> tuple[int, list[float], list[float]]:
    """Parameters of a model of a width, and milliseconds a prompt of the guard and of the model.

    The weights are zeros: what a product takes does not depend on its factors.
    """
    layers = heads = max(1, width // 64)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(2, layers),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    plain_model = LanguageModel(model, tokenizer)
    guarded_model = behind(plain_model, guard, Frame()).model
    rows = [tokenizer(text)["input_ids"] for text in prompts]
    plain, guarded = [], []
    for _ in range(REPEATS):
        began = time.perf_counter()
        plans = [(row, *plan) for row, plan in enumerate(guarded_model.plan(rows)) if plan]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        guarded_model.corrupted(model.get_input_embeddings()(ids), plans)
        middle = time.perf_counter()
        generate.continuations(plain_model, rows, TIMED_TOKENS, len(rows), share=False)
        plain.append(1000 * (time.perf_counter() - middle) / len(rows))
        guarded.append(1000 * (middle - began) / len(rows))
    return sum(each.numel() for each in model.parameters()), guarded, plain
