"""Reproduction notes: what papers say, what their code does, and what each difference changes.

The notes are `notebooks/differences.yaml`; what a difference changes is read from the tidy table
and never written by hand.
"""

import html
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import Field, ValidationError

from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.metrics import METRICS
from unlearn_lib.profiles import ROOT
from unlearn_lib.settings import Settings
from unlearn_lib.tables.common import Pooled, pool, show

DIFFERENCES = ROOT / "notebooks" / "differences.yaml"
LABELS = {"paper_says": "The paper", "released_code": "Its released code", "ours": "Here"}
SILENT = "does not say."
PLAIN = ("share", "score", "none", "cosine", "p-value")
"""Units that need not be named."""
PLACE = ("experiment", "scenario", "split", "metric", "method", "stage")


class Against(Settings):
    """What a row is compared with: its place in the tidy table, where that differs."""

    scenario: str | None = None
    split: str | None = None
    metric: str | None = None
    method: str | None = None
    stage: str | None = None


class Reference(Settings):
    """Rows of the tidy table that show what a difference changes, and what to read in them."""

    experiment: str
    scenario: str
    split: str
    metric: str
    method: str
    stage: str = "unlearned"
    against: Against | None = None
    says: str

    def places(self) -> list[dict[str, str]]:
        """The place of the value, and of what it is compared with."""
        first = {name: str(getattr(self, name)) for name in PLACE}
        if self.against is None:
            return [first]
        return [first, first | self.against.model_dump(exclude_none=True)]


class Difference(Settings):
    """One known difference; see the head of `differences.yaml`."""

    id: str = Field(pattern=r"^[a-z0-9_]+$")
    paper: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    paper_says: str | None
    released_code: str = Field(min_length=1)
    ours: str = Field(min_length=1)
    matters: str | tuple[Reference, ...]


def read_differences(path: Path = DIFFERENCES) -> list[Difference]:
    """Read and check the differences, in the order of the file.

    Raises:
        CompanionError: no such file, no YAML, an unknown or missing key, an id used twice.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompanionError(f"There is no {path.name} at {path}; restore it from git.") from None
    except yaml.YAMLError as error:
        raise CompanionError(f"{path.name} is no YAML; restore it from git ({error}).") from None
    found = [_checked(entry, path.name) for entry in entries]
    names = [each.id for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CompanionError(f"{path.name}: the id '{twice[0]}' stands twice; rename one.")
    return found


def _checked(entry: Mapping[str, Any], file: str) -> Difference:
    try:
        return Difference.model_validate(entry)
    except ValidationError as error:
        problem = max(error.errors(), key=_telling)
        keys = [str(part) for part in problem["loc"]]
        known = Against if "against" in keys else Reference if len(keys) > 1 else Difference
        hint = nearest(keys[-1], known.model_fields) if problem["type"] == "extra_forbidden" else ""
        named = entry.get("id", "without id") if isinstance(entry, Mapping) else "without keys"
        raise CompanionError(
            f"{file}: difference {named}, key '{keys[-1] if keys else ''}': "
            f"{problem['msg']}{hint}; correct it."
        ) from None


def _telling(problem: Any) -> tuple[bool, int]:
    """What says most of a wrong entry: an unknown key, then the place deepest inside."""
    return problem["type"] == "extra_forbidden", len(problem["loc"])


def section(frame: pd.DataFrame, profile_name: str) -> str:
    """The notes as HTML, grouped by paper, with what each difference changed in these results.

    Args:
        frame: the tidy table of a profile.
        profile_name: named where a profile does not measure something.
    """
    parts = [
        "<p>Where two values stand, the difference in brackets is the widest that their 95 % "
        "intervals allow, which is more than a test would leave open.</p>"
    ]
    for paper, group in groupby(read_differences(), key=lambda each: each.paper):
        notes = "".join(_note(each, frame, profile_name) for each in group)
        parts.append(f"<section class='notes'><h3>{html.escape(paper)}</h3>{notes}</section>")
    return "".join(parts)


def _note(difference: Difference, frame: pd.DataFrame, profile_name: str) -> str:
    lines = [
        f"<dt>{label}</dt><dd>{html.escape(getattr(difference, name) or SILENT)}</dd>"
        for name, label in LABELS.items()
    ]
    lines.append(f"<dt>What it changes</dt><dd>{_matters(difference, frame, profile_name)}</dd>")
    summary = f"<summary>{html.escape(difference.topic)}</summary>"
    opened = f"<details class='difference' id='note-{difference.id}'>"
    return f"{opened}{summary}<dl>{''.join(lines)}</dl></details>"


def _matters(difference: Difference, frame: pd.DataFrame, profile_name: str) -> str:
    if isinstance(difference.matters, str):
        text = difference.matters.rstrip(".")
        return html.escape(f"{text[:1].upper()}{text[1:]}.")
    items = [
        f"<li>{html.escape(text)}</li>"
        for reference in difference.matters
        for text in measured(reference, frame) or [f"{reference.says}: {_absent(profile_name)}"]
    ]
    return f"<ul>{''.join(items)}</ul>"


def _absent(profile_name: str) -> str:
    return f"not measured in profile {profile_name}."


def measured(reference: Reference, frame: pd.DataFrame) -> list[str]:
    """What the tidy table says of a reference, a line a model; none where it has no such rows."""
    lines, places = [], reference.places()
    for model, rows in frame.groupby("model", sort=True):
        found = [_pooled(rows, place) for place in places]
        values = [each for each in found if each is not None]
        if len(values) < len(places):
            continue
        metrics = list(dict.fromkeys(place["metric"] for place in places))
        text = " against ".join(show(value, 2) for value in values)
        if len(values) > 1 and len({METRICS[name].unit for name in metrics}) == 1:
            text += f", difference {show(_difference(*values), 2)}"
        what = ", ".join(_named(metric) for metric in metrics)
        seeds = f"{values[0].seeds} seed{'s' * (values[0].seeds > 1)}"
        who = str(model).rsplit("/", 1)[-1]
        lines.append(f"{reference.says}: {text} ({what}; {who}, n {values[0].n}, {seeds}).")
    return lines


def _pooled(rows: pd.DataFrame, place: Mapping[str, str]) -> Pooled | None:
    chosen = rows
    for column, value in place.items():
        chosen = chosen[chosen[column].eq(value)]
    return pool(chosen, ", ".join(place.values()))


def _named(metric: str) -> str:
    unit = METRICS[metric].unit
    return metric.replace("_", " ") + ("" if unit in PLAIN else f" in {unit}")


def _difference(first: Pooled, second: Pooled) -> Pooled:
    """First minus second, with what the two intervals allow at most."""
    low, high = first.low - second.high, first.high - second.low
    return Pooled(first.value - second.value, low, high, first.n, first.seeds)
