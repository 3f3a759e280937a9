"""What a claim is judged by, and the comparison of two numbers of each model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from unlearn_lib.claims import rows
from unlearn_lib.claims.entries import SIDES
from unlearn_lib.claims.rules import NOT_JUDGED, bar, ordered, worst
from unlearn_lib.tables.orderings import Ordering

NOT_MEASURED = "its rows were not measured"
TOUCHING = "goes the paper's way, but not beyond the intervals"
OTHER_WAY = "does not go the paper's way"


@dataclass(frozen=True)
class Found:
    """A verdict on a claim: what was measured, and what keeps it from a better one."""

    verdict: str
    measured: str = ""
    why: str = ""


@dataclass(frozen=True)
class Bench:
    """What the claims are judged by.

    Attributes:
        frame: the tidy rows that have a value.
        profile: its name; with the reader's own book, without the book's.
        own_book: whether the book is the reader's.
        family: that profile and those that it extends.
        orderings: the claims of orderings.yaml, by id.
        labels: method names to display names.
    """

    frame: pd.DataFrame
    profile: str
    own_book: bool
    family: tuple[str, ...]
    orderings: Mapping[str, Ordering]
    labels: Mapping[str, str]


def gathered(found: Mapping[str, Found]) -> Found:
    """Return the worst verdict over models, with what was measured of each."""
    if not found:
        return Found(NOT_JUDGED, why=NOT_MEASURED)
    verdict = worst(each.verdict for each in found.values())
    why = next(each.why for each in found.values() if each.verdict == verdict)
    return Found(verdict, rows.by_model({name: each.measured for name, each in found.items()}), why)


@dataclass(frozen=True)
class Compared:
    """How a comparison came out (SHOWN, SEEN or CONTRARY), both numbers, and how many items."""

    outcome: str
    text: str
    count: str


def compared(
    comparison: Mapping[str, Any], row: Mapping[str, str], frame: pd.DataFrame
) -> dict[str, Compared]:
    """Compare two numbers of each model that has both.

    Args:
        comparison: as in claims.yaml: `of`, `above` or `below`, and `times`.
        row: column to value, what both sides share.
        frame: the tidy table.
    """
    side = next(side for side in SIDES if side in comparison)
    wanted, other = {**row, **comparison.get("of", {})}, comparison[side]
    ours, metric = rows.estimates(frame, wanted), wanted["metric"]
    fixed = not isinstance(other, Mapping)
    theirs = (
        dict.fromkeys(ours, bar(float(other)))
        if fixed
        else rows.estimates(frame, {**wanted, **other})
    )
    found = {}
    for model in (model for model in ours if model in theirs):
        scaled = theirs[model].scaled(float(comparison.get("times", 1)))
        text = rows.in_unit(ours[model], metric)
        if not fixed:
            text += f" against {rows.in_unit(theirs[model], metric)}"
        outcome = ordered(ours[model], scaled, side == "above")
        found[model] = Compared(outcome, text, rows.count(ours[model]))
    return found
