"""A table of the report: text cells that can be sorted, linked, filtered and read on a phone."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup, escape

NUMBER = re.compile(r"[-−+]?\d")
INTERVAL = re.compile(r"\[[^\[\]]*\d[^\[\]]*\]")


@dataclass(frozen=True)
class Grid:
    """A table under a heading; its first column names the rows.

    Attributes:
        name: its anchor. frame: cells as text.
        orders: for a column, numbers to sort by in place of the text.
        links: where a cell's text leads.
        facets: columns to filter by. stacked: rows become blocks on a narrow screen.
    """

    name: str
    title: str
    frame: pd.DataFrame
    notes: Sequence[str] = ()
    orders: Mapping[str, Sequence[float]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    facets: Sequence[str] = ()
    stacked: bool = False

    @functools.cached_property
    def numeric(self) -> set[str]:
        """Columns after the first that hold nothing but numbers, which stand to the right."""
        cells = {
            name: [cell for cell in self.frame[name] if cell] for name in self.frame.columns[1:]
        }
        return {name for name in cells if cells[name] and all(map(NUMBER.match, cells[name]))}


def lines(text: str) -> Markup:
    """Return a cell's text as HTML: a line per part after `; `, intervals set apart."""
    parts = [str(escape(part)) for part in text.split("; ")]
    marked = [INTERVAL.sub(r'<span class="interval">\g<0></span>', part) for part in parts]
    return Markup(";<br>".join(marked))
