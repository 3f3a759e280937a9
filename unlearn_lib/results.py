"""From stored rows to the tidy table of a profile, its figures and tables, and its status."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib import claims, figures, tables
from unlearn_lib.costs import write_costs
from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics import tidy
from unlearn_lib.profiles import ROOT, Job, Profile, notebook_jobs, rows_path
from unlearn_lib.runs import provenance, write_text

CLAIMS = ROOT / "notebooks" / "claims.yaml"
ORDERINGS = ROOT / "notebooks" / "orderings.yaml"


def _row_files(profile: Profile) -> list[tuple[Job, Path]]:
    return [
        (job, rows_path(profile, job.experiment, job.model, job.seed))
        for job in notebook_jobs(profile)
        if job.experiment and job.model and job.seed is not None
    ]


def collect(profile: Profile) -> Path:
    """Join the tidy rows of every model and seed of a profile into its `metrics.csv`.

    What the runs and notebooks took is written beside it, as `costs.csv`.

    Raises:
        CompanionError: a notebook has not run yet.
    """
    parts, runs = [], set()
    for job, path in _row_files(profile):
        if not path.is_file():
            raise CompanionError(
                f"Notebook {job.notebook} has not run for {job.model}, seed {job.seed}; "
                f"run `{profile.command}`."
            )
        parts.append(tidy.read(path))
        runs |= set(json.loads(path.with_suffix(".json").read_text())["runs"])
    target = profile.results / "metrics.csv"
    origin = provenance() | {"profile": profile.name, "runs": sorted(runs)}
    write_text(target.with_suffix(".json"), json.dumps(origin, indent=1, sort_keys=True) + "\n")
    tidy.write(target, pd.concat(parts, ignore_index=True))
    write_costs(profile)
    return target


def keep_as_reference(profile: Profile) -> Path:
    """Copy a profile's table, provenance and costs to `results/reference`; no text is copied.

    Raises:
        CompanionError: there are no results of this machine.
    """
    target = ROOT / "results" / "reference" / profile.name
    sources = [profile.results / name for name in ("metrics.csv", "metrics.json", "costs.csv")]
    for path in sources:
        if not path.is_file():
            raise CompanionError(f"There is no {path.name} to keep; run `{profile.command}`.")
    target.mkdir(parents=True, exist_ok=True)
    for path in sources:
        write_text(target / path.name, path.read_text(encoding="utf-8"))
    return target


def stored(profile: Profile) -> tuple[pd.DataFrame, dict[str, Any], str]:
    """Return the profile's tidy table, its provenance, and where it came from.

    This machine's results first; without any, the committed reference results.

    Raises:
        CompanionError: neither exists; names the command that makes them.
    """
    reference = ROOT / "results" / "reference" / profile.name
    for folder, where in ((profile.results, "this machine"), (reference, "reference results")):
        path = folder / "metrics.csv"
        if path.is_file():
            try:
                origin = json.loads(path.with_suffix(".json").read_text())
                return tidy.read(path), origin, where
            except (OSError, ValueError) as error:
                raise CompanionError(
                    f"The results in {folder} are not whole ({error}); delete metrics.csv there "
                    f"and run `{profile.command}`."
                ) from error
    raise CompanionError(
        f"There are no results of profile {profile.name}; run `{profile.command}`."
    )


def draw(profile: Profile, processes: int = 1) -> list[Path]:
    """Draw the profile's figures and write its tables from stored results; never trains.

    Several `processes` share the work, with the same result; a script that asks for them needs a
    main guard.
    """
    frame, origin, where = stored(profile)
    print(f"Drawing from {where} ({len(frame)} rows).")
    labels = {name: profile.labels(name) for name in profile.experiments()}
    folder = ROOT / "figures" / profile.name
    stored_rows = (frame, folder, profile.name, origin)
    tasks = figures.tasks(*stored_rows, labels)
    for write in (tables.write_all, claims.write):
        tasks.append(partial(write, *stored_rows, CLAIMS, labels))
    if processes == 1:
        return [path for task in tasks for path in task()]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        longest_first = [pool.submit(task) for task in reversed(tasks)]
        return [path for task in reversed(longest_first) for path in task.result()]


def status(profile: Profile) -> str:
    """Describe what is done and what is open, one line each."""
    lines = [f"profile {profile.name}"]
    for job, path in _row_files(profile):
        state = "done" if path.is_file() else "open"
        lines.append(f"  {state}  {job.notebook}  {job.model}  seed {job.seed}")
    runs = sorted(profile.results.glob("runs/*/run.json"), key=lambda path: path.stat().st_mtime)
    for path in runs:
        record = json.loads(path.read_text())
        origin = json.loads((path.parent / "provenance.json").read_text())
        lines.append(
            f"  run {record['key'][:10]}  {record['stage']:<10} {origin['wall_seconds']:8.1f} s"
        )
    partial = [path for path in profile.results.glob("partial/*") if path.is_dir()]
    lines.append(f"  {len(runs)} runs stored, {len(partial)} begun and not finished")
    return "\n".join(lines)
