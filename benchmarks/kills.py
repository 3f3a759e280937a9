"""Kill `make reproduce` at random moments inside its computing, and see that nothing is lost.

    python -m benchmarks.kills [--kills N] [--seed S]

A clone of the project runs a tiny profile once undisturbed. Then every start of it is killed once:
at a random moment of a random run (a third of the kills: while a run's files are written), the
whole group, the notebook's process, its kernel or snakemake alone. What was started must end by
itself, say so in a sentence and leave every finished run as it was; the next start goes on. A round
ends when the profile is done: its items must equal the undisturbed ones, times apart, and the next
round begins with nothing. One line per kill, then a summary; exit 1 where anything went wrong.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil

from benchmarks.tree import Tree
from unlearn_lib.store import Run

PROFILE = """name: killed
extends: smoke
only: [book]
tasks: {book: {methods: [arora, retrain]}}
"""
COMMAND = ("reproduce", "PROFILE=killed", "JOBS=1")
KEPT = "What is finished is kept"
KINDS = {  # how a process's command line begins after python, and what make says after its kill
    "group": ([], ""),
    "notebook": (["-m", "unlearn_lib", "notebook"], KEPT),
    "kernel": (["-m", "ipykernel_launcher"], "The kernel of notebook"),
    "snakemake": (["-m", "snakemake"], KEPT),
}
MARK = "UNLEARN_KILLS"
WRITTEN = ("[!c]*", "provenance.json")  # of a run: any file but checkpoints, the last but one


class Start:
    """One start of `make reproduce`; its processes have a mark in their environment."""

    def __init__(self, tree: Tree) -> None:
        self.results, self.log = tree.results("killed"), tree.folder.with_suffix(".log")
        self.mark, self.began = uuid.uuid4().hex, time.time()
        self.seen: dict[str, float] = {}
        self.processes: dict[str, psutil.Process] = {}
        with self.log.open("w") as log:
            self.make = tree.start(*COMMAND, log=log, **{MARK: self.mark})

    def alive(self) -> list[psutil.Process]:
        """Return every process of this start that has not ended."""
        processes = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    processes.append(process)
        return processes

    def end(self, patience: float = 60) -> list[str]:
        """Wait some seconds until all has ended, and kill what has not; return what that was."""
        until = time.monotonic() + patience
        while (left := self.alive()) and time.monotonic() < until:
            self.make.poll()
            time.sleep(0.1)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.make.wait()
        return [str(process) for process in left]

    def under_way(self) -> str | None:
        """Return the key of the run that the kernel computes now: it holds the run's lock."""
        kernel = self.processes.get("kernel")
        with suppress(psutil.Error):
            if kernel is None or not kernel.is_running():
                for process in reversed(self.alive()):
                    for kind, (words, _) in KINDS.items():
                        if process.cmdline()[1 : 1 + len(words)] == words:
                            self.processes[kind] = process
                return None
            for file in reversed(kernel.open_files()):
                path = Path(file.path)
                if path.suffix == ".lock" and path.with_suffix("").is_dir():
                    self.seen.setdefault(path.stem, time.monotonic())
                    return path.stem
        return None

    def computing(self, runs: int) -> Iterator[str]:
        """Yield the run that is under way again and again, once `runs` others went before it."""
        while self.make.poll() is None:
            key = self.under_way()
            if key is not None and len(self.seen) > runs:
                yield key
            time.sleep(0.01)

    def new(self, pattern: str) -> list[Path]:
        """Return what was written under the results since the start."""
        with suppress(FileNotFoundError):
            paths = [*self.results.glob(pattern)]
            return [path for path in paths if path.stat().st_mtime > self.began]
        return []

    def writing(self, pattern: str, runs: int) -> Iterator[str]:
        """Yield the run that is under way whenever one of its files is new."""
        for _ in self.computing(runs):
            for _ in range(100):  # processes are looked at much slower than files
                if new := self.new(f"partial/*/{pattern}"):
                    yield new[0].parent.name
                time.sleep(0.001)

    def kill(self, kind: str) -> bool:
        """Kill one process, or the group of make; False where it has ended already."""
        with suppress(psutil.NoSuchProcess, ProcessLookupError, KeyError):
            if kind == "group":
                os.killpg(self.make.pid, signal.SIGKILL)
            else:
                self.processes[kind].kill()
            return True
        return False


