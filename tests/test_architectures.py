"""Every causal architecture of transformers is measured right, or refused with a reason."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from benchmarks import architectures
from unlearn_lib.assets import Asset
from unlearn_lib.model import attention, loading
from unlearn_lib.model.packing import pack, packed_activations, packed_logits
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import ModelSettings
from unlearn_lib.util import SAID, CompanionError

NAMED = {
    "llama": "packed",
    "opt": "packed",
    "gpt2": "packed",
    "codegen": "padded",
    "bloom": "padded",
    "mpt": "padded",
    "gpt_oss": "padded",
    "mistral": "padded (its attention has a window of 4 tokens)",
    "gemma2": "padded",
    "cohere2": "padded",
    "falcon": "padded (its attention is its own)",
    "gpt_neo": "padded",
    "mamba": "padded (packed rows or batches give other logits)",
    "xlnet": "it is not causal",
}
"""Architectures of which wrong numbers were seen, and those that keep their packed rows."""


@pytest.mark.parametrize("kind", NAMED)
def test_an_architecture_is_measured_as_its_plain_rows_are(kind: str, tokenizer: Any) -> None:
    verdict, how = architectures.judged(kind, tokenizer)
    assert verdict == ("refused" if kind == "xlnet" else "right"), how
    assert NAMED[kind] in how


@pytest.mark.endtoend
def test_no_architecture_is_wrong_and_the_document_says_what_is_true(tokenizer: Any) -> None:
    warnings.simplefilter("ignore")
    document = Path(__file__).parents[1] / "docs" / "architectures.md"
    rows = [line.split(" | ") for line in document.read_text(encoding="utf-8").split("\n")]
    written = {row[0].strip("| "): row[1] for row in rows if len(row) == 3}
    own = architectures.tiny_tokenizer()
    verdicts = {kind: architectures.judged(kind, own)[0] for kind in architectures.ARCHITECTURES}
    assert "wrong" not in verdicts.values()
    assert verdicts == {kind: written.get(kind) for kind in verdicts}


def load_kind(kind: str, tokenizer: Any, folder: Path, **changed: Any) -> loading.LanguageModel:
    model = architectures.tiny_model(kind, tokenizer)
    for name, value in changed.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = ModelSettings(id=kind, precision="float32")
    return loading.load(Asset(kind, folder, "test", ""), settings, "cpu")


def test_a_window_that_no_row_can_exceed_leaves_rows_packed(tokenizer: Any, tmp_path: Path) -> None:
    wide = load_kind("mistral", tokenizer, tmp_path, sliding_window=128)
    assert (wide.context, wide.hardware["rows"]) == (128, "packed")


def test_padded_rows_are_said_and_trained_like_packed_ones(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SAID.clear()
    tiny = load_kind("mistral", tokenizer, tmp_path)
    loading.load(Asset("mistral", tmp_path, "test", ""), ModelSettings(id="mistral"), "cpu")
    assert capsys.readouterr().err.count("a window of 4 tokens, so rows are padded") == 1
    loading.make_trainable(tiny, ModelSettings(id="mistral", precision="float32"), seed=0)
    whole = Example((11, 12, 13, 14), ((15, 16, 17),), score_prompt=True)
    examples = [*architectures.EXAMPLES, whole]
    packed = pack(examples)
    packed_logits(tiny.model, packed).square().mean().backward()
    assert any(part.grad is not None and part.grad.any() for part in tiny.model.parameters())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    states: list[Any] = []
    with torch.no_grad():
        logits = packed_logits(tiny.model, packed)
        hook = plain.model.layers[0].register_forward_hook(lambda *part: states.append(part[2]))
        row = torch.tensor([[11, 12, 13, 14, 15, 16, 17]])
        assert_close(logits[-6:], plain(row).logits[0, :-1], rtol=1e-4, atol=1e-4)
        hook.remove()
        activations = packed_activations(tiny.model, packed, 0)
    assert_close(activations[-6:], states[0][0, :-1], rtol=1e-4, atol=1e-4)


def test_a_model_without_finite_logits_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    tiny = load_kind("llama", tokenizer, tmp_path)
    with torch.no_grad():
        tiny.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(CompanionError, match="'me' is of type 'llama'.*not finite"):
        attention.settle_attention(tiny.model, tokenizer, 128, "me")
