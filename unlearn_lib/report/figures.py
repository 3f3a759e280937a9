"""Figures and tables of the report: what was drawn, its caption, and its files beside the page."""

import functools
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from unlearn_lib import figures, tables
from unlearn_lib.errors import CompanionError
from unlearn_lib.report.grid import Grid, grid_of

CAPTIONS = Path(__file__).with_name("captions.yaml")
FOLDER = "figures"
NAMES = {"png": "PNG", "svg": "SVG", "pdf": "PDF", "csv": "CSV", "md": "Markdown", "tex": "LaTeX"}


@dataclass(frozen=True)
class Shown:
    """A figure of the report: its captions (what is plotted; how to read n and lines), its files.

    `alt` are the words that stand in for the picture at `source`.
    """

    name: str
    title: str
    caption: str
    reading: str
    alt: str
    source: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One experiment's figures and tables under one title."""

    name: str
    title: str
    paper: str
    figures: list[Shown]
    tables: list[Grid]


@functools.cache
def captions() -> dict[str, Any]:
    """Read `captions.yaml`: titles, captions and the words for pictures."""
    found: dict[str, Any] = yaml.safe_load(CAPTIONS.read_text(encoding="utf-8"))
    return found


def caption_of(kind: str, name: str) -> dict[str, str]:
    """Return what captions.yaml says of one of the `figures`, `tables` or `experiments`.

    Raises `CompanionError` where it says nothing.
    """
    found: dict[str, str] | None = captions()[kind].get(name)
    if found is None:
        raise CompanionError(f"captions.yaml says nothing of {name}; add it under '{kind}'.")
    return found


def parts(drawn: Iterable[Path], frame: pd.DataFrame, site: Path) -> list[Part]:
    """Copy what `results.draw` drew into `site`; return it by experiment, with captions.

    `frame` is the tidy table. Raises `CompanionError` for a figure or table that captions.yaml
    does not know.
    """
    files = {path.name: path for path in drawn}
    target = site / FOLDER
    target.mkdir()
    for path in files.values():
        shutil.copyfile(path, target / path.name)
    found = []
    for experiment in figures.FIGURES:
        seeds = frame.loc[frame["experiment"].eq(experiment), "seed"].nunique()
        shown = [_figure(name, seeds) for name in figures.FIGURES[experiment]
                 if f"{name}.svg" in files]  # fmt: skip
        written = [_table(name, files) for name in tables.TABLES[experiment]
                   if f"{name}.csv" in files]  # fmt: skip
        if shown or written:
            said = caption_of("experiments", experiment)
            found.append(Part(experiment, said["title"], said["paper"], shown, written))
    return found


def _figure(name: str, seeds: int) -> Shown:
    said, common = caption_of("figures", name), captions()
    reading = f"{common['counts']} {said.get('intervals', common['intervals'])} Seeds: {seeds}."
    source = f"{FOLDER}/{name}.svg"
    files = links(name, "png svg pdf")
    return Shown(name, said["title"], said["caption"], reading, said["alt"], source, files)


def _table(name: str, files: Mapping[str, Path]) -> Grid:
    frame = pd.read_csv(files[f"{name}.csv"], dtype=str, keep_default_na=False)
    notes = json.loads(files[f"{name}.table.json"].read_text(encoding="utf-8")).get("footnotes", [])
    title = caption_of("tables", name)["title"]
    return grid_of(frame, f"table-{name}", title, notes, links(name, "csv md tex"))


def links(name: str, kinds: str) -> dict[str, str]:
    """Return what there is to download of a figure or table: words, and the path in the site."""
    own = {NAMES[kind]: f"{FOLDER}/{name}.{kind}" for kind in kinds.split()}
    origin = f"{name}.json" if "svg" in kinds else f"{name}.table.json"
    return {**own, "where it comes from (JSON)": f"{FOLDER}/{origin}"}