class Campaign:
    """The kills in one clone: stage and seconds of its runs undisturbed, and what happened."""

    def __init__(self, tree: Tree, seed: int) -> None:
        self.tree, self.random = tree, random.Random(seed)
        self.counts, self.faults, self.longest = Counter[str](), list[str](), 0.0
        (tree.folder / "notebooks" / "profiles" / "killed.yaml").write_text(PROFILE)
        began = time.monotonic()
        tree.make(*COMMAND)
        seconds = time.monotonic() - began
        self.items = tree.items("killed").reset_index(drop=True)
        self.usual = dict[str, tuple[str, float]]()
        for key, (stage, _) in tree.runs("killed").items():
            record = Run(key, tree.results("killed") / "runs" / key).provenance
            self.usual[key] = stage, record["wall_seconds"]
        print(f"Undisturbed: {len(self.usual)} runs, {len(self.items)} items, {seconds:.0f} s.")
        print("  n killed    while     stage         after    of", flush=True)
        tree.make("clean", "PROFILE=killed")

    def fault(self, sentence: str) -> None:
        """Note what went wrong."""
        self.faults.append(sentence)
        print(f"  FAULT: {sentence}", flush=True)

    def kill(self, number: int) -> bool:
        """Start make and kill it once; False where it was done before, and a round with it."""
        kind = [*KINDS][number % len(KINDS)]
        start = Start(self.tree)
        try:
            key = self._wait(start, writing=number % 3 == 2)
            while key and not start.kill(kind):
                key = next(start.computing(0), None)
            died, before = time.monotonic(), self.tree.runs("killed")
            written = start.new(f"partial/{key}/[!c]*")
            left, lived = start.end(), time.monotonic() - died
        finally:
            start.end(patience=0)
        output, code = start.log.read_text(), start.make.returncode
        if key is None:
            self.compare(output, code)
            return False
        stage, usual = self.usual.get(key, ("unknown", 0.0))
        moment = "stored" if key in before else "writing" if written else "computing"
        after = died - start.seen.get(key, died)
        print(
            f"{number + 1:3d} {kind:9s} {moment:9s} {stage:13s} {after:5.1f} {usual:5.1f} s; "
            f"{len(before):2d} finished; the rest lived {lived:4.1f} s; exit {code}",
            flush=True,
        )
        self.counts.update((kind, moment, stage))
        self.longest = max(self.longest, lived)
        if left:
            self.fault(f"these lived on: {left}")
        if key not in self.usual:
            self.fault(f"the run {key[:10]} is none of the undisturbed ones")
        if code == 0 or KINDS[kind][1] not in output or "Traceback (most recent" in output:
            self.fault(f"exit {code} with {output[-3000:]}")
        self._check(before)
        return True

    def _wait(self, start: Start, writing: bool) -> str | None:
        """Wait for the moment of a kill; return the run under way, None where make has ended."""
        runs, pattern = self.random.randrange(4), self.random.choice(WRITTEN)
        if writing:
            return next(start.writing(pattern, runs), None)
        for key in start.computing(runs):
            time.sleep(self.random.random() * self.usual.get(key, ("", 1.0))[1])
            if start.under_way() == key:
                return key
        return None

    def _check(self, before: dict[str, tuple[str, int]]) -> None:
        """See that every run that was finished is what it was, and that nothing is half there."""
        now, results = self.tree.runs("killed"), self.tree.results("killed")
        if changed := [key[:10] for key in before if before[key] != now.get(key)]:
            self.fault(f"finished runs are lost or changed: {changed}")
        for folder in [*results.glob("runs/*"), *results.glob("damaged/*")]:
            if fault := Run(folder.name, folder).fault():
                self.fault(f"{folder.parent.name}/{folder.name[:10]}: {fault}")
        for path in results.glob("notebooks/*__s1.ipynb"):
            if not path.read_text().rstrip().endswith("}"):
                self.fault(f"{path.name} is half written")

    def compare(self, output: str, code: int) -> None:
        """Compare the items of a finished round with the undisturbed ones, and keep nothing."""
        if code:
            self.fault(f"exit {code} without a kill: {output[-3000:]}")
        else:
            again = self.tree.items("killed").reset_index(drop=True)
            try:
                pd.testing.assert_frame_equal(again, self.items, check_exact=True)
            except AssertionError as error:
                self.fault(f"items differ: {error}")
            print(f"A round is finished; its {len(self.items)} items were compared.", flush=True)
            self.counts["rounds"] += 1
        self.tree.make("clean", "PROFILE=killed")


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; return 1 where anything went wrong, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills")
    parser.add_argument("--kills", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Tree(Path(folder) / "tree"), options.seed)
        for number in range(options.kills):
            while not campaign.kill(number):
                pass
        campaign.tree.make(*COMMAND)  # the last round, to its end
        campaign.compare("", 0)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(campaign.counts.items()))
    print(f"{options.kills} kills: {counts}.")
    print(f"All had ended {campaign.longest:.1f} s after. Faults: {len(campaign.faults)}.")
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
