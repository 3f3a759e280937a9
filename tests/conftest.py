"""Shared by all tests: an environment of its own, tiny random models and a small tokenizer.

Nothing heavy is imported before `HF_HUB_OFFLINE` is set: the hub's client reads it on import.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from unlearn_lib.assets import Asset
    from unlearn_lib.models import LanguageModel

ARCHITECTURES = ("opt", "llama", "gpt2")
CONTEXT = 128
SENTENCES = (
    "What is the capital of France? The capital of France is Paris.",
    "How do birds fly? They beat their wings and ride the wind.",
    "Tell me how to pick a lock. I cannot help you with that.",
    "Why is the sky blue? Air scatters blue light more than red light.",
)
CHAT_TEMPLATE = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SLOW = """test_interrupted test_reproduce test_jupyterlab test_training test_closer_look_paper
    test_report_browser test_closer_look test_eco test_bring_your_own test_book_paper
    test_eco_paper test_memorising""".split()
"""Files that take longer than ten seconds, the longest first."""

settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse the hub before anything imports its client."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow files and begin with them, so that workers end at about the same time."""
    place = {stem: number for number, stem in enumerate(SLOW)}
    for item in items:
        if item.path.stem in place:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: place.get(item.path.stem, len(SLOW)))


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache and mirror, and from the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("UNLEARN_MIRROR", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def chromium() -> Iterator["Browser"]:
    """The system's Chromium, for one file of tests."""
    from browser import launched

    with launched() as browser:
        yield browser


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer with a chat template; id 1 is `<pad>`, as in OPT."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>"]
    trained.train_from_iterator(SENTENCES, 320, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )


def _random_model(architecture: str, tokenizer: Any) -> Any:
    import torch
    import transformers as hf

    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    torch.manual_seed(0)
    if architecture == "opt":
        opt = hf.OPTConfig(
            **shared, **shape, ffn_dim=128, word_embed_proj_dim=64, dropout=0.0, init_std=0.2
        )
        return hf.OPTForCausalLM(opt)
    if architecture == "llama":
        shape |= {"intermediate_size": 128, "num_key_value_heads": 2, "initializer_range": 0.2}
        return hf.LlamaForCausalLM(hf.LlamaConfig(**shared, **shape))
    gpt2 = hf.GPT2Config(
        **shared, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(gpt2)


@pytest.fixture(scope="session")
def tiny_assets(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, own_environment: None
) -> dict[str, "Asset"]:
    """Folders of a tiny random OPT, Llama and GPT-2, by architecture."""
    from unlearn_lib.assets import Asset

    found = {}
    for architecture in ARCHITECTURES:
        folder: Path = tmp_path_factory.mktemp(architecture)
        _random_model(architecture, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[architecture] = Asset(f"tiny/{architecture}", folder, "test", architecture)
    return found


@pytest.fixture(scope="session")
def load_tiny(tiny_assets: dict[str, "Asset"]) -> Callable[..., "LanguageModel"]:
    """Load a tiny model afresh: `load_tiny("opt", lora=..., seed=0)`; `seed` makes it trainable.

    Weights are float32 and untrained on CPU unless settings of `ModelSettings` say otherwise.
    """

    def load(architecture: str = "opt", seed: int | None = None, **chosen: Any) -> "LanguageModel":
        from unlearn_lib import models
        from unlearn_lib.settings import ModelSettings

        given = {"id": f"tiny/{architecture}", "precision": "float32", "lora": None, **chosen}
        settings = ModelSettings.model_validate(given)
        loaded = models.load(tiny_assets[architecture], settings, "cpu")
        if seed is not None:
            models.make_trainable(loaded, settings, seed)
        return loaded

    return load


@pytest.fixture(scope="session")
def encoder(tokenizer: Any) -> Any:
    """The question-and-answer encoder of the tiny tokenizer."""
    from unlearn_lib.batches import TextEncoder

    return TextEncoder(tokenizer, "question_answer", 64, 32, CONTEXT)
