"""Encoding, packing and answer masks; each trap of the released code has a test here."""

from collections.abc import Callable
from os.path import commonprefix
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from unlearn_lib.assets import Asset
from unlearn_lib.batches import (
    Example,
    Packed,
    TextEncoder,
    by_length,
    pack,
    packed_activations,
    packed_logits,
)
from unlearn_lib.errors import CompanionError
from unlearn_lib.losses import answer_nll
from unlearn_lib.models import LanguageModel

tokens = st.lists(st.integers(3, 9) | st.integers(3, 250), min_size=1, max_size=7).map(tuple)
answered = st.builds(Example, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))
whole = st.builds(Example, tokens, tokens.map(lambda t: (t,)), st.just(True))
examples = st.lists(answered | whole, min_size=1, max_size=4)


def separate_rows(batch: list[Example]) -> list[tuple[list[int], int]]:
    """Each answer as its own row, and the place of its first scored token."""
    return [
        ([*example.prompt, *answer], 1 if example.score_prompt else len(example.prompt))
        for example in batch
        for answer in example.answers
    ]


# --- the layout ------------------------------------------------------------------------------


def test_layout_of_one_prompt_with_two_answers() -> None:
    packed = pack([Example((5, 6), ((7, 8), (9,)))])
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.predictors.tolist() == [1, 2, 1]
    assert packed.labels.tolist() == [7, 8, 9]
    assert packed.rows.tolist() == [0, 0, 1]
    assert packed.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_layout_of_prompts_with_a_common_beginning() -> None:
    packed = pack([Example((5, 6), ((7,),)), Example((5, 8), ((9,),), score_prompt=True)])
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 1, 2]]
    assert packed.predictors.tolist() == [1, 0, 3]
    assert packed.labels.tolist() == [7, 8, 9]
    assert packed.attention_mask[0, 0, 4].int().tolist() == [1, 0, 0, 1, 1]


def test_layout_with_a_scored_prompt_behind_another_example() -> None:
    packed = pack([Example((5,), ((6,),)), Example((7, 8, 9), ((4,),), score_prompt=True)])
    assert packed.predictors.tolist() == [0, 2, 3, 4]
    assert packed.labels.tolist() == [6, 8, 9, 4]
    assert packed.rows.tolist() == [0, 1, 1, 1]
    assert not packed.attention_mask[0, 0, 2:, :2].any()


@pytest.mark.parametrize(
    "broken",
    [[], [Example((5,), ())], [Example((5,), ((),))], [Example((), ((5,),))],
     [Example((5,), ((6,), (7,)), score_prompt=True)]],
    ids=["nothing", "no answer", "empty answer", "empty prompt", "two answers, prompt scored"],
)  # fmt: skip
def test_what_cannot_be_packed_is_refused(broken: list[Example]) -> None:
    with pytest.raises(ValueError):
        pack(broken)


@given(examples)
def test_prompts_are_shared_and_nothing_is_padded(batch: list[Example]) -> None:
    packed = pack(batch)
    prompts = [list(example.prompt) for example in batch]
    start = commonprefix(prompts) if len(batch) > 1 else []
    laid = list(start)
    for example in batch:
        laid += example.prompt[len(start) :]
        laid += [token for answer in example.answers for token in answer]
    assert packed.input_ids[0].tolist() == laid
    assert packed.tokens == len(laid)


@given(st.lists(answered, min_size=1, max_size=4))
def test_exactly_the_answer_tokens_are_scored_from_the_first_on(batch: list[Example]) -> None:
    packed = pack(batch)
    flat = [answer for example in batch for answer in example.answers]
    assert packed.labels.tolist() == [token for answer in flat for token in answer]
    assert packed.rows.tolist() == [r for r, answer in enumerate(flat) for _ in answer]
    assert packed.rows.bincount().tolist() == [len(answer) for answer in flat]
    places, row = packed.position_ids[0, packed.predictors], 0
    for example in batch:
        for answer in example.answers:
            expected = range(len(example.prompt) - 1, len(example.prompt) + len(answer) - 1)
            assert places[packed.rows == row].tolist() == list(expected)
            row += 1


