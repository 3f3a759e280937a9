"""The book experiment's figures: what is forgotten against what is kept, and every measure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.style import (
    BAND,
    BAND_LINE,
    BEFORE,
    BROKEN,
    CONTROL,
    DEGENERATE_LIMIT,
    LIMIT,
    SOUND,
    STYLE,
    WIDTH_INCHES,
    Picture,
    count,
    draw_point,
    ends,
    legend,
    legend_mark,
    plain_ticks,
    sign,
    wrapped,
)
from unlearn_lib.tables.book import (
    BASE,
    IMPLANTED,
    book_rows,
    estimate,
    shown_models,
)
from unlearn_lib.tables.common import Pooled, remedy

PERPLEXITY_SPAN = 1000
STAGES = {BASE: "Base: never taught", IMPLANTED: "Implanted: taught"}
ANSWERED = ("forget", "kept", "normal")
COUNTED = "passages or prompts"
STAGE_MARKS = {BASE: "s", IMPLANTED: "^"}


@dataclass(frozen=True)
class Reading:
    """The numbers of one model."""

    rows: pd.DataFrame
    model: str

    def of(self, metric: str, split: str, who: str, factor: float = 1) -> Pooled | None:
        """Return a pooled number; the base's similarity to its own answers is 1."""
        found = estimate(self.rows, metric, split, self.model, who)
        if found is None and (metric, who) == ("similarity_original", BASE):
            found = Pooled(1.0, math.nan, math.nan, None, 1)
        return found and found.scaled(factor)

    def marks(self, names: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Return marker and colour of each; a cross unless few degenerate answers are known.

        Few: at most `DEGENERATE_LIMIT`, or no more than the base model's interval reaches to: a
        small base model may loop on strange prose by itself.
        """
        base = self._degenerate(BASE)
        limits = {split: max(DEGENERATE_LIMIT, each.high) for split, each in base.items()}
        marks = {}
        for who in names:
            known = {} if who in STAGE_MARKS else self._degenerate(who)
            sound = known and all(
                each.value <= limits.get(split, DEGENERATE_LIMIT) for split, each in known.items()
            )
            marks[who] = ("o", SOUND) if sound else ("X", BROKEN)
        return marks | {who: (STAGE_MARKS[who], BEFORE) for who in marks if who in STAGE_MARKS}

    def _degenerate(self, who: str) -> dict[str, Pooled]:
        found = {split: self.of("degenerate_share", split, who) for split in ANSWERED}
        return {split: each for split, each in found.items() if each}


@dataclass(frozen=True)
class Measure:
    """One column of the overview: a metric on its splits, axis label, unit factor and width."""

    metric: str
    splits: tuple[str, ...]
    label: str
    factor: float = 1
    width: float = 1
    base_band: bool = False


MEASURES = (
    Measure("verbatim_share", ("forget", "kept"), "Verbatim\nshare (%)", 100, 1.5, True),
    Measure("similarity_text", ("forget",), "Similarity to\nbook (cosine)", base_band=True),
    Measure("perplexity", ("forget",), "Perplexity\nof book", base_band=True),
    Measure("similarity_original", ("normal",), "Similarity to\nbase (cosine)"),
    Measure("degenerate_share", ("forget", "kept", "normal"), "Degenerate\nanswers (%)", 100),
)
BELOW = {"kept": ("D", 3.4), "normal": ("o", 3.6)}


def prepared(
    frame: pd.DataFrame, profile_name: str, labels: Mapping[str, str] | None
) -> tuple[pd.DataFrame, dict[str, dict[str, str]]]:
    rows = book_rows(frame, profile_name)
    found = shown_models(rows, labels)
    shown = {
        model: {who: STAGES.get(who, label) for who, label in present.items()}
        for model, present in found.items()
        if set(present) - set(STAGES)
    }
    if not shown:
        raise CompanionError(f"No unlearned model to draw: {remedy(profile_name)}.")
    return rows, shown


def measured(rows: pd.DataFrame, metric: str, splits: Iterable[str]) -> bool:
    chosen = rows["scenario"].eq("text") & rows["metric"].eq(metric) & rows["split"].isin(splits)
    return bool(rows.loc[chosen, "value"].notna().any())


def method_marks() -> list[Line2D]:
    limit = spaced(f"{DEGENERATE_LIMIT:.0%}")
    return [
        legend_mark("o", SOUND, f"unlearned, degenerate ≤ {limit} or as base"),
        legend_mark("X", BROKEN, "unlearned, more degenerate"),
    ]


def spaced(text: str) -> str:
    return text.replace("%", " %")


def book_methods_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw every measure of the base, the implanted model and each method, with 95 % bars.

    One row of panels per model; a measure that nobody has loses its panel. `frame` is the tidy
    table; `labels` gives display names and order of methods. Raises `CompanionError` that names
    the command which makes missing results.
    """
    rows, shown = prepared(frame, profile_name, labels)
    measures = [each for each in MEASURES if measured(rows, each.metric, each.splits)]
    with mpl.rc_context(STYLE):
        heights = [1.0 + _row_height(present) * len(present) for present in shown.values()]
        spacing = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05, wspace=0.03)
        figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 0.6), layout=spacing)
        shape = {"width_ratios": [each.width for each in measures], "height_ratios": heights}
        grid = figure.subplots(
            len(shown), len(measures), squeeze=False, sharey="row", gridspec_kw=shape
        )
        for line, (model, present) in zip(grid, shown.items(), strict=True):
            places = {who: -float(place) for place, who in enumerate(present)}
            reading = Reading(rows, model)
            marks = reading.marks(places)
            for axes, measure in zip(line, measures, strict=True):
                _measure_panel(axes, reading, measure, places, marks)
            line[0].set_yticks(list(places.values()), [wrapped(each) for each in present.values()])
            line[0].set_ylim(-len(present) + 0.3, 0.6)
            line[0].set_title(model.rsplit("/", 1)[-1], loc="left", weight="bold")
        _methods_legend(figure, kept=measured(rows, "verbatim_share", ["kept"]))
        sign(figure, rows, profile_name, provenance, COUNTED)
    return figure


