"""Dot plots of the guard's experiment: who or what in rows, a measure a panel, 95 % bars."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from unlearn_lib.figures.eco_scenes import Scene, handles_of, signed
from unlearn_lib.figures.style import (
    BAND,
    BAND_LINE,
    CONTROL,
    FLOOR,
    LIMIT,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    draw_point,
    ends,
    legend,
    plain_ticks,
    set_p_values,
)
from unlearn_lib.tables.common import Pooled

ALPHA = 0.05
SPAN = 1000
MOST_LETTERS = 9
DASHED = (0, (4, 2))
HOLLOW = {"marker": "D", "mfc": "white", "mec": CONTROL, "mew": 0.7, "ms": 3.2}

Scale = Literal["unit", "share", "plain", "quality", "perplexity", "amount"]


@dataclass(frozen=True)
class Measure:
    """One column: a metric on a split, its axis label and scale.

    `share` is drawn in per cent, `unit` from 0 to 1, `plain` from 0 or below to the largest,
    `quality` is a p-value, `amount` is logarithmic with 0 at the left edge. `hollow`: metric and
    split of a second, hollow mark; `line`: where a dashed line stands.
    """

    metric: str
    label: str
    split: str = "forget"
    scale: Scale = "unit"
    hollow: tuple[str, str] | None = None
    line: float | None = None


@dataclass(frozen=True)
class Block:
    """One row of panels: a scene, who is shown under what name, and a title.

    `band`: whose interval is a grey band; `judged`: whether degenerate answers change a mark.
    """

    scene: Scene
    names: Mapping[str, str]
    measures: Sequence[Measure]
    title: str
    band: str = ""
    judged: bool = True

    def readings(self, measure: Measure) -> tuple[dict[str, Pooled], dict[str, Pooled]]:
        """Return who has which number of a measure, filled and hollow, in the unit of its axis."""
        factor = 100 if measure.scale == "share" else 1
        found: tuple[dict[str, Pooled], dict[str, Pooled]] = ({}, {})
        for who in self.names:
            first = self.scene.of(measure.metric, measure.split, who)
            if measure.metric == "forget_quality":
                first = self.scene.quality(who)
            second = self.scene.of(*measure.hollow, who) if measure.hollow else None
            for each, kept in zip((first, second), found, strict=True):
                if each:
                    kept[who] = each.scaled(factor)
        return found


def dot_figure(
    blocks: Sequence[Block],
    profile_name: str,
    provenance: Mapping[str, Any] | None,
    handles: Iterable[Line2D | Patch] = (),
) -> Figure:
    """Draw blocks below each other, with scales shared along a column.

    A measure that no block has loses its panel. `handles` of a legend follow those of the marks.
    """
    every = [[block.readings(measure) for measure in block.measures] for block in blocks]
    columns = [place for place, found in enumerate(zip(*every, strict=True))
               if any(filled or hollow for filled, hollow in found)]  # fmt: skip
    shared = [ends(e for line in every for part in line[place] for e in part.values())
              for place in columns]  # fmt: skip
    tall = 0.21 if any(measure.hollow for measure in blocks[0].measures) else 0.175
    with mpl.rc_context(STYLE):
        heights = [0.95 + tall * len(block.names) for block in blocks]
        figure, grid = panel_grid(heights, len(columns), room=0.7)
        for line, block, found in zip(grid, blocks, every, strict=True):
            marks = {who: block.scene.mark(who, block.judged) for who in block.names}
            for axes, place, known in zip(line, columns, shared, strict=True):
                set_scale(axes, block.measures[place].scale, known)
                _panel(axes, block, block.measures[place], found[place], marks)
            label_rows(line[0], list(block.names.values()))
            line[0].set_title(block.title, loc="left", weight="bold")
        present = [(block.scene, who) for block in blocks for who in block.names]
        keys = handles_of(present, blocks[0].judged)
        legend(figure, [*keys, *_band_handle(blocks), *handles])
        counted = "passages" if blocks[0].scene.scenario == "book" else "questions"
        signed(figure, [block.scene for block in blocks], profile_name, provenance, counted)
    return figure


def panel_grid(heights: Sequence[float], columns: int, room: float) -> tuple[Figure, Any]:
    """Return a figure and its grid of axes, rows of which share their y axis."""
    spacing = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05, wspace=0.02)
    figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + room), layout=spacing)
    shape = {"height_ratios": heights}
    grid = figure.subplots(len(heights), columns, squeeze=False, sharey="row", gridspec_kw=shape)
    return figure, grid


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write the names of rows, the first on top."""
    axes.set_yticks([-float(place) for place in range(len(names))], names)
    axes.set_ylim(-len(names) + 0.4, 0.6)


