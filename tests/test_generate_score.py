"""Greedy answers and scores are those of plain forwards, however rows are batched or packed."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from unlearn_lib.assets import Asset
from unlearn_lib.model import generate
from unlearn_lib.model.loading import LanguageModel, load
from unlearn_lib.model.scoring import score
from unlearn_lib.model.tokens import Example, PassageEncoder, TextEncoder, end_ids
from unlearn_lib.settings import ModelSettings
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


# --- where an answer ends --------------------------------------------------------------------


def with_template(tokenizer: Any, template: str | None) -> Any:
    """A copy of the tiny tokenizer with a turn end of its own and another template."""
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        chat_template=template,
        eos_token="</s>",
        pad_token="<pad>",
    )
    other.add_special_tokens({"extra_special_tokens": ["<end_of_turn>"]})
    return other


@pytest.mark.parametrize("stated", [None, 2, [2, 7]])
@pytest.mark.parametrize(
    "template, turn_end",
    [
        (None, None),
        ("{% for t in messages %}{{ t.content }}<end_of_turn>\n{% endfor %}", "<end_of_turn>"),
        ("{% for t in messages %}<end_of_turn>{{ t.content }}\n{% endfor %}", None),
        ("{{ raise_exception('Roles must be human and bot') }}", None),
    ],
)
def test_an_answer_ends_at_the_models_and_the_templates_end_too(
    template: str | None, turn_end: str | None, stated: Any, tokenizer: Any
) -> None:
    other = with_template(tokenizer, template)
    expected = {other.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}
    expected |= {other.convert_tokens_to_ids(turn_end)} if turn_end else set()
    ends = end_ids(other, SimpleNamespace(eos_token_id=stated))
    assert ends == sorted(expected)


@pytest.mark.parametrize("share", [True, False])
def test_any_of_several_ends_ends_an_answer(
    share: bool, load_tiny: Load, prompts: list[tuple[int, ...]]
) -> None:
    tiny = load_tiny("llama")
    assert tiny.hardware["answers_end_at"] == "</s>"
    whole = generate.continuations(tiny, prompts, 20, share=False)
    ends = sorted({row[9] for row in whole})
    tiny.model.generation_config.eos_token_id = ends
    expected = [row[: min(row.index(end) for end in ends if end in row)] for row in whole]
    assert generate.continuations(replace(tiny), prompts, 20, share=share) == expected


def test_a_tokenizer_without_an_end_is_refused(
    tiny_assets: dict[str, Asset], tokenizer: Any, tmp_path: Path
) -> None:
    shutil.copytree(tiny_assets["opt"].folder, tmp_path, dirs_exist_ok=True)
    other = with_template(tokenizer, None)
    other.eos_token = None
    other.save_pretrained(tmp_path)
    with pytest.raises(CompanionError, match="'tiny' has no end token.*tokenizer_config"):
        load(Asset("tiny", tmp_path, "test", ""), ModelSettings(id="tiny"), "cpu")


def test_a_prompt_does_not_end_with_the_end_that_a_tokenizer_appends(
    tokenizer: Any, encoder: TextEncoder
) -> None:
    """OPT's begins with that token, which stays."""
    other, end = with_template(tokenizer, None), tokenizer.eos_token_id
    processor = TemplateProcessing(single="</s> $A </s>", special_tokens=[("</s>", end)])
    other.backend_tokenizer.post_processor = processor
    assert other("Why?")["input_ids"][-1] == end
    asked = replace(encoder, tokenizer=other).prompt("Why?")
    assert asked == (end, *encoder.prompt("Why?"))
    assert PassageEncoder(other, 6, 24, 128).prefix == (end,)


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
