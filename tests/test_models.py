"""Loading, adapters, devices, and the tiny OPT of profile smoke."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from unlearn_lib import models
from unlearn_lib.assets import Asset
from unlearn_lib.batches import Example, pack, packed_logits
from unlearn_lib.errors import CompanionError
from unlearn_lib.models import LanguageModel
from unlearn_lib.settings import ModelSettings
from unlearn_lib.tiny import tiny_opt

Load = Callable[..., LanguageModel]
BATCH = [Example((5, 6, 7), ((8, 9), (10,))), Example((11, 12), ((13,),))]
PLAIN = ModelSettings(id="tiny/opt", precision="float32", lora=None)


def logits_of(found: LanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return packed_logits(found.model, pack(BATCH))


def change(found: LanguageModel) -> None:
    """Move everything trainable, as training would."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))


def copied(asset: Asset, folder: Path) -> Asset:
    shutil.copytree(asset.folder, folder)
    return Asset(asset.id, folder, asset.source, asset.sha256)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- device and precision --------------------------------------------------------------------


def test_cuda_without_a_gpu_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CompanionError, match="'cuda' and torch sees no GPU here; set 'device: a"):
        models.choose_device("cuda")
    assert models.choose_device("auto") == models.choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_is_taken_where_the_processor_has_it(
    native: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    got = models.choose_precision("bfloat16", torch.device("cpu"))
    assert got == (torch.bfloat16 if native else torch.float32)
    assert ("computing in float32 instead" in capsys.readouterr().out) is not native


def test_what_was_asked_and_what_was_got_are_recorded(
    load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    hardware = load_tiny("opt", precision="bfloat16", lora={}).hardware
    assert hardware["device"] == "cpu"
    assert (hardware["precision_asked"], hardware["precision_got"]) == ("bfloat16", "float32")


def test_adapters_are_float32_on_bfloat16_weights(
    load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found = load_tiny("llama", seed=0, precision="bfloat16", lora={})
    for name, parameter in found.model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
        assert parameter.requires_grad == ("lora_" in name)


# --- what can be trained ---------------------------------------------------------------------


def test_the_adapter_is_drawn_from_its_seed_and_starts_without_effect(load_tiny: Load) -> None:
    first, again, other = (load_tiny("opt", seed=seed, lora={}) for seed in (3, 3, 4))
    drawn = [
        torch.cat([p.flatten() for n, p in found.model.named_parameters() if "lora_A" in n])
        for found in (first, again, other)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert_close(logits_of(first), logits_of(load_tiny("opt")), rtol=0, atol=0)


def test_adapter_targets_are_those_of_the_profile(load_tiny: Load) -> None:
    found = load_tiny("opt", seed=0, lora={"targets": ["q_proj", "v_proj"], "rank": 2})
    trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all("q_proj" in name or "v_proj" in name for name in trained)


def adapted_blocks(found: LanguageModel) -> set[int]:
    """The blocks in which something is trained."""
    trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    return {int(re.findall(r"\.(\d+)\.", name)[0]) for name in trained}


def projections(found: LanguageModel) -> set[str]:
    """The projections that got an adapter, as they are called in every block."""
    trained = [name for name, p in found.model.named_parameters() if p.requires_grad]
    return {re.sub(r".*\.\d+\.", "", name) for name in trained}


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
@pytest.mark.parametrize("layers, blocks", [([1, 1], {1}), ([0, 0], {0}), ([0, 1], {0, 1})])
def test_only_the_chosen_blocks_get_an_adapter(
    layers: list[int], blocks: set[int], architecture: str, load_tiny: Load
) -> None:
    found = load_tiny(architecture, seed=0, lora={"layers": layers})
    assert adapted_blocks(found) == blocks
    everywhere = load_tiny(architecture, seed=0, lora={})
    assert projections(found) == projections(everywhere), "the same projections as without a choice"


def test_chosen_projections_get_an_adapter_in_the_chosen_blocks_only(load_tiny: Load) -> None:
    found = load_tiny("llama", seed=0, lora={"layers": [1, 1], "targets": ["q_proj"], "rank": 2})
    assert adapted_blocks(found) == {1}
    assert projections(found) == {f"self_attn.q_proj.lora_{side}.default.weight" for side in "AB"}


@pytest.mark.parametrize("layers", [[0, 2], [2, 2], [1, 0], [-1, 1]])
def test_blocks_that_the_model_does_not_have_are_refused_in_one_sentence(
    layers: list[int], load_tiny: Load
) -> None:
    with pytest.raises(CompanionError) as told:
        load_tiny("llama", seed=0, lora={"layers": layers})
    assert str(told.value) == f"'lora.layers' is {layers}, but the model's blocks are 0 to 1."


def test_an_adapter_of_some_blocks_is_read_back_as_it_was(load_tiny: Load, tmp_path: Path) -> None:
    found = load_tiny("llama", seed=0, lora={"layers": [1, 1]})
    change(found)
    models.save(found.model, found.tokenizer, tmp_path)
    restored, opened = load_tiny("llama"), load_tiny("llama")
    models.load_adapter(restored, tmp_path)
    assert_close(logits_of(restored), logits_of(found), rtol=0, atol=0)
    models.load_adapter(opened, tmp_path, trainable=True)
    assert adapted_blocks(opened) == {1}


def test_all_weights_of_a_quantised_model_cannot_be_trained(load_tiny: Load) -> None:
    with pytest.raises(CompanionError, match="quantised, so its weights cannot be trained"):
        load_tiny("opt", seed=0, quantization="8bit", lora=None)


# --- saved and read back ---------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["opt", "llama", "gpt2"])
def test_a_saved_adapter_gives_the_same_logits(
    architecture: str, load_tiny: Load, tmp_path: Path
) -> None:
    found = load_tiny(architecture, seed=0, lora={})
    change(found)
    models.save(found.model, found.tokenizer, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    restored = load_tiny(architecture)
    models.load_adapter(restored, tmp_path)
    assert_close(logits_of(restored), logits_of(found), rtol=0, atol=0)
    assert not restored.model.training
    assert not any(parameter.requires_grad for parameter in restored.model.parameters())


def test_a_saved_whole_model_gives_the_same_logits(load_tiny: Load, tmp_path: Path) -> None:
    found = load_tiny("opt", seed=0, lora=None)
    change(found)
    models.save(found.model, found.tokenizer, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors", ".json", ".jinja"}
    restored = models.load(Asset("tiny/opt", tmp_path, "run", ""), PLAIN, "cpu")
    assert_close(logits_of(restored), logits_of(found), rtol=0, atol=0)
    assert restored.tokenizer.pad_token_id == found.tokenizer.pad_token_id


def missing(path: Path) -> None:
    path.unlink()


def another_models(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: value[:3].clone() for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [cut, missing, another_models])
def test_a_damaged_adapter_is_refused_in_a_sentence(
    damage: Callable[[Path], None], load_tiny: Load, tmp_path: Path
) -> None:
    found = load_tiny("opt", seed=0, lora={})
    models.save(found.model, found.tokenizer, tmp_path)
    damage(tmp_path / "adapter_model.safetensors")
    with pytest.raises(CompanionError) as told:
        models.load_adapter(load_tiny("opt"), tmp_path)
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
    assert "delete" in str(told.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [cut, missing])
def test_damaged_model_files_are_refused_in_a_sentence(
    damage: Callable[[Path], None], name: str, tiny_assets: dict[str, Asset], tmp_path: Path
) -> None:
    asset = copied(tiny_assets["opt"], tmp_path / "copy")
    damage(asset.folder / name)
    with pytest.raises(CompanionError) as told:
        models.load(asset, PLAIN, "cpu")
    assert str(told.value).startswith("The model 'tiny/opt' from test: ")
    assert "\n" not in str(told.value)


# --- the reference ---------------------------------------------------------------------------


def test_the_reference_of_an_adapter_is_no_second_copy(load_tiny: Load) -> None:
    found = load_tiny("opt", seed=0, lora={})
    assert models.freeze_copy(found.model) is None
    change(found)
    with models.reference(found.model) as original:
        assert original is found.model
        without = packed_logits(original, pack(BATCH))
        assert not without.requires_grad
    assert_close(without, logits_of(load_tiny("opt")), rtol=0, atol=0)
    assert not torch.equal(logits_of(found), without)


def test_the_reference_of_all_weights_is_a_frozen_copy(load_tiny: Load) -> None:
    found = load_tiny("opt", seed=0, lora=None)
    frozen = models.freeze_copy(found.model)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    change(found)
    with models.reference(found.model, frozen) as original:
        assert_close(
            packed_logits(original, pack(BATCH)), logits_of(load_tiny("opt")), rtol=0, atol=0
        )


# --- profile smoke's model -------------------------------------------------------------------


def test_the_tiny_opt_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"A text about number {i} and {i * i}." for i in range(50)]
    digests, folders = [], []
    for place in ("one", "two"):
        monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / place))
        torch.rand(3)  # whatever was drawn before
        asset = tiny_opt(texts)
        folders.append(asset.folder)
        digests.append(
            {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in asset.folder.iterdir()}
        )
    assert folders[0] != folders[1]
    assert digests[0] == digests[1]
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(digests[0])
    assert not list(tmp_path.rglob(".making-*"))
    assert tiny_opt(texts).folder == folders[1]
    assert tiny_opt(texts[1:]).folder != folders[1]


def test_the_tiny_opt_reads_and_writes_its_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path))
    texts = ["Größe, naïve and 日本", "### Question: why?\n ### Answer: so"]
    found: Any = models.load(tiny_opt(texts, context=64), PLAIN, "cpu")
    assert found.context == 64
    for text in texts:
        assert found.tokenizer.decode(found.tokenizer(text)["input_ids"]) == text
