"""The scatter of experiment 3: forget quality against model utility, everyone beside the guard."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.closer_look import model_name
from unlearn_lib.figures.eco_panels import ALPHA, DASHED
from unlearn_lib.figures.eco_scenes import Scene, handles_of, scenes, signed
from unlearn_lib.figures.placing import Label, place_labels
from unlearn_lib.figures.style import (
    CONTROL,
    FLOOR,
    LIMIT,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    ends,
    legend,
    legend_mark,
    power_text,
    settle,
)
from unlearn_lib.tables.closer_look import STAGES
from unlearn_lib.tables.common import Pooled, remedy

KEY_LINE, HEIGHT = 0.17, 3.0
LEAST_SPAN = 0.1
Pair = tuple[Pooled, Pooled]


def eco_tradeoff_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw forget quality (a p-value, logarithmic) against model utility: up and right is better.

    A panel per model, a numbered point per guard and method. Above the line at 0.05 the answers
    are not told apart from the reference's; an arrow stands for a p-value below 1e-12. Bars
    across are 95 % intervals; bars up, with several seeds, the range over them. `frame` is the
    tidy table; `labels` gives display names and order of methods. Raises `CompanionError` that
    names the command which makes missing results.
    """
    found = scenes(frame, "entities", ["forget_quality"], profile_name)
    points = [_points(scene, labels) for scene in found]
    names = {who: name for each in points for who, (name, _) in each.items() if who not in STAGES}
    if not names:
        raise CompanionError(
            f"No model has both forget quality and model utility: {remedy(profile_name)}."
        )
    numbers = {who: number for number, who in enumerate(names, 1)}
    with mpl.rc_context(STYLE):
        figure, grid = _canvas(len(found), [f"{numbers[who]}  {names[who]}" for who in names])
        drawn = []
        for place, (scene, each) in enumerate(zip(found, points, strict=True)):
            axes = figure.add_subplot(grid[place // 2, place % 2 if len(found) > 1 else slice(2)])
            drawn.append((axes, _panel(axes, scene, each, numbers)))
        _tradeoff_legend(figure, found, points)
        signed(figure, found, profile_name, provenance)
        settle(figure)
        for axes, placed in drawn:
            place_labels(axes, placed)
    return figure


def _points(scene: Scene, labels: Mapping[str, str] | None) -> dict[str, tuple[str, Pair]]:
    found = {}
    for who, name in scene.shown(["forget_quality"], labels).items():
        utility, quality = scene.of("model_utility", "all", who), scene.quality(who)
        if utility and quality:
            found[who] = (name, (utility, quality))
    return found


def _canvas(models: int, names: Sequence[str]) -> tuple[Figure, GridSpec]:
    columns = 5 if max(map(len, names)) <= 16 else 3
    lines = math.ceil(models / 2)
    heights = [HEIGHT] * lines + [KEY_LINE * math.ceil(len(names) / columns)]
    spacing = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.03)
    figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 1.0), layout=spacing)
    grid = figure.add_gridspec(lines + 1, 2, height_ratios=heights)
    axes = figure.add_subplot(grid[-1, :])
    axes.axis("off")
    handles = [Line2D([], [], ls="", label=name) for name in names]
    place = {"loc": "center", "ncols": columns, "frameon": False, "borderpad": 0}
    key = axes.legend(handles=handles, handlelength=0, handletextpad=0, labelspacing=0.3, **place)
    key.set_in_layout(False)
    return figure, grid


def _panel(
    axes: Axes, scene: Scene, points: Mapping[str, tuple[str, Pair]], numbers: Mapping[str, int]
) -> list[Label]:
    across, up = ([pair[end] for _, pair in points.values()] for end in (0, 1))
    _limits(axes, ends(across), [each.value for each in up] + ends(up))
    axes.axhline(ALPHA, color=LIMIT, lw=0.9, ls=DASHED, zorder=0.7)
    placed = [_point(axes, scene, who, pair, numbers) for who, (_, pair) in points.items()]
    left, right = axes.get_xlim()
    placed.append(Label(left, ALPHA, None, (left, right), (math.nan, math.nan)))
    axes.set_title(model_name(scene.model), loc="left", weight="bold")
    axes.set_xlabel(f"Model utility →  {count(across)}")
    axes.set_ylabel(f"Forget quality (p) →  {count(up)}")
    axes.grid(True)
    return placed


def _limits(axes: Axes, across: Sequence[float], up: Sequence[float]) -> None:
    low, high = min(across, default=0.0), max(across, default=1.0)
    pad = max(0.08 * (high - low), 0.5 * (LEAST_SPAN - high + low))
    axes.set_xlim(max(low - pad, -0.05), min(high + pad, 1.05))
    bottom = max(FLOOR, min([ALPHA / 10, *up]))
    axes.set_yscale("log")
    lowest = bottom / (1 / bottom) ** 0.1
    axes.set_ylim(lowest, (1 / bottom) ** 0.08)
    last = math.ceil(math.log10(lowest))
    powers = range(0, last - 1, -max(1, math.ceil(-last / 6)))
    texts = {10.0**p: power_text(p) if p > -4 else f"1e{p}".replace("-", "−") for p in powers}
    axes.set_yticks(list(texts), list(texts.values()))
    axes.minorticks_off()


def _point(axes: Axes, scene: Scene, who: str, pair: Pair, numbers: Mapping[str, int]) -> Label:
    across, up = pair
    marker, colour = scene.mark(who)
    height = max(up.value, FLOOR)
    bar = (max(up.low, FLOOR), max(up.high, FLOOR))
    bars = {"color": colour, "lw": 0.9, "alpha": 0.55, "zorder": 2}
    axes.plot([across.low, across.high], [height, height], **bars)
    axes.plot([across.value, across.value], bar, **bars)
    style: dict[str, Any] = {
        "ms": 8 if marker == "X" else 6,
        "mew": 0.5,
        "mec": "white",
        "zorder": 4,
    }
    if who in STAGES:
        style = {"ms": 12 if marker == "*" else 8, "mew": 1.1, "mfc": "white", "zorder": 3}
    elif marker == "*":
        style |= {"ms": 13, "zorder": 4.5}
    if up.value < FLOOR:
        marker, style["ms"] = "v", 7
    axes.plot(across.value, height, marker, color=colour, clip_on=False, **style)
    return Label(across.value, height, numbers.get(who), (across.low, across.high), bar)


def _tradeoff_legend(
    figure: Figure, found: Sequence[Scene], points: Sequence[Mapping[str, tuple[str, Pair]]]
) -> None:
    present = [(s, who) for s, each in zip(found, points, strict=True) for who in each]
    line = Line2D([], [], color=LIMIT, lw=0.9, ls=DASHED)
    line.set_label("p = 0.05; above: as the reference")
    handles = [*handles_of(present, judged=True, hollow=True), line]
    if any(quality.value < FLOOR for each in points for _, (_, quality) in each.values()):
        handles.append(legend_mark("v", CONTROL, "p < 1e-12"))
    legend(figure, handles)
