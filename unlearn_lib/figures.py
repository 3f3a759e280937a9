"""Figures as the papers would print them, drawn from the tidy table alone; nothing here trains.

`draw_all` is what `python -m unlearn_lib figures` and the notebooks call. Each figure is saved as
PNG, SVG and PDF with a JSON of provenance beside it; the same tidy table gives the same bytes.
Seeds are pooled as `unlearn_lib.tables.estimate` says. Figures are plain `Figure` objects, so
that no backend is forced on a notebook.
"""

import io
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
from unlearn_lib.tables import BASE, Pooled, estimate

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#444444",
    "xtick.major.width": 0.6,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "svg.hashsalt": "unlearning",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
WIDTH_INCHES = 7.2
DEGENERATE_LIMIT = 0.10
PERPLEXITY_LIMIT = 1.25
BEFORE, SOUND, BROKEN, CONTROL = "#333333", "#0072B2", "#D55E00", "#333333"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
LOSSES = {"forget": "Forget", "mismatch": "Mismatch", "retain": "Retain", "total": "Weighted sum"}


class Picture(Figure):
    """A figure that a notebook can display without pyplot or a backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()


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
        heights = [1.05 + 0.3 * len(present) for present in shown.values()]
        spacing = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05, wspace=0.03)
        figure = Picture(figsize=(WIDTH_INCHES, sum(heights) + 0.6), layout=spacing)
        shape = {"width_ratios": [panel.width for panel in PANELS], "height_ratios": heights}
        grid = figure.subplots(
            len(shown), len(PANELS), squeeze=False, sharey="row", gridspec_kw=shape
        )
        for line, (model, present) in zip(grid, shown.items(), strict=True):
            _model_row(line, rows, model, {name: methods[name] for name in present})
        _legend(figure)
        figure.supxlabel(
            footer(rows, profile_name, provenance), x=0.995, ha="right", size=8, color="#555555"
        )
    return figure


def _models_and_methods(rows: pd.DataFrame, methods: list[str]) -> dict[str, list[str]]:
    found = {
        model: [name for name in methods if estimate(rows, "harmful_rate", model, name)]
        for model in dict.fromkeys(rows["model"])
    }
    return {model: present for model, present in found.items() if len(present) > 1}


def _wrapped(label: str) -> str:
    if len(label) > 22 and " (" in label:
        return label.replace(" (", "\n(", 1)
    return textwrap.fill(label, 26)


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
            _point(axes, each, heights[method], *marks[method])
        axes.set_xlabel(f"{panel.label}\n{_count(scaled, panel.counts)}")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    line[0].set_yticks(list(heights.values()), [_wrapped(label) for label in methods.values()])
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


def _point(axes: Axes, found: Pooled, height: float, marker: str, colour: str) -> None:
    left, right = axes.get_xlim()
    if not found.value <= right:
        text = f"{found.value:.2g}×" if math.isfinite(found.value) else "∞"
        axes.plot(right, height, ">", color=colour, ms=5, clip_on=False, zorder=3)
        axes.annotate(
            text.replace("e+0", "e"),
            (right, height),
            (-6, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "lw": 0},
        )
        return
    if not (math.isnan(found.low) or math.isnan(found.high)):
        low, high = max(found.low, left), min(found.high, right)
        axes.plot([low, high], [height, height], color=colour, lw=1.3, zorder=2)
    size = 6.5 if marker == "X" else 5
    axes.plot(found.value, height, marker, color=colour, ms=size, mew=0, zorder=3)


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
    ends = [end for e in found.values() for end in (e.low, e.value, e.high) if math.isfinite(end)]
    lowest, highest = min(ends, default=0.0), max(ends, default=1.0)
    if panel.metric == "perplexity_ratio":
        axes.set_xlim(min(0.9, lowest - 0.05), min(2.05, max(1.55, highest + 0.05)))
        axes.set_xticks([1, 1.5, 2] if axes.get_xlim()[1] > 2 else [1, 1.25, 1.5])
    elif panel.metric == "similarity_original":
        axes.set_xlim(min(0.0, lowest - 0.05), 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    elif panel.metric == "degenerate_share":
        axes.set_xlim(-0.03 * highest - 0.5, min(104, max(25, highest + 3)))
    else:
        axes.set_xlim(0, min(100, highest + 4))


def _count(found: Mapping[str, Pooled], counts: str) -> str:
    known = sorted({each.n for each in found.values() if each.n is not None})
    if not known:
        return ""
    return f"n = {'–'.join(str(n) for n in dict.fromkeys([known[0], known[-1]]))} {counts}"


def _legend(figure: Figure) -> None:
    def dot(marker: str, colour: str, label: str, **more: Any) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=colour, ms=5, label=label, **more)

    limits = f"limits: {DEGENERATE_LIMIT:.0%} degenerate, {PERPLEXITY_LIMIT} × perplexity"
    handles = [
        dot("s", BEFORE, "before unlearning"),
        Patch(color="#d9d9d9", lw=0, label="before, 95 % interval"),
        dot("o", SOUND, "after, within limits"),
        dot("X", BROKEN, "after, not within limits"),
        dot("D", CONTROL, "before, cut to the length after", mfc="white", mew=0.8),
        Line2D([], [], color="#555555", lw=0.8, ls=(0, (4, 2)), label=limits.replace("%", " %")),
    ]
    place = {"loc": "outside upper center", "ncols": 3, "frameon": False}
    figure.legend(handles=handles, handletextpad=0.4, handlelength=1.5, **place)


def footer(rows: pd.DataFrame, profile_name: str, provenance: Mapping[str, Any] | None) -> str:
    """Return `profile laptop · commit abc1234 · seeds 3`; a changed tree is marked `+`.

    The commit and the mark are those of `provenance["git"]`, as `unlearn_lib.runs` records them.
    """
    git = (provenance or {}).get("git") or {}
    commit = f"{git.get('commit') or 'unknown'}"[:7] + ("+" if git.get("dirty") else "")
    unlearned = rows[rows["stage"].eq("unlearned") & rows["metric"].eq("harmful_rate")]
    seeds = unlearned["seed"].astype(str).nunique()
    return f"profile {profile_name or 'unnamed'} · commit {commit} · seeds {seeds}"


def loss_curves_figure(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each part of the unlearning loss against the step, one line per method.

    `histories` maps a method's display name to a frame with columns step and any of forget,
    mismatch, retain, total; a part that a method lacks is left out of its panel, a part that none
    has loses its panel. Raises `CompanionError` without a history or without a step column.
    """
    if not histories:
        raise CompanionError("There is no loss history to draw: unlearn with one method first.")
    for label, history in histories.items():
        if "step" not in history.columns:
            raise CompanionError(f"The loss history of {label} has no column step.")
    parts = [part for part in LOSSES if any(_has(each, part) for each in histories.values())]
    if not parts:
        raise CompanionError(f"The loss histories have none of the columns {', '.join(LOSSES)}.")
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH_INCHES, 2.3), layout="constrained")
        handles = {}
        for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
            for place, (label, history) in enumerate(histories.items()):
                if not _has(history, part):
                    continue
                colour = SERIES[place % len(SERIES)]
                dashes = DASHES[place % len(DASHES)]
                drawn = axes.plot(history["step"], history[part], color=colour, ls=dashes)
                handles[label] = drawn[0]
            axes.set_title(LOSSES[part], loc="left")
            axes.set_xlabel("Step")
            axes.grid(axis="y")
        figure.axes[0].set_ylabel("Loss")
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside upper center",
            ncols=min(4, len(handles)),
            frameon=False,
            handlelength=2.6,
        )
    return figure


