"""The run store: content keys, whole-or-nothing commits, provenance, resume.

A run is a stage with every setting that changes its result. Its key is the sha256 of those
settings together with the keys of the runs it builds on, the hashes of its data and the source of
the code that computes it. It lies under `<results>/runs/<key>/`, put there by one rename, so that
a run exists whole or not at all; asking again returns it. A process killed at any moment leaves
only a folder under `partial/`, which the next call of the same run clears or resumes from.
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

from filelock import FileLock, Timeout

from unlearn_lib.util import ROOT, digest, write_text

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "numpy")
LINUX_PEAK = Path("/proc/self/status")


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
    cached: bool

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The run's `run.json`: its identity, and what its computation returned."""
        return json.loads((self.folder / "run.json").read_text())

    @property
    def result(self) -> dict[str, Any]:
        """What the run's computation returned."""
        return self.record["result"]

    @property
    def provenance(self) -> dict[str, Any]:
        """The run's `provenance.json`."""
        return json.loads((self.folder / "provenance.json").read_text())

    def read(self, name: str) -> Any:
        """Return a JSON file of the run."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


class RunStore:
    """Runs of one profile, in `<folder>/runs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, spec: Spec) -> Run | None:
        """Return a committed run, or None."""
        folder = self.folder / "runs" / spec.key
        return Run(spec.key, folder, True) if (folder / "run.json").is_file() else None

    def get(
        self,
        spec: Spec,
        compute: Callable[[Path], dict[str, Any]],
        resumable: bool = False,
    ) -> Run:
        """Return the run of a spec, computing it if it is not there.

        Args:
            compute: called with an empty folder (or, if `resumable`, with what an interrupted
                call left there); writes the run's files into it and returns what to record.
        """
        return self.find(spec) or self._compute(spec, compute, resumable)

    def _compute(
        self, spec: Spec, compute: Callable[[Path], dict[str, Any]], resumable: bool
    ) -> Run:
        partial = self.folder / "partial" / spec.key
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial.with_suffix(".lock"), spec.stage):
            run = self.find(spec)
            if run is not None:
                return run
            if not resumable:
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(exist_ok=True)
            with PeakMemory() as memory:
                began = time.time()
                result = compute(partial)
                seconds = time.time() - began
            self._write(partial, spec, result, seconds, memory.peak)
            final = self.folder / "runs" / spec.key
            final.parent.mkdir(exist_ok=True)
            shutil.rmtree(final, ignore_errors=True)  # no run: `find` has just said so
            partial.rename(final)
        return Run(spec.key, final, False)

    @staticmethod
    def _write(folder: Path, spec: Spec, result: dict[str, Any], seconds: float, peak: int) -> None:
        record = {"key": spec.key, "stage": spec.stage, "settings": spec.settings}
        record |= {"parents": spec.parents, "code": spec.code, "result": result}
        origin = provenance()
        origin |= {"data": spec.data, "seed": spec.settings.get("seed")}
        origin |= {"hardware": result.get("hardware", {})}
        origin |= {"wall_seconds": round(seconds, 3), "peak_memory_bytes": peak}
        for name, content in (("provenance.json", origin), ("run.json", record)):
            write_text(folder / name, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _locked(path: Path, stage: str) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except Timeout:
        print(f"Another process computes this run ({stage}); waiting for it.", file=sys.stderr)
    return lock


class PeakMemory:
    """Peak resident memory of this process within a `with` block, in bytes (`peak`).

    On Linux the kernel's high-water mark is reset at the start; elsewhere the mark of the whole
    process is reported. With a GPU, torch's own mark of GPU memory is taken instead.
    """

    peak = 0

    def __enter__(self) -> "PeakMemory":
        torch = sys.modules.get("torch")
        self._gpu = torch is not None and torch.cuda.is_available()
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()  # type: ignore[union-attr]
        else:
            with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as reset:
                reset.write("5")
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpu:
            self.peak = sys.modules["torch"].cuda.max_memory_allocated()
            return
        unit = 1 if sys.platform == "darwin" else 1024
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if LINUX_PEAK.exists():
            marks = re.findall(r"VmHWM:\s*(\d+) kB", LINUX_PEAK.read_text())
            self.peak = int(marks[0]) * 1024 if marks else self.peak


@functools.cache
def _git() -> dict[str, Any]:
    def ask(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        except OSError:  # no git here
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = ask("rev-parse", "HEAD")
    return {"commit": commit or None, "dirty": bool(ask("status", "--porcelain")) or not commit}


def provenance() -> dict[str, Any]:
    """Describe this process: code, environment and machine; no path, no user, no token."""
    lock = ROOT / "uv.lock"
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "git": _git(),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "processor": platform.machine()}
        | {"cores": os.cpu_count()},
        "versions": versions,
    }
