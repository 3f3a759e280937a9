"""What every figure shares: style, marks, scales, legend and footer, and how it is rendered."""

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib as mpl
from adjustText import adjust_text
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.results import Estimate, Items
from unlearn_lib.tables import DEGENERATE_LIMIT, broken

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a label is plain text, whatever signs it has
    "text.usetex": False,
    "savefig.dpi": 180,
    "svg.hashsalt": "unlearning",
    "pdf.fonttype": 42,
}
WIDTH = 7.2
"""Width of a page's text in inches."""
DARK, LINE, BAND = "#333333", "#666666", "#d9d9d9"
BLUE, ORANGE, GREEN, PINK, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
SERIES = (BLUE, GREEN, PINK, AMBER, "#56B4E9", "#000000")
"""Okabe and Ito's colours, which the colour-blind can tell apart; orange is for what is broken."""
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
LINES = list(mpl.cycler(color=SERIES, ls=DASHES))
DASHED = {"color": LINE, "lw": 0.9, "ls": (0, (4, 2))}
Mark = tuple[str, str]
"""Marker and colour."""
MARKS = {"base": ("s", DARK), "target": ("^", DARK), "retain_model": ("*", DARK)}
MARKS |= {"eco": ("D", GREEN), "prompting": ("v", PINK)}
UNLEARNED, BROKEN = ("o", BLUE), ("X", ORANGE)
HOLLOW = (("D", DARK), ("o", DARK))
"""Marks of further points of a row, in their order."""
EXPLAINED = {UNLEARNED: "unlearned", BROKEN: f"> {100 * DEGENERATE_LIMIT:g} % degenerate answers"}
SIZES = {"*": 8, "X": 7, "D": 4.5}
FLOOR, SPAN = 1e-12, 1e4
"""P-values below the floor, and values above the span of a logarithmic axis, stand at its edge."""
UNDATED: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}
UNDATED |= {"pdf": {"CreationDate": None}}
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


def panels(count: int, height: float, columns: int = 3, **shape: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels; `height` in inches of each line of panels."""
    columns = min(count, columns)
    lines = math.ceil(count / columns)
    figure = Picture(figsize=(WIDTH, lines * height + 0.4))
    every = list(figure.subplots(lines, columns, squeeze=False, **shape).flat)
    for axes in every[count:]:
        axes.remove()
    return figure, every[:count]


def mark_of(items: Items, task: str, method: str, condition: str) -> Mark:
    """Return how a model is marked: by an orange cross where its answers are broken."""
    if broken(items, task, method, items.model(task), condition):
        return BROKEN
    return MARKS.get(method, UNLEARNED)


def look(mark: Mark, hollow: bool = False) -> dict[str, Any]:
    """Return matplotlib's settings of a mark."""
    known = {"marker": mark[0], "color": mark[1], "ms": SIZES.get(mark[0], 5), "mew": 0}
    return known | {"ms": 3.5, "mew": 0.8, "mfc": "white"} if hollow else known


def key(mark: Mark, hollow: bool = False) -> Line2D:
    """Return a mark for a legend."""
    return Line2D([], [], ls="", **look(mark, hollow))


def explained(mark: Mark) -> dict[str, Artist]:
    """Return what a legend says of a mark, unless it is of one model only."""
    return {EXPLAINED[mark]: key(mark)} if mark in EXPLAINED else {}


def short(value: float, _: int = 0) -> str:
    """Print a number of an axis: `1e−5`, `0.01`, `100`, `10k`, `1M`."""
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("-", "−")
    return mpl.ticker.EngFormatter(sep="")(value) if value >= 1000 else f"{value:.3g}"


def set_scale(axis: Axis, scale: str, numbers: Iterable[Estimate], most: int = 3) -> None:
    """Set limits and about `most` ticks, so that values and intervals are in sight.

    `scale`: `percent` or `unit` (0 to 100 or 1), `fit` (from 0 to what is there), `near` (what is
    there), `log`, `p` (of p-values), `amount` (logarithmic, and 0).
    """
    every = [end for each in numbers for end in (each.low, each.value, each.high)]
    known = [end for end in every if math.isfinite(end)] or [0.0, 1.0]
    x, axes, low, high = axis.axis_name, axis.axes, min(known), max(known)
    if scale in ("percent", "unit", "fit", "near"):
        low = low if scale == "near" else min(0.0, low)
        high = {"percent": 100.0, "unit": 1.0}.get(scale, high)
        room = 0.06 * (high - low) or 0.06
        limits = (low - room, high + room)
        axis.set_major_locator(mpl.ticker.MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))
    else:
        low = max(min((end for end in known if end > 0), default=1.0), FLOOR)
        low = min(low, 0.1) if scale == "p" else low
        high = {"p": 1.0, "log": min(high, SPAN * low)}.get(scale, high)
        high = max(high, 10 * low)
        zero = {"linthresh": low, "linscale": 0.4} if scale == "amount" else {}
        getattr(axes, f"set_{x}scale")("symlog" if zero else "log", **zero)
        limits = (-low / 3 if zero else low / 1.6, 1.6 * high)
        least = 1.5 * low if zero else low / 1.6
        powers = range(math.ceil(math.log10(least)), math.floor(math.log10(limits[1])) + 1)
        ticks = [10.0**power for power in powers[:: -math.ceil(len(powers) / most)]]
        if len(ticks) == 1 and not zero:
            ticks += [each for each in (0.3 * ticks[0], 3 * ticks[0]) if low < each < high]
        axis.set_ticks([*ticks, *[0.0] * bool(zero)])
        axis.set_minor_locator(mpl.ticker.NullLocator())
    axes.set(**{f"{x}lim": limits})
    axis.set_major_formatter(short)


