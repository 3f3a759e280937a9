"""Ways round the guard in experiment 3: what leaks, and what the guard's classifier misses."""

import textwrap
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from unlearn_lib.figures.closer_look import model_name
from unlearn_lib.figures.eco_panels import (
    band,
    finish,
    label_rows,
    panel_grid,
    point,
    set_scale,
)
from unlearn_lib.figures.eco_scenes import Scene, scenes, signed
from unlearn_lib.figures.style import BAND, CONTROL, STYLE, legend
from unlearn_lib.tables.common import Pooled
from unlearn_lib.tables.eco import ECO, ROBUSTNESS_SETS

LEAK, MISSED = "leak_share", "false_negative_rate"
MOST_PANELS = 8


def eco_robustness_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share of answers that hold the fact, for each way of asking, with 95 % bars.

    A panel per model before, guard and method; behind the guard's stands what its classifier does
    not flag. The grey band is what the reference, or else the base, gives away when asked plainly.
    `frame` is the tidy table; `labels` gives display names and order of methods. Raises
    `CompanionError` that names the command which makes missing results.
    """
    found = scenes(frame, "robustness", [LEAK, MISSED], profile_name)
    panels = [_panels(scene, labels) for scene in found]
    columns = min(MOST_PANELS, max(map(len, panels)))
    lines = [
        (scene, each[start : start + columns], start == 0)
        for scene, each in zip(found, panels, strict=True)
        for start in range(0, len(each), columns)
    ]
    with mpl.rc_context(STYLE):
        heights = [0.95 + 0.175 * len(_sets(scene)) for scene, *_ in lines]
        figure, grid = panel_grid(heights, columns, room=0.55)
        for line, (scene, shown, first) in zip(grid, lines, strict=True):
            for axes, panel in zip(line, shown, strict=False):
                _panel(axes, scene, *panel)
            for axes in line[len(shown) :]:
                axes.remove()
            label_rows(line[0], _sets(scene))
            if first:
                line[0].set_title(model_name(scene.model), loc="left", weight="bold")
        whose = " or ".join(dict.fromkeys(scene.retained for scene in found if _usual(scene)))
        key = Patch(color=BAND, lw=0, label=f"{whose} as asked, 95 % interval")
        legend(figure, [key] if whose else [])
        signed(figure, found, profile_name, provenance)
    return figure


def _panels(scene: Scene, labels: Mapping[str, str] | None) -> list[tuple[str, str, str]]:
    """Return metric, who and label of each panel that has a number."""
    names = scene.shown([LEAK], labels)
    found = [(LEAK, who, f"{textwrap.fill(name, 11)}\nleaks (%)") for who, name in names.items()]
    if scene.shown([MISSED]):
        behind = next((n for n, who in enumerate(names, 1) if who == ECO), len(found))
        found.insert(behind, (MISSED, ECO, "ECO does\nnot flag (%)"))
    return found


def _sets(scene: Scene) -> list[str]:
    present = list(dict.fromkeys(scene.rows["split"]))
    known = [each for each in ROBUSTNESS_SETS if each in present]
    return [*known, *(each for each in present if each not in known)]


def _panel(axes: Axes, scene: Scene, metric: str, who: str, label: str) -> None:
    set_scale(axes, "share", [])
    if metric == LEAK:
        usual = _usual(scene)
        band(axes, usual and usual.scaled(100))
    found: list[Pooled] = []
    mark = ("o", CONTROL) if metric == MISSED else scene.mark(who, judged=False)
    for place, split in enumerate(_sets(scene)):
        each = scene.of(metric, split, who)
        if each:
            found.append(each)
            point(axes, "share", each.scaled(100), -float(place), mark)
    finish(axes, label, found)


def _usual(scene: Scene) -> Pooled | None:
    return scene.of(LEAK, ROBUSTNESS_SETS[0], scene.retained)