def _row_height(present: Mapping[str, str]) -> float:
    return max(0.36, *(0.15 * (1 + wrapped(label).count("\n")) for label in present.values()))


def _measure_panel(
    axes: Axes,
    reading: Reading,
    measure: Measure,
    places: Mapping[str, float],
    marks: Mapping[str, tuple[str, str]],
) -> None:
    found = {
        (who, split): each
        for who in places
        for split in measure.splits
        if (each := reading.of(measure.metric, split, who, measure.factor))
    }
    _measure_limits(axes, measure, found)
    base = found.get((BASE, measure.splits[0]))
    if base and measure.base_band:
        axes.axvspan(base.low, base.high, color=BAND, lw=0, zorder=0.5)
        axes.axvline(base.value, color=BAND_LINE, lw=0.8, zorder=0.6)
    if measure.metric == "degenerate_share":
        limit = 100 * DEGENERATE_LIMIT
        axes.axvline(limit, color=LIMIT, lw=0.8, ls=(0, (4, 2)), zorder=0.6)
    for (who, split), each in found.items():
        below = 0.22 * measure.splits.index(split)
        if below:
            _hollow_point(axes, each, places[who] - below, *BELOW[split])
        else:
            draw_point(axes, each, places[who], *marks[who], unit="")
    axes.set_xlabel(f"{measure.label}\n{count(found.values())}")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)


def _hollow_point(axes: Axes, found: Pooled, height: float, marker: str, size: float) -> None:
    axes.plot([found.low, found.high], [height, height], color=CONTROL, lw=0.6, zorder=2)
    style = {"mfc": "white", "mec": CONTROL, "mew": 0.8, "ms": size, "zorder": 2.5}
    axes.plot(found.value, height, marker, **style)


def _measure_limits(axes: Axes, measure: Measure, found: Mapping[tuple[str, str], Pooled]) -> None:
    known = ends(found.values())
    if measure.metric == "perplexity":
        axes.set_xscale("log")
        low = min((end for end in known if end > 0), default=1.0)
        high = min(max(known, default=10.0), PERPLEXITY_SPAN * low)
        axes.set_xlim(low / 1.3, max(1.3 * high, 12 * low))
        plain_ticks(axes.xaxis, 3)
    elif measure.factor == 100:
        highest = max(known, default=0.0)
        axes.set_xlim(-0.03 * highest - 0.5, min(107, max(25, highest + 7)))
    else:
        axes.set_xlim(min([0.0, *(end - 0.05 for end in known)]), 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])


def _methods_legend(figure: Figure, kept: bool) -> None:
    hollow = {"mfc": "white", "mew": 0.8}
    limit = spaced(f"limit: {DEGENERATE_LIMIT:.0%} degenerate")
    handles = [
        legend_mark("s", BEFORE, "base"),
        legend_mark("^", BEFORE, "implanted"),
        Patch(color=BAND, lw=0, label="base, 95 % interval"),
        *method_marks(),
        Line2D([], [], color=LIMIT, lw=0.8, ls=(0, (4, 2)), label=limit),
        *([legend_mark("D", CONTROL, "the same, chapters to keep", **hollow)] if kept else []),
        legend_mark("o", CONTROL, "the same, normal prompts", **hollow),
    ]
    legend(figure, handles)
