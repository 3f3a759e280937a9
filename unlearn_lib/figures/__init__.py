"""Figures as the papers would print them, drawn from the tidy table alone; nothing here trains.

`draw_all` is what `python -m unlearn_lib figures` calls; notebooks call the figures themselves.
Each is saved as PNG, SVG and PDF with a JSON of provenance beside it; the same tidy table gives
the same bytes. Seeds are pooled as `unlearn_lib.tables.common` says. Figures are plain `Figure`
objects, so that no backend is forced on a notebook.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from unlearn_lib import tables
from unlearn_lib.figures.book import book_methods_figure
from unlearn_lib.figures.closer_look import closer_look_grid_figure
from unlearn_lib.figures.closer_look_curves import (
    closer_look_continual_figure,
    entropy_curve_figure,
)
from unlearn_lib.figures.closer_look_methods import closer_look_methods_figure
from unlearn_lib.figures.curves import implant_curve_figure, loss_curves_figure
from unlearn_lib.figures.eco import eco_book_figure, eco_methods_figure, eco_science_figure
from unlearn_lib.figures.eco_costs import eco_costs_figure
from unlearn_lib.figures.eco_curves import eco_scaling_figure, eco_search_figure
from unlearn_lib.figures.eco_embedding import embedding_figure
from unlearn_lib.figures.eco_robustness import eco_robustness_figure
from unlearn_lib.figures.eco_tradeoff import eco_tradeoff_figure
from unlearn_lib.figures.harmful import harmful_rate_figure
from unlearn_lib.figures.style import STYLE, WIDTH_INCHES, Picture, footer, save_figure
from unlearn_lib.figures.tradeoff import book_tradeoff_figure

__all__ = [
    "STYLE",
    "WIDTH_INCHES",
    "Picture",
    "book_methods_figure",
    "book_tradeoff_figure",
    "closer_look_continual_figure",
    "closer_look_grid_figure",
    "closer_look_methods_figure",
    "draw_all",
    "eco_book_figure",
    "eco_costs_figure",
    "eco_methods_figure",
    "eco_robustness_figure",
    "eco_scaling_figure",
    "eco_science_figure",
    "eco_search_figure",
    "eco_tradeoff_figure",
    "embedding_figure",
    "entropy_curve_figure",
    "footer",
    "harmful_rate_figure",
    "implant_curve_figure",
    "loss_curves_figure",
    "of_experiment",
    "save_figure",
    "tasks",
]

FIGURES: dict[str, dict[str, Callable[..., Figure]]] = {
    "harmful": {"harmful_rate": harmful_rate_figure},
    "book": {"book_tradeoff": book_tradeoff_figure, "book_methods": book_methods_figure},
    "tofu": {
        "closer_look_grid": closer_look_grid_figure,
        "closer_look_continual": closer_look_continual_figure,
        "closer_look_methods": closer_look_methods_figure,
    },
    "eco": {
        "eco_tradeoff": eco_tradeoff_figure,
        "eco_methods": eco_methods_figure,
        "eco_search": eco_search_figure,
        "eco_robustness": eco_robustness_figure,
        "eco_science": eco_science_figure,
        "eco_costs": eco_costs_figure,
        "eco_scaling": eco_scaling_figure,
        "eco_book": eco_book_figure,
    },
}
NEEDS = {
    "closer_look_continual": "continual",
    "closer_look_methods": "fictitious",
    "eco_tradeoff": "entities",
    "eco_methods": "entities",
    "eco_search": "search",
    "eco_robustness": "robustness",
    "eco_science": "science",
    "eco_costs": "costs",
    "eco_scaling": "scaling",
    "eco_book": "book",
}
"""Figures of one scenario, which a profile need not run: they are drawn where it does."""


def of_experiment(experiment: str, rows: pd.DataFrame) -> dict[str, Callable[..., Figure]]:
    """Return the figures of an experiment whose scenario is among its rows, by name."""
    scenarios = rows["scenario"].drop_duplicates()
    return {
        name: figure_of
        for name, figure_of in FIGURES[experiment].items()
        if scenarios.str.startswith(NEEDS.get(name, "")).any()
    }


def draw_all(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Path]:
    """Draw the figures of every experiment that the tidy table holds; return their paths.

    `provenance` is written beside each figure; `labels` maps, for each experiment, method names
    to display names, in order. Raises `CompanionError` where results are missing, with the command
    that makes them.
    """
    each = tasks(frame, folder, profile_name, provenance, labels)
    return [path for draw in each for path in draw()]


def tasks(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Callable[[], list[Path]]]:
    """Return what `draw_all` does, one call per figure, for processes that share the work."""
    draw = functools.partial(_draw, folder=folder, profile_name=profile_name, provenance=provenance)
    return [
        functools.partial(draw, experiment, name, rows, (labels or {}).get(experiment))
        for experiment, rows in tables.experiments_in(frame, FIGURES, profile_name).items()
        for name in of_experiment(experiment, rows)
    ]


def _draw(
    experiment: str,
    name: str,
    rows: pd.DataFrame,
    labels: Mapping[str, str] | None,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
) -> list[Path]:
    figure = FIGURES[experiment][name](rows, profile_name, provenance, labels)
    return save_figure(figure, folder, name, {**provenance, "profile": profile_name}, rows)
