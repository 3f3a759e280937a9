"""What every figure shares: style, marks, scales, legend and footer, and how it is rendered."""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.results import Estimate, Items
from unlearn_lib.tables import DEGENERATE_LIMIT, broken

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 180,
    "svg.hashsalt": "unlearning",
    "pdf.fonttype": 42,
}
WIDTH = 7.2
"""Width of a page's text in inches."""
DARK, LINE, BAND = "#333333", "#666666", "#d9d9d9"
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SERIES = (BLUE, GREEN, PINK, "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart; orange is for what is broken."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
DASHED = (0, (4, 2))
Mark = tuple[str, str]
"""Marker and colour."""
MARKS = {"base": ("s", DARK), "target": ("^", DARK), "retain_model": ("*", DARK)}
MARKS |= {"eco": ("D", GREEN), "prompting": ("v", PINK)}
UNLEARNED, BROKEN, HOLLOW = ("o", BLUE), ("X", ORANGE), ("D", DARK)
SIZES = {"*": 8, "X": 7, "D": 4.5}
EXPLAINED = {
    "unlearned": UNLEARNED,
    f"more than {100 * DEGENERATE_LIMIT:.0f} % degenerate answers": BROKEN,
}
FLOOR, SPAN = 1e-12, 1e4
"""P-values below the floor, and values above the span of a logarithmic axis, stand at its edge."""
UNDATED: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
"""What each format leaves out, so that the same figure gives the same bytes."""


class Picture(Figure):
    """A figure that a notebook displays without pyplot or a backend."""

    def _repr_png_(self) -> bytes:
        return rendered(self, "png")


def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as the bytes of a `png`, `svg` or `pdf`."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=UNDATED[kind], facecolor="white")
    return buffer.getvalue()


def mark_of(items: Items, task: str, method: str, model: str, condition: str) -> Mark:
    """Return how a model is marked: by an orange cross where its answers are broken."""
    if broken(items, task, method, model, condition):
        return BROKEN
    return MARKS.get(method, UNLEARNED)


def look(mark: Mark, hollow: bool = False) -> dict[str, Any]:
    """Return matplotlib's settings of a mark."""
    marker, colour = mark
    known = {"marker": marker, "color": colour, "ms": SIZES.get(marker, 5), "mew": 0}
    return known | {"ms": 3.5, "mew": 0.8, "mfc": "white"} if hollow else known


def short(value: float, _: int = 0) -> str:
    """Print a number of an axis: `1e−5`, `0.01`, `100`, `10k`, `1M`."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    return mpl.ticker.EngFormatter(sep="")(value) if value >= 1000 else f"{value:.3g}"


def set_scale(axis: Axis, scale: str, numbers: Iterable[Estimate]) -> None:
    """Set limits and ticks of an axis, so that values and intervals are in sight.

    `scale`: `percent` or `unit` (0 to 100 or 1), `fit` (from 0 to what is there), `log`, `p` (of
    p-values), `amount` (logarithmic, and 0).
    """
    every = [end for each in numbers for end in (each.low, each.value, each.high)]
    known = [end for end in every if math.isfinite(end)] or [0.0, 1.0]
    x, axes, most = axis.axis_name, axis.axes, 3 if axis.axis_name == "x" else 6
    if scale in ("percent", "unit", "fit"):
        low, high = min(0.0, *known), {"percent": 100.0, "unit": 1.0}.get(scale, max(0.0, *known))
        room = 0.05 * (high - low)
        axes.set(**{f"{x}lim": (low - room, high + room)})
        axis.set_major_locator(mpl.ticker.MaxNLocator(most - 1))
    else:
        low = max(min((end for end in known if end > 0), default=1.0), FLOOR)
        high = 1.0 if scale == "p" else max(min(max(known), SPAN * low), 10 * low)
        axes.set(**{f"{x}scale": "log", f"{x}lim": (low / 1.5, 1.5 * high)})
        if scale == "amount":
            low = 10.0 ** math.floor(math.log10(low))
            getattr(axes, f"set_{x}scale")("symlog", linthresh=low, linscale=0.4)
            axes.set(**{f"{x}lim": (-low / 3, 2 * high)})
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(1.5 * high)) + 1)
        step = math.ceil(len(powers) / most)
        ticks = [10.0**power for power in powers[::-1][:: max(1, step)]]
        axis.set_ticks(ticks + [0.0] * (scale == "amount"))
        axis.set_minor_locator(mpl.ticker.NullLocator())
    axis.set_major_formatter(short)


def draw_point(axes: Axes, number: Estimate, y: float, mark: Mark, hollow: bool) -> None:
    """Draw a value and its interval; a value beyond the axis is an arrow with its number."""
    left, right = axes.get_xlim()
    if math.isfinite(number.low):
        bar = [max(number.low, left), min(number.high, right)]
        axes.plot(bar, [y, y], color=mark[1], lw=0.7 if hollow else 1.4, zorder=2)
    if number.value > right:
        mark, place = (">", mark[1]), {"ha": "right", "va": "center"}
        axes.annotate(
            f"{number.value:.1g}", (right, y), (-6, 0), **place, textcoords="offset points"
        )
    value = min(max(number.value, left), right)
    axes.plot(value, y, **look(mark, hollow), clip_on=False, zorder=2.5 if hollow else 3)


def explain(figure: Figure, marks: Iterable[Mark], more: Mapping[str, Artist]) -> None:
    """Draw a legend above the panels: of marks that say how a model was made, and `more`."""
    present = set(marks)
    handles = {
        label: Line2D([], [], ls="", **look(mark))
        for label, mark in EXPLAINED.items()
        if mark in present
    }
    handles |= more
    place = {"loc": "outside upper center", "ncols": 3, "handletextpad": 0.5}
    figure.legend(list(handles.values()), list(handles), **place)


def sign(figure: Figure, text: str) -> None:
    """Write a footer."""
    figure.supxlabel(textwrap.fill(text, 118), x=0.995, ha="right", size=7.5, color=LINE)
