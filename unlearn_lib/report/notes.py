"""Reproduction notes: what papers say, what their code does, and what each difference changes.

The notes are `notebooks/differences.yaml`; what a difference changes is estimated, never written
by hand.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import yaml

from unlearn_lib.results import Items, compare
from unlearn_lib.tables import Column
from unlearn_lib.util import ROOT

DIFFERENCES = ROOT / "notebooks" / "differences.yaml"


def notes(items: Items, profile_name: str) -> dict[str, list[dict[str, Any]]]:
    """Return the differences by paper, each with `changes`: what it changes here, in sentences."""
    differences = yaml.safe_load(DIFFERENCES.read_text(encoding="utf-8"))
    for difference in differences:
        matters = difference["matters"]
        difference["changes"] = [matters] if isinstance(matters, str) else []
        for reference in matters if isinstance(matters, list) else []:
            absent = f"{reference['says']}: not measured in profile {profile_name}"
            difference["changes"] += measured(reference, items) or [absent]
    return {paper: list(group) for paper, group in groupby(differences, lambda each: each["paper"])}


def measured(reference: Mapping[str, Any], items: Items) -> list[str]:
    """Say what was measured of a reference, a line per model; nothing without items.

    Args:
        reference: task, metric, method, split and condition; `against`: what differs of what it is
            compared with; `says`: what to read in it.
    """
    texts, against = [], reference.get("against", {})
    other = {**reference, **against}
    column, rival = (Column(side["metric"], side.get("split")) for side in (reference, other))
    methods = (reference["method"], other["method"])
    condition, other_condition = (side.get("condition", "") for side in (reference, other))
    for model in items.models(reference["task"]):
        where = {"task": reference["task"], "model": model}
        first = column.read(items, method=methods[0], condition=condition, **where)
        second = rival.read(items, method=methods[1], condition=other_condition, **where)
        if first is None or second is None:
            continue
        text = f"{column.heading} {column.words(first)}"
        if against:
            text += f" against {rival.text(second)}"
        if against and rival == column:
            where |= {"condition": condition, "other_condition": other_condition}
            difference: Any = compare(items, column.metric, *methods, split=column.split, **where)
            text += f", difference {column.text(column.shown(difference))}"
        texts.append(f"{reference['says']}: {text}; {model.rsplit('/', 1)[-1]}")
    return texts
