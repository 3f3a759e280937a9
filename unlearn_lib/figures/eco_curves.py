"""Curves of experiment 3: the search of the guard's strength, and its cost against model size."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.closer_look import model_name
from unlearn_lib.figures.eco_scenes import GUARD_MARKS, TASK_NAMES, Scene, scenes, signed
from unlearn_lib.figures.placing import Label, place_labels
from unlearn_lib.figures.style import (
    BEFORE,
    CONTROL,
    DASHES,
    GOAL,
    SERIES,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    legend,
    legend_mark,
    plain_ticks,
    settle,
)
from unlearn_lib.tables.closer_look import BASE
from unlearn_lib.tables.common import Pooled, remedy
from unlearn_lib.tables.eco import ECO

SEARCH = {"search_strength": "strength", "search_objective": "objective", "model_calls": "calls"}
TIME = "milliseconds_per_prompt"


def eco_search_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the search of each task's strength: the objective at every step, the best one marked.

    One row of panels per model, a panel per task, a line per seed; with one seed the first step
    (0), the best and the last are numbered. Strength is logarithmic where it is above 0. Under
    each panel stand the best strength and how many times the model was called. `frame` is the
    tidy table; `labels` is not read. Raises `CompanionError` that names the command which makes
    missing results.
    """
    found = scenes(frame, "search", ["search_objective"], profile_name)
    paths = {scene.model: _paths(scene) for scene in found}
    tasks = [task for task in TASK_NAMES if any(task in each for each in paths.values())]
    if not tasks:
        raise CompanionError(f"No step of a search has a strength: {remedy(profile_name)}.")
    seeds = list(dict.fromkeys(seed for each in paths.values() for t in tasks for seed in each[t]))
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH_INCHES, 2.6 * len(found) + 0.6), layout="constrained")
        grid = figure.subplots(len(found), len(tasks), squeeze=False)
        drawn = []
        for line, scene in zip(grid, found, strict=True):
            for axes, task in zip(line, tasks, strict=True):
                drawn.append((axes, _search_panel(axes, paths[scene.model][task], seeds)))
                axes.set_title(TASK_NAMES[task], loc="left")
            _row_title(line[0], model_name(scene.model))
            line[0].set_ylabel("Objective: gap to the\nretained state, ← lower is better")
        legend(figure, _search_handles(seeds), columns=5)
        signed(figure, found, profile_name, provenance, counted="", bars=False)
        settle(figure)
        for axes, placed in drawn:
            place_labels(axes, placed)
    return figure


def _row_title(axes: Axes, title: str) -> None:
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(title, (0, 1), (0, 19), size=9, weight="bold", **place)


def _search_handles(seeds: Sequence[str]) -> list[Line2D]:
    handles = [
        Line2D([], [], marker="o", ms=4, lw=0.9, **_look(place), label=f"seed {seed}")
        for place, seed in enumerate(seeds)
    ]
    if len(seeds) == 1:
        handles[0].set_label("steps of the search: first, best and last numbered")
    best = legend_mark("*", CONTROL, "best")
    best.set_markersize(11)
    return [*handles, best]


def _look(place: int) -> dict[str, Any]:
    return {"color": SERIES[place % len(SERIES)], "ls": DASHES[place % len(DASHES)]}


def _paths(scene: Scene) -> dict[str, dict[str, pd.DataFrame]]:
    """Return, for each task and seed, a frame of steps in order: strength, objective, calls."""
    rows = scene.rows[scene.rows["metric"].isin(SEARCH) & scene.rows["method"].eq(ECO)]
    named = rows["split"].str.extract(r"^(?P<task>.+) (?P<step>\d+)$")
    rows = rows.assign(task=named["task"], step=pd.to_numeric(named["step"]))
    rows = rows[rows["step"].notna()].assign(metric=rows["metric"].map(SEARCH))
    keys = ["task", "seed", "step"]
    wide = rows.pivot_table("value", keys, "metric").reindex(columns=list(SEARCH.values()))
    wide = wide.dropna(subset=["strength", "objective"]).reset_index()
    found: dict[str, dict[str, pd.DataFrame]] = defaultdict(dict)
    for (task, seed), path in wide.groupby(["task", "seed"]):
        found[task][str(seed)] = path
    return found


def _search_panel(
    axes: Axes, paths: Mapping[str, pd.DataFrame], seeds: Sequence[str]
) -> list[Label]:
    placed, best = [], []
    for seed, path in paths.items():
        strength, objective = path["strength"], path["objective"]
        axes.plot(strength, objective, marker="o", ms=4, mew=0, lw=0.9, **_look(seeds.index(seed)))
        chosen = path.loc[objective.idxmin()]
        star = {"color": CONTROL, "ms": 11, "mec": "white", "mew": 0.5, "zorder": 4}
        axes.plot(chosen["strength"], chosen["objective"], "*", **star)
        best.append(f"{chosen['strength']:.3g}")
        if len(seeds) == 1:
            told = {path.index[0], path.index[-1], chosen.name}
            nowhere = (math.nan, math.nan)
            for place, x, y, step in zip(
                path.index, strength, objective, path["step"], strict=True
            ):
                placed.append(Label(x, y, int(step) if place in told else None, nowhere, nowhere))
    axes.margins(0.12, 0.16)
    _search_axis(axes, [each for path in paths.values() for each in path["strength"]])
    found = ", ".join(dict.fromkeys(best)) or "not searched"
    axes.set_xlabel(f"Strength (best: {found})\n{_calls(paths.values())}")
    axes.grid(True)
    return placed


