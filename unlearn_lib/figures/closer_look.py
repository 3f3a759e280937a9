"""The grid of experiment 4, A Closer Look: what is kept (MU) against what is forgotten (FE)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from unlearn_lib.figures.placing import Label, place_labels
from unlearn_lib.figures.style import (
    BEFORE,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    ends,
    legend_mark,
    settle,
    sign,
)
from unlearn_lib.tables.closer_look import (
    BASE,
    IMPLANTED,
    REFERENCE,
    STAGES,
    Part,
    closer_look_rows,
    parts,
)
from unlearn_lib.tables.common import Pooled

FAMILIES = {
    "ga": ("GA", "#D55E00"),
    "npo": ("NPO", "#E69F00"),
    "dpo": ("DPO", "#CC79A7"),
    "idk": ("IDK", "#0072B2"),
    "me": ("ME", "#009E73"),
}
RETAINS = {"gd": ("GD", "o"), "kl": ("KL", "D"), "ap": ("AP", "v")}
OTHER_FAMILY, OTHER_RETAIN = ("other", "#7F5FA8"), ("other", "P")
STAGE_MARKS = {BASE: "s", IMPLANTED: "^", REFERENCE: "*"}
STAGE_NAMES = {
    BASE: "base: untaught",
    IMPLANTED: "implanted: taught all",
    REFERENCE: "reference: retain only",
}
KEY_LINE, ALONE, BESIDE = 0.17, 2.6, 3.9
LEAST_SPAN = 0.2


@dataclass(frozen=True)
class Look:
    """How a method is drawn: colour by its forget loss, marker by its retain loss.

    Read from its name, such as `npo_kl`; what is no forget or retain loss of the paper is `other`.
    """

    method: str

    @property
    def colour(self) -> str:
        """The colour of the forget loss."""
        return FAMILIES.get(self.method.split("_")[0], OTHER_FAMILY)[1]

    @property
    def marker(self) -> str:
        """The marker of the retain loss."""
        return RETAINS.get(self.method.split("_")[-1], OTHER_RETAIN)[1]

    def handle(self, label: str) -> Line2D:
        """Return a legend's handle."""
        return legend_mark(self.marker, self.colour, label, mew=0)


def short(names: Mapping[str, str]) -> dict[str, str]:
    """Cut display names before a bracket, where they stay apart."""
    cut = {who: label.split(" (")[0] for who, label in names.items()}
    twice = [label for label in cut.values() if list(cut.values()).count(label) > 1]
    return {who: names[who] if label in twice else label for who, label in cut.items()}


def methods_in(found: Iterable[Part], labels: Mapping[str, str] | None) -> dict[str, str]:
    """Return the methods of some parts and their short names, in the order of `labels`."""
    shown = {who: name for part in found for who, name in part.shown(labels).items()}
    ordered = [*(labels or {}), *shown]
    return short({who: shown[who] for who in ordered if who in shown and who not in STAGES})


def model_name(model: str) -> str:
    """Return a model's name without its owner."""
    return model.rsplit("/", 1)[-1]


