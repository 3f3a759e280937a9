"""The guard in front of tiny random models of many architectures, and what of it each can do.

| architectures | generate | forward pass | packed scoring |
|---|---|---|---|
| `PACKED_TOO` | yes | yes | yes |
| BLOOM, MPT, Mamba | yes | yes | no: they take no attention mask of the caller's own |
| Gemma 2 | yes | yes | no: its attention caps the scores, which the packed one does not |

BLOOM, MPT and Mamba have no `max_position_embeddings`; MPT generates with the cache off.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from unlearn_lib.batches import Example, TextEncoder
from unlearn_lib.eco.corruptions import corrupt, prompt_seed
from unlearn_lib.eco.guard import Guard
from unlearn_lib.eco.model import EcoModel
from unlearn_lib.eco.tokens import Frame
from unlearn_lib.models import PACKED, LanguageModel
from unlearn_lib.scoring import score
from unlearn_lib.settings import CorruptionSettings

SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
WIDE = {**SHAPE, "intermediate_size": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "OPT": ("OPT", {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "GPT-2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}),
    "GPT-NeoX": ("GPTNeoX", WIDE),
    "Llama": ("Llama", GROUPED),
    "Mistral": ("Mistral", GROUPED),
    "Qwen 2": ("Qwen2", GROUPED),
    "Qwen 3": ("Qwen3", HEADS),
    "Gemma 2": ("Gemma2", HEADS),
    "Gemma 3": ("Gemma3", HEADS),
    "Phi": ("Phi", WIDE),
    "Phi-3": ("Phi3", GROUPED),
    "Falcon": ("Falcon", SHAPE),
    "BLOOM": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}),
    "MPT": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "initializer_range": 0.2}),
    "OLMo": ("Olmo", GROUPED),
    "OLMo 2": ("Olmo2", GROUPED),
    "Mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.2}),
}  # fmt: skip
CLASSES = {"GPT2": ("GPT2Config", "GPT2LMHeadModel"), "Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}  # fmt: skip
OWN_ATTENTION = {"Gemma 2", "Falcon", "BLOOM", "MPT", "Mamba"}
"""These cannot be built with, or cannot compute by, the packed attention of `models.load`."""
PACKED_TOO = sorted(set(SIZES) - OWN_ATTENTION | {"Falcon"})
NO_CONTEXT = ("BLOOM", "MPT", "Mamba")
QUESTIONS = ("Where was Ann born?", "How do birds fly so far?", "Why did Ann go?", "Who?")
FLAGGED, OTHERS = [0, 2], [1, 3]
NEW: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


class KeyWord:
    """A classifier that is sure of every prompt about Ann, and of no other."""

    def probability(self, prompts: Sequence[str]) -> np.ndarray:
        return np.array([0.99 if "Ann" in prompt else 0.01 for prompt in prompts])


def build(name: str, tokenizer: Any, attention: str | None = None) -> LanguageModel:
    """A tiny random model; `attention` None: the one of `models.load`, where it has that."""
    kind, size = SIZES[name]
    config_class, model_class = CLASSES.get(kind, (f"{kind}Config", f"{kind}ForCausalLM"))
    special = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = getattr(transformers, config_class)(**special, **size)
    if attention or name not in OWN_ATTENTION:
        config._attn_implementation = attention or PACKED
    torch.manual_seed(0)
    return LanguageModel(getattr(transformers, model_class)(config).eval(), tokenizer)


@pytest.fixture(scope="module")
def frame(encoder: TextEncoder) -> Frame:
    return Frame.of(encoder.prompt)


@pytest.fixture(scope="module")
def examples(encoder: TextEncoder) -> list[Example]:
    answers = ("In Ann Hall.", "So it is by the light.")
    return [encoder.example(q, *answers[: 1 + place % 2]) for place, q in enumerate(QUESTIONS)]


@pytest.fixture(scope="module", params=SIZES)
def found(request: pytest.FixtureRequest, tokenizer: Any) -> LanguageModel:
    return build(request.param, tokenizer)


def guarded(found: LanguageModel, frame: Frame, strength: float) -> EcoModel:
    chosen = CorruptionSettings(name="add_value_first_n", tokens="every", dims=16)
    guard = Guard("entities", KeyWord(), 0.5, chosen, strength)  # type: ignore[arg-type]
    return EcoModel(found.model, found.tokenizer, guard, frame)


def answered(model: Any, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """New tokens [B, 4] and their logits [B, 4, V] of prompts padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[1] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    shown = {"return_dict_in_generate": True, "output_logits": True}
    made = model.generate(input_ids=ids, attention_mask=mask, **NEW, **shown)
    return made.sequences[:, width:], torch.stack(made.logits, 1)


