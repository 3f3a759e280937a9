"""Greedy answers and scores are those of plain forwards, however rows are batched or packed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_lib.model import generate
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.scoring import score
from unlearn_lib.model.tokens import Example, TextEncoder
from unlearn_lib.util import CompanionError

Load = Callable[..., LanguageModel]
every_architecture = pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
QUESTIONS = ("Why?", "How do birds fly so far?", "What is the capital of France?", "Tell me.")
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def prompts(encoder: TextEncoder) -> list[tuple[int, ...]]:
    return [encoder.prompt(question) for question in QUESTIONS]


# --- answers ---------------------------------------------------------------------------------


def one_by_one(language_model: LanguageModel, prompt: Sequence[int]) -> str:
    """Greedy decoding written out: no padding, no cache, no generate()."""
    row, end = list(prompt), language_model.tokenizer.eos_token_id
    with torch.no_grad():
        while len(row) < len(prompt) + NEW_TOKENS and row[-1] != end:
            logits = language_model.model(input_ids=torch.tensor([row])).logits
            row.append(int(logits[0, -1].argmax()))
    text: str = language_model.tokenizer.decode(row[len(prompt) :], skip_special_tokens=True)
    return text.strip()


@every_architecture
def test_answers_are_those_of_plain_greedy_decoding_however_they_are_batched(
    architecture: str, load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    tiny = load_tiny(architecture)
    alone = {prompt: one_by_one(tiny, prompt) for prompt in prompts}
    assert len(set(alone.values())) > 1

    @settings(max_examples=12)
    @given(st.lists(st.sampled_from(prompts), max_size=6), st.integers(1, 4))
    def check(asked: list[tuple[int, ...]], batch_size: int) -> None:
        answers = generate.answers(tiny, asked, NEW_TOKENS, batch_size)
        assert answers == [alone[prompt] for prompt in asked]

    check()


@every_architecture
@pytest.mark.parametrize("share", [True, False])
def test_an_answer_that_ends_early_leaves_the_batch_and_changes_no_other(
    architecture: str, share: bool, load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    tiny, length = load_tiny(architecture), 3 * generate.TOKENS_AT_ONCE - 3
    whole = generate.continuations(tiny, prompts, length, share=False)
    end, pad = whole[1][generate.TOKENS_AT_ONCE + 1], tiny.tokenizer.pad_token_id
    ids = SimpleNamespace(eos_token_id=end, pad_token_id=pad, bos_token_id=0)
    expected = [row[: row.index(end)] if end in row else row for row in whole]
    ending = replace(tiny, tokenizer=ids)
    assert generate.continuations(ending, prompts, length, share=share) == expected
    assert len(set(map(len, expected))) > 1


@pytest.mark.parametrize("length", [121, 0])
def test_a_prompt_that_does_not_fit_is_refused(length: int, load_tiny: Load) -> None:
    tiny = load_tiny("opt")
    with pytest.raises(CompanionError, match=f"Prompt 1 has {length} tokens.*context of 128"):
        generate.answers(tiny, [(5,), (5,) * length], NEW_TOKENS)
    assert len(generate.answers(tiny, [(5,) * 120], NEW_TOKENS)) == 1


# --- scores ----------------------------------------------------------------------------------

ROWS = [
    Example((5, 6, 7), ((8, 9, 10), (11,), (12, 13))),
    Example((5, 6), ((14, 15),)),
    Example((20, 21, 22, 23, 24), ((25,), (26, 27, 28, 29))),
    Example((30, 31), ((32, 33, 34),), score_prompt=True),
]
COUNTS = [3, 1, 2, 2, 1, 4, 4]
FIRST = [0, 3, 4, 6]
"""The places of the examples' first answers among all seven."""


def plain(language_model: LanguageModel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each answer, alone: log-probabilities [t, V] in float64, and its scored tokens."""
    tables, labels = [], []
    for example in ROWS:
        for answer in example.answers:
            row = [*example.prompt, *answer]
            start = 1 if example.score_prompt else len(example.prompt)
            with torch.no_grad():
                logits = language_model.model(input_ids=torch.tensor([row])).logits
            tables.append(logits[0, start - 1 : -1].double().log_softmax(-1).numpy())
            labels.append(np.array(row[start:]))
    return tables, labels


@every_architecture
@pytest.mark.parametrize("most_tokens", [1, 12, 1024])
def test_scores_equal_those_of_plain_rows(
    architecture: str, most_tokens: int, load_tiny: Load
) -> None:
    tiny = load_tiny(architecture)
    tables, labels = plain(tiny)
    own = [table[np.arange(len(true)), true] for table, true in zip(tables, labels)]
    scores = score(tiny, ROWS, most_tokens, first_statistics=True)
    assert scores.nll == pytest.approx([-values.sum() for values in own], rel=1e-5)
    assert scores.counts.tolist() == COUNTS
    assert scores.mean == pytest.approx(scores.nll / COUNTS)
    for matches, table, true in zip(scores.matches, tables, labels, strict=True):
        assert matches.tolist() == (table.argmax(-1) == true).tolist()
    assert [len(part) for part in scores.tokens] == [3, 0, 0, 2, 1, 0, 4], "first answers alone"
    for place in FIRST:
        table, p = tables[place], np.exp(tables[place])
        mean = (p * table).sum(-1)
        deviation = np.sqrt((p * (table - mean[:, None]) ** 2).sum(-1))
        expected = np.stack((own[place], mean, deviation), 1)
        assert scores.tokens[place] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    scores = score(tiny, ROWS, most_tokens)
    nll, counts = scores.nll, scores.counts
    assert np.array_equal(nll, scores.nll) and np.array_equal(counts, scores.counts)


def test_statistics_are_empty_where_they_are_not_asked_for(load_tiny: Load) -> None:
    assert [part.shape for part in score(load_tiny(), ROWS).tokens] == [(0, 3)] * 7
    scores = score(load_tiny(), [], first_statistics=True)
    assert (len(scores.nll), len(scores.counts), scores.matches, scores.tokens) == (0, 0, [], [])


@pytest.mark.parametrize("factor, error", [(0.0, 1e-5), (1e-5, 0.0)])
def test_a_model_that_is_uniform_or_nearly_so(factor: float, error: float, load_tiny: Load) -> None:
    """Maximum entropy makes it so; a difference of two squares would leave rounding alone."""
    tiny: Any = load_tiny("llama")
    with torch.no_grad():
        tiny.model.lm_head.weight.mul_(factor)
    scores, (tables, _) = score(tiny, ROWS, first_statistics=True), plain(tiny)
    nats = math.log(tiny.model.config.vocab_size)
    assert scores.nll == pytest.approx(scores.counts * nats, rel=1e-3)
    for place in FIRST:
        deviation = tables[place].std(-1)
        assert deviation.max() < 1e-3
        assert scores.tokens[place][:, 2] == pytest.approx(deviation, rel=0.02, abs=error)
