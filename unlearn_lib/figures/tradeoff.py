"""The book experiment's first figure: what is still recited against what is kept."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.book import (
    COUNTED,
    STAGES,
    Reading,
    measured,
    method_marks,
    prepared,
    spaced,
)
from unlearn_lib.figures.placing import Label, place_labels
from unlearn_lib.figures.style import (
    BAND,
    BAND_LINE,
    BEFORE,
    GOAL,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    ends,
    legend,
    legend_mark,
    settle,
    sign,
)
from unlearn_lib.tables.book import BASE, IMPLANTED
from unlearn_lib.tables.common import Pooled, remedy

KEPT_GOAL, SIMILARITY_GOAL = 0.80, 0.80


@dataclass(frozen=True)
class Aim:
    """What is to be kept, on one panel's x axis: metric, split, axis label and unit factor."""

    metric: str
    split: str
    label: str
    factor: float

    def goal(self, reading: Reading) -> float | None:
        """Return where the goal begins: for kept chapters, a share of the implanted model's.

        None where that is not known, or is nothing.
        """
        if self.metric == "similarity_original":
            return SIMILARITY_GOAL
        implanted = reading.of(self.metric, self.split, IMPLANTED, self.factor)
        return KEPT_GOAL * implanted.value if implanted and implanted.value else None


AIMS = (
    Aim("verbatim_share", "kept", "Verbatim, chapters to keep (%)", 100),
    Aim("similarity_original", "normal", "Similarity to base, normal prompts (cosine)", 1),
)


