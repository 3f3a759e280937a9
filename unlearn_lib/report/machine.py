"""Where the numbers come from: commit, machine, versions, and what each step took."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from unlearn_lib.costs import NOTEBOOK, RUN, by_stage
from unlearn_lib.profiles import NOTEBOOKS
from unlearn_lib.report.figures import caption_of
from unlearn_lib.report.grid import Cell, Grid, Row, memory, seconds

SHORT = 10


def commit(origin: Mapping[str, Any]) -> str:
    """Return the commit of the results, shortened; a changed tree is marked `+`."""
    git = origin.get("git") or {}
    return f"{git.get('commit') or 'unknown'}"[:SHORT] + ("+" if git.get("dirty") else "")


def summary(frame: pd.DataFrame) -> str:
    """Return what the tidy table holds, in words: models and seeds."""
    models = ", ".join(sorted(frame["model"].unique()))
    seeds = ", ".join(str(seed) for seed in sorted(frame["seed"].unique()))
    return f"{models} · seeds: {seeds} · {len(frame):,} numbers"


def facts(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return commit, environment and machine of the results as pairs of name and value."""
    git, machine = origin.get("git") or {}, origin.get("machine") or {}
    changed = " (with changes that are not committed)" if git.get("dirty") else ""
    pairs = {
        "commit": f"{git.get('commit') or 'unknown'}{changed}",
        "system": machine.get("system"),
        "processor": machine.get("processor"),
        "cores": machine.get("cores"),
        "Python": origin.get("python"),
        **origin.get("versions", {}),
        "sha256 of requirements.lock": origin.get("lock_sha256"),
        "runs behind the numbers": len(origin.get("runs", [])),
    }
    return [(name, "not recorded" if text is None else str(text)) for name, text in pairs.items()]


def notebook_times(costs: pd.DataFrame) -> Grid:
    """Return time and peak memory of each executed notebook, and of all together."""
    found = costs[costs["kind"].eq(NOTEBOOK)].sort_values("name")
    rows = [
        Row([Cell(each.name), seconds(each.seconds), memory(each.peak_memory_bytes)])
        for each in found.itertuples(index=False)
    ]
    every = Row([Cell("sum"), seconds(found["seconds"].sum()), Cell("")])
    notes = [
        "Notebooks may run side by side, so the sum can be more than the time that passed. One "
        "that finds its runs stored takes only as long as showing them."
    ]
    columns = ("Notebook", "Time", "Peak memory")
    return Grid("notebook-times", "Per notebook", columns, [*rows, every] if rows else [], 0, notes)


def stage_times(costs: pd.DataFrame) -> Grid:
    """Return number of runs, time in all and peak memory of each stage, the longest first."""
    rows = [
        Row([Cell(str(stage)), Cell(str(runs)), seconds(total), memory(peak)])
        for stage, runs, total, peak in by_stage(costs).itertuples(index=False)
    ]
    notes = [
        "Seconds of the first computation of each run; a run that is found again costs nothing."
    ]
    columns = ("Stage", "Runs", "Time in all", "Peak memory")
    return Grid("stage-times", "Per stage", columns, rows, 0, notes)


def runs(costs: pd.DataFrame, frame: pd.DataFrame) -> Grid:
    """Return every run: key, stage, what it is of, time, memory, commit and hashes of its data."""
    told = {str(key): _told(rows) for key, rows in frame.groupby("run")}
    rows = []
    for each in costs[costs["kind"].eq(RUN)].itertuples(index=False):
        data = " ".join(
            f"{name}={sha[:SHORT]}"
            for name, _, sha in (part.rpartition("=") for part in each.data.split())
        )
        cells = [
            Cell(each.key[:SHORT], full=each.key, kind="code"),
            Cell(each.name),
            Cell(told.get(each.key, "")),
            Cell(each.seed),
            seconds(each.seconds),
            memory(each.peak_memory_bytes),
            Cell(each.commit[:SHORT], full=each.commit, kind="code"),
            Cell(data, full=each.data, kind="code"),
        ]
        rows.append(Row(cells, f"run-{each.key[:SHORT]}", {"stage": each.name}))
    columns = "Run, Stage, Numbers in metrics.csv, Seed, Time, Peak memory, Commit, sha256 of data"
    return Grid("runs", "Runs", columns.split(", "), rows)


def _told(rows: pd.DataFrame) -> str:
    """Say which numbers rest on a run: experiments and methods, and how many rows there are."""
    named = {name: caption_of("experiments", name)["title"] for name in NOTEBOOKS}
    experiments = ", ".join(named.get(name, name) for name in sorted(rows["experiment"].unique()))
    methods = sorted(rows["method"].unique())
    shown = ", ".join(methods[:3]) + (" …" if len(methods) > 3 else "")
    return f"{experiments}: {shown} ({len(rows)} rows)"
