"""What notebooks show while and after they run: live loss curves, and text behind a warning."""

import html
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, display

from unlearn_lib import figures
from unlearn_lib.metrics import Estimate

pd.set_option("display.max_colwidth", 240)
pd.set_option("display.max_rows", 200)

PERSONAL = re.compile(r"\S+@\S+|https?://\S+|\+?\d[\d\s().-]{6,}\d")


class LiveCurve:
    """A loss curve that redraws itself while a method trains; call it with each step's report."""

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
        figure = figures.loss_curves_figure({self.label: history})
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


def with_interval(found: Estimate | None, decimals: int = 2) -> str:
    """A value with its interval, `0.50 [0.25, 1.00]`; nothing for None."""
    if found is None:
        return ""
    style = f".{decimals}f"
    return f"{found.value:{style}} [{found.low:{style}}, {found.high:{style}}]"


def shorten(text: str, words: int = 12) -> str:
    """The first words of a text, with addresses and long numbers masked."""
    kept = PERSONAL.sub("[masked]", " ".join(text.split())).split(" ")
    return " ".join(kept[:words]) + (" …" if len(kept) > words else "")


def behind_warning(rows: pd.DataFrame, warning: str, words: int = 12) -> HTML:
    """Show a table of texts folded behind a warning, each text shortened and masked.

    Args:
        rows: texts by column; other values are shown as they are.
        warning: the line that stays visible.
        words: how many words of a text are kept.
    """
    shown = rows.map(lambda cell: shorten(cell, words) if isinstance(cell, str) else cell)
    summary = f"<summary><b>&#9888; {html.escape(warning)}</b></summary>"
    return HTML(f"<details>{summary}{shown.to_html(index=False, escape=True)}</details>")


def facts(pairs: Sequence[tuple[str, Any]]) -> pd.DataFrame:
    """A small two-column table of names and values."""
    return pd.DataFrame(pairs, columns=["", "value"]).set_index("")