def book_tradeoff_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw what is still recited of the chapters to forget against what is kept.

    One row of panels per model, a numbered point per method with 95 % bars both ways. `frame` is
    the tidy table; `labels` gives display names and order of methods. The grey band is the
    base's interval; the goal region lies below its upper end, and right of 80 % of what the
    implanted model keeps, or of a similarity of 0.80. Raises `CompanionError` that names the
    command which makes missing results.
    """
    rows, shown = prepared(frame, profile_name, labels)
    aims = [aim for aim in AIMS if measured(rows, aim.metric, [aim.split])]
    if not aims:
        raise CompanionError(f"Nothing to keep was measured: {remedy(profile_name)}.")
    names = {who: label for present in shown.values() for who, label in present.items()}
    names = {who: label for who, label in names.items() if who not in STAGES}
    numbers = {who: number for number, who in enumerate(names, 1)}
    with mpl.rc_context(STYLE):
        figure, grid = _canvas(len(shown), len(aims), list(names.values()))
        drawn = [
            drawn
            for line, (model, present) in enumerate(shown.items())
            for drawn in _tradeoff_row(grid, line, Reading(rows, model), present, aims, numbers)
        ]
        _tradeoff_legend(figure)
        sign(figure, rows, profile_name, provenance, COUNTED)
        settle(figure)
        for axes, points in drawn:
            place_labels(axes, points)
    return figure


def _canvas(models: int, panels: int, names: list[str]) -> tuple[Figure, GridSpec]:
    longest = max(map(len, names))
    columns = 3 if longest <= 33 else 2 if longest <= 50 else 1
    heights = [2.45] * models + [0.17 * math.ceil(len(names) / columns)]
    spacing = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.03)
    figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 1.0), layout=spacing)
    grid = figure.add_gridspec(models + 1, panels, height_ratios=heights)
    axes = figure.add_subplot(grid[-1, :])
    axes.axis("off")
    handles = [
        Line2D([], [], ls="", label=f"{n}  {textwrap.shorten(name, 100)}")
        for n, name in enumerate(names, 1)
    ]
    place = {
        "loc": "center",
        "ncols": columns,
        "frameon": False,
        "borderpad": 0,
        "labelspacing": 0.3,
    }
    key = axes.legend(handles=handles, handlelength=0, handletextpad=0, **place)
    key.set_in_layout(False)
    return figure, grid


def _tradeoff_row(
    grid: GridSpec,
    line: int,
    reading: Reading,
    present: Mapping[str, str],
    aims: list[Aim],
    numbers: Mapping[str, int],
) -> list[tuple[Axes, list[Label]]]:
    verbatim = {who: reading.of("verbatim_share", "forget", who, 100) for who in present}
    heights = {who: found for who, found in verbatim.items() if found}
    marks, drawn = reading.marks(heights), []
    for column, aim in enumerate(aims):
        axes = grid.figure.add_subplot(grid[line, column])
        values = {who: reading.of(aim.metric, aim.split, who, aim.factor) for who in heights}
        points = {who: (found, heights[who]) for who, found in values.items() if found}
        _tradeoff_limits(axes, aim, points, heights)
        _goal(axes, heights.get(BASE), aim.goal(reading))
        crossed = [_crossed(axes, w, *p, marks[w], numbers.get(w)) for w, p in points.items()]
        drawn.append((axes, crossed))
        found = count(across for across, _ in points.values())
        axes.set_xlabel(f"{aim.label}\nhigher is better →  {found}")
        axes.grid(True)
    first = drawn[0][0]
    found = count(heights.values())
    first.set_ylabel(f"Verbatim, chapters to forget (%)\n← lower is better  {found}")
    first.set_title(reading.model.rsplit("/", 1)[-1], loc="left", weight="bold")
    return drawn


def _tradeoff_limits(
    axes: Axes,
    aim: Aim,
    points: Mapping[str, tuple[Pooled, Pooled]],
    heights: Mapping[str, Pooled],
) -> None:
    top = max(10.0, *ends(heights.values()))
    axes.set_ylim(-0.06 * top, min(106, 1.06 * top))
    across = ends(found for found, _ in points.values())
    if aim.metric == "similarity_original":
        axes.set_xlim(min(0.6, math.floor(10 * min(across, default=0.0) - 0.2) / 10), 1.05)
    else:
        right = max([10.0, *across])
        axes.set_xlim(-0.05 * right, min(105, 1.06 * right))


def _goal(axes: Axes, base: Pooled | None, begin: float | None) -> None:
    if base is None:
        return
    low, high = (base.value if math.isnan(end) else end for end in (base.low, base.high))
    axes.axhspan(low, high, color=BAND, lw=0, zorder=0.5)
    axes.axhline(base.value, color=BAND_LINE, lw=0.8, zorder=0.6)
    if begin is not None:
        right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
        style = {"fc": GOAL, "ec": GOAL, "alpha": 0.25, "lw": 0, "zorder": 0.7}
        axes.add_patch(Rectangle((begin, bottom), right - begin, high - bottom, **style))
        style |= {"fc": "none", "alpha": 1, "lw": 0.9, "ls": (0, (2, 1.5)), "zorder": 0.8}
        axes.add_patch(Rectangle((begin, bottom), right - begin, high - bottom, **style))


def _crossed(
    axes: Axes, who: str, across: Pooled, up: Pooled, mark: tuple[str, str], number: int | None
) -> Label:
    marker, colour = mark
    bars = {"color": colour, "lw": 0.9, "alpha": 0.6, "zorder": 2}
    axes.plot([across.low, across.high], [up.value, up.value], **bars)
    axes.plot([across.value, across.value], [up.low, up.high], **bars)
    style: dict[str, Any] = {"ms": 6 if marker == "X" else 5, "mew": 0, "zorder": 4}
    if who in STAGES:
        style = {"ms": 8, "mew": 1.2, "mfc": "white", "zorder": 3}
    axes.plot(across.value, up.value, marker, color=colour, clip_on=False, **style)
    ends_across, ends_up = (across.low, across.high), (up.low, up.high)
    return Label(across.value, up.value, number, ends_across, ends_up)


def _tradeoff_legend(figure: Figure) -> None:
    hollow = {"mfc": "white", "mew": 1.2}
    goal = f"goal: as base, and ≥ {KEPT_GOAL:.0%} kept or ≥ {SIMILARITY_GOAL:.2f} similar"
    handles = [
        legend_mark("s", BEFORE, STAGES[BASE].lower(), **hollow),
        legend_mark("^", BEFORE, STAGES[IMPLANTED].lower(), **hollow),
        *method_marks(),
        Patch(color=BAND, lw=0, label="base, 95 % interval"),
        Patch(fc=(*mpl.colors.to_rgb(GOAL), 0.25), ec=GOAL, ls=(0, (2, 1.5)), label=spaced(goal)),
    ]
    legend(figure, handles)