def closer_look_grid_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw forget efficacy FE against model utility MU: up and right is better.

    For each model a large panel (the fictitious authors, where they were run) and a small one for
    each other scenario; a numbered point per method with 95 % bars both ways, and the models
    before and the exact reference in grey. `frame` is the tidy table; `labels` gives display
    names and order of methods. Raises `CompanionError` that names the command which makes missing
    results.
    """
    rows = closer_look_rows(frame, profile_name)
    found = parts(rows)
    names = methods_in(found, labels)
    numbers = {who: number for number, who in enumerate(names, 1)}
    models = dict.fromkeys(part.model for part in found)
    groups = [[part for part in found if part.model == model] for model in models]
    with mpl.rc_context(STYLE):
        present = {stage for part in found for stage in STAGES if stage in part.shown()}
        figure, grid = _canvas(groups, names, present)
        drawn = [
            pair
            for line, group in enumerate(groups)
            for pair in _model_row(grid, line, group, numbers)
        ]
        _grid_legend(figure, names)
        sign(figure, rows, profile_name, provenance, "questions")
        settle(figure)
        for axes, points in drawn:
            place_labels(axes, points)
    return figure


def _canvas(
    groups: list[list[Part]], names: Mapping[str, str], stages: Iterable[str]
) -> tuple[Figure, GridSpec]:
    handles = [Look(who).handle(f"{n}  {name}") for n, (who, name) in enumerate(names.items(), 1)]
    handles += _stage_handles(stages)
    columns = 4 if max(map(len, names.values())) <= 20 else 3
    lines = math.ceil(len(handles) / columns)
    heights = [BESIDE if len(group) > 1 else ALONE for group in groups] + [KEY_LINE * lines]
    spacing = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.03, hspace=0)
    figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 0.8), layout=spacing)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    axes = figure.add_subplot(grid[-1, :])
    axes.axis("off")
    place = {"loc": "center", "ncols": columns, "frameon": False, "borderpad": 0}
    key = axes.legend(handles=handles, handlelength=1, labelspacing=0.3, **place)
    key.set_in_layout(False)
    return figure, grid


def _model_row(
    grid: GridSpec, line: int, found: list[Part], numbers: Mapping[str, int]
) -> list[tuple[Axes, list[Label]]]:
    first, *others = found
    height = max(1, len(others))
    shape = {"width_ratios": [1.75, 1]} if others else {}
    inner = GridSpecFromSubplotSpec(
        height, 1 + bool(others), subplot_spec=grid[line, 0], hspace=0, **shape
    )
    figure = grid.figure
    large = figure.add_subplot(inner[:, 0])
    large.set_title(model_name(first.model), loc="right", size=8)
    drawn = [(large, _panel(large, first, numbers))]
    large.set_xlabel(f"Model utility {large.get_xlabel()}")
    large.set_ylabel(f"Forget efficacy {large.get_ylabel()}")
    for place, part in enumerate(others):
        axes = figure.add_subplot(inner[place, 1])
        drawn.append((axes, _panel(axes, part, numbers)))
    return drawn


def _panel(axes: Axes, part: Part, numbers: Mapping[str, int]) -> list[Label]:
    both = {who: (part.of("mu", "all", who), part.of("fe", "forget", who)) for who in part.shown()}
    points = {who: (mu, fe) for who, (mu, fe) in both.items() if mu and fe}
    mus, fes = ([pair[end] for pair in points.values()] for end in (0, 1))
    axes.set_xlim(*_limits(mus))
    axes.set_ylim(*_limits(fes))
    labels = [_point(axes, who, mu, fe, numbers) for who, (mu, fe) in points.items()]
    axes.set_title(part.title, loc="left", weight="bold")
    axes.set_xlabel(f"MU →  {count(mus)}")
    axes.set_ylabel(f"FE →  {count(fes)}")
    axes.grid(True)
    return labels


def _limits(found: Iterable[Pooled]) -> tuple[float, float]:
    known = ends(found) or [0.0, 1.0]
    low, high = min(known), max(known)
    pad = max(0.06 * (high - low), 0.5 * (LEAST_SPAN - high + low))
    return max(low - pad, -0.05), min(high + pad, 1.05)


def _point(axes: Axes, who: str, mu: Pooled, fe: Pooled, numbers: Mapping[str, int]) -> Label:
    look = Look(who)
    marker, colour = (STAGE_MARKS[who], BEFORE) if who in STAGES else (look.marker, look.colour)
    bars = {"color": colour, "lw": 0.8, "alpha": 0.45, "zorder": 2}
    axes.plot([mu.low, mu.high], [fe.value, fe.value], **bars)
    axes.plot([mu.value, mu.value], [fe.low, fe.high], **bars)
    style: dict[str, Any] = {"ms": 6, "mew": 0.5, "mec": "white", "zorder": 4}
    if who in STAGES:
        size = 12 if marker == "*" else 8
        style = {"ms": size, "mew": 1.1, "mfc": "white", "zorder": 3}
    axes.plot(mu.value, fe.value, marker, color=colour, clip_on=False, **style)
    ends_across, ends_up = (mu.low, mu.high), (fe.low, fe.high)
    return Label(mu.value, fe.value, numbers.get(who), ends_across, ends_up)


def _stage_handles(present: Iterable[str]) -> list[Line2D]:
    hollow = {"mfc": "white", "mew": 1.1}
    return [
        legend_mark(STAGE_MARKS[stage], BEFORE, STAGE_NAMES[stage], **hollow)
        for stage in STAGES
        if stage in present
    ]


def _grid_legend(figure: Figure, methods: Iterable[str]) -> None:
    """Explain colours in the first line and markers in the second, those that are drawn."""
    looks = [Look(method) for method in methods]
    colours, markers = {look.colour for look in looks}, {look.marker for look in looks}
    families, retains = [*FAMILIES.values(), OTHER_FAMILY], [*RETAINS.values(), OTHER_RETAIN]
    lines = [
        [legend_mark("o", c, name, mew=0) for name, c in families if c in colours],
        [legend_mark(m, "#777777", name, mew=0) for name, m in retains if m in markers],
    ]
    longest = max(map(len, lines))
    for title, line in zip(("Forget", "Retain"), lines, strict=True):
        line.insert(0, Line2D([], [], ls="", label=f"{title} loss:"))
        line += [Line2D([], [], ls="", label="")] * (1 + longest - len(line))
    handles = [handle for column in zip(*lines, strict=True) for handle in column]
    place = {"loc": "outside upper center", "ncols": 1 + longest, "frameon": False}
    figure.legend(handles=handles, handletextpad=0.3, handlelength=1.2, **place)
