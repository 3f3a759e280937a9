"""The site itself: everything is gathered, rendered beside its place, and put there by a rename."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unlearn_lib import claims, results
from unlearn_lib.costs import stored_costs
from unlearn_lib.profiles import ROOT, Profile
from unlearn_lib.report import cards, machine, notebooks, notes, texts
from unlearn_lib.report.figures import parts
from unlearn_lib.report.grid import Cell, Grid, Row, lines
from unlearn_lib.report.page import Page
from unlearn_lib.report.verdicts import verdict_counts, verdict_filters, verdict_grid

HERE = Path(__file__).parent
TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["lines"] = lines
SECTIONS = {
    "verdicts": "Verdicts",
    "figures": "Figures",
    "tables": "Tables",
    "notebooks": "Notebooks",
    "data": "Data cards",
    "machine": "Machine and versions",
    "costs": "Time and memory",
    "notes": "Reproduction notes",
    "texts": "Texts before and after",
}
"""Sections of the first page in order: anchor and heading."""


@dataclass(frozen=True)
class Results:
    """What a report is made from: the profile, its tidy table, where it came from, the drawings."""

    profile: Profile
    frame: pd.DataFrame
    origin: Mapping[str, Any]
    where: str
    drawn: Iterable[Path]

    @property
    def folder(self) -> Path:
        """The folder of the tidy table."""
        if self.where == "this machine":
            return self.profile.results
        return ROOT / "results" / "reference" / self.profile.name

    @property
    def common(self) -> dict[str, Any]:
        """What every page is told."""
        return {
            "profile": self.profile.name,
            "command": self.profile.command,
            "where": self.where,
            "commit": machine.commit(self.origin),
        }


def write_report(profile: Profile, processes: int = 1) -> Path:
    """Write the report of a profile from stored results; return the path of its first page.

    Figures and tables are drawn anew by so many processes, which gives the same bytes. Without runs
    on this machine the committed reference results are shown, and what only a run makes is said
    to be missing. The report is replaced whole, or stays as it was.

    Raises:
        CompanionError: there are no results of the profile, or some are not whole.
    """
    frame, origin, where = results.stored(profile)
    found = Results(profile, frame, origin, where, results.draw(profile, processes))
    profile.results.mkdir(parents=True, exist_ok=True)
    target, new, old = (profile.results / name for name in ("report", ".report.new", ".report.old"))
    with FileLock(profile.results / ".report.lock"):
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir()
        _fill(new, found)
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    return target / "index.html"


def _fill(site: Path, found: Results) -> None:
    """Write every file of the site into an empty folder."""
    for path in (HERE / "style.css", HERE / "report.js", texts.SCRIPT):
        shutil.copyfile(path, site / path.name)
    (site / "code.css").write_text(notebooks.style(), encoding="utf-8")
    for name in ("metrics.csv", "metrics.json"):
        shutil.copyfile(found.folder / name, site / name)
    costs = stored_costs(found.profile, found.where)
    costs.to_csv(site / "costs.csv", index=False, lineterminator="\n", float_format="%.6g")
    executed, described = notebooks.pages(found.profile), cards.pages()
    for page in (*executed, *described):
        _write(site, found, page.name, "page.html", page=page)
    page = Page("runs", "Runs", "", "What was computed, how long it took, and from which data.")
    _write(site, found, "runs", "runs.html", page=page, runs=machine.runs(costs, found.frame))
    drawn = parts(found.drawn, found.frame, site)
    _write(
        site,
        found,
        "index",
        "index.html",
        sections=SECTIONS,
        summary=machine.summary(found.frame),
        parts=drawn,
        notebooks=executed,
        cards=_cards(),
        machine=machine.facts(found.origin),
        times=machine.notebook_times(costs),
        stages=machine.stage_times(costs),
        notes=notes.section(found.frame, found.profile.name),
        texts=texts.section(found.profile),
        **_verdicts(found, {part.name for part in drawn if part.figures}),
    )


def _verdicts(found: Results, shown: set[str]) -> dict[str, Any]:
    """Return what the section of verdicts shows; `shown` names the experiments with figures."""
    labels = {name: found.profile.labels(name) for name in found.profile.experiments()}
    name, path = found.profile.name, results.CLAIMS
    judged = claims.judge_all(found.frame, name, path, labels)
    first = [verdict for verdict in judged if verdict.headline]
    return {
        "counts": verdict_counts(judged),
        "headline": verdict_grid(first, "headline", "The claims that matter most", shown),
        "claims": verdict_grid(judged, "claims", "Every claim", shown),
        "filters": verdict_filters(judged),
        "rules": claims.RULES,
    }


def _cards() -> Grid:
    """Return the data cards as a table that leads to their pages."""
    summary = cards.summary()
    pages = summary.pop("page")
    rows = [
        Row([Cell(first, link=page), *map(Cell, rest)])
        for page, (first, *rest) in zip(pages, summary.itertuples(index=False), strict=True)
    ]
    columns = [str(column).capitalize() for column in summary.columns]
    return Grid("cards", "Every data set that an experiment reads", columns, rows)


def _write(site: Path, found: Results, name: str, template: str, **more: Any) -> None:
    text = TEMPLATES.get_template(template).render(**found.common, **more)
    (site / f"{name}.html").write_text(text, encoding="utf-8", newline="\n")