def draw_point(axes: Axes, number: Estimate, y: float, mark: Mark, hollow: bool = False) -> None:
    """Draw a value and its interval; a value beyond the axis is an arrow with its number."""
    left, right = axes.get_xlim()
    if math.isfinite(number.low):
        bar = [max(number.low, left), min(number.high, right)]
        axes.plot(bar, [y, y], color=mark[1], lw=0.7 if hollow else 1.4, zorder=2)
    if number.value > right:
        mark, place = (">", mark[1]), {"ha": "right", "va": "center"}
        axes.annotate(f"{number.value:.1g} ", (right, y), **place)
    value = min(max(number.value, left), right)
    axes.plot(value, y, **look(mark, hollow), clip_on=False, zorder=2.5 if hollow else 3)


def exactly(value: float) -> Estimate:
    """Return a value without an interval, such as a size."""
    return Estimate(value, value, value, 1, 1)


def draw_cross(axes: Axes, x: Estimate, y: Estimate, mark: Mark) -> None:
    """Draw a point with its intervals across and up."""
    bars = {"color": mark[1], "lw": 0.9, "alpha": 0.6, "zorder": 2}
    axes.plot([x.low, x.high], [y.value, y.value], **bars)
    axes.plot([x.value, x.value], [y.low, y.high], **bars)
    axes.plot(x.value, y.value, **look(mark), clip_on=False, zorder=3)


def finish(figure: Figure, handles: Mapping[str, Artist], footer: str = "") -> Figure:
    """Write legend and footer, lay out, and move numbers of points off each other and the points.

    Labels move in a fixed count of steps, so that they end in the same place every time.
    """
    columns = min(4, int(7 / (0.4 + 0.062 * max(map(len, [*handles, ""])))))
    place = {"loc": "outside upper center", "ncols": columns, "frameon": False}
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(handles) / columns))
    figure.legend(list(handles.values()), list(handles), **place)
    figure.supxlabel(footer, x=0.995, ha="right", size=7.5, color=LINE)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    line = {"arrowstyle": "-", "lw": 0.5, "color": LINE}
    for axes in figure.axes:
        texts = [text for text in axes.texts if text.get_gid() == "number"]
        if texts:
            x, y = zip(*(text.get_position() for text in texts), strict=True)
            moving = {"expand": (1.5, 1.5), "min_arrow_len": 9, "arrowprops": line}
            adjust_text(texts, x, y, ax=axes, iter_lim=300, **moving)
    return figure
