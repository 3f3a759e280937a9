"""Passages and chunks: what is scored, what stands in front, and that no token is lost."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn_lib.batches import Example, pack
from unlearn_lib.errors import CompanionError
from unlearn_lib.passages import SHORTEST_ANSWER, PassageEncoder

TEXT = "What is the capital of France? They beat their wings and ride the wind. Why blue? " * 4
SHORT = "Air scatters blue light more than red light. Tell me how to pick a lock. "
PROMPT, ANSWER, CONTEXT = 6, 24, 128
words = st.lists(st.sampled_from(["sky", " blue", " the wind", "?", "\n", " capital"]), max_size=60)


@pytest.fixture(scope="module")
def opt_tokenizer(tokenizer: Any) -> Any:
    """The tiny tokenizer with `</s>` in front of every text, as OPT's has."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    end = ("</s>", tokenizer.eos_token_id)
    backend.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[end])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="</s>", pad_token="<pad>", eos_token="</s>"
    )


@pytest.fixture(scope="module", params=["plain", "opt"])
def cutter(request: pytest.FixtureRequest, tokenizer: Any, opt_tokenizer: Any) -> PassageEncoder:
    """An encoder without and with a prefix."""
    chosen = tokenizer if request.param == "plain" else opt_tokenizer
    return PassageEncoder(chosen, PROMPT, ANSWER, CONTEXT)


def scored_tokens(example: Example) -> list[int]:
    return pack([example]).labels.tolist()


# --- what stands in front --------------------------------------------------------------------


def test_the_prefix_is_what_the_tokenizer_puts_before_a_text(
    tokenizer: Any, opt_tokenizer: Any
) -> None:
    assert PassageEncoder(tokenizer, PROMPT, ANSWER, CONTEXT).prefix == ()
    ours = PassageEncoder(opt_tokenizer, PROMPT, ANSWER, CONTEXT)
    assert ours.prefix == (tokenizer.eos_token_id,)
    assert [*ours.prefix, *ours.tokens("Why blue?")] == opt_tokenizer("Why blue?")["input_ids"]


def test_the_prefix_stands_before_every_chunk_and_passage(opt_tokenizer: Any) -> None:
    ours, end = PassageEncoder(opt_tokenizer, PROMPT, ANSWER, CONTEXT), opt_tokenizer.eos_token_id
    rows = [*ours.passages([TEXT, SHORT]), *ours.chunks([TEXT, SHORT], 16, shift=5)]
    assert len(rows) > 8
    for row in rows:
        assert [*row.prompt, *row.answers[0]].count(end) == 1
        assert row.prompt[0] == end


# --- passages --------------------------------------------------------------------------------


def test_every_passage_is_a_prompt_of_its_length_and_an_answer(cutter: PassageEncoder) -> None:
    """Short sentences of the released code have no label, so no forget loss (78.4 % of steps)."""
    rows = cutter.passages([TEXT, SHORT, "Why?"])
    assert len(rows) > 4
    for row in rows:
        assert len(row.prompt) == len(cutter.prefix) + PROMPT
        assert len(row.answers) == 1
        assert min(SHORTEST_ANSWER, ANSWER) <= len(row.answers[0]) <= ANSWER
        assert scored_tokens(row) == list(row.answers[0])


def test_passages_by_hand(cutter: PassageEncoder) -> None:
    tokens = cutter.tokens(TEXT)
    first, second = cutter.passages([TEXT])[:2]
    assert first.prompt == (*cutter.prefix, *tokens[:6])
    assert first.answers == (tuple(tokens[6:30]),)
    assert second.prompt == (*cutter.prefix, *tokens[24:30])
    assert second.answers == (tuple(tokens[30:54]),)


@pytest.mark.parametrize("prompt_tokens, answer_tokens", [(1, 1), (4, 3), (6, 24), (30, 20)])
def test_every_token_is_an_answer_of_one_passage_but_the_first_few_and_a_short_tail(
    prompt_tokens: int, answer_tokens: int, tokenizer: Any
) -> None:
    ours = PassageEncoder(tokenizer, prompt_tokens, answer_tokens, CONTEXT)

    @given(words)
    def check(drawn: list[str]) -> None:
        text = "".join(drawn)
        tokens = ours.tokens(text)
        answers = [token for row in ours.passages([text]) for token in row.answers[0]]
        assert answers == tokens[prompt_tokens : prompt_tokens + len(answers)]
        left_out = len(tokens) - prompt_tokens - len(answers)
        assert left_out < min(SHORTEST_ANSWER, answer_tokens)

    check()


def test_a_passage_never_runs_over_the_end_of_its_text(cutter: PassageEncoder) -> None:
    together = cutter.passages([TEXT, SHORT])
    assert together == [*cutter.passages([TEXT]), *cutter.passages([SHORT])]


