"""The harmful experiment's figure: the harmful rate beside what tells a broken model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unlearn_lib import tables
from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.style import (
    BEFORE,
    BROKEN,
    CONTROL,
    DEGENERATE_LIMIT,
    PERPLEXITY_LIMIT,
    SOUND,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    draw_point,
    ends,
    legend,
    legend_mark,
    sign,
    wrapped,
)
from unlearn_lib.tables.common import Pooled
from unlearn_lib.tables.harmful import BASE, estimate


@dataclass(frozen=True)
class Panel:
    """One column of the figure: a metric, its axis label, unit factor, and what n counts."""

    metric: str
    label: str
    factor: float
    counts: str
    width: float
    limit: float | None = None


PANELS = (
    Panel("harmful_rate", "Harmful answers (%)\nto held-out prompts", 100, "prompts", 2.4),
    Panel("degenerate_share", "Degenerate\nanswers (%)", 100, "prompts", 1, 100 * DEGENERATE_LIMIT),
    Panel("perplexity_ratio", "Perplexity, retained\n(× before)", 1, "texts", 1, PERPLEXITY_LIMIT),
    Panel("similarity_original", "Similarity to\nbefore (cosine)", 1, "prompts", 1),
)


def harmful_rate_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the harmful rate before and after unlearning, beside what tells a broken model.

    One row of panels per model. `frame` is the tidy table; `labels` gives display names and order
    of methods. Rates in per cent, perplexity on retained text as a ratio to the original model,
    bars are 95 % intervals. A method that is not known to keep both limits (degenerate answers,
    perplexity) is drawn as a cross. Raises `CompanionError` that names the command which makes
    missing results.
    """
    rows = tables.harmful_rows(frame, profile_name=profile_name)
    methods = {BASE: "Before unlearning"} | tables.method_labels(rows, labels)
    shown = _models_and_methods(rows, list(methods))
    if not shown:
        raise CompanionError(f"No unlearned model to draw: {tables.remedy(profile_name)}.")
    with mpl.rc_context(STYLE):
        heights = [1.05 + 0.36 * len(present) for present in shown.values()]
        spacing = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05, wspace=0.03)
        figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 0.6), layout=spacing)
        shape = {"width_ratios": [panel.width for panel in PANELS], "height_ratios": heights}
        grid = figure.subplots(
            len(shown), len(PANELS), squeeze=False, sharey="row", gridspec_kw=shape
        )
        for line, (model, present) in zip(grid, shown.items(), strict=True):
            _model_row(line, rows, model, {name: methods[name] for name in present})
        _legend(figure)
        sign(figure, rows, profile_name, provenance)
    return figure


def _models_and_methods(rows: pd.DataFrame, methods: list[str]) -> dict[str, list[str]]:
    found = {
        model: [name for name in methods if estimate(rows, "harmful_rate", model, name)]
        for model in dict.fromkeys(rows["model"])
    }
    return {model: present for model, present in found.items() if len(present) > 1}


def _model_row(line: Any, rows: pd.DataFrame, model: str, methods: Mapping[str, str]) -> None:
    heights = {method: -place for place, method in enumerate(methods)}
    marks = {method: _mark(rows, model, method) for method in methods}
    for axes, panel in zip(line, PANELS, strict=True):
        found = {m: estimate(rows, panel.metric, model, m) for m in methods}
        scaled = {m: each.scaled(panel.factor) for m, each in found.items() if each}
        _limits(axes, panel, scaled)
        before = scaled.get(BASE)
        if panel.metric == "harmful_rate" and before:
            axes.axvspan(before.low, before.high, color="#d9d9d9", lw=0, zorder=0.5)
            axes.axvline(before.value, color="#8c8c8c", lw=0.8, zorder=0.6)
            _controls(axes, rows, model, heights)
        if panel.limit is not None:
            axes.axvline(panel.limit, color="#555555", lw=0.8, ls=(0, (4, 2)), zorder=0.6)
        for method, each in scaled.items():
            draw_point(axes, each, heights[method], *marks[method])
        axes.set_xlabel(f"{panel.label}\n{count(scaled.values(), panel.counts)}")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    line[0].set_yticks(list(heights.values()), [wrapped(label) for label in methods.values()])
    line[0].set_ylim(-len(methods) + 0.35, 0.6)
    line[0].set_title(model.rsplit("/", 1)[-1], loc="left", weight="bold")


def _mark(rows: pd.DataFrame, model: str, method: str) -> tuple[str, str]:
    if method == BASE:
        return "s", BEFORE
    degenerate = estimate(rows, "degenerate_share", model, method)
    ratio = estimate(rows, "perplexity_ratio", model, method)
    sound = (
        degenerate is not None
        and degenerate.value <= DEGENERATE_LIMIT
        and ratio is not None
        and ratio.value <= PERPLEXITY_LIMIT
    )
    return ("o", SOUND) if sound else ("X", BROKEN)


def _controls(axes: Axes, rows: pd.DataFrame, model: str, heights: Mapping[str, float]) -> None:
    for method, height in heights.items():
        found = estimate(rows, "harmful_rate_length_matched", model, method)
        if found:
            value, low, high = 100 * found.value, 100 * found.low, 100 * found.high
            lower = height - 0.3
            axes.set_xlim(right=max(axes.get_xlim()[1], min(100, max(value, high) + 4)))
            axes.plot([low, high], [lower, lower], color=CONTROL, lw=0.6, zorder=2)
            axes.plot(value, lower, "D", mfc="white", mec=CONTROL, ms=3.6, mew=0.8, zorder=2.5)


def _limits(axes: Axes, panel: Panel, found: Mapping[str, Pooled]) -> None:
    known = ends(found.values())
    lowest, highest = min(known, default=0.0), max(known, default=1.0)
    if panel.metric == "perplexity_ratio":
        left = -0.05 if lowest < 0.5 else min(0.9, lowest - 0.05)
        axes.set_xlim(left, min(2.05, max(1.55, highest + 0.05)))
        left, right = axes.get_xlim()
        ticks = [0, 1, 2] if left < 0.5 else [1, 1.5, 2] if right > 2 else [1, 1.5]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    elif panel.metric == "similarity_original":
        axes.set_xlim(min(0.0, lowest - 0.05), 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    elif panel.metric == "degenerate_share":
        axes.set_xlim(-0.03 * highest - 0.5, min(104, max(25, highest + 3)))
    else:
        axes.set_xlim(0, min(100, highest + 4))


def _legend(figure: Figure) -> None:
    limits = f"limits: {DEGENERATE_LIMIT:.0%} degenerate, {PERPLEXITY_LIMIT} × perplexity"
    handles = [
        legend_mark("s", BEFORE, "before unlearning"),
        Patch(color="#d9d9d9", lw=0, label="before, 95 % interval"),
        legend_mark("o", SOUND, "after, within limits"),
        legend_mark("X", BROKEN, "after, not within limits"),
        legend_mark("D", CONTROL, "before, cut to the length after", mfc="white", mew=0.8),
        Line2D([], [], color="#555555", lw=0.8, ls=(0, (4, 2)), label=limits.replace("%", " %")),
    ]
    legend(figure, handles)
