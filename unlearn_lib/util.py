"""What every module may use: the one exception, whole writes, digests, names of files."""

import difflib
import functools
import hashlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = Path(__file__).resolve().parent / "data" / "embedded"


class CompanionError(Exception):
    """Bad input or a missing thing: one sentence that names it, its place and the remedy."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, or the list of names."""
    names = sorted(map(str, known))
    match = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else f" (known: {', '.join(names)})"


def entry_of(table: Mapping[str, Any], name: str, problem: str) -> Any:
    """Return a table's entry; refuse an unknown name with the nearest known one.

    Args:
        problem: what the sentence says before the name, such as `There is no method`.
    """
    if name not in table:
        raise CompanionError(f"{problem} '{name}'{nearest(name, table)}.")
    return table[name]


SAID: dict[str, None] = {}
"""What this process has said of its results, in order; every later run records it."""


def say(text: str) -> None:
    """Print a sentence on stderr once in a process, and keep it for the provenance of its runs."""
    if text not in SAID:
        SAID[text] = None
        print(text, file=sys.stderr)


def write_text(path: Path, text: str) -> None:
    """Write a text file by one rename, so that it is there whole or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8", newline="\n")
    flush(partial)
    os.replace(partial, path)


def expanded(path: Path | str) -> Path:
    """Return a path with `~` as the user's folder; one of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))


def without_places(text: str) -> str:
    """Return a text in which this project's folder is `.` and the user's own is `~`."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")


def flush(*paths: Path) -> None:
    """Wait until files and folders are on the disk, where a power cut leaves them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@functools.cache
def _sha256(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file, computed again only if it has changed since."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def file_digests(folder: Path, without: str) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by its name there; not of hidden ones.

    Args:
        without: the name of the file in the folder that is to hold them.
    """
    paths = (path for path in sorted(folder.rglob("[!.]*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: file_sha256(path) for name, path in names.items() if name != without}


def one_device(arguments: Any) -> Any:
    """Return Trainer's arguments for one device: over several its DataParallel loses rows."""
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def refuse_processes() -> None:
    """Refuse to be one of several processes that torchrun, accelerate or MPI started together.

    Raises:
        CompanionError: there are more than one.
    """
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
    for name in names:  # those that accelerate reads
        if (size := os.environ.get(name, "1")).strip() not in ("", "0", "1"):
            raise CompanionError(
                f"{name} is {size}, but one process trains on one device: start it alone, with "
                "python, or unset that."
            )


def digest(*values: Any) -> str:
    """Return the sha256 of values as canonical JSON; what JSON lacks is written as its `str`."""
    text = json.dumps(values, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def slug(model_id: str) -> str:
    """Turn a hub id into a file name: `facebook/opt-1.3b` becomes `opt-1.3b`.

    Letters, marks and digits of any script stay, and full stops; all else is one hyphen.
    """
    name = unicodedata.normalize("NFC", model_id.rsplit("/", 1)[-1])
    signs = [s if s == "." or unicodedata.category(s)[0] in "LMN" else "-" for s in name]
    return re.sub("-+", "-", "".join(signs))
