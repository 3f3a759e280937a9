"""What every figure shares: its style, marks with intervals, limits, the footer, the files."""

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

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
UNDATED: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""The formats, and what matplotlib is to leave out of each."""
ONE_LINE = 60
FLOOR = 1e-12
SIZES = {"X": 6.5, "*": 8}
"""Marks that look smaller than a circle of 5 points."""
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
    size = SIZES.get(marker, 5)
    style: dict[str, Any] = {"ms": size, "mew": 0, "zorder": 3, "clip_on": False}
    axes.plot(found.value, height, marker, color=colour, **style)


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
    size = 8 if marker == "*" else 5
    return Line2D([], [], ls="", marker=marker, color=colour, ms=size, label=label, **more)


def legend(figure: Figure, handles: Sequence[Line2D | Patch], columns: int = 3) -> None:
    """Draw a legend above the panels, of those marks only that stand in a panel."""
    drawn = {"None", *(line.get_marker() for axes in figure.axes for line in axes.lines)}
    shown = [each for each in handles if isinstance(each, Patch) or each.get_marker() in drawn]
    place = {"loc": "outside upper center", "ncols": columns, "frameon": False}
    if shown:
        figure.legend(handles=shown, handletextpad=0.5, handlelength=1.5, **place)


def plain_ticks(axis: Axis, most: int, least: float = 0.0) -> dict[float, str]:
    """Write powers of ten as `1`, `10k`, `1M`, at most about `most`, from `least` upwards.

    Where fewer than two are in sight, three times a power has a tick too.
    """
    ends_of = sorted(axis.get_view_interval())
    first = math.ceil(math.log10(max(ends_of[0], least)) - 1e-9)
    last = math.floor(math.log10(ends_of[1]) + 1e-9)
    step = max(1, math.ceil((last - first) / most))
    ticks = {10.0**power: power_text(power) for power in range(first, last + 1, step)}
    if len(ticks) < 2 and not least:
        between = {3 * 10.0**power: f"{3 * 10.0**power:g}" for power in range(first - 1, last + 1)}
        ticks |= {at: text for at, text in between.items() if ends_of[0] <= at <= ends_of[1]}
    axis.set_ticks(list(ticks), labels=list(ticks.values()))
    axis.set_tick_params(which="minor", length=0)
    axis.set_minor_locator(mpl.ticker.NullLocator())
    return ticks


def power_text(power: int) -> str:
    """Return ten to a power as `0.01`, `100`, `10k`, `1M`."""
    if power < 3:
        return f"{10.0**power:g}"
    return f"{10 ** (power % 3)}{'kM'[power // 3 - 1]}" if power < 9 else f"1e{power}"


def set_p_values(axes: Axes, known: Iterable[float]) -> None:
    """Set the x axis for p-values: logarithms, from 1 to the least known, 1e-12 at the lowest."""
    last = math.floor(math.log10(max(FLOOR, min([0.01, *known]))) + 1e-9)
    room = 10 ** (-0.08 * last)
    axes.set_xscale("log")
    axes.set_xlim(10.0**last / room, room)
    powers = list(dict.fromkeys([last, round(last / 2), 0]))
    axes.set_xticks([10.0**p for p in powers], [f"{p}".replace("-", "−") for p in powers])
    axes.minorticks_off()


def footer(rows: pd.DataFrame, profile_name: str, provenance: Mapping[str, Any] | None) -> str:
    """Return `profile laptop · commit abc1234 · 3 seeds`; a changed tree is marked `+`.

    The commit and the mark are those of `provenance["git"]`, as `unlearn_lib.runs` records them.
    """
    git = (provenance or {}).get("git") or {}
    commit = f"{git.get('commit') or 'unknown'}"[:7] + ("+" if git.get("dirty") else "")
    return f"profile {profile_name or 'unnamed'} · commit {commit} · {_counted_seeds(rows)}"


def _counted_seeds(rows: pd.DataFrame) -> str:
    after = rows["stage"].isin(["unlearned", "guarded"])
    seeds = rows.loc[after, "seed"].astype(str).nunique()
    return f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"


def sign(
    figure: Figure,
    rows: pd.DataFrame,
    profile_name: str,
    provenance: Mapping[str, Any] | None,
    counted: str = "",
    bars: bool = True,
) -> None:
    """Write the footer: what n counts, what points and bars are, profile, commit and seeds.

    `counted` is such as `questions`, empty where the axes say it; `bars`: whether there are any.
    """
    seeds = _counted_seeds(rows)
    whose = "n" if seeds == "1 seed" else "n of each seed"
    notes = [f"{whose}: {counted}"] if counted else []
    if bars and seeds == "1 seed":
        notes.append("bars: 95 % intervals")
    elif bars:
        notes.append(f"points: means of {seeds}")
        notes.append("bars: span of their 95 % intervals")
    told = " · ".join(notes)
    mark = footer(rows, profile_name, provenance)
    text = "\n".join([told, mark]) if len(told) > ONE_LINE else " · ".join([*notes, mark])
    figure.supxlabel(text, x=0.995, ha="right", size=8, color="#555555")


def settle(figure: Figure) -> None:
    """Lay out a figure once and for all, its panels on a grid of a hundred-thousandth.

    Layout solves equations, and the last bits of the solution hang on the processor. A second
    call changes nothing.
    """
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(float(end), 5) for end in axes.get_position().bounds])


def save_figure(
    figure: Figure,
    folder: Path,
    name: str,
    provenance: Mapping[str, Any],
    source: pd.DataFrame,
) -> list[Path]:
    """Save PNG (180 dpi), SVG, PDF and a provenance JSON named `name`; return their paths.

    `source` is the frame that the figure shows: its sha256 goes into the JSON. Each file is
    written whole or not at all, without dates, so that a redraw gives the same bytes. So that
    another processor does too, the figure is settled, and the SVG's clips, which matplotlib names
    by a hash of every bit of their place, are numbered.
    """
    paths = []
    with mpl.rc_context(STYLE):
        settle(figure)
        for kind, metadata in UNDATED.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=180, metadata=metadata, facecolor="white")
            content = buffer.getvalue() if kind != "svg" else _with_numbered_clips(buffer)
            paths.append(write_atomically(folder / f"{name}.{kind}", content))
    details = {**provenance, "figure": name}
    return [*paths, write_provenance(folder / f"{name}.json", details, source)]


def _with_numbered_clips(svg: io.BytesIO) -> bytes:
    text = svg.getvalue()
    hashes = dict.fromkeys(re.findall(rb"url\(#(p[0-9a-f]{10})\)", text))
    names = {each: b"clip%d" % number for number, each in enumerate(hashes, 1)}
    return re.sub(rb"\bp[0-9a-f]{10}\b", lambda found: names.get(found[0], found[0]), text)