def test_a_mixed_batch_changes_flagged_rows_and_no_other_bit(
    found: LanguageModel, frame: Frame, encoder: TextEncoder
) -> None:
    prompts = [encoder.prompt(question) for question in QUESTIONS]
    strong, none = guarded(found, frame, 3.0), guarded(found, frame, 0.0)
    tokens, logits = answered(found.model, prompts)
    made, changed = answered(strong, prompts)
    assert torch.equal(made[OTHERS], tokens[OTHERS])
    assert torch.equal(changed[OTHERS], logits[OTHERS])
    for row in FLAGGED:
        assert (changed[row] - logits[row]).abs().amax(-1).gt(1e-3).all()
        alone = answered(strong, [prompts[row]])[1][0]
        torch.testing.assert_close(changed[row], alone, rtol=1e-3, atol=1e-3)
    assert torch.equal(answered(none, prompts)[1], logits)


def by_hand(model: EcoModel, prompt: Sequence[int], answer: Sequence[int], text: str) -> Any:
    """Logits of one row in which the question's tokens are corrupted, and no others."""
    ids = torch.tensor([[*prompt, *answer]])
    embeddings = model.embeddings(ids)
    start, end = model.frame.question(prompt)
    chosen = torch.zeros(ids.shape[1], dtype=torch.bool)
    chosen[start:end] = True
    kind, seed = model.guard.corruption, prompt_seed(text)
    changed = corrupt(embeddings[0], chosen, kind.name, 3.0, kind.dims, seed)[None]
    return model.model(inputs_embeds=changed).logits


@torch.no_grad()
def test_a_forward_pass_corrupts_the_question_and_never_the_answer(
    found: LanguageModel, frame: Frame, examples: list[Example]
) -> None:
    model = guarded(found, frame, 3.0)
    for row, example in enumerate(examples):
        ids = torch.tensor([[*example.prompt, *example.answers[0]]])
        logits = model(ids, prompts=[range(len(example.prompt))]).logits
        plain = found.model(ids).logits
        if row in OTHERS:
            assert torch.equal(logits, plain)
            continue
        expected = by_hand(model, example.prompt, example.answers[0], QUESTIONS[row])
        torch.testing.assert_close(logits, expected)
        assert not torch.allclose(logits[0, -2], plain[0, -2], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", PACKED_TOO)
def test_packed_scores_are_those_of_single_rows(
    name: str, tokenizer: Any, frame: Frame, examples: list[Example]
) -> None:
    found = build(name, tokenizer)
    model = guarded(found, frame, 3.0)
    expected = []
    for example in examples:
        for answer in example.answers:
            start = len(example.prompt)
            ids = torch.tensor([[*example.prompt, *answer]])
            logits = model(ids, prompts=[range(start)]).logits[0, start - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
            expected.append(float(loss))
    assert score(replace(found, model=model), examples).nll == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(PACKED_TOO)))
def test_what_cannot_be_packed_gives_no_scores(
    name: str, tokenizer: Any, frame: Frame, examples: list[Example]
) -> None:
    found = build(name, tokenizer, PACKED)
    for model in (found.model, guarded(found, frame, 3.0)):
        with pytest.raises((ValueError, AttributeError, RuntimeError)):
            score(replace(found, model=model), examples)


@pytest.mark.parametrize("name", NO_CONTEXT)
def test_models_without_a_longest_prompt_are_asked_whatever_its_length(
    name: str, tokenizer: Any, frame: Frame
) -> None:
    found = build(name, tokenizer)
    assert not hasattr(found.model.config, "max_position_embeddings")
    assert guarded(found, frame, 3.0).plan([[40] * 500]) == [None]
