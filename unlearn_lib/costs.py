"""How long each notebook and each run took, and how much memory, as one table.

Notebooks are timed by Snakemake (`results/<profile>/logs/<notebook>.tsv`), runs time themselves
(`runs/<key>/provenance.json`). `results/<profile>/costs.csv` keeps both, and its committed twin
`results/reference/<profile>/costs.csv` stands in where nothing was run.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import ROOT, Profile
from unlearn_lib.tables.common import write_atomically

COLUMNS = "kind name key seed seconds peak_memory_bytes commit data".split()
NOTEBOOK, RUN = "notebook", "run"
MEGABYTE = 1024**2  # of Snakemake's max_rss


def cost_table(results_folder: Path) -> pd.DataFrame:
    """Return a row per notebook and per run below `results_folder`.

    Columns: kind (`notebook` or `run`), name (of the notebook's job, or the run's stage), the
    run's key, seed, seconds, peak memory in bytes, the commit that computed it, and the sha256 of
    its data as `name=hash`. Runs that the folder's `metrics.json` does not name belong to other
    settings and are left out. Raises `CompanionError` for a file that is not whole.
    """
    rows = [_notebook(path) for path in sorted(results_folder.glob("logs/*.tsv"))]
    rows += _runs(results_folder)
    return pd.DataFrame(rows, columns=COLUMNS)


def write_costs(profile: Profile) -> Path:
    """Write the profile's `costs.csv`, whole or not at all; return its path."""
    table = cost_table(profile.results)
    text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
    return write_atomically(profile.results / "costs.csv", text.encode())


def stored_costs(profile: Profile, where: str) -> pd.DataFrame:
    """Return the costs that belong to the results of `where`, as `results.stored` names it.

    This machine's are read anew; those of the reference results come with the repository, and
    where they do not the table is empty. Raises `CompanionError` for a file that is not whole.
    """
    if where == "this machine":
        return cost_table(profile.results)
    path = ROOT / "results" / "reference" / profile.name / "costs.csv"
    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    texts = dict.fromkeys(("kind", "name", "key", "seed", "commit", "data"), str)
    table = pd.read_csv(path, dtype=texts).fillna(dict.fromkeys(texts, ""))
    if list(table.columns) != COLUMNS:
        raise CompanionError(f"{path} has other columns than {', '.join(COLUMNS)}; write it anew.")
    return table


def by_stage(table: pd.DataFrame) -> pd.DataFrame:
    """Return number of runs, seconds in all and peak memory of each stage, the longest first."""
    runs = table[table["kind"].eq(RUN)]
    grouped = runs.groupby("name", sort=True)
    stages = grouped.agg(
        runs=("key", "size"), seconds=("seconds", "sum"), peak=("peak_memory_bytes", "max")
    )
    return stages.sort_values("seconds", ascending=False).reset_index()


def _notebook(path: Path) -> dict[str, Any]:
    try:
        measured = pd.read_csv(path, sep="\t", na_values=["-"]).iloc[-1]
        seconds, megabytes = float(measured["s"]), float(measured["max_rss"])
    except (ValueError, KeyError, IndexError) as error:
        raise CompanionError(
            f"{path} is no time of a notebook ({error}); delete it and run its notebook again."
        ) from error
    seed = path.stem.rpartition("__s")[2] if "__s" in path.stem else ""
    known = {"seconds": seconds, "peak_memory_bytes": megabytes * MEGABYTE}
    return dict.fromkeys(COLUMNS, "") | known | {"kind": NOTEBOOK, "name": path.stem, "seed": seed}


def _runs(folder: Path) -> list[dict[str, Any]]:
    index = folder / "metrics.json"
    named = set(json.loads(index.read_text())["runs"]) if index.is_file() else None
    rows = [_run(path.parent) for path in sorted(folder.glob("runs/*/run.json"))
            if named is None or path.parent.name in named]  # fmt: skip
    return sorted(rows, key=lambda row: (row["name"], row["key"]))


def _run(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "run.json").read_text())
        origin = json.loads((folder / "provenance.json").read_text())
        seed = origin.get("seed")
        return {
            "kind": RUN,
            "name": record["stage"],
            "key": record["key"],
            "seed": "" if seed is None else str(seed),
            "seconds": origin["wall_seconds"],
            "peak_memory_bytes": origin["peak_memory_bytes"],
            "commit": (origin["git"]["commit"] or "") + ("+" if origin["git"]["dirty"] else ""),
            "data": " ".join(f"{name}={sha}" for name, sha in sorted(origin["data"].items())),
        }
    except (OSError, ValueError, KeyError) as error:
        raise CompanionError(
            f"The run in {folder} is not whole ({error!r}); delete that folder and run it again."
        ) from error
