"""What each method costs in experiment 3: once, at every prompt, and in what is kept of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unlearn_lib.figures.closer_look import model_name
from unlearn_lib.figures.eco_panels import (
    Scale,
    finish,
    label_rows,
    panel_grid,
    point,
    set_scale,
)
from unlearn_lib.figures.eco_scenes import TASK_NAMES, Scene, scenes, signed
from unlearn_lib.figures.style import SERIES, STYLE, ends, legend, legend_mark
from unlearn_lib.tables.common import Pooled

TASK_MARKS = dict(zip(TASK_NAMES, zip("osD", SERIES[:3], strict=True), strict=True))
Readings = dict[tuple[str, str], Pooled]


@dataclass(frozen=True)
class Cost:
    """One column: a metric, its axis label, scale and unit factor."""

    metric: str
    label: str
    scale: Scale
    factor: float = 1


COSTS = (
    Cost("seconds", "Time to\nunlearn (s)", "amount"),
    Cost("milliseconds_per_prompt", "Extra time a\nprompt (ms)", "plain"),
    Cost("milliseconds_per_token", "Extra time a\ntoken (ms)", "plain"),
    Cost("parameters_changed", "Parameters\nchanged (millions)", "amount", 1e-6),
    Cost("bytes_stored", "Stored\n(bytes)", "amount"),
)


def eco_costs_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw what guards and methods cost before and during use, a mark a task, with 95 % bars.

    One row of panels per model, with scales shared between models; logarithmic, save the extra
    times. An amount of 0 stands at the left edge, as `none`. A cost that nobody has loses its
    panel. `frame` is the tidy table; `labels` gives display names and order of methods. Raises
    `CompanionError` that names the command which makes missing results.
    """
    metrics = [cost.metric for cost in COSTS]
    found = scenes(frame, "costs", metrics, profile_name)
    names = [scene.shown(metrics, labels) for scene in found]
    every = [[_readings(scene, cost, each) for cost in COSTS]
             for scene, each in zip(found, names, strict=True)]  # fmt: skip
    shown = [place for place in range(len(COSTS)) if any(line[place] for line in every)]
    tasks = [task for task in TASK_NAMES if any(task in key for line in every
                                                for part in line for key in part)]  # fmt: skip
    with mpl.rc_context(STYLE):
        heights = [0.95 + 0.26 * len(each) for each in names]
        figure, grid = panel_grid(heights, len(shown), room=0.5)
        for line, scene, each, numbers in zip(grid, found, names, every, strict=True):
            for axes, place in zip(line, shown, strict=True):
                known = ends(e for other in every for e in other[place].values())
                set_scale(axes, COSTS[place].scale, known)
                _panel(axes, COSTS[place], numbers[place], list(each), tasks)
            label_rows(line[0], list(each.values()))
            line[0].set_title(model_name(scene.model), loc="left", weight="bold")
        legend(figure, [legend_mark(*TASK_MARKS[task], TASK_NAMES[task]) for task in tasks])
        signed(figure, found, profile_name, provenance, "prompts; 1: measured as a whole")
    return figure


def _readings(scene: Scene, cost: Cost, names: Iterable[str]) -> Readings:
    """Return the numbers of one cost by task and method, in the unit of the axis."""
    return {
        (task, who): each.scaled(cost.factor)
        for task in TASK_NAMES
        for who in names
        if (each := scene.of(cost.metric, task, who))
    }


def _panel(
    axes: Axes, cost: Cost, found: Readings, names: Sequence[str], tasks: Sequence[str]
) -> None:
    for (task, who), each in found.items():
        lift = 0.25 * (0.5 * (len(tasks) - 1) - tasks.index(task))
        point(axes, cost.scale, each, lift - names.index(who), TASK_MARKS[task], size=4)
    finish(axes, cost.label, found.values())