def band(axes: Axes, found: Pooled | None) -> None:
    """Draw an interval as a grey band over all rows."""
    if found:
        axes.axvspan(found.low, found.high, color=BAND, lw=0, zorder=0.5)
        axes.axvline(found.value, color=BAND_LINE, lw=0.8, zorder=0.6)


def _band_handle(blocks: Iterable[Block]) -> list[Patch]:
    whose = " or ".join(dict.fromkeys(b.band for b in blocks if b.band in b.names))
    return [Patch(color=BAND, lw=0, label=f"{whose}, 95 % interval")] if whose else []


def _panel(
    axes: Axes,
    block: Block,
    measure: Measure,
    found: tuple[Mapping[str, Pooled], Mapping[str, Pooled]],
    marks: Mapping[str, tuple[str, str]],
) -> None:
    filled, hollow = found
    heights = {who: -float(line) for line, who in enumerate(block.names)}
    if measure.scale not in ("quality", "amount"):
        band(axes, filled.get(block.band))
    if measure.line is not None:
        axes.axvline(measure.line, color=LIMIT, lw=0.9, ls=DASHED, zorder=0.7)
    for who, each in hollow.items():
        _hollow(axes, each, heights[who] - 0.24)
    lift = 0.14 if measure.hollow else 0.0
    for who, each in filled.items():
        point(axes, measure.scale, each, heights[who] + lift, marks[who])
    finish(axes, measure.label, [*filled.values(), *hollow.values()])


def finish(axes: Axes, label: str, found: Iterable[Pooled]) -> None:
    """Write a panel's label with its n, and draw its grid."""
    axes.set_xlabel(f"{label}\n{count(found)}")
    axes.grid(axis="x")
    axes.grid(axis="y", color="#f3f3f3")
    axes.tick_params(axis="y", length=0)


def point(
    axes: Axes,
    scale: Scale,
    found: Pooled,
    height: float,
    mark: tuple[str, str],
    size: float | None = None,
) -> None:
    """Draw one mark with its bar; a p-value below 1e-12 is an arrow, 0 of an amount `none`."""
    left, _ = axes.get_xlim()
    if scale == "quality" and found.value < FLOOR:
        axes.plot(FLOOR, height, "<", color=mark[1], ms=5, mew=0, zorder=3)
        return
    if scale == "amount" and found.value <= 0:
        found = Pooled(axes.get_xticks()[0], math.nan, math.nan, found.n, found.seeds)
    draw_point(axes, found, height, *mark, unit="")
    if size:
        axes.lines[-1].set_markersize(size)


def _hollow(axes: Axes, found: Pooled, height: float) -> None:
    right = axes.get_xlim()[1]
    if not (math.isnan(found.low) or math.isnan(found.high)):
        span = [found.low, min(found.high, right)]
        axes.plot(span, [height, height], color=CONTROL, lw=0.6, zorder=2)
    axes.plot(min(found.value, right), height, ls="", clip_on=False, zorder=2.5, **HOLLOW)


def set_scale(axes: Axes, scale: Scale, known: Sequence[float]) -> None:
    """Set limits and ticks of the x axis for every finite value and end of interval known."""
    if scale in ("unit", "share"):
        top = 100 if scale == "share" else 1
        axes.set_xlim(-0.06 * top, 1.06 * top)
        axes.set_xticks([0, top / 2, top], ["0", f"{top / 2:g}", f"{top}"])
    elif scale == "plain":
        low, high = min([0.0, *known]), max([0.0, *known]) or 1.0
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        axes.xaxis.set_major_locator(MaxNLocator(3))
    elif scale == "quality":
        set_p_values(axes, known)
    else:
        _set_logarithmic(axes, scale, [each for each in known if each > 0] or [1.0, 10.0])


def _set_logarithmic(axes: Axes, scale: Scale, known: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(known), max(known)
    if scale == "perplexity":
        high = min(high, SPAN * low)
        axes.set_xlim(low / 1.4, max(1.4 * high, 12 * low))
        plain_ticks(axes.xaxis, 3)
        return
    low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
    high = max(high, 10 * low)
    step = (high / low) ** 0.08
    axes.set_xlim(low / step**10, high * step)
    ticks = plain_ticks(axes.xaxis, 2, low)
    if sum(map(len, ticks.values())) > MOST_LETTERS:
        ticks = plain_ticks(axes.xaxis, 1, low)
    axes.set_xticks([low / step**8, *ticks], ["none", *ticks.values()])
