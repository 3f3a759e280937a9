"""How the guard works, for the notebook: a prompt's embedding before and after corruption."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unlearn_lib.figures.style import BROKEN, CONTROL, STYLE, WIDTH_INCHES, Picture

COMPONENTS, MOST_TOKENS, LETTERS = 24, 48, 16
BYTE_MARKS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "↵", "\n": "↵"})


def embedding_figure(
    before: NDArray[Any], after: NDArray[Any], tokens: Sequence[str], chosen: Sequence[bool]
) -> Figure:
    """Draw a prompt's embedding before and after corruption, and how far each token moved.

    Args:
        before, after: numbers [T, d], the same prompt's embedding; the first 24 components are
            drawn, on one colour scale that is clipped at the 99th percentile of |before|.
        tokens: T texts along the x axis; of a long prompt the last 48 are drawn.
        chosen: T flags, the tokens that the guard corrupts: bold and orange.

    Raises:
        ValueError: no tokens, or shapes and lengths that do not agree.
    """
    before, after = (np.asarray(each, dtype=float) for each in (before, after))
    if before.ndim != 2 or before.size == 0 or before.shape != after.shape:
        raise ValueError(
            f"before and after must be [T, d] with one shape; they are {list(before.shape)} and "
            f"{list(after.shape)}."
        )
    if not len(tokens) == len(chosen) == len(before):
        raise ValueError(
            f"There are {len(before)} embeddings, {len(tokens)} tokens and {len(chosen)} flags; "
            "give one of each a token."
        )
    limit = float(np.nanpercentile(np.abs(before), 99)) or 1.0
    last = slice(-MOST_TOKENS, None)
    moved = np.linalg.norm(after - before, axis=1)
    with mpl.rc_context(STYLE):
        figure = Picture(figsize=(WIDTH_INCHES, 4.6), layout="constrained")
        shape = {"height_ratios": [1.5, 1.5, 1]}
        grid = figure.subplots(3, 1, sharex=True, gridspec_kw=shape)
        for axes, values, title in zip(grid, (before, after), ("Before", "After"), strict=False):
            image = _heat_map(axes, values[last, :COMPONENTS], limit, title)
        bar = figure.colorbar(image, ax=list(grid[:2]), extend="both", aspect=30, pad=0.01)
        bar.set_label("Value, clipped", labelpad=2)
        _bars(grid[2], moved[last], chosen[last])
        _token_labels(grid[2], tokens, chosen)
    return figure


def _heat_map(axes: Axes, values: NDArray[Any], limit: float, title: str) -> Any:
    style: dict[str, Any] = {"cmap": "PuOr", "vmin": -limit, "vmax": limit, "aspect": "auto"}
    image = axes.imshow(values.T, interpolation="nearest", **style)
    axes.set_title(title, loc="left", weight="bold")
    axes.set_ylabel("Component")
    ends = sorted({0, len(values.T) - 1})
    axes.set_yticks(ends, [str(end + 1) for end in ends])
    axes.tick_params(axis="x", length=0)
    return image


def _bars(axes: Axes, moved: NDArray[Any], chosen: Sequence[bool]) -> None:
    colours = [BROKEN if each else CONTROL for each in chosen]
    axes.bar(range(len(moved)), moved, color=colours, width=0.7)
    axes.set_ylabel("Moved by\n(L2 norm)")
    axes.grid(axis="y")


def _token_labels(axes: Axes, tokens: Sequence[str], chosen: Sequence[bool]) -> None:
    shown = [_readable(each) for each in tokens[-MOST_TOKENS:]]
    flags = list(chosen)[-MOST_TOKENS:]
    axes.set_xticks(range(len(shown)), shown, rotation=90, parse_math=False)
    for text, flag in zip(axes.get_xticklabels(), flags, strict=True):
        text.set(color=BROKEN if flag else "black", weight="bold" if flag else "normal")
    part = (
        f"the last {len(shown)} of {len(tokens)} tokens"
        if len(shown) < len(tokens)
        else (f"{len(tokens)} tokens")
    )
    axes.set_xlabel(f"Prompt, {part}; corrupted: {sum(map(bool, chosen))}, in bold orange")


def _readable(token: str) -> str:
    text = token.translate(BYTE_MARKS).strip(" ")
    if len(text) > LETTERS:
        return f"{text[: LETTERS - 1]}…"
    return text or "␣"
