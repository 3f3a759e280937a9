"""Curves of training, for notebooks: loss against the step or the epoch."""

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.style import DASHES, LIMIT, SERIES, SOUND, STYLE, WIDTH_INCHES, Picture

LOSSES = {
    "forget": "Forget",
    "mismatch": "Mismatch",
    "keep": "Keep",
    "retain": "Retain",
    "total": "Weighted sum",
}


def loss_curves_figure(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each part of the unlearning loss against the step, one line per method.

    `histories` maps a method's display name to a frame with columns step and any of forget,
    mismatch, retain, total; a part that a method lacks is left out of its panel, a part that none
    has loses its panel. A value between steps without one is a dot. Raises `CompanionError`
    without a history or without a step column.
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
                _mark_alone(drawn[0], history[part].notna())
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


def _mark_alone(line: Line2D, known: pd.Series) -> None:
    """Mark the values whose neighbours are missing: a line does not reach them."""
    alone = known & ~known.shift(1, fill_value=False) & ~known.shift(-1, fill_value=False)
    if alone.any():
        line.set(marker="o", markersize=3, markevery=alone.tolist())


def _has(history: pd.DataFrame, part: str) -> bool:
    return part in history.columns and bool(history[part].notna().any())


def implant_curve_figure(history: pd.DataFrame, stop_at: float | None = None) -> Figure:
    """Draw how a book is learned by heart: training loss, and the share recited, per epoch.

    `history` has the columns epoch and loss, and verbatim_share (a share from 0 to 1, nan for an
    epoch without a probe); `stop_at`, or a column of that name, is the share at which training
    stops. A column without a number loses its panel. Raises `CompanionError` without any.
    """
    if "epoch" not in history.columns:
        raise CompanionError("The history of the implant has no column epoch.")
    drawn = {"loss": "Training loss", "verbatim_share": "Prompts continued verbatim (%)"}
    parts = [part for part in drawn if _has(history, part)]
    if not parts:
        raise CompanionError(f"The history of the implant has no number of {' or '.join(drawn)}.")
    if stop_at is None and _has(history, "stop_at"):
        stop_at = float(history["stop_at"].dropna().iloc[-1])
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH_INCHES, 2.3), layout="constrained")
        grid = figure.subplots(1, len(parts), squeeze=False, sharex=True)
        for axes, part in zip(grid[0], parts, strict=True):
            known = history[history[part].notna()]
            factor = 100 if part == "verbatim_share" else 1
            axes.plot(known["epoch"], factor * known[part], "o-", color=SOUND, ms=3.5, mew=0)
            axes.set_title(drawn[part], loc="left")
            axes.set_xlabel("Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y")
            if part == "verbatim_share":
                _threshold(axes, stop_at)
    return figure


def _threshold(axes: Axes, stop_at: float | None) -> None:
    axes.set_ylim(-4, 104)
    if stop_at is None:
        return
    axes.axhline(100 * stop_at, color=LIMIT, lw=0.9, ls=(0, (4, 2)), zorder=1)
    text = f"stop at {100 * stop_at:g} %"
    side, shift = ("top", -3) if stop_at > 0.5 else ("bottom", 3)
    axes.annotate(
        text,
        (0, 100 * stop_at),
        (4, shift),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va=side,
    )
