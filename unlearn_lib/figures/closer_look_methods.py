"""The overview of experiment 4: every measure of every method, fictitious authors."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.book import spaced
from unlearn_lib.figures.closer_look import STAGE_MARKS, model_name, short
from unlearn_lib.figures.style import (
    BAND,
    BAND_LINE,
    BEFORE,
    BROKEN,
    CONTROL,
    DEGENERATE_LIMIT,
    FLOOR,
    SOUND,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    draw_point,
    legend,
    legend_mark,
    set_p_values,
    sign,
)
from unlearn_lib.tables.closer_look import (
    KEPT,
    REFERENCE,
    STAGES,
    Part,
    closer_look_rows,
    parts,
)
from unlearn_lib.tables.common import Pooled, remedy

ROW_HEIGHT = 0.17
MOST_COLUMNS = 7


@dataclass(frozen=True)
class Measure:
    """One column: a metric, its axis label, its splits (the second one hollow), a log scale."""

    metric: str
    label: str
    splits: tuple[str, ...] = ("forget",)
    logarithmic: bool = False


MEASURES = (
    Measure("rougeL_recall", "ROUGE-L\nrecall"),
    Measure("probability", "Probability\n"),
    Measure("truth_ratio", "Truth\nratio"),
    Measure("entailment", "Entailment\n"),
    Measure("cosine_similarity", "Cosine\nsimilarity"),
    Measure("token_entropy", "Token\nentropy"),
    Measure("extraction_strength", "Extraction\nstrength"),
    Measure("hallucinated_share", "Halluci-\nnated"),
    Measure("refusal_share", "Refusals\n", ("forget", KEPT)),
    Measure("forget_quality", "log₁₀ forget\nquality (p)", logarithmic=True),
    Measure("model_utility", "Model\nutility →", ("all",)),
    Measure("mu", "MU →\n", ("all",)),
    Measure("fe", "FE →\n"),
)


def closer_look_methods_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw every measure of the models before, the reference and each method, with 95 % bars.

    Of the fictitious scenario; two rows of panels per model, first what is answered on the forget
    set. Scales run from 0 to 1, save forget quality: the logarithm of a p-value, where an arrow
    stands for one below 1e-12. A measure that nobody has loses its panel. `frame` is the tidy
    table; `labels` gives display names and order of methods. Raises `CompanionError` that names
    the command which makes missing results.
    """
    rows = closer_look_rows(frame, profile_name)
    found = [part for part in parts(rows) if part.scenario == "fictitious"]
    if not found:
        raise CompanionError(f"No fictitious authors were forgotten: {remedy(profile_name)}.")
    measures = [each for each in MEASURES if any(_has(part, each) for part in found)]
    columns = MOST_COLUMNS if len(measures) > MOST_COLUMNS else len(measures)
    lines = [measures[start : start + columns] for start in range(0, len(measures), columns)]
    shown = [short(part.shown(labels)) for part in found]
    with mpl.rc_context(STYLE):
        heights = [0.75 + ROW_HEIGHT * len(names) for names in shown for _ in lines]
        spacing = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05, wspace=0.02)
        figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 0.75), layout=spacing)
        grid = figure.subplots(
            len(heights), columns, squeeze=False, sharey="row",
            gridspec_kw={"height_ratios": heights},
        )  # fmt: skip
        for place, axes_row in enumerate(grid):
            part, names = found[place // len(lines)], shown[place // len(lines)]
            _line(axes_row, part, names, lines[place % len(lines)])
            if place % len(lines) == 0:
                axes_row[0].set_title(model_name(part.model), loc="left", weight="bold")
        _methods_legend(figure, {stage for names in shown for stage in STAGES if stage in names})
        sign(figure, rows, profile_name, provenance, "questions")
    return figure


def _has(part: Part, measure: Measure) -> bool:
    rows = part.rows
    return bool(rows.loc[rows["metric"].eq(measure.metric), "value"].notna().any())


def _line(grid: list[Axes], part: Part, names: Mapping[str, str], measures: list[Measure]) -> None:
    heights = {who: -float(place) for place, who in enumerate(names)}
    marks = {who: _mark(part, who) for who in names}
    for axes, measure in zip(grid, measures):
        _measure_panel(axes, part, measure, heights, marks)
    for axes in grid[len(measures) :]:
        axes.remove()
    grid[0].set_yticks(list(heights.values()), list(names.values()))
    grid[0].set_ylim(-len(names) + 0.4, 0.6)


def _mark(part: Part, who: str) -> tuple[str, str]:
    if who in STAGES:
        return STAGE_MARKS[who], BEFORE
    found = [part.of("degenerate_share", split, who) for split in ("forget", KEPT)]
    known = [each.value for each in found if each]
    sound = known and max(known) <= DEGENERATE_LIMIT
    return ("o", SOUND) if sound else ("X", BROKEN)


def _measure_panel(
    axes: Axes,
    part: Part,
    measure: Measure,
    heights: Mapping[str, float],
    marks: Mapping[str, tuple[str, str]],
) -> None:
    first, *others = measure.splits
    found = {who: each for who in heights if (each := part.of(measure.metric, first, who))}
    _scale(axes, measure, [each.value for each in found.values()])
    exact = found.get(REFERENCE)
    if exact and not measure.logarithmic:
        axes.axvspan(exact.low, exact.high, color=BAND, lw=0, zorder=0.5)
        axes.axvline(exact.value, color=BAND_LINE, lw=0.8, zorder=0.6)
    kept = {who: each for split in others for who in heights
            if (each := part.of(measure.metric, split, who))}  # fmt: skip
    for who, each in kept.items():
        _hollow(axes, each, heights[who] - 0.25)
    for who, each in found.items():
        lift = 0.15 if others else 0.0
        if measure.logarithmic:
            _quality(axes, each, heights[who], *marks[who])
        else:
            draw_point(axes, each, heights[who] + lift, *marks[who], unit="")
    axes.set_xlabel(f"{measure.label}\n{count([*found.values(), *kept.values()])}")
    axes.grid(axis="x")
    axes.grid(axis="y", color="#f3f3f3")
    axes.tick_params(axis="y", length=0)


def _scale(axes: Axes, measure: Measure, known: Iterable[float]) -> None:
    if measure.logarithmic:
        set_p_values(axes, known)
    else:
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _quality(axes: Axes, found: Pooled, height: float, marker: str, colour: str) -> None:
    if found.value < FLOOR:
        axes.plot(FLOOR, height, "<", color=colour, ms=5, mew=0, zorder=3)
    else:
        draw_point(axes, found, height, marker, colour, unit="")


def _hollow(axes: Axes, found: Pooled, height: float) -> None:
    if not (math.isnan(found.low) or math.isnan(found.high)):
        axes.plot([found.low, found.high], [height, height], color=CONTROL, lw=0.6, zorder=2)
    style = {"mfc": "white", "mec": CONTROL, "mew": 0.7, "ms": 3, "zorder": 2.5}
    axes.plot(found.value, height, "D", **style)


def _methods_legend(figure: Figure, present: set[str]) -> None:
    limit = spaced(f"{DEGENERATE_LIMIT:.0%}")
    handles = [
        *(legend_mark(STAGE_MARKS[each], BEFORE, each) for each in STAGES if each in present),
        legend_mark("o", SOUND, f"unlearned, degenerate ≤ {limit}"),
        legend_mark("X", BROKEN, "unlearned, more degenerate"),
        legend_mark("D", CONTROL, "refusals on retain", mfc="white", mew=0.7),
        legend_mark("<", CONTROL, "forget quality p < 1e-12"),
    ]
    if REFERENCE in present:
        handles.append(Patch(color=BAND, lw=0, label="reference, 95 % interval"))
    legend(figure, handles)
