"""Stored results: a profile's items and their origin, what runs cost, what is done and open.

This machine's results lie under `results/<profile>`; the committed ones, without any text, under
`results/reference/<profile>`.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.lib import ArrowException

from unlearn_lib.profile import Profile
from unlearn_lib.results import Items
from unlearn_lib.store import Run, provenance
from unlearn_lib.util import ROOT, CompanionError, file_sha256, flush, slug, write_text

NOTEBOOKS = {
    "01_harmful_unlearning": ("harm",),
    "02_lotr_implant_then_forget": ("book",),
    "04_closer_look": ("authors", "continual", "people"),
    "03_eco_comparison": ("science", "authors", "book", "subjects"),
}
"""The notebooks that compute, in the order in which they run, and the tasks that each shows."""
THIS_MACHINE, REFERENCE = "results of this machine", "reference results"
FILES = ("items.parquet", "origin.json", "costs.csv")
COST_COLUMNS = "kind name key seed seconds peak_memory_bytes commit".split()


@dataclass(frozen=True)
class Job:
    """One notebook to execute: with a model and a seed, or as it is."""

    notebook: str
    model: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """`01_harmful_unlearning__opt-1.3b__s1`, or the notebook's own name without a model."""
        if self.model is None:
            return self.notebook
        return f"{self.notebook}__{slug(self.model)}__s{self.seed}"


def notebook_jobs(profile: Profile) -> list[Job]:
    """The notebooks of a profile: the tour, one per notebook, model and seed, the figures."""
    running = profile.running()
    jobs = []
    for notebook, tasks in NOTEBOOKS.items():
        settings = [running[task] for task in tasks if task in running]
        if notebook.startswith("03"):
            settings = [each for each in settings if each.guard_names]
        models = dict.fromkeys(model.id for each in settings for model in each.models)
        jobs += [Job(notebook, model, seed) for model in models for seed in profile.seeds]
    return jobs if profile.own_book else [Job("00_start_here"), *jobs, Job("05_figures_and_tables")]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Say in one sentence that a file of results cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CompanionError(f"{path} is damaged ({reason}); make the results again.") from error


@dataclass(frozen=True)
class Stored:
    """A profile's items, the provenance of the process that collected them, and where they lie.

    `missing_seeds`: those of the profile that have no items.
    """

    items: Items
    origin: dict[str, Any]
    where: str
    folder: Path
    missing_seeds: tuple[int, ...] = ()

    @property
    def source(self) -> str:
        """Where the results are from, and which seeds they lack: `reference results`."""
        lacking = f" (without seeds {', '.join(map(str, self.missing_seeds))}: they were not run)"
        return self.where + lacking * bool(self.missing_seeds)

    @property
    def figures(self) -> Path:
        """Where figures and tables of these results lie: with them, or in the committed folder."""
        own = self.where == THIS_MACHINE
        return self.folder / "figures" if own else ROOT / "figures" / self.folder.name

    @property
    def texts(self) -> list[tuple[str, str, pd.DataFrame]]:
        """Task, model and a table of a few of its texts; none of the committed results."""
        path = self.folder / "texts.json"
        with _whole(path):
            texts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
            return [(each["task"], each["model"], pd.DataFrame(each["rows"])) for each in texts]

    @property
    def costs(self) -> pd.DataFrame:
        """A row per notebook and run: seconds, peak memory, commit."""
        path = self.folder / "costs.csv"
        texts = dict.fromkeys(("kind", "name", "key", "seed", "commit"), str)
        with _whole(path):
            table = pd.read_csv(path, dtype=texts)[COST_COLUMNS]
        return table.fillna(dict.fromkeys(texts, ""))


def collect(profile: Profile) -> Path:
    """Join the items of every task, model and seed into `items.parquet`, with origin and costs.

    Everything comes from the store; what is missing there is computed. A few texts of the first
    seed go into `texts.json`, for the report; they are never committed.
    """
    from unlearn_lib.experiment import Experiment

    parts, texts, weights = [], [], dict[str, str]()
    for task, settings in profile.running().items():
        for model in settings.models:
            for seed in profile.seeds:
                experiment = Experiment(profile, task, model.id, seed)
                parts.append(experiment.items())
                weights[model.id] = experiment.task.weights.source
                if seed == profile.seeds[0]:
                    rows = experiment.examples().to_dict("list")
                    texts.append({"task": task, "model": model.id, "rows": rows})
    frame = pd.concat(parts, ignore_index=True)
    write_text(profile.results / "texts.json", json.dumps(texts, ensure_ascii=False))
    costs = cost_table(profile.results).to_csv(index=False, float_format="%.6g")
    write_text(profile.results / "costs.csv", costs)
    path = profile.results / "items.parquet"
    partial = path.with_suffix(".partial")
    frame.to_parquet(partial, index=False)
    origin = provenance() | {"profile": profile.name, "runs": sorted(set(frame["run"]))}
    origin |= {"weights": weights}
    origin["items"] = {"rows": len(frame), "sha256": file_sha256(partial)}
    write_text(profile.results / "origin.json", json.dumps(origin, indent=1, sort_keys=True) + "\n")
    flush(partial)
    partial.replace(path)
    return path


