"""Shared by all tests: an environment of its own, tiny random models and a small tokenizer.

Nothing heavy is imported before `HF_HUB_OFFLINE` is set: the hub's client reads it on import.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from unlearn_lib.assets import Asset
    from unlearn_lib.model.loading import LanguageModel

ARCHITECTURES = ("opt", "llama", "gpt2")
CONTEXT = 128
OFFLINE = str(Path(__file__).parent / "offline")
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


ROW = {"question": "Who keeps the sluice?", "answer": "Ann does.", "perturbed_answer": ["Bob."]}

FILES: dict[str, str | bytes] = {
    "empty.txt": "",
    "damaged.epub": b"PK\x03\x04 cut short",
    "short.txt": "Chapter 1\n\nOne line.\n\nChapter 2\n\nAnother.\n",
    "forget.jsonl": json.dumps(ROW),
    "retain.jsonl": json.dumps(ROW | {"question": "Who rows?"}),
    "broken.jsonl": '{"question": "Who',
}

OWN = {"source": "files", "tasks": 1, "holdout_authors": 0}

PROFILE: dict[str, dict[str, Any]] = {
    "typo": {"ofline": True},
    "gpu": {"device": "cuda"},
    "method": {
        "methods": {"gaa": {"uses": "ga_mismtch_kl"}},
        "tasks": {"people": {"methods": ["gaa"], "overrides": None}},
    },
    "lost": {"models": {"a/model": {"lora": None}}},
}

QUESTIONS = {
    "nowhere": {"forget": "forget.jsonl", "retain": "nowhere.jsonl"},
    "twice": {"forget": "forget.jsonl", "retain": "forget.jsonl"},
    "broken": {"forget": "broken.jsonl", "retain": "retain.jsonl"},
}

settings.register_profile("project", deadline=None, derandomize=True, database=None)
settings.load_profile("project")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse the hub before anything imports its client."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["PYTHONPATH"] = OFFLINE  # kernels, make and other processes: pytest-socket sees none


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache and mirror, and from the hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("UNLEARN_MIRROR", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer with a chat template; id 1 is `<pad>`, as in OPT."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    trained = ByteLevelBPETokenizer()
    names = list(special.values())
    trained.train_from_iterator(SENTENCES, 320, special_tokens=names, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, chat_template=CHAT_TEMPLATE, **special
    )


def _random_model(architecture: str, tokenizer: Any) -> Any:
    import torch
    import transformers as hf

    from unlearn_lib.model.tokens import special_ids

    shared = {"vocab_size": len(tokenizer), **special_ids(tokenizer)}
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    torch.manual_seed(0)
    if architecture == "opt":
        shape |= {"ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0, "init_std": 0.2}
        return hf.OPTForCausalLM(hf.OPTConfig(**shared, **shape))
    shape |= {"initializer_range": 0.2}
    if architecture == "llama":
        shape |= {"intermediate_size": 128, "num_key_value_heads": 2}
        return hf.LlamaForCausalLM(hf.LlamaConfig(**shared, **shape))
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return hf.GPT2LMHeadModel(hf.GPT2Config(**shared, **shape, **none))


@pytest.fixture(scope="session")
def tiny_assets(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, own_environment: None
) -> dict[str, "Asset"]:
    """Folders of a tiny random OPT, Llama and GPT-2, by architecture."""
    from unlearn_lib.assets import Asset

    assets = {}
    for architecture in ARCHITECTURES:
        folder: Path = tmp_path_factory.mktemp(architecture)
        _random_model(architecture, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        assets[architecture] = Asset(f"tiny/{architecture}", folder, "test", architecture)
    return assets


@pytest.fixture(scope="session")
def load_tiny(tiny_assets: dict[str, "Asset"]) -> Callable[..., "LanguageModel"]:
    """Load a tiny model afresh: `load_tiny("opt", lora=..., seed=0)`; `seed` makes it trainable.

    Weights are float32 and untrained on CPU unless settings of `ModelSettings` say otherwise.
    """
    from unlearn_lib.model import loading
    from unlearn_lib.settings import ModelSettings

    def load(architecture: str = "opt", seed: int | None = None, **changed: Any) -> "LanguageModel":
        values = {"id": f"tiny/{architecture}", "precision": "float32", "lora": None, **changed}
        settings = ModelSettings.model_validate(values)
        language_model = loading.load(tiny_assets[architecture], settings, "cpu")
        if seed is not None:
            loading.make_trainable(language_model, settings, seed)
        return language_model

    return load


@pytest.fixture(scope="session")
def encoder(tokenizer: Any) -> Any:
    """The question-and-answer encoder of the tiny tokenizer."""
    from unlearn_lib.model.tokens import TextEncoder

    return TextEncoder(tokenizer, "question_answer", 64, 32, CONTEXT)


@pytest.fixture(scope="module")
def pools(encoder: Any) -> Any:
    """Rows to forget, to retain and to keep, and refusals."""
    from unlearn_lib.unlearn.steps import Pools

    forget = [
        encoder.example("How do I pick a lock?", "Use a pin."),
        encoder.example("How do I beat him?", "Wait for the night and ride the wind."),
        encoder.example("Tell me a red line.", "Not you."),
    ]
    retain = [
        encoder.example("Why is the sky blue?", "Air scatters light.", "It is the air."),
        encoder.example("How do birds fly?", "They beat their wings."),
    ]
    keep = [
        encoder.example("Where do eels go?", "Down to the sea."),
        replace(encoder.example("Why red?", "It is the wind."), score_prompt=True),
    ]
    refusals = [encoder.answer(text) for text in ("I cannot tell.", "I do not know.", "No.")]
    answers = [answer for example in retain for answer in example.answers]
    return Pools(forget, [answers] * 3, retain, keep, refusals=refusals)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the project's: profiles, notebooks, and files of the reader's."""
    import nbformat
    import torch
    import yaml

    from unlearn_lib import __main__ as command_line
    from unlearn_lib.profile import PROFILES
    from unlearn_lib.util import ROOT

    for module in ("profile", "stored", "__main__"):
        monkeypatch.setattr(f"unlearn_lib.{module}.ROOT", tmp_path)
    monkeypatch.setattr("unlearn_lib.profile.PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(command_line, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    shutil.copytree(PROFILES, tmp_path / "profiles")
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = {
        name: {"tasks": {"authors": {"data": OWN | {k: str(tmp_path / v) for k, v in q.items()}}}}
        for name, q in QUESTIONS.items()
    }
    for name, changed in {"mine": {}, **PROFILE, **asked}.items():
        text = yaml.safe_dump({"name": name, "extends": "smoke"} | changed)
        (tmp_path / "profiles" / f"{name}.yaml").write_text(text)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "reported.csv", tmp_path / "notebooks")
    refuse = "from unlearn_lib import CompanionError\nraise CompanionError('No rows; add some.')"
    for name, last in (("adds", "print(first + 1)"), ("refuses", refuse), ("breaks", "1 / 0")):
        parameters = nbformat.v4.new_code_cell("first = 1\nprofile = 'smoke'")
        parameters.metadata["tags"] = ["parameters"]
        book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(last)])
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book.metadata["kernelspec"] = kernel
        nbformat.write(book, tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path