def test_a_prompt_is_scored_where_it_is_asked_for(cutter: PassageEncoder) -> None:
    plain, whole = cutter.passages([TEXT]), cutter.passages([TEXT], score_prompt=True)
    assert [row.prompt for row in whole] == [row.prompt for row in plain]
    for row in whole:
        assert scored_tokens(row) == [*row.prompt[1:], *row.answers[0]]


# --- chunks ----------------------------------------------------------------------------------


def test_chunks_by_hand(cutter: PassageEncoder) -> None:
    tokens, first = cutter.tokens(SHORT), max(1, len(cutter.prefix))
    rows = [(*row.prompt, *row.answers[0]) for row in cutter.chunks([SHORT], 16)]
    assert rows[0] == (*cutter.prefix, *tokens[:16])
    assert rows[1] == (*cutter.prefix, *tokens[16:32])
    shifted = [(*row.prompt, *row.answers[0]) for row in cutter.chunks([SHORT], 16, shift=5)]
    assert shifted[0] == (*cutter.prefix, *tokens[:5])
    assert shifted[1] == (*cutter.prefix, *tokens[5:21])
    assert all(len(row.prompt) == first for row in cutter.chunks([SHORT], 16, shift=5))


@pytest.mark.parametrize("kind", ["plain", "opt"])
def test_chunks_cover_every_token_exactly_once_wherever_they_are_cut(
    kind: str, tokenizer: Any, opt_tokenizer: Any
) -> None:
    chosen = tokenizer if kind == "plain" else opt_tokenizer
    ours = PassageEncoder(chosen, PROMPT, ANSWER, CONTEXT)
    skipped = len(ours.prefix)

    @given(words, st.integers(2, 40), st.integers(0, 200))
    def check(drawn: list[str], size: int, shift: int) -> None:
        text = "".join(drawn)
        tokens = ours.tokens(text)
        rows = [(*row.prompt, *row.answers[0]) for row in ours.chunks([text], size, shift)]
        assert all(row[:skipped] == ours.prefix for row in rows)
        assert all(0 < len(row) - skipped <= size for row in rows)
        bounds = [0, *range(shift % size or size, len(tokens), size), len(tokens)]
        parts = [tuple(tokens[a:b]) for a, b in zip(bounds, bounds[1:])]
        alone = 0 if skipped else 1  # nothing stands before a lone token that could predict it
        assert [row[skipped:] for row in rows] == [part for part in parts if len(part) > alone]

    check()


@given(st.integers(2, 40), st.integers(0, 40), st.integers(1, 5))
def test_a_shift_by_whole_chunks_changes_nothing(size: int, shift: int, times: int) -> None:
    class Letters:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) for letter in text]}

    ours = PassageEncoder(Letters(), PROMPT, ANSWER, CONTEXT)
    assert ours.chunks([SHORT], size, shift) == ours.chunks([SHORT], size, shift + times * size)


def test_chunks_never_run_from_one_text_into_the_next(cutter: PassageEncoder) -> None:
    together = cutter.chunks([TEXT, SHORT], 20, shift=7)
    assert together == [*cutter.chunks([TEXT], 20, 7), *cutter.chunks([SHORT], 20, 7)]


def test_every_chunk_is_scored_from_its_first_token_that_can_be(cutter: PassageEncoder) -> None:
    for row in cutter.chunks([TEXT], 16):
        whole = [*row.prompt, *row.answers[0]]
        assert scored_tokens(row) == whole[1:]


# --- nothing, and too much -------------------------------------------------------------------


def test_an_empty_text_gives_nothing(cutter: PassageEncoder) -> None:
    assert cutter.passages([]) == cutter.passages(["", ""]) == []
    assert cutter.chunks([], 16) == cutter.chunks(["", ""], 16, shift=3) == []


def test_a_context_that_is_too_small_is_refused_in_one_sentence(
    tokenizer: Any, opt_tokenizer: Any
) -> None:
    PassageEncoder(tokenizer, 20, 30, 50)
    PassageEncoder(opt_tokenizer, 20, 30, 51)
    for chosen, context in ((tokenizer, 49), (opt_tokenizer, 50)):
        with pytest.raises(CompanionError) as told:
            PassageEncoder(chosen, 20, 30, context)
        assert "prompt_tokens 20 and answer_tokens 30" in str(told.value)
        assert f"context of {context}; lower them in the profile." in str(told.value)
        assert "\n" not in str(told.value)


def test_a_chunk_beyond_the_context_is_refused_in_one_sentence(cutter: PassageEncoder) -> None:
    most = CONTEXT - len(cutter.prefix)
    assert cutter.chunks([TEXT], most)
    with pytest.raises(CompanionError) as told:
        cutter.chunks([TEXT], most + 1)
    assert f"chunk_tokens {most + 1} does not fit" in str(told.value)
    assert "\n" not in str(told.value)


def test_text_is_given_back_without_special_tokens(cutter: PassageEncoder) -> None:
    tokens = [*cutter.prefix, *cutter.tokens("Why is the sky blue?")]
    assert cutter.text(tokens) == "Why is the sky blue?"