@given(examples)
def test_a_token_sees_its_own_row_and_no_other(batch: list[Example]) -> None:
    packed = pack(batch)
    mask, ids, positions = (
        packed.attention_mask[0, 0], packed.input_ids[0], packed.position_ids[0]
    )  # fmt: skip
    for row, (expected, _) in enumerate(separate_rows(batch)):
        last = packed.predictors[packed.rows == row][-1]
        seen = ids[mask[last]].tolist()
        assert seen == expected[:-1]
        assert positions[mask[last]].tolist() == list(range(len(seen)))


# --- packed = separate, on real architectures ------------------------------------------------


def separate_logits(model: Any, batch: list[Example]) -> torch.Tensor:
    """The same logits from one plain forward per answer."""
    found = []
    for row, start in separate_rows(batch):
        logits = model(input_ids=torch.tensor([row])).logits[0]
        found.append(logits[start - 1 : -1])
    return torch.cat(found)


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_packed_logits_equal_those_of_separate_rows(
    architecture: str, load_tiny: Callable[..., LanguageModel]
) -> None:
    model = load_tiny(architecture).model.double()

    @settings(max_examples=20)
    @given(examples)
    def check(batch: list[Example]) -> None:
        with torch.no_grad():
            ours, plain = packed_logits(model, pack(batch)), separate_logits(model, batch)
        assert_close(ours, plain, rtol=1e-9, atol=1e-9)

    check()


def test_a_model_that_was_loaded_elsewhere_gives_the_same_logits(
    load_tiny: Callable[..., LanguageModel], tiny_assets: dict[str, Asset]
) -> None:
    batch = [Example((5, 6, 7), ((8, 9), (10,))), Example((5, 6, 11), ((12,),), True)]
    with torch.no_grad():
        ours = packed_logits(load_tiny().model, pack(batch))
        plain = AutoModelForCausalLM.from_pretrained(tiny_assets["opt"].folder)
        assert_close(packed_logits(plain, pack(batch)), ours, rtol=1e-5, atol=1e-5)


def test_one_scored_token_still_gives_a_row_of_logits(
    load_tiny: Callable[..., LanguageModel],
) -> None:
    model = load_tiny().model
    assert packed_logits(model, pack([Example((5,), ((6,),))])).shape == (
        1,
        model.config.vocab_size,
    )


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_order_of_examples_does_not_change_an_answers_loss(
    architecture: str, load_tiny: Callable[..., LanguageModel]
) -> None:
    model = load_tiny(architecture).model
    batch = [Example((5, 6), ((7, 8), (9,))), Example((10,), ((11, 12, 13),))]

    def losses_of(packed: Packed) -> torch.Tensor:
        with torch.no_grad():
            return answer_nll(packed_logits(model, packed), packed.labels, packed.rows)

    forward, backward = losses_of(pack(batch)), losses_of(pack(batch[::-1]))
    assert_close(forward[[2, 0, 1]], backward, rtol=1e-5, atol=1e-5)


def test_means_are_those_of_a_padded_batch_with_its_padding_left_out(
    load_tiny: Callable[..., LanguageModel],
) -> None:
    found = load_tiny("opt")
    batch = [Example((5, 6), ((7, 8, 9, 10),)), Example((11, 12, 13), ((14,),))]
    packed = pack(batch)
    rows = separate_rows(batch)
    width, pad = max(len(row) for row, _ in rows), found.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    labels = torch.tensor(
        [[-100] * start + row[start:] + [-100] * (width - len(row)) for row, start in rows]
    )
    with torch.no_grad():
        logits = found.model(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, :-1]
        ours = answer_nll(packed_logits(found.model, packed), packed.labels, packed.rows)
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    real = (labels[:, 1:] != -100).sum(1)
    assert_close(ours, losses.sum(1) / real, rtol=1e-5, atol=1e-5)
    assert (losses.mean(1) < ours).all(), "a mean over padding, as released, is diluted"


# --- activations of one block ----------------------------------------------------------------


def blocks_of(model: Any, architecture: str) -> Any:
    where = {"opt": "model.decoder.layers", "llama": "model.layers", "gpt2": "transformer.h"}
    return model.get_submodule(where[architecture])