def _has(history: pd.DataFrame, part: str) -> bool:
    return part in history.columns and bool(history[part].notna().any())


def save_figure(
    figure: Figure,
    folder: Path,
    name: str,
    provenance: Mapping[str, Any],
    source: pd.DataFrame,
) -> list[Path]:
    """Save PNG (180 dpi), SVG, PDF and a provenance JSON named `name`; return their paths.

    `source` is the frame that the figure shows: its sha256 goes into the JSON. Each file is
    written whole or not at all, without dates, so that a redraw gives the same bytes.
    """
    undated: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None},
        "pdf": {"CreationDate": None},
    }
    paths = []
    with mpl.rc_context(STYLE):
        for kind, metadata in undated.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=180, metadata=metadata, facecolor="white")
            paths.append(tables.write_atomically(folder / f"{name}.{kind}", buffer.getvalue()))
    details = {**provenance, "figure": name}
    return [*paths, tables.write_provenance(folder / f"{name}.json", details, source)]


def draw_all(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    labels: Mapping[str, str] | None = None,
) -> list[Path]:
    """Draw every figure of a profile from its tidy table into `folder`; return the paths.

    `provenance` is written beside each figure; `labels` maps method names to display names, in
    order. Raises `CompanionError` where results are missing, with the command that makes them.
    """
    figure = harmful_rate_figure(frame, profile_name, provenance, labels)
    details = {**provenance, "profile": profile_name}
    rows = frame[frame["experiment"] == "harmful"]
    return save_figure(figure, folder, "harmful_rate", details, rows)
