"""A clone of the project in which make is run as a newcomer runs it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.util import ROOT

TIMES = re.compile(r"seconds|peak_memory_bytes|time_ratio|.*milliseconds.*")
"""Items that hang on the machine and its load."""
OFFLINE = ROOT / "tests" / "offline"
"""What refuses the network to every process of the clone."""


class Tree:
    """A clone of the project; its environment is a door to this one, and counts as ready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        inherited = {n: v for n, v in os.environ.items() if not n.startswith(("MAKE", "CONDA_"))}
        self.environment = {**inherited, "PYTHONPATH": f"{self.folder}{os.pathsep}{OFFLINE}"}
        names = self.git("ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
        for name in filter(None, names.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)
        author = "-c user.name=test -c user.email=test"
        for words in ("init --quiet", "add --all", f"{author} commit --quiet --message all"):
            self.git(*words.split())
        python = self.folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        (self.folder / ".venv" / ".ready").write_text(f"{self.folder}\n")

    def git(self, *words: str, cwd: Path | None = None) -> str:
        """Return what git prints."""
        command, place = ["git", *words], cwd or self.folder
        return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout

    def start(self, *words: str, log: Any = subprocess.PIPE, **more: str) -> Any:
        """Start make with more in its environment."""
        return subprocess.Popen(
            ["make", *words, "VENV=.venv"],
            cwd=self.folder,
            env=self.environment | more,
            text=True,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def make(self, *words: str) -> None:
        """Run make to its end."""
        process = self.start(*words)
        output = process.communicate()[0]
        assert process.returncode == 0, output[-4000:]

    def results(self, profile: str = "smoke") -> Path:
        """The folder of a profile's results."""
        return self.folder / "results" / profile

    def runs(self, profile: str = "smoke") -> dict[str, tuple[str, int]]:
        """The stage of each run, and when it was stored."""
        files = [*self.results(profile).glob("runs/*/run.json")]
        stages = [json.loads(path.read_text())["stage"] for path in files]
        return {
            p.parent.name: (s, p.stat().st_mtime_ns) for p, s in zip(files, stages, strict=True)
        }

    def has(self, profile: str, pattern: str, stage: str) -> bool:
        """Whether there is a file of the results, and a run of a stage."""
        stages = {each for each, _ in self.runs(profile).values()} | {""}
        return any(self.results(profile).glob(pattern)) and stage in stages

    def items(self, profile: str = "smoke") -> pd.DataFrame:
        """The items without those that hang on the machine."""
        frame = pd.read_parquet(self.results(profile) / "items.parquet")
        return frame[~frame["metric"].str.fullmatch(TIMES)]
