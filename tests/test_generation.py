"""Greedy answers and scored losses do not depend on how rows are batched."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearn_lib import generation, scoring
from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.errors import CompanionError
from unlearn_lib.models import LanguageModel

Load = Callable[..., LanguageModel]
QUESTIONS = ("Why?", "How do birds fly so far?", "What is the capital of France?", "Tell me.")
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def prompts(encoder: TextEncoder) -> list[tuple[int, ...]]:
    return [encoder.prompt(question) for question in QUESTIONS]


def one_by_one(found: LanguageModel, prompt: Sequence[int], new_tokens: int) -> str:
    """Greedy decoding written out: no padding, no cache, no generate()."""
    row, end = list(prompt), found.tokenizer.eos_token_id
    with torch.no_grad():
        while len(row) < len(prompt) + new_tokens and row[-1] != end:
            row.append(int(found.model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
    return found.tokenizer.decode(row[len(prompt) :], skip_special_tokens=True).strip()


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_answers_are_those_of_plain_greedy_decoding(
    architecture: str, load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    found = load_tiny(architecture)
    expected = [one_by_one(found, prompt, NEW_TOKENS) for prompt in prompts]
    assert generation.answers(found, prompts, NEW_TOKENS) == expected
    assert len(set(expected)) > 1


def test_batches_and_order_do_not_change_an_answer(
    load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    found = load_tiny("opt")
    alone = {p: generation.answers(found, [p], NEW_TOKENS)[0] for p in prompts}

    @settings(max_examples=12)
    @given(st.lists(st.sampled_from(prompts), min_size=1, max_size=6), st.integers(1, 4))
    def check(asked: list[tuple[int, ...]], batch_size: int) -> None:
        texts = generation.answers(found, asked, NEW_TOKENS, batch_size)
        assert texts == [alone[prompt] for prompt in asked]

    check()


def test_an_answer_ends_at_the_end_token_and_shows_none(
    load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    found = load_tiny("opt")
    generated = found.model.generate

    def with_an_end(**named: Any) -> Any:
        output = generated(**named)
        output.sequences[:, -2] = found.tokenizer.eos_token_id
        output.sequences[:, -1] = found.tokenizer.pad_token_id
        return output

    found.model.generate = with_an_end
    for text in generation.answers(found, prompts, NEW_TOKENS):
        assert "</s>" not in text
        assert "<pad>" not in text
        assert text == text.strip()


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("share", [True, False])
def test_an_answer_that_ends_early_leaves_the_batch_and_changes_no_other(
    architecture: str, share: bool, load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    found, long = load_tiny(architecture), 3 * generation.TOKENS_AT_ONCE - 3
    whole = generation.continuations(found, prompts, long, share=False)
    end, known = whole[1][generation.TOKENS_AT_ONCE + 1], found.tokenizer
    ids = SimpleNamespace(eos_token_id=end, pad_token_id=known.pad_token_id, bos_token_id=0)
    found = replace(found, tokenizer=ids)
    expected = [row[: row.index(end)] if end in row else row for row in whole]
    assert generation.continuations(found, prompts, long, share=share) == expected
    assert len(set(map(len, expected))) > 1


def test_no_prompts_give_no_answers(load_tiny: Load) -> None:
    assert generation.answers(load_tiny("opt"), [], NEW_TOKENS) == []


@pytest.mark.parametrize("length, place", [(121, 1), (0, 1)])
def test_a_prompt_that_does_not_fit_is_refused_in_a_sentence(
    length: int, place: int, load_tiny: Load
) -> None:
    found = load_tiny("opt")
    with pytest.raises(CompanionError, match=f"Prompt {place} has {length} tokens.*context of 128"):
        generation.answers(found, [(5,), (5,) * length], NEW_TOKENS)
    assert len(generation.answers(found, [(5,) * 120], NEW_TOKENS)) == 1


# --- scoring ---------------------------------------------------------------------------------


def plain_losses(found: LanguageModel, examples: Sequence[Example]) -> list[float]:
    """One row per answer, one forward per row, no packing."""
    losses = []
    for example in examples:
        for answer in example.answers:
            row = torch.tensor([[*example.prompt, *answer]])
            with torch.no_grad():
                logits = found.model(input_ids=row).logits[0, len(example.prompt) - 1 : -1]
            target = torch.tensor(answer)
            losses.append(float(torch.nn.functional.cross_entropy(logits, target, reduction="sum")))
    return losses


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("most_tokens", [1, 60, 1024])
def test_scores_equal_a_plain_computation_row_by_row(
    architecture: str, most_tokens: int, load_tiny: Load, encoder: TextEncoder
) -> None:
    found = load_tiny(architecture)
    examples = [
        encoder.example("Why?", "Because.", "It is so by the light of the sky."),
        encoder.example("How do birds fly so far?", "They ride."),
        encoder.example("Who?", "You.", "The capital of France.", "No."),
    ]
    nll, counts = scoring.answer_losses(found, examples, most_tokens)
    np.testing.assert_allclose(nll, plain_losses(found, examples), rtol=1e-5)
    assert counts.tolist() == [len(a) for example in examples for a in example.answers]
    assert (nll > 0).all()


def test_order_of_examples_does_not_change_a_score(load_tiny: Load, encoder: TextEncoder) -> None:
    found = load_tiny("opt")
    examples = [encoder.example(q, "So it is.", "No.") for q in QUESTIONS]
    there, _ = scoring.answer_losses(found, examples, 80)
    back, _ = scoring.answer_losses(found, examples[::-1], 80)
    np.testing.assert_allclose(there.reshape(4, 2), back.reshape(4, 2)[::-1], rtol=1e-5)


def test_nothing_to_score_gives_empty_arrays(load_tiny: Load) -> None:
    nll, counts = scoring.answer_losses(load_tiny("opt"), [])
    assert nll.shape == counts.shape == (0,)
