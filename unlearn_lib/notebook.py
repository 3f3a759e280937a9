"""What notebooks show: estimates as text, coloured tokens, curves, verdicts; computes nothing."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML, display

from unlearn_lib import claims, figures
from unlearn_lib.profile import Profile
from unlearn_lib.results import Items
from unlearn_lib.store import provenance
from unlearn_lib.tables import NAMES, Column, Names

pd.set_option("display.max_colwidth", 240)
pd.set_option("display.max_rows", 200)
pd.set_option("display.html.use_mathjax", False)  # two $ in a label are no formula

PERSONAL = re.compile(r"https?://\S+|\+?\d[\d\s().-]{6,}\d")
MASK = "[masked]"
COLOURS = ("#fde9a9", "#cfe3f7", "#d5ecd9", "#f3d1c5", "#e3d7f0", "#dddddd")
"""Light enough for black text."""
SHADE = "rgba(230, 159, 0, {:.2f})"


class LiveCurve:
    """A curve that redraws itself while a method trains; call it with each step's report."""

    def __init__(self, label: str, every: int = 10) -> None:
        self.label, self.every = label, every
        self.reports: list[dict[str, float]] = []
        self.handle: Any = None

    def __call__(self, report: dict[str, float]) -> None:
        self.reports.append(report)
        if len(self.reports) % self.every == 0:
            self.show(pd.DataFrame(self.reports))

    def show(self, history: pd.DataFrame) -> None:
        """Draw a whole history, in place of what was drawn before."""
        figure = figures.curves_of_training({self.label: history})
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def facts(pairs: Sequence[tuple[str, Any]]) -> pd.DataFrame:
    """Show names and values as a small table."""
    return pd.DataFrame(pairs, columns=["", "value"]).set_index("")


def estimates(table: pd.DataFrame, labels: Names = NAMES, split: str | None = None) -> pd.DataFrame:
    """Show a table of `results.table` as text: a row per method, a column per metric.

    Args:
        labels: display names of methods.
        split: that the table is of, where it is not the metrics' own.
    """
    names = {**NAMES, **labels}
    rows: dict[str, dict[str, str]] = {}
    for row in table.itertuples():
        column = Column(row.metric, split)
        cells = rows.setdefault(names.get(row.method, row.method), {"n": str(row.n)})
        cells[column.heading] = column.text(column.shown(row))
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("method")


def tokens(texts: Sequence[str], values: Sequence[Any]) -> HTML:
    """Show pieces of text next to each other, coloured by what each one's value is.

    Args:
        texts: tokens, in order.
        values: for each a role (text), shown with a legend; or a number, the larger the darker,
            nan: none.
    """
    if any(isinstance(value, str) for value in values):
        roles = dict(zip(dict.fromkeys(values), COLOURS, strict=False))
        colours = [roles.get(value, COLOURS[-1]) for value in values]
        legend = "".join(f"{_span(role, colour)} " for role, colour in roles.items())
    else:
        numbers = np.array(values, float)
        most = max(float(np.nanmax(np.abs(numbers), initial=0)), 1e-12)
        colours = [SHADE.format(np.nan_to_num(abs(number)) / most * 0.8) for number in numbers]
        legend = f"{_span('0', SHADE.format(0))} to {_span(f'{most:.3g}', SHADE.format(0.8))}"
    pieces = "".join(_span(text, colour) for text, colour in zip(texts, colours, strict=True))
    return HTML(f"<p style='white-space:pre-wrap'>{pieces}</p><p>{legend}</p>")


def _span(text: str, colour: str) -> str:
    return f"<span style='background-color:{colour};color:#000'>{html.escape(text)}</span>"


def shorten(text: str, words: int = 12) -> str:
    """Return the first words of a text, with addresses and long numbers masked."""
    plain = " ".join(MASK if "@" in part[1:-1] else part for part in text.split())
    parts = PERSONAL.sub(MASK, plain).split(" ")
    return " ".join(parts[:words]) + " …" * (len(parts) > words)


def behind_warning(rows: pd.DataFrame, warning: str, words: int = 12) -> HTML:
    """Show a table of texts folded behind a warning, each text shortened and masked.

    Args:
        rows: texts by column; other values are shown as they are.
        warning: the line that stays visible.
        words: how many words of each text are shown.
    """
    shown = rows.map(lambda cell: shorten(cell, words) if isinstance(cell, str) else cell)
    summary = f"<summary><b>&#9888; {html.escape(warning)}</b></summary>"
    return HTML(f"<details>{summary}{shown.to_html(index=False, escape=True)}</details>")


def verdicts(items: Items, profile: Profile, notebook: str) -> pd.DataFrame:
    """Show the verdicts on the claims of a notebook, `01` to `04`."""
    judged = claims.judge(items, profile.name, profile.labels())
    return claims.of_notebook(judged, notebook).set_index("Claim")


def machine(origin: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Show what computed results, or runs this notebook: machine, Python, the versions that matter.

    Args:
        origin: the provenance of the results; default: this process.
    """
    origin = provenance() if origin is None else origin
    pairs = [*origin.get("machine", {}).items(), ("Python", origin.get("python"))]
    return facts([*pairs, *origin.get("versions", {}).items()]).fillna("not recorded")