def keep_as_reference(profile: Profile) -> Path:
    """Copy a profile's items, origin and costs to `results/reference`; no text is copied."""
    target = ROOT / "results" / "reference" / profile.name
    if not all((profile.results / name).is_file() for name in FILES):
        raise CompanionError(f"There are no results to keep; run `{profile.command}`.")
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(profile.results / name, target / name)
    return target


def stored(profile: Profile) -> Stored:
    """Return a profile's results: this machine's, or without any the committed ones.

    Raises:
        CompanionError: neither exists, or they are damaged or not the items that `origin.json`
            names by rows and sha256; names the command that makes them.
    """
    reference = ROOT / "results" / "reference" / profile.name
    for folder, where in ((profile.results, THIS_MACHINE), (reference, REFERENCE)):
        if (folder / "items.parquet").is_file():
            try:
                frame = pd.read_parquet(folder / "items.parquet")
                origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
                own = {"rows": len(frame), "sha256": file_sha256(folder / "items.parquet")}
                if dict(origin).get("items") != own:
                    raise ValueError(f"origin.json does not name its {len(frame)} rows of items")
            except (OSError, ValueError, TypeError, RecursionError, ArrowException) as error:
                raise CompanionError(
                    f"The results in {folder} are damaged ({error}); delete items.parquet there "
                    f"and run `{profile.command}`."
                ) from error
            items = Items(frame)
            missing = tuple(sorted({*profile.seeds} - {*items.frame["seed"]}))
            return Stored(items, origin, where, folder, missing)
    raise CompanionError(f"Profile {profile.name} has no results; run `{profile.command}`.")


def missing_pictures(folder: Path) -> list[str]:
    """Return the pictures that a folder's `provenance.json` names and that are not there.

    Where that file is not there, or names none, it is itself what is missing.
    """
    path = folder / "provenance.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["pictures"]
        return [name for name in names if not (folder / name).is_file()]
    except (OSError, ValueError, LookupError, TypeError):
        return [path.name]


def cost_table(folder: Path) -> pd.DataFrame:
    """A row per notebook and per run below a folder of results, with COST_COLUMNS."""
    rows = []
    damaged = (CompanionError, KeyError, TypeError, ValueError, IndexError)
    for path in folder.glob("logs/*.tsv"):
        with suppress(*damaged):  # a log of a process that was killed
            rows.append(_notebook_cost(path))
    for path in folder.glob("runs/*"):
        with suppress(*damaged):  # a damaged run is computed again when it is asked for
            rows.append(_run_cost(Run(path.name, path)))
    table = pd.DataFrame(rows, columns=COST_COLUMNS)
    return table.sort_values(["kind", "name", "key"], ignore_index=True)


def _notebook_cost(path: Path) -> list[Any]:
    """Of a notebook, from what Snakemake measured: COST_COLUMNS."""
    measured = pd.read_csv(path, sep="\t", na_values=["-"]).iloc[-1]
    seed = path.stem.rpartition("__s")[2] if "__s" in path.stem else ""
    memory = float(measured["max_rss"]) * 1024**2  # Snakemake's megabytes
    return ["notebook", path.stem, "", seed, float(measured["s"]), memory, ""]


def _run_cost(run: Run) -> list[Any]:
    """Of a run: COST_COLUMNS."""
    origin = run.provenance
    seed = "" if origin["seed"] is None else str(origin["seed"])
    measured = (origin["wall_seconds"], origin["peak_memory_bytes"])
    commit = (origin["git"]["commit"] or "") + "+" * origin["git"]["dirty"]
    return ["run", run.record["stage"], run.key, seed, *measured, commit]


def status(profile: Profile) -> str:
    """Describe what is done and what is open, one line each."""
    lines = [f"profile {profile.name}"]
    for job in notebook_jobs(profile):
        done = (profile.results / "notebooks" / f"{job.name}.ipynb").is_file()
        lines.append(f"  {'done' if done else 'open'}  {job.name}")
    runs = cost_table(profile.results).query("kind == 'run'").rename(columns={"name": "stage"})
    lines += [f"  run {r.key[:10]}  {r.stage:<14} {r.seconds:8.1f} s" for r in runs.itertuples()]
    begun = [path for path in profile.results.glob("partial/*") if path.is_dir()]
    lines.append(f"  {len(runs)} runs stored, {len(begun)} begun and not finished")
    return "\n".join(lines)
