"""Give every entry point bad inputs: each must end in one sentence, or in the right result.

    python -m benchmarks.torture [inputs [ENTRY_POINT ...]]     (or: make torture)

The table of inputs is in `torture_inputs`, `_texts`, `_files` and `_stored`. Each input gets a
process and a folder of its own, which stands in the place of this project's. A refusal is exit
code 2 (or a `CompanionError`) with one sentence on stderr and nothing new on the disk. A
traceback, a fault of the program (exit code 3), a hang, a half-written file, and anything accepted
that should not be or refused that should be right is a failure. Exit code 1 where there is one.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

import json
import multiprocessing
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from benchmarks import torture_files, torture_inputs, torture_stored, torture_texts
from benchmarks.torture_inputs import REFUSED, RIGHT, Case
from unlearn_lib import __main__ as command_line
from unlearn_lib import assets, check, claims, figures, profile, report, stored, tables
from unlearn_lib.util import ROOT, SAID, CompanionError, entry_of

SECONDS, MEMORY, AT_ONCE = 60, 6 * 2**30, 2
LIBRARY = "sentence-transformers/all-MiniLM-L6-v2"
HALF = re.compile(r"(^|/)\.[^/]+\.\d+$|\.partial$|(^|/)\.converting-")
"""Names of files that are being written."""
FREE = re.compile(r"cache/|results/[^/]+/logs/|.*\.lock$")
"""What a refusal may leave behind: caches, logs, locks."""
TABLES = (torture_inputs, torture_texts, torture_files, torture_stored)
INPUTS = {name: cases for table in TABLES for name, cases in table.INPUTS.items()}
LOADED = (check, claims, figures, report, tables)
"""Modules that the command line imports late: once here, and not in every process."""
TRIED = "inputs", "refused", "right", "failed"


def sandbox(folder: Path) -> None:
    """Put a folder in the place of this project's, in this process; it sees no GPU."""
    for module in (profile, stored, command_line):
        vars(module)["ROOT"] = folder
    profile.PROFILES, command_line.NOTEBOOKS = folder / "profiles", folder / "notebooks"
    shutil.copytree(ROOT / "notebooks" / "profiles", folder / "profiles")
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "reported.csv", folder / "notebooks")
    os.environ |= {"UNLEARN_MIRROR": f"{folder}/mirror", "UNLEARN_CACHE": f"{folder}/cache"}
    (folder / "mirror").mkdir()
    torch.cuda.is_available = lambda: False
    os.chdir(folder)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    status = {path.relative_to(folder).as_posix(): path.lstat() for path in files}
    return {name: (each.st_size, each.st_mtime_ns) for name, each in status.items()}


def attempt(case: Case, folder: Path) -> None:
    """Try one input in this process, and write what came of it beside the folder."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, limits[1]))
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    outcome: dict[str, Any] = {}
    try:
        sandbox(folder)
        act = case.prepare(folder)
        tempfile.tempdir = str(folder.parent)
        before = contents(folder)
        outcome["code"] = answer_of(act)
        after = contents(folder)
        names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        outcome |= {"changed": names, "said": [*SAID]}
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    folder.with_suffix(".json").write_text(json.dumps(outcome))
    os._exit(0)


def answer_of(act: Any) -> Any:
    """Do what an input is for; return its exit code, 0 where a function returned, 2 if refused."""
    try:
        result = act()
    except CompanionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as error:
        return error.code
    return result if type(result) is int else 0


def verdict(case: Case, folder: Path, late: bool) -> tuple[str, str]:
    """Return `refused`, `right` or `failed`, and what is wrong where it failed."""
    stderr = folder.with_suffix(".err").read_text(errors="replace")
    lines = [line for line in stderr.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else "no word"
    if late:
        return "failed", f"no answer within {SECONDS} s"
    if not folder.with_suffix(".json").exists():
        return "failed", f"the process died ({last})"
    outcome = json.loads(folder.with_suffix(".json").read_text())
    if "code" not in outcome or "Traceback" in stderr:
        return "failed", f"a traceback ({last})"
    if half := [name for name in outcome["changed"] if HALF.search(name)]:
        return "failed", f"half-written: {half[0]}"
    if case.expected == RIGHT:
        right = outcome["code"] == 0 and "touched" not in outcome["changed"]
        return (RIGHT, "") if right else ("failed", f"exit code {outcome['code']} ({last})")
    if outcome["code"] != 2:
        return "failed", f"exit code {outcome['code']} ({last})"
    if lines[0].startswith("usage:"):
        lines = lines[-1:]
    if more := [line for line in lines[:-1] if line not in outcome["said"]]:
        return "failed", f"more than a sentence ({more[0][:300]})"
    if not re.match(r"(error: |python -m unlearn_lib.*: error: )\S.{10,}", last):
        return "failed", f"no sentence ({last})"
    if new := [name for name in outcome["changed"] if not FREE.match(name)]:
        return "failed", f"refused, but it changed {new[0]}"
    return REFUSED, ""


def campaign(cases: list[Case], base: Path) -> dict[str, Counter[str]]:
    """Try every input, two at a time, and print each failure; return counts by entry point."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    fork, waiting = multiprocessing.get_context("fork"), list(enumerate(cases))[::-1]
    running: dict[int, tuple[Case, Path, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number, case = waiting.pop()
            folder = base / f"{number:03d}" / "project"
            folder.mkdir(parents=True)
            process = fork.Process(target=attempt, args=(case, folder))
            process.start()
            running[process.sentinel] = (case, folder, process, time.monotonic() + SECONDS)
        soonest = min(end for *_, end in running.values()) - time.monotonic()
        wait(running, max(0.0, soonest))
        for sentinel, (case, folder, process, end) in [*running.items()]:
            late = process.is_alive() and time.monotonic() >= end
            if process.is_alive() and not late:
                continue
            process.kill()
            process.join()
            del running[sentinel]
            result, why = verdict(case, folder, late)
            counts[case.entry].update([result, "inputs"])
            if why:
                print(f"FAILED  {case.entry}: {case.name} (to be {case.expected}): {why}")
                sys.stdout.flush()
            shutil.rmtree(folder.parent, ignore_errors=True)
    return counts


def main(arguments: list[str]) -> int:
    """Try all inputs, or those of the entry points named; print counts; 1 if any failed."""
    if arguments and arguments[0] != "inputs":
        raise CompanionError(f"'{arguments[0]}' is not 'inputs', the only campaign here.")
    named = arguments[1:] or [*INPUTS]
    cases = [case for name in named for case in entry_of(INPUTS, name, "No entry point")]
    torch.set_num_threads(1)
    assets.find_model(LIBRARY)  # hashed once, and not in every process
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="torture-") as base:
        maker = multiprocessing.get_context("fork").Process(
            target=torture_files.make, args=(Path(base) / "made",)
        )
        maker.start()
        maker.join()
        counts = campaign(cases, Path(base))
    total = sum(counts.values(), Counter[str]())
    print(f"{'entry point':24s}" + "".join(f"{column:>9s}" for column in TRIED))
    for name, count in [*counts.items(), ("all", total)]:
        print(f"{name:24s}" + "".join(f"{count[column]:9d}" for column in TRIED))
    print(f"{time.monotonic() - began:.0f} seconds")
    return int(total["failed"] > 0)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CompanionError as error:
        sys.exit(str(error))
