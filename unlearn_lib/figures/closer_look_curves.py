"""Curves of experiment 4: MU and FE from task to task, and the entropy of maximising it."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.closer_look import Look, methods_in, model_name
from unlearn_lib.figures.style import (
    BAND,
    BAND_LINE,
    DASHES,
    LIMIT,
    SERIES,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    ends,
    sign,
)
from unlearn_lib.tables.closer_look import IMPLANTED, Part, closer_look_rows, parts, tasks
from unlearn_lib.tables.common import Pooled, remedy

SCORES = {"mu": ("all", "Model utility MU →"), "fe": ("forget", "Forget efficacy FE →")}
SPREAD = 0.3
MOST_TICKS = 10


def closer_look_continual_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw MU and FE after each task of continual unlearning, a line a method with 95 % bars.

    One row of panels per model. The grey band is the implanted model's MU before the first task;
    its FE stands there too, on the first task's questions (from the fictitious scenario). `frame`
    is the tidy table; `labels` gives display names and order of methods. Raises `CompanionError`
    that names the command which makes missing results.
    """
    rows = closer_look_rows(frame, profile_name)
    found = {model: tasks(rows, model) for model in dict.fromkeys(rows["model"])}
    found = {model: each for model, each in found.items() if each}
    if not found:
        raise CompanionError(f"Nothing was unlearned task by task: {remedy(profile_name)}.")
    names = methods_in([part for each in found.values() for part in each.values()], labels)
    before = {part.model: part for part in parts(rows) if part.scenario == "fictitious"}
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH_INCHES, 2.5 * len(found) + 0.9), layout="constrained")
        grid = figure.subplots(len(found), len(SCORES), squeeze=False)
        banded = False
        for line, (model, numbered) in zip(grid, found.items(), strict=True):
            for axes, metric in zip(line, SCORES, strict=True):
                banded |= _task_panel(axes, metric, numbered, before.get(model), names)
            line[0].set_title(model_name(model), loc="left", weight="bold")
        _lines_legend(figure, names, banded)
        sign(figure, rows, profile_name, provenance, "questions")
    return figure


def _task_panel(
    axes: Axes,
    metric: str,
    numbered: Mapping[int, Part],
    before: Part | None,
    names: Mapping[str, str],
) -> bool:
    split, label = SCORES[metric]
    every: list[Pooled] = []
    for place, who in enumerate(names):
        each = {task: part.of(metric, split, who) for task, part in numbered.items()}
        known = {task: value for task, value in each.items() if value}
        shift = SPREAD * (place / max(1, len(names) - 1) - 0.5)
        _line(axes, who, place, known, shift)
        every += known.values()
    implanted = before.of(metric, split, IMPLANTED) if before else None
    if implanted:
        axes.axhspan(implanted.low, implanted.high, color=BAND, lw=0, zorder=0.5)
        axes.axhline(implanted.value, color=BAND_LINE, lw=0.8, zorder=0.6)
    known_ends = ends([*every, *([implanted] if implanted else [])]) or [0.0, 1.0]
    pad = max(0.05 * (max(known_ends) - min(known_ends)), 0.02)
    axes.set_ylim(min(known_ends) - pad, max(known_ends) + pad)
    axes.set_xlim(min(numbered) - 0.4, max(numbered) + 0.4)
    if len(numbered) <= MOST_TICKS:
        axes.set_xticks(list(numbered))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("After task")
    axes.set_ylabel(f"{label}\n{count(every)}")
    axes.grid(axis="y")
    return implanted is not None


def _line(axes: Axes, who: str, place: int, known: Mapping[int, Pooled], shift: float) -> None:
    look = Look(who)
    across = [task + shift for task in known]
    for x, each in zip(across, known.values(), strict=True):
        axes.plot([x, x], [each.low, each.high], color=look.colour, lw=0.9, alpha=0.6, zorder=2)
    style = {"ls": DASHES[place % len(DASHES)], "lw": 1, "ms": 5, "mew": 0.5, "mec": "white"}
    values = [each.value for each in known.values()]
    axes.plot(across, values, marker=look.marker, color=look.colour, zorder=3, **style)


def _lines_legend(figure: Figure, names: Mapping[str, str], banded: bool) -> None:
    handles: list[Line2D | Patch] = []
    for place, (who, name) in enumerate(names.items()):
        look, dashes = Look(who), DASHES[place % len(DASHES)]
        style = {"ls": dashes, "lw": 1, "ms": 5, "mew": 0.5, "mec": "white"}
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, label=name, **style))
    if banded:
        handles.append(Patch(color=BAND, lw=0, label="implanted, 95 % interval"))
    place_of = {"loc": "outside upper center", "frameon": False, "ncols": 4 + (len(handles) == 5)}
    figure.legend(handles=handles, handlelength=2.6, **place_of)


def entropy_curve_figure(history: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw how the entropy of the answers' next-token distributions grows while it is maximised.

    `history` maps a method's display name to a frame with the columns step and entropy, a share
    of log V from 0 to 1 (V: size of the vocabulary); 1 is the uniform distribution that ME aims
    at. Rows without an entropy are left out. Raises `CompanionError` without a history, and for
    one that lacks a column or has no number.
    """
    if not history:
        raise CompanionError("There is no entropy to draw: unlearn with one ME method first.")
    for label, each in history.items():
        for column in ("step", "entropy"):
            if column not in each.columns:
                raise CompanionError(f"The history of {label} has no column {column}.")
        if not each["entropy"].notna().any():
            raise CompanionError(f"The history of {label} has no number in column entropy.")
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH_INCHES, 2.5), layout="constrained")
        axes = figure.subplots()
        axes.axhline(1, color=LIMIT, lw=0.9, ls=(0, (4, 2)), zorder=1)
        axes.annotate(
            "uniform", (0, 1), (4, 2), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="bottom",
        )  # fmt: skip
        for place, (label, each) in enumerate(history.items()):
            known = each[each["entropy"].notna()]
            style = {"color": SERIES[place % len(SERIES)], "ls": DASHES[place % len(DASHES)]}
            axes.plot(known["step"], known["entropy"], "o", ms=3, mew=0, label=label, **style)
        axes.set_ylim(-0.02, 1.12)
        axes.set_xlabel("Step")
        axes.set_ylabel("Entropy, share of log V")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y")
        handles, _ = axes.get_legend_handles_labels()
        place_of = {"loc": "outside upper center", "ncols": min(4, len(handles))}
        figure.legend(handles=handles, frameon=False, handlelength=2.6, **place_of)
    return figure
