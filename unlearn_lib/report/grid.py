"""Tables of the report: text in, cells that can be sorted, linked and read on a phone out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup, escape

NUMBER = re.compile(r"[-−+]?\d")
INTERVAL = re.compile(r"\[[^\[\]]*\d[^\[\]]*\]")
HEADINGS = ("Method", "Questions", "Claim", "Better")
"""Columns that name a row, the first that a table has: it stays in view while the rest scrolls."""
LAST = ("Model", "Note")
"""Columns that stand at the end."""
TALL = 25
"""Tables of more rows scroll below their headings."""


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what sorting reads in place of it, and where it leads.

    `full` is a longer text for the mouse, `kind` a class of the style sheet.
    """

    text: str
    order: str = ""
    link: str = ""
    full: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Row:
    """One row of a table: its cells, its anchor, and what filters ask of it."""

    cells: Sequence[Cell]
    name: str = ""
    facets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A sortable table under a heading; `heading` is the column that names a row.

    Rows of a `stacked` table become blocks on a narrow screen, for those that hold sentences.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    heading: int = 0
    notes: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    stacked: bool = False

    @property
    def tall(self) -> bool:
        """Whether there are so many rows that the headings would be out of sight."""
        return len(self.rows) > TALL

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold nothing but numbers, and so stand to the right."""
        columns = zip(*(row.cells for row in self.rows), strict=True)
        texts = [[cell.text for cell in column if cell.text] for column in columns]
        return [bool(column) and all(map(NUMBER.match, column)) for column in texts]


def lines(text: str) -> Markup:
    """Return a cell's text as HTML: a line per part after `; `, intervals set apart."""
    parts = [str(escape(part)) for part in text.split("; ")]
    marked = [INTERVAL.sub(r'<span class="interval">\g<0></span>', part) for part in parts]
    return Markup(";<br>".join(marked))


def grid_of(
    frame: pd.DataFrame,
    name: str,
    title: str,
    notes: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> Grid:
    """Return a table of text cells, a row per row of `frame`, what names a row first."""
    names = next(([each] for each in HEADINGS if each in frame.columns), [])
    last = [each for each in LAST if each in frame.columns]
    order = [*names, *(each for each in frame.columns if each not in (*names, *last)), *last]
    rows = [Row([Cell(str(text)) for text in row])
            for row in frame[order].itertuples(index=False)]  # fmt: skip
    return Grid(name, title, order, rows, 0, list(notes), dict(files or {}))


def seconds(value: float) -> Cell:
    """Return a duration as one reads it, sorted by its seconds; nothing for NaN."""
    if pd.isna(value):
        return Cell("")
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{value:.1f} s" if value < 60 else f"{minutes} min {rest} s"
    return Cell(f"{hours} h {text}" if hours else text, order=f"{value:g}")


def memory(value: float) -> Cell:
    """Return bytes as gigabytes, sorted by their number; nothing for NaN."""
    return Cell("") if pd.isna(value) else Cell(f"{value / 1e9:.2f} GB", order=f"{value:g}")
