"""What every figure shares: its style, marks with intervals, limits, the footer, the files."""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.tables.common import Pooled, write_atomically, write_provenance

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "xtick.major.width": 0.6,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "unlearning",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
WIDTH_INCHES = 7.2
DEGENERATE_LIMIT = 0.10
PERPLEXITY_LIMIT = 1.25
BEFORE, SOUND, BROKEN, CONTROL = "#333333", "#0072B2", "#D55E00", "#333333"
BAND, BAND_LINE, LIMIT, GOAL = "#d9d9d9", "#8c8c8c", "#555555", "#009E73"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))


class Picture(Figure):
    """A figure that a notebook can display without pyplot or a backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()


def wrapped(label: str) -> str:
    """Break a method's label for the margin left of the panels, before a bracket if it can."""
    if len(label) > 22 and 0 < label.find(" (") <= 28:
        return label.replace(" (", "\n(", 1)
    return textwrap.fill(label, 26)


def draw_point(
    axes: Axes, found: Pooled, height: float, marker: str, colour: str, unit: str = "×"
) -> None:
    """Draw a value with its interval; what lies beyond the axis is an arrow and a number."""
    left, right = axes.get_xlim()
    if not found.value <= right:
        text = f"{found.value:.2g}{unit}" if math.isfinite(found.value) else "∞"
        axes.plot(right, height, ">", color=colour, ms=5, clip_on=False, zorder=3)
        axes.annotate(
            text.replace("e+0", "e"),
            (right, height),
            (-6, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "lw": 0},
        )
        return
    if not (math.isnan(found.low) or math.isnan(found.high)):
        low, high = max(found.low, left), min(found.high, right)
        axes.plot([low, high], [height, height], color=colour, lw=1.3, zorder=2)
    size = 6.5 if marker == "X" else 5
    axes.plot(found.value, height, marker, color=colour, ms=size, mew=0, zorder=3)


def ends(found: Iterable[Pooled]) -> list[float]:
    """Return every finite value and end of interval, for an axis' limits."""
    return [end for e in found for end in (e.low, e.value, e.high) if math.isfinite(end)]


def count(found: Iterable[Pooled], counts: str = "") -> str:
    """Return `n = 64 prompts`, or the range where estimates differ; '' where n is unknown."""
    known = sorted({each.n for each in found if each.n is not None})
    if not known:
        return ""
    numbers = "–".join(str(n) for n in dict.fromkeys([known[0], known[-1]]))
    return f"n = {numbers} {counts}".rstrip()


def legend_mark(marker: str, colour: str, label: str, **more: Any) -> Line2D:
    """Return a legend's handle for a kind of mark."""
    return Line2D([], [], ls="", marker=marker, color=colour, ms=5, label=label, **more)


def footer(rows: pd.DataFrame, profile_name: str, provenance: Mapping[str, Any] | None) -> str:
    """Return `profile laptop · commit abc1234 · seeds 3`; a changed tree is marked `+`.

    The commit and the mark are those of `provenance["git"]`, as `unlearn_lib.runs` records them.
    """
    git = (provenance or {}).get("git") or {}
    commit = f"{git.get('commit') or 'unknown'}"[:7] + ("+" if git.get("dirty") else "")
    seeds = rows.loc[rows["stage"].eq("unlearned"), "seed"].astype(str).nunique()
    return f"profile {profile_name or 'unnamed'} · commit {commit} · seeds {seeds}"


def save_figure(
    figure: Figure,
    folder: Path,
    name: str,
    provenance: Mapping[str, Any],
    source: pd.DataFrame,
) -> list[Path]:
    """Save PNG (180 dpi), SVG, PDF and a provenance JSON named `name`; return their paths.

    `source` is the frame that the figure shows: its sha256 goes into the JSON. Each file is
    written whole or not at all, without dates, so that a redraw gives the same bytes.
    """
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    paths = []
    with mpl.rc_context(STYLE):
        for kind, metadata in undated.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=180, metadata=metadata, facecolor="white")
            paths.append(write_atomically(folder / f"{name}.{kind}", buffer.getvalue()))
    details = {**provenance, "figure": name}
    return [*paths, write_provenance(folder / f"{name}.json", details, source)]
