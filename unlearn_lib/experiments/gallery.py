"""Verbs of notebook 05: where stored results come from, verdicts, figures, tables, and one number
followed back to its run. Nothing here computes a result, and torch is not needed."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Image, display

from unlearn_lib import claims, figures, results, tables
from unlearn_lib.costs import stored_costs
from unlearn_lib.display import facts
from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import ROOT, Profile, load_profile

STAND_IN = "laptop"
WIDTH_PIXELS = 792


@dataclass(frozen=True)
class Gallery:
    """What is stored of a profile: its tidy table, who made it, and the folder of its figures."""

    profile: Profile
    frame: pd.DataFrame
    origin: dict[str, Any]
    where: str
    folder: Path

    @property
    def labels(self) -> dict[str, dict[str, str]]:
        """For each experiment, method names to display names."""
        return {name: self.profile.labels(name) for name in self.profile.experiments()}

    @functools.cached_property
    def judged(self) -> list[claims.Verdict]:
        """The verdict on every claim."""
        return claims.judge_all(self.frame, self.profile.name, results.CLAIMS, self.labels)

    def rows(self, experiment: str) -> pd.DataFrame | None:
        """Return an experiment's rows, or say that there are none."""
        rows = self.frame[self.frame["experiment"].eq(experiment)]
        if rows.empty:
            print(f"Experiment {experiment} is not among the results of {self.profile.name}.")
        return None if rows.empty else rows

    def is_current(self, name: str) -> bool:
        """Whether what has its provenance in a file of that name was made from these results."""
        path = self.folder / name
        if not path.is_file():
            return False
        details = json.loads(path.read_text(encoding="utf-8"))
        return all(details.get(key) == value for key, value in self.origin.items())


def open_gallery(profile: str) -> Gallery:
    """Open what is stored of a profile; without any, of profile laptop, and say so."""
    chosen = load_profile(profile)
    folders = (chosen.results, ROOT / "results" / "reference" / chosen.name)
    if not any((folder / "metrics.csv").is_file() for folder in folders):
        print(f"Profile {profile} has no results here; `{chosen.command}` makes them.", end=" ")
        chosen = load_profile(STAND_IN)
        print(f"Until then this notebook shows those of profile {STAND_IN}.")
    frame, origin, where = results.stored(chosen)
    return Gallery(chosen, frame, origin, where, ROOT / "figures" / chosen.name)


def source(gallery: Gallery) -> pd.DataFrame:
    """Say where the results come from and who made them."""
    frame, git = gallery.frame, gallery.origin.get("git") or {}
    return facts(
        [
            ("profile", gallery.profile.name),
            ("results of", gallery.where),
            ("experiments", ", ".join(dict.fromkeys(frame["experiment"]))),
            ("models", ", ".join(dict.fromkeys(frame["model"]))),
            ("seeds", ", ".join(map(str, sorted(set(frame["seed"]))))),
            ("rows", len(frame)),
            ("runs", len(gallery.origin.get("runs", []))),
            ("commit", f"{git.get('commit')}{', changed since' if git.get('dirty') else ''}"),
        ]
    )


def verdicts(gallery: Gallery) -> pd.DataFrame:
    """Say of the claims that matter most what the stored results say of them."""
    return claims.headline(gallery.judged).set_index("Claim")


def every_verdict(gallery: Gallery) -> HTML:
    """Show how many claims have which verdict, and all of them folded."""
    counts = claims.verdicts_summary(gallery.judged).to_html(index=False, border=0)
    table = claims.verdicts_table(gallery.judged)
    return HTML(counts + _folded(f"All {len(table)} claims", table.to_html(index=False, border=0)))


def show_figures(gallery: Gallery, experiment: str) -> None:
    """Show an experiment's figures: those of `make figures`, or drawn now if these are older."""
    rows = gallery.rows(experiment)
    if rows is None:
        return
    labels = gallery.labels.get(experiment)
    for name, figure_of in figures.of_experiment(experiment, rows).items():
        if gallery.is_current(f"{name}.json"):
            alternative = f"Figure {name}; its numbers are in the tables of this experiment."
            path = str(gallery.folder / f"{name}.png")
            display(Image(path, width=WIDTH_PIXELS, alt=alternative))
        else:
            display(figure_of(rows, gallery.profile.name, gallery.origin, labels))


def show_tables(gallery: Gallery, experiment: str) -> None:
    """Show an experiment's tables, each folded under its name."""
    if gallery.rows(experiment) is None:
        return
    for name in tables.TABLES[experiment]:
        if not gallery.is_current(f"{name}.table.json"):
            print(f"{name} is not made from these results yet: run `make figures`.")
            continue
        text = (gallery.folder / f"{name}.html").read_text(encoding="utf-8")
        display(HTML(_folded(name, text)))


def _folded(title: str, content: str) -> str:
    return f"<details><summary><b>{title}</b></summary>{content}</details>"


def follow(gallery: Gallery, experiment: str = "", metric: str = "") -> pd.DataFrame:
    """Follow a number after unlearning to its run: row, key, and what is kept of the run.

    The first row of `experiment` and `metric`; empty: of any. Raises `CompanionError` where there
    is none.
    """
    rows = gallery.frame[gallery.frame["stage"].isin(["unlearned", "guarded"])]
    for column, wanted in (("experiment", experiment), ("metric", metric)):
        rows = rows[rows[column].eq(wanted)] if wanted else rows
    if rows.empty:
        raise CompanionError(f"No row of experiment '{experiment}' has metric '{metric}'.")
    row = rows.iloc[0]
    costs = stored_costs(gallery.profile, gallery.where)
    run = costs[costs["key"].eq(row["run"])]
    kept = dict(run.iloc[0].drop(["kind", "key"])) if len(run) else {"": "not kept here"}
    return facts([*row.items(), *((f"run: {name}", value) for name, value in kept.items())])
