"""The run store: content keys, whole-or-nothing commits, provenance, resume.

A run is a stage with every setting that changes its result. Its key is the sha256 of those
settings together with the keys of the runs it builds on, the hashes of its data and the source of
the code that computes it. It lies under `<results>/runs/<key>/`, put there by one rename, so that
a run exists whole or not at all; asking again returns it. A process killed at any moment leaves
only a folder under `partial/`, which the next call of the same run clears or resumes from.

`run.json` holds the sha256 of the run's files and of itself. A run that was altered since, or that
is another's, is set aside under `damaged/` and computed again.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from unlearn_lib.util import ROOT, SAID, CompanionError, digest, file_digests, flush, write_text

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "numpy")
STAMP = ".commit"
"""The file into which `git archive` writes the commit."""
LINUX_PEAK = Path("/proc/self/status")
Compute = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Spec:
    """What identifies a run.

    Attributes:
        stage: `teach`, `unlearn`, `evaluate`, ...
        settings: everything that changes the result, as JSON.
        parents: keys of the runs it builds on.
        data: sha256 of weights and data, by name.
        code: digest of the source that computes it (`unlearn_lib.source`).
    """

    stage: str
    settings: dict[str, Any]
    parents: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)
    code: str = ""

    @property
    def key(self) -> str:
        """The content key: 64 hex digits."""
        return digest(self.stage, self.settings, list(self.parents), self.data, self.code)


@dataclass(frozen=True)
class Run:
    """A committed run: its key, its folder, and what it recorded."""

    key: str
    folder: Path

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The run's `run.json`: its identity, and what its computation returned."""
        return self.read("run.json")

    @property
    def result(self) -> dict[str, Any]:
        """What the run's computation returned."""
        return self.record["result"]

    @property
    def provenance(self) -> dict[str, Any]:
        """The run's `provenance.json`."""
        return self.read("provenance.json")

    def read(self, name: str) -> Any:
        """Return a JSON file of the run; CompanionError where it cannot be read."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CompanionError(
                f"The stored run {self.folder.name[:10]} is damaged: {name} cannot be read; delete "
                f"{self.folder} and run again."
            ) from error

    def fault(self) -> str | None:
        """Say what is wrong with the run's files; None if they are as they were written."""
        try:
            content = dict(self.record)
            if content.pop("sha256") != digest(content) or content["key"] != self.key:
                return "run.json was altered, or is another run's"
            before, now = content["files"], file_digests(self.folder, "run.json")
        except (CompanionError, OSError, KeyError, TypeError, AttributeError):
            return "run.json or another file cannot be read"
        changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        return f"{changed[0]} was altered" if changed else None


class RunStore:
    """Runs of one profile, in `<folder>/runs`; `private`: for this user's eyes only."""

    def __init__(self, folder: Path, private: bool = False) -> None:
        self.folder = folder
        if private:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)

    def find(self, spec: Spec) -> Run | None:
        """Return a committed run whose files are whole, or None."""
        run = Run(spec.key, self.folder / "runs" / spec.key)
        return run if run.folder.exists() and run.fault() is None else None

    def get(self, spec: Spec, compute: Compute, resumable: bool = False) -> Run:
        """Return the run of a spec, computing it if it is not there.

        Args:
            compute: called with an empty folder (or, if `resumable`, with what an interrupted
                call left there); writes the run's files into it and returns what to record.
        """
        return self.find(spec) or self._compute(spec, compute, resumable)

    def _compute(self, spec: Spec, compute: Compute, resumable: bool) -> Run:
        partial = self.folder / "partial" / spec.key
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial.with_suffix(".lock"), spec.stage):
            run = self.find(spec)
            if run is not None:
                return run
            final = self.folder / "runs" / spec.key
            final.parent.mkdir(exist_ok=True)
            if final.exists():
                self._set_aside(Run(spec.key, final), spec.stage)
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(exist_ok=True)
            began = time.time()
            reset_peak_memory()
            result = compute(partial)
            _write(partial, spec, result, time.time() - began, peak_memory())
            partial.rename(final)
            flush(final.parent)
        return Run(spec.key, final)

    def _set_aside(self, run: Run, stage: str) -> None:
        """Move a run that cannot be used out of the way, and say so."""
        place = self.folder / "damaged" / f"{run.key}-{time.time_ns()}"
        place.parent.mkdir(exist_ok=True)
        print(
            f"A stored run ({stage}) is not as it was written: {run.fault()}. It lies in "
            f"damaged/{place.name} now, and is computed again.",
            file=sys.stderr,
        )
        run.folder.rename(place)


def _write(folder: Path, spec: Spec, result: dict[str, Any], seconds: float, peak: int) -> None:
    """Write `provenance.json`, then `run.json`, which says what every other file holds."""
    origin = provenance() | {"data": spec.data, "seed": spec.settings.get("seed")}
    origin |= {"hardware": result.get("hardware", {}), "said": [*SAID]}
    origin |= {"wall_seconds": round(seconds, 3), "peak_memory_bytes": peak}
    write_text(folder / "provenance.json", _json(origin))
    record = {"key": spec.key, "stage": spec.stage, "settings": spec.settings}
    record |= {"parents": list(spec.parents), "code": spec.code, "result": result}
    record = json.loads(_json(record | {"files": file_digests(folder, "run.json")}))
    write_text(folder / "run.json", _json(record | {"sha256": digest(record)}))
    flush(*folder.rglob("*"), folder)


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _locked(path: Path, stage: str) -> AcquireReturnProxy:
    """Take a lock for a `with` block; say so where another process holds it."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Another process computes this run ({stage}); waiting for it.", file=sys.stderr)
        return lock.acquire()


def _gpu() -> Any:
    """Torch's view of the GPU, where torch is in use and there is one."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_available() else None


def reset_peak_memory() -> None:
    """Begin to measure anew: torch's mark of GPU memory, or on Linux the kernel's of all memory."""
    if gpu := _gpu():
        gpu.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the peak since then in bytes; where the mark cannot be reset, of the whole process."""
    if gpu := _gpu():
        return gpu.max_memory_allocated()
    marks = re.findall(r"VmHWM:\s*(\d+) kB", LINUX_PEAK.read_text()) if LINUX_PEAK.exists() else []
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * int(marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


@functools.cache
def git_state(root: Path = ROOT) -> dict[str, Any]:
    """The commit of this tree: git's where its top level is this tree, else that of an archive.

    Of another repository's commit nothing is said; whether an archive was changed is not known, so
    that it counts as changed.
    """
    ask = functools.partial(subprocess.check_output, cwd=root, text=True, stderr=subprocess.DEVNULL)
    stamp = (root / STAMP).read_text() if (root / STAMP).is_file() else ""
    archived = {"commit": stamp.strip() if stamp[:1] not in ("", "$") else None, "dirty": True}
    try:
        if Path(ask(["git", "rev-parse", "--show-toplevel"]).strip()).resolve() != root.resolve():
            return archived
        commit = ask(["git", "rev-parse", "HEAD"]).strip()
        return {"commit": commit, "dirty": bool(ask(["git", "status", "--porcelain"]))}
    except (OSError, subprocess.CalledProcessError):  # no git here, or no commit
        return archived


def provenance() -> dict[str, Any]:
    """Describe this process: code, environment and machine; no path, no user, no token."""
    lock = ROOT / "uv.lock"
    return {
        "git": git_state(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processor": platform.machine()}
        | {"cores": os.cpu_count()},
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
    }