def separate_activations(model: Any, block: Any, batch: list[Example]) -> torch.Tensor:
    """What a block gives out at the scored places, from one plain forward per answer."""
    found: list[torch.Tensor] = []
    hook = block.register_forward_hook(
        lambda _, given, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    places = [(row, start) for row, start in separate_rows(batch)]
    for row, _ in places:
        model(input_ids=torch.tensor([row]))
    hook.remove()
    return torch.cat([out[0, start - 1 : -1] for out, (_, start) in zip(found, places)])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_packed_activations_equal_those_of_separate_rows(
    architecture: str, layer: int, load_tiny: Callable[..., LanguageModel]
) -> None:
    """After the last block too, where transformers' own hidden states are normalised."""
    model = load_tiny(architecture).model.double()
    block = blocks_of(model, architecture)[layer]

    @settings(max_examples=10)
    @given(examples)
    def check(batch: list[Example]) -> None:
        with torch.no_grad():
            ours = packed_activations(model, pack(batch), layer)
            plain = separate_activations(model, block, batch)
        assert_close(ours, plain, rtol=1e-9, atol=1e-9)

    check()
    assert not block._forward_hooks, "nothing stays on the model"


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_a_block_that_the_model_does_not_have_is_refused_in_one_sentence(
    architecture: str, load_tiny: Callable[..., LanguageModel]
) -> None:
    packed = pack([Example((5,), ((6,),))])
    with pytest.raises(CompanionError) as told:
        packed_activations(load_tiny(architecture).model, packed, 2)
    assert str(told.value) == "The method's 'layer' is 2, but the model's blocks are 0 to 1."


# --- packs of bounded length -----------------------------------------------------------------


@given(st.lists(answered, max_size=12), st.integers(1, 60))
def test_packs_hold_every_example_once_within_the_limit(batch: list[Example], most: int) -> None:
    packs = by_length(batch, most)
    assert sorted(index for places in packs for index in places) == list(range(len(batch)))
    lengths = [batch[index].length for places in packs for index in places]
    assert lengths == sorted(lengths, reverse=True)
    for places in packs:
        assert len(places) == 1 or sum(batch[index].length for index in places) <= most


# --- text to tokens --------------------------------------------------------------------------


def test_question_answer_template_is_exact(encoder: TextEncoder) -> None:
    example = encoder.example("Why blue?", " Air scatters. ")
    decode = encoder.tokenizer.decode
    assert decode(example.prompt) == "### Question: Why blue?\n ### Answer:"
    assert decode(example.answers[0]) == " Air scatters.</s>"


def test_chat_template_is_the_tokenizers_own(encoder: TextEncoder) -> None:
    chat = TextEncoder(encoder.tokenizer, "chat", 64, 32, 128)
    example = chat.example("Why blue?", "Air scatters.")
    decode = encoder.tokenizer.decode
    assert decode(example.prompt) == "<|user|>Why blue?</s><|assistant|>"
    assert decode(example.answers[0]) == "Air scatters.</s>"


def test_answers_share_their_prompt_exactly(encoder: TextEncoder) -> None:
    example = encoder.example("How?", "So.", "Or so.", "Not at all.")
    assert len(example.answers) == 3
    assert example.prompt == encoder.example("How?", "So.").prompt
    assert pack([example]).tokens == len(example.prompt) + sum(map(len, example.answers))


def test_a_long_answer_is_cut_and_then_has_no_end_token(encoder: TextEncoder) -> None:
    answer = encoder.answer("word " * 100)
    assert len(answer) == encoder.answer_tokens
    assert answer[-1] != encoder.tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_answer_is_refused(encoder: TextEncoder, text: str) -> None:
    with pytest.raises(CompanionError, match="answer is empty"):
        encoder.example("Why?", text)


def test_a_long_prompt_is_refused_in_a_sentence(encoder: TextEncoder) -> None:
    question = "Why is the sky so very blue today? " * 20
    assert not encoder.fits(question)
    assert encoder.fits("Why?")
    with pytest.raises(CompanionError, match=r"more than prompt_tokens 64 \(it begins 'Why is"):
        encoder.prompt(question)


def test_prompt_and_answer_beyond_the_context_are_refused(tokenizer: Any) -> None:
    with pytest.raises(CompanionError, match="do not fit the model's context of 128"):
        TextEncoder(tokenizer, "question_answer", 100, 29, 128)
    TextEncoder(tokenizer, "question_answer", 100, 28, 128)
