"""Packed rows equal separate ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from unlearn_lib.assets import Asset
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.packing import by_length, pack, packed_activations, packed_logits
from unlearn_lib.model.tokens import Example
from unlearn_lib.util import CompanionError

Load = Callable[..., LanguageModel]
every_architecture = pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
BATCH = [Example((5, 6, 7), ((8, 9), (10,))), Example((11, 12), ((13,),))]

tokens = st.lists(st.integers(3, 9) | st.integers(3, 250), min_size=1, max_size=7).map(tuple)
answered = st.builds(Example, tokens, st.lists(tokens, min_size=1, max_size=4).map(tuple))
whole = st.builds(Example, tokens, tokens.map(lambda t: (t,)), st.just(True))
batches = st.lists(answered | whole, min_size=1, max_size=4)


def logits_of(language_model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return packed_logits(language_model.model, pack(BATCH))


# --- the layout of a packed row --------------------------------------------------------------


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


def separate_rows(batch: list[Example]) -> list[tuple[list[int], int]]:
    """Each answer as its own row, and the place of its first scored token."""
    return [
        ([*example.prompt, *answer], 1 if example.score_prompt else len(example.prompt))
        for example in batch
        for answer in example.answers
    ]


@given(batches, st.booleans())
def test_a_token_sees_its_own_row_and_the_scored_ones_are_all_there(
    batch: list[Example], share: bool
) -> None:
    packed = pack(batch, share)
    mask, ids, positions = packed.attention_mask[0, 0], packed.input_ids[0], packed.position_ids[0]
    assert packed.tokens == sum(packed.lengths) <= sum(example.length for example in batch)
    for number, (tokens, start) in enumerate(separate_rows(batch)):
        scored = packed.rows == number
        assert packed.labels[scored].tolist() == tokens[start:]
        assert positions[packed.predictors[scored]].tolist() == [*range(start - 1, len(tokens) - 1)]
        last = packed.predictors[scored][-1]
        assert ids[mask[last]].tolist() == tokens[:-1]
        assert positions[mask[last]].tolist() == list(range(len(tokens) - 1))
    assert [ids[places].tolist() for places in packed.prompts] == [[*e.prompt] for e in batch]


@given(st.lists(answered, max_size=12), st.integers(1, 60))
def test_packs_hold_every_example_once_within_the_limit(batch: list[Example], most: int) -> None:
    packs = by_length(batch, most)
    lengths = [batch[index].length for places in packs for index in places]
    assert sorted(index for places in packs for index in places) == list(range(len(batch)))
    assert lengths == sorted(lengths, reverse=True)
    for places in packs:
        assert len(places) == 1 or sum(batch[index].length for index in places) <= most


# --- packed = separate, on real architectures ------------------------------------------------


def separate_outputs(model: Any, batch: list[Example], block: Any) -> tuple[Any, Any]:
    """Logits and a block's activations at the scored places, from a plain forward per answer."""
    states: list[Any] = []
    hook = block.register_forward_hook(lambda _, inputs, output: states.append(output))
    rows = separate_rows(batch)
    logits = [model(input_ids=torch.tensor([row])).logits[0, start - 1 : -1] for row, start in rows]
    hook.remove()
    plain = (state[0] if isinstance(state, tuple) else state for state in states)
    parts = [state[0, start - 1 : -1] for state, (_, start) in zip(plain, rows)]
    return torch.cat(logits), torch.cat(parts)


@every_architecture
def test_packed_logits_and_activations_equal_those_of_separate_rows(
    architecture: str, load_tiny: Load
) -> None:
    """After the last block too, where transformers' own hidden states are normalised."""
    model = load_tiny(architecture).model.double()
    where = {"opt": "model.decoder.layers", "llama": "model.layers", "gpt2": "transformer.h"}
    blocks = model.get_submodule(where[architecture])

    @settings(max_examples=20)
    @given(batches, st.integers(0, 1))
    def check(batch: list[Example], layer: int) -> None:
        packed = pack(batch)
        with torch.no_grad():
            logits, states = separate_outputs(model, batch, blocks[layer])
            assert_close(packed_logits(model, packed), logits, rtol=1e-9, atol=1e-9)
            assert_close(packed_activations(model, packed, layer), states, rtol=1e-9, atol=1e-9)

    check()
    with pytest.raises(CompanionError, match="'layer' is 2, but the model's blocks are 0 to 1"):
        packed_activations(model, pack(BATCH), 2)


def test_bfloat16_on_a_processor_and_other_attention_give_the_same_logits(
    load_tiny: Load, tiny_assets: dict[str, Asset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    half = logits_of(load_tiny("llama", precision="bfloat16", lora={}))
    expected = logits_of(load_tiny("llama"))
    assert_close(half.float(), expected, rtol=0.1, atol=0.02 * float(expected.abs().max()))
    elsewhere = AutoModelForCausalLM.from_pretrained(tiny_assets["llama"].folder)
    assert_close(logits_of(LanguageModel(elsewhere, None)), expected, rtol=1e-5, atol=1e-5)
