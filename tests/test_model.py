"""Loading models and adapters, saving them, and chains of runs."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from unlearn_lib.assets import Asset
from unlearn_lib.model import loading
from unlearn_lib.model.generate import continuations
from unlearn_lib.model.loading import LanguageModel
from unlearn_lib.model.packing import pack, packed_logits
from unlearn_lib.model.tokens import Example
from unlearn_lib.settings import LoraSettings, ModelSettings
from unlearn_lib.util import CompanionError

Load = Callable[..., LanguageModel]
every_architecture = pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
BATCH = [Example((5, 6, 7), ((8, 9), (10,))), Example((11, 12), ((13,),))]
PLAIN = ModelSettings(id="tiny/opt", precision="float32", lora=None)


def logits_of(language_model: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return packed_logits(language_model.model, pack(BATCH))


def change(language_model: LanguageModel, seed: int = 0) -> None:
    """Move everything trainable, as training would."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))


def trained(language_model: LanguageModel) -> dict[str, torch.Tensor]:
    return {n: p for n, p in language_model.model.named_parameters() if p.requires_grad}


# --- device, precision, what is trained ------------------------------------------------------


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompanionError, match="device: auto"):
        loading.choose_device("cuda")
    assert loading.choose_device("auto") == loading.choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_taken_where_the_processor_has_it(
    native: bool, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    adapted = load_tiny("llama", seed=0, precision="bfloat16", lora={})
    dtype = "bfloat16" if native else "float32"
    assert adapted.hardware["precision_asked"] == "bfloat16"
    assert adapted.hardware["precision_got"] == dtype
    for name, parameter in adapted.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else getattr(torch, dtype))
        assert parameter.requires_grad == ("lora_" in name)


def test_the_adapter_is_drawn_from_its_seed_and_starts_without_effect(load_tiny: Load) -> None:
    first, again, other = (load_tiny("opt", seed=seed, lora={}) for seed in (3, 3, 4))
    assert_close(trained(first), trained(again), rtol=0, atol=0)
    assert any(not torch.equal(trained(first)[n], p) for n, p in trained(other).items())
    assert torch.equal(logits_of(first), logits_of(load_tiny("opt")))


@every_architecture
@pytest.mark.parametrize("layers", [[1, 1], [0, 0], [0, 1]])
def test_only_the_chosen_blocks_get_an_adapter(
    layers: list[int], architecture: str, load_tiny: Load
) -> None:
    everywhere = trained(load_tiny(architecture, seed=0, lora={}))
    names = trained(load_tiny(architecture, seed=0, lora={"layers": layers}))
    blocks = range(layers[0], layers[1] + 1)
    assert set(names) == {n for n in everywhere if int(re.findall(r"\.(\d+)\.", n)[0]) in blocks}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"lora": {"layers": [0, 2]}}, r"\[0, 2\], but the model's blocks are 0 to 1"),
        ({"lora": {"targets": ["nope"]}}, "'lora' does not fit .*nope"),
        ({"lora": None, "quantization": "8bit"}, "quantised, so its weights cannot be trained"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed: Any, message: str, load_tiny: Load) -> None:
    with pytest.raises(CompanionError, match=message):
        load_tiny("llama", seed=0, **changed)


# --- saved and read back ---------------------------------------------------------------------


