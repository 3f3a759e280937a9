"""Text to tokens: questions with answers, passages, chunks, and how much a context holds."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from unlearn_lib.model.packing import pack
from unlearn_lib.model.tokens import (
    SHORTEST_ANSWER,
    Example,
    PassageEncoder,
    TextEncoder,
    context_of,
)
from unlearn_lib.util import CompanionError

# --- questions and answers -------------------------------------------------------------------


def test_templates_are_exact(encoder: TextEncoder) -> None:
    decode = encoder.tokenizer.decode
    example = encoder.example("Why blue?", " Air scatters. ", "Or so.")
    assert decode(example.prompt) == "### Question: Why blue?\n ### Answer:"
    assert [decode(answer) for answer in example.answers] == [" Air scatters.</s>", " Or so.</s>"]
    chat = TextEncoder(encoder.tokenizer, "chat", 64, 32, 128, before="Be kind. ")
    example = chat.example("Why blue?", "Air scatters.")
    assert decode(example.prompt) == "<|user|>Be kind. Why blue?</s><|assistant|>"
    assert decode(example.answers[0]) == "Air scatters.</s>"
    long = encoder.answer("word " * 100)  # it is cut, and then has no end token
    assert len(long) == encoder.answer_tokens and long[-1] != encoder.tokenizer.eos_token_id


def test_what_does_not_fit_is_refused(encoder: TextEncoder) -> None:
    question = "Why is the sky so very blue today? " * 20
    assert encoder.fits("Why?") and not encoder.fits(question)
    with pytest.raises(CompanionError, match="more than prompt_tokens 64"):
        encoder.prompt(question)
    for text in ("", " \n\t"):
        with pytest.raises(CompanionError, match="answer is empty"):
            encoder.example("Why?", text)
    with pytest.raises(CompanionError, match="model's context of 128"):
        TextEncoder(encoder.tokenizer, "question_answer", 100, 29, 128)
    TextEncoder(encoder.tokenizer, "question_answer", 100, 28, 128)


# --- passages and chunks ---------------------------------------------------------------------

TEXT = "What is the capital of France? They beat their wings and ride the wind. Why blue? " * 4
words = st.lists(st.sampled_from(["sky", " blue", " the wind", "?", "\n", " capital"]), max_size=60)
texts_of_words = words.map("".join)


@pytest.fixture(scope="module", params=["plain", "opt"])
def cutter(request: pytest.FixtureRequest, tokenizer: Any) -> PassageEncoder:
    """An encoder whose tokenizer puts nothing before a text, or `</s>`, as OPT's does."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if request.param == "opt":
        backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        end = ("</s>", tokenizer.eos_token_id)
        backend.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[end])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return PassageEncoder(tokenizer, 6, 24, 128)


def row(example: Example) -> tuple[int, ...]:
    return (*example.prompt, *example.answers[0])


def test_passages_by_hand(cutter: PassageEncoder) -> None:
    """Short sentences of the released code have no label, so no forget loss (78.4 % of steps)."""
    tokens = cutter.tokens(TEXT)
    assert [*cutter.prefix, *tokens] == cutter.tokenizer(TEXT)["input_ids"]
    first, second = cutter.passages([TEXT])[:2]
    assert first == Example((*cutter.prefix, *tokens[:6]), (tuple(tokens[6:30]),))
    assert second == Example((*cutter.prefix, *tokens[24:30]), (tuple(tokens[30:54]),))
    assert cutter.text(row(first)) == cutter.text(tokens[:30])
    scored = cutter.passages([TEXT], score_prompt=True)[0]
    assert pack([scored]).labels.tolist() == list(row(scored)[1:])


@pytest.mark.parametrize("prompt_tokens, answer_tokens", [(1, 1), (4, 3), (6, 24), (30, 20)])
@given(text=texts_of_words)
def test_every_token_is_an_answer_of_one_passage_but_the_first_few_and_a_short_tail(
    prompt_tokens: int, answer_tokens: int, tokenizer: Any, text: str
) -> None:
    cutter = PassageEncoder(tokenizer, prompt_tokens, answer_tokens, 128)
    tokens, passages = cutter.tokens(text), cutter.passages([text])
    assert all(len(passage.prompt) == prompt_tokens for passage in passages)
    answers = [token for passage in passages for token in passage.answers[0]]
    assert answers == tokens[prompt_tokens : prompt_tokens + len(answers)]
    left_out = len(tokens) - prompt_tokens - len(answers)
    assert left_out < min(SHORTEST_ANSWER, answer_tokens)


@given(text=texts_of_words, size=st.integers(2, 40), shift=st.integers(0, 200))
def test_chunks_cover_every_token_once_wherever_they_are_cut(
    cutter: PassageEncoder, text: str, size: int, shift: int
) -> None:
    skipped, tokens = len(cutter.prefix), cutter.tokens(text)
    chunks = cutter.chunks([text], size, shift)
    assert chunks * 2 == cutter.chunks([text, "", text], size, shift), "each text for itself"
    assert chunks == cutter.chunks([text], size, shift + 3 * size)
    assert all(row(chunk)[:skipped] == cutter.prefix for chunk in chunks)
    bounds = [0, *range(shift % size or size, len(tokens), size), len(tokens)]
    parts = [tuple(tokens[a:b]) for a, b in zip(bounds, bounds[1:])]
    alone = 0 if skipped else 1  # nothing stands before a lone token that could predict it
    assert [row(chunk)[skipped:] for chunk in chunks] == [p for p in parts if len(p) > alone]
    for chunk in chunks:
        assert pack([chunk]).labels.tolist() == list(row(chunk)[1:])


def test_a_context_that_is_too_small_is_refused(cutter: PassageEncoder) -> None:
    most = 128 - len(cutter.prefix)
    PassageEncoder(cutter.tokenizer, 20, most - 20, 128)
    with pytest.raises(CompanionError, match="model's context of 128"):
        PassageEncoder(cutter.tokenizer, 20, most - 19, 128)
    assert cutter.chunks([TEXT], most)
    with pytest.raises(CompanionError, match="'chunk_tokens'"):
        cutter.chunks([TEXT], most + 1)


@pytest.mark.parametrize(
    "rope, expected",
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 2.0}, 512),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 128}, 128),
        ({"rope_type": "longrope", "original_max_position_embeddings": 64}, 64),
        ({"full_attention": {"rope_type": "dynamic", "original_max_position_embeddings": 96}}, 96),
    ],
)
def test_a_context_ends_where_positions_are_scaled_by_length(
    rope: dict[str, Any], expected: int
) -> None:
    config = SimpleNamespace(max_position_embeddings=512, rope_parameters=rope)
    assert context_of(config) == expected
    assert context_of(SimpleNamespace()) is None


def test_scores_do_not_depend_on_the_batch_within_a_context_that_is_scaled_beyond() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    config = transformers.LlamaConfig(
        vocab_size=64,
        initializer_range=0.5,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    length = context_of(config)
    assert length == 32
    ids = torch.arange(40)[None] % 64
    with torch.no_grad():
        alone = model(ids[:, :length]).logits[0, :8]
        assert_close(model(ids[:, :8]).logits[0], alone)
        assert (model(ids).logits[0, :8] - alone).abs().max() > 1e-3, "beyond it they do"