def _calls(paths: Iterable[pd.DataFrame]) -> str:
    counted = [path["calls"].max() for path in paths]
    known = sorted({int(each) for each in counted if not math.isnan(each)})
    numbers = "–".join(str(n) for n in dict.fromkeys([*known[:1], *known[-1:]]))
    return f"{numbers} model calls" if known else ""


def _search_axis(axes: Axes, strengths: Sequence[float]) -> None:
    if not strengths or min(strengths) <= 0:
        return
    axes.set_xscale("log")
    low, high = min(strengths), max(strengths)
    middle, ratio = math.sqrt(low * high), max(1.35 * math.sqrt(high / low), 4.0)
    axes.set_xlim(middle / ratio, middle * ratio)
    plain_ticks(axes.xaxis, 3)


def eco_scaling_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the guard's own time a prompt beside the model's, against the model's size.

    Both axes are logarithmic, bars are 95 % intervals; at both ends stands the guard's share of
    the model's generation time, in per cent. A panel per model that the scenario names. `frame`
    is the tidy table; `labels` is not read. Raises `CompanionError` that names the command which
    makes missing results.
    """
    found = scenes(frame, "scaling", [TIME], profile_name)
    with mpl.rc_context(STYLE):
        columns = min(2, len(found))
        lines = math.ceil(len(found) / columns)
        figure = Picture(figsize=(WIDTH_INCHES, 2.6 * lines + 0.6), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, scene in zip(grid, found, strict=False):
            _scaling_panel(axes, scene)
        for axes in grid[len(found) :]:
            axes.remove()
        handles = [
            legend_mark("s", BEFORE, "model: generates an answer"),
            legend_mark("*", GOAL, "guard: its own time (per cent of the model's)"),
        ]
        legend(figure, handles)
        signed(figure, found, profile_name, provenance, "timings")
    return figure


def _scaling_panel(axes: Axes, scene: Scene) -> None:
    sizes = sorted({int(s) for s in scene.rows["split"] if s.isdecimal() and int(s)})
    model, guard = (
        {size: each for size in sizes if (each := scene.of(TIME, str(size), who))}
        for who in (BASE, ECO)
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _line(axes, model, "s", BEFORE, 5)
    _line(axes, guard, *GUARD_MARKS[ECO], 9)
    both = [size for size in sizes if size in model and size in guard]
    for size in dict.fromkeys([*both[:1], *both[-1:]]):
        _share(axes, size, guard[size], model[size])
    axes.margins(0.14, 0.2)
    _decade(axes)
    plain_ticks(axes.xaxis, 5)
    plain_ticks(axes.yaxis, 5)
    axes.set_title(model_name(scene.model), loc="left", weight="bold")
    axes.set_xlabel("Parameters of the model (millions)")
    axes.set_ylabel(f"Time a prompt (ms)\n{count([*model.values(), *guard.values()])}")
    axes.grid(True)


def _line(axes: Axes, found: Mapping[int, Pooled], marker: str, colour: str, size: float) -> None:
    for place, each in found.items():
        axes.plot([place / 1e6] * 2, [each.low, each.high], color=colour, lw=1.2, zorder=2)
    values = [each.value for each in found.values()]
    style = {"color": colour, "ms": size, "mew": 0, "lw": 0.9, "zorder": 3}
    axes.plot([place / 1e6 for place in found], values, marker=marker, **style)


def _share(axes: Axes, size: int, guard: Pooled, model: Pooled) -> None:
    share, side = 100 * guard.value / model.value, 1 if guard.value > model.value else -1
    end = guard.high if side > 0 else guard.low
    axes.annotate(
        f"{share:.0f} %" if share >= 10 else f"{share:.2g} %",
        (size / 1e6, end if end > 0 else guard.value),
        (0, 7 * side),
        textcoords="offset points",
        ha="center",
        va="bottom" if side > 0 else "top",
        color=CONTROL,
    )


def _decade(axes: Axes) -> None:
    """Widen both axes to a decade at least, so that each has ticks."""
    for low, high, put in ((*axes.get_xlim(), axes.set_xlim), (*axes.get_ylim(), axes.set_ylim)):
        middle, half = math.sqrt(low * high), max(math.sqrt(high / low), 4.0)
        put(middle / half, middle * half)