@every_architecture
@pytest.mark.parametrize("lora", [{}, {"layers": [1, 1]}, None])
def test_what_was_saved_gives_the_same_logits(
    lora: Any, architecture: str, load_tiny: Load, tmp_path: Path
) -> None:
    changed = load_tiny(architecture, seed=0, lora=lora)
    change(changed)
    loading.save(changed.model, changed.tokenizer, tmp_path / "model")
    suffixes = {path.suffix for path in (tmp_path / "model").iterdir()}
    assert suffixes <= {".safetensors", ".json", ".md", ".jinja"}
    if lora is None:
        restored = loading.load(Asset("tiny", tmp_path / "model", "run", ""), PLAIN, "cpu")
    else:
        restored = load_tiny(architecture)
        loading.load_adapter(restored, tmp_path / "model")
        assert not trained(restored)
    assert torch.equal(logits_of(restored), logits_of(changed))
    assert not restored.model.training


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_adapter_is_refused(
    damage: Callable[[Path], None], load_tiny: Load, tmp_path: Path
) -> None:
    adapted = load_tiny("opt", seed=0, lora={})
    loading.save(adapted.model, adapted.tokenizer, tmp_path)
    damage(tmp_path / "adapter_model.safetensors")
    with pytest.raises(CompanionError, match="delete"):
        loading.load_adapter(load_tiny("opt"), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_damaged_model_files_are_refused(
    damage: Callable[[Path], None], name: str, tiny_assets: dict[str, Asset], tmp_path: Path
) -> None:
    shutil.copytree(tiny_assets["opt"].folder, tmp_path / "copy")
    damage(tmp_path / "copy" / name)
    with pytest.raises(CompanionError, match="The model 'tiny' from test"):
        loading.load(Asset("tiny", tmp_path / "copy", "test", ""), PLAIN, "cpu")


# --- chains of runs --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(load_tiny: Load, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that trained a first and a second adapter, and all weights."""
    folders = {}
    for seed, name in enumerate(("one", "two", "all")):
        language_model = load_tiny("llama", seed=seed, lora=None if name == "all" else {})
        change(language_model, seed)
        folders[name] = tmp_path_factory.mktemp(name)
        loading.save(language_model.model, language_model.tokenizer, folders[name] / "model")
    return folders


def by_hand(runs: dict[str, Path], names: list[str], load_tiny: Load) -> torch.Tensor:
    """Logits of a chain: float32 adapters added to the weights that they were trained on."""
    language_model = load_tiny("llama")
    if names[:1] == ["all"]:
        asset = Asset("tiny", runs["all"] / "model", "run", "")
        language_model = loading.load(asset, PLAIN, "cpu")
    for name in names:
        if name != "all":
            loading.load_adapter(language_model, runs[name] / "model", merge=True)
    return logits_of(language_model)


@pytest.mark.parametrize("last", ["merged", "unquantised", "float32"])
@pytest.mark.parametrize(
    "names, counted",
    [
        ("", ""),
        ("one", "one"),
        ("one two", "one two"),
        ("one all two", "all two"),
        ("one all", "all"),
    ],
)
def test_a_chain_is_its_last_whole_weights_and_the_adapters_after_them(
    names: str, counted: str, last: Any, runs: Any, load_tiny: Load, tiny_assets: Any
) -> None:
    folders = [runs[name] for name in names.split()]
    chained = loading.load_chain(tiny_assets["llama"], folders, PLAIN, "cpu", last)
    assert torch.equal(logits_of(chained), by_hand(runs, counted.split(), load_tiny))
    assert not any("lora_" in name for name, _ in chained.model.named_parameters())


@pytest.mark.parametrize("changed", [{"precision": "bfloat16"}, {"quantization": "8bit"}])
@pytest.mark.parametrize("last", ["merged", "unquantised", "float32", "trainable"])
def test_a_chain_ends_as_its_task_wants_it(
    changed: Any, last: Any, runs: Any, tiny_assets: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    settings = ModelSettings(**{"id": "tiny/llama", "precision": "float32", **changed})
    folders = [runs["one"], runs["two"]]
    chained = loading.load_chain(tiny_assets["llama"], folders, settings, "cpu", last)
    adapters = [p for name, p in chained.model.named_parameters() if "lora_" in name]
    merged = last == "merged" or (last == "unquantised" and "precision" in changed)
    assert bool(adapters) == (not merged)
    assert all(p.requires_grad == (last == "trainable") for p in adapters)


def one_block(config: dict[str, Any]) -> None:
    config["num_hidden_layers"] = 1


def three_blocks(config: dict[str, Any]) -> None:
    config["num_hidden_layers"] = 3


def narrower(config: dict[str, Any]) -> None:
    config["ffn_dim"] = 64


def a_llama(config: dict[str, Any]) -> None:
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize("altered", [one_block, three_blocks, narrower, a_llama])
def test_weights_that_do_not_fit_the_configuration_are_refused(
    altered: Callable[[dict[str, Any]], None], load_tiny: Load, tmp_path: Path
) -> None:
    tiny = load_tiny("opt")
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    asset = Asset("a/model", tmp_path, "mirror", "0")
    settings = ModelSettings(id="a/model", precision="float32")
    loading.load(asset, settings, "cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    altered(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompanionError, match="The model 'a/model' from mirror cannot be read"):
        loading.load(asset, settings, "cpu")


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.json", "[]"),
        ("config.json", {"num_hidden_layers": "two"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"dtype": "float65"}),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_what_libraries_cannot_read_is_one_sentence(
    name: str, content: Any, tiny_assets: dict[str, Asset], tmp_path: Path
) -> None:
    shutil.copytree(tiny_assets["llama"].folder, tmp_path / "copy")
    path = tmp_path / "copy" / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    with pytest.raises(CompanionError, match="The model 'tiny' from test cannot be read") as caught:
        loading.load(Asset("tiny", tmp_path / "copy", "test", ""), PLAIN, "cpu")
    assert "\n" not in str(caught.value)


ADAPTERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "no tensor": lambda tensors: {},
    "half of them": lambda tensors: dict(list(tensors.items())[::2]),
    "renamed": lambda tensors: {name.replace("lora_A", "lora_C"): t for name, t in tensors.items()},
    "one more": lambda tensors: tensors | {"more": next(iter(tensors.values())).clone()},
    "nan": lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()},
    "cut": lambda tensors: {name: tensor[:1].clone() for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_that_does_not_fit_is_refused(
    kind: str, merge: bool, load_tiny: Load, tmp_path: Path
) -> None:
    tiny = load_tiny("opt")
    loading.make_trainable(tiny, ModelSettings(id="a/model", lora=LoraSettings(rank=4)), 1)
    loading.save(tiny.model, tiny.tokenizer, tmp_path)
    loading.load_adapter(load_tiny("opt"), tmp_path, merge=merge)
    weights = tmp_path / "adapter_model.safetensors"
    save_file(ADAPTERS[kind](load_file(weights)), weights)
    with pytest.raises(CompanionError, match="The adapter in"):
        loading.load_adapter(load_tiny("opt"), tmp_path, merge=merge)


def test_a_new_adapter_on_a_merged_model_starts_where_the_old_one_ended(
    runs: Any, load_tiny: Load, tiny_assets: Any
) -> None:
    merged = loading.load_chain(tiny_assets["llama"], [runs["one"]], PLAIN, "cpu")
    loading.make_trainable(merged, ModelSettings(id="tiny", precision="float32"), seed=5)
    expected = by_hand(runs, ["one"], load_tiny)
    assert torch.equal(logits_of(merged), expected)
    change(merged)
    with loading.reference(merged.model) as target:
        assert torch.equal(packed_logits(target, pack(BATCH)), expected)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_tied_embeddings_is_refused(target: str, load_tiny: Load) -> None:
    """Added to the weights it would change the model's other end too."""
    with pytest.raises(CompanionError, match=f"names '{target}'.*tied embeddings"):
        load_tiny("opt", seed=0, lora={"targets": [target]})
    assert trained(load_tiny("llama", seed=0, lora={"targets": [target]}))


@pytest.mark.parametrize("quantization", ["8bit", "nf4"])
def test_on_quantised_weights_an_adapter_keeps_its_whole_effect(
    quantization: Any, runs: Any, tiny_assets: Any
) -> None:
    settings = ModelSettings(id="tiny/llama", quantization=quantization)
    asset, folders = tiny_assets["llama"], [runs["one"], runs["two"]]
    stacked = loading.load_chain(asset, folders[:1], settings, "cpu", "unquantised")
    merged, both = (loading.load_chain(asset, folders[:n], settings, "cpu") for n in (1, 2))
    expected = logits_of(stacked)
    assert torch.equal(logits_of(merged), expected)
    loading.load_adapter(merged, runs["two"] / "model")
    assert torch.equal(logits_of(merged), logits_of(both))
    again = loading.load_chain(asset, folders[:1], settings, "cpu")
    loading.make_trainable(again, settings, seed=5)
    before = logits_of(again)
    assert_close(before.float(), expected.float(), rtol=0.1, atol=0.2)
    change(again)
    with loading.reference(again.model) as target:
        assert torch.equal(packed_logits(target, pack(BATCH)), before)


# --- the reference, and profile smoke's model ------------------------------------------------


def test_the_reference_of_an_adapter_is_no_second_copy(load_tiny: Load) -> None:
    adapted = load_tiny("opt", seed=0, lora={"dropout": 0.5})
    change(adapted)
    adapted.model.train()
    with pytest.raises(KeyError), loading.reference(adapted.model) as original:
        assert original is adapted.model and not original.training
        logits = packed_logits(original, pack(BATCH))
        assert not logits.requires_grad
        assert torch.equal(logits, logits_of(load_tiny("opt")))
        raise KeyError
    assert adapted.model.training and torch.is_grad_enabled()
    assert all(p.requires_grad for name, p in adapted.model.named_parameters() if "lora_" in name)
    frozen = load_tiny("llama").model
    with loading.reference(adapted.model, frozen) as original:
        assert original is frozen


def test_the_tiny_opt_is_the_same_everywhere_and_reads_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Größe, naïve and 日本", *(f"Number {i} and {i * i}." for i in range(50))]
    files = []
    for place in ("one", "two"):
        monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / place))
        torch.rand(3)  # whatever was drawn before
        asset = loading.tiny_opt(texts, context=64)
        files.append({path.name: path.read_bytes() for path in asset.folder.iterdir()})
    assert files[0] == files[1]
    assert loading.tiny_opt(texts).folder != loading.tiny_opt(texts[1:]).folder
    tiny = loading.load(asset, PLAIN, "cpu")
    assert tiny.context == 64
    assert tiny.tokenizer.decode(tiny.tokenizer(texts[0])["input_ids"]) == texts[0]


def test_answers_are_the_models_own_choices_whatever_its_file_says(
    load_tiny: Load, tmp_path: Path
) -> None:
    tiny = load_tiny("llama")
    prompts = [(5, 6, 7), (11, 12)]
    plain = continuations(tiny, prompts, 12, 2)
    first = plain[0][0]
    tiny.model.generation_config = transformers.GenerationConfig(
        repetition_penalty=5.0, suppress_tokens=[first], no_repeat_ngram_size=1, min_new_tokens=9
    )
    assert continuations(tiny, prompts, 12, 2) != plain
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = loading.load(Asset("a/model", tmp_path, "mirror", "0"), PLAIN, "cpu")
    assert continuations(again, prompts, 12, 2) == plain
