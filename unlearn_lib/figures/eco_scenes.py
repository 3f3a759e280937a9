"""Experiment 3 as its figures see it: one model in one scenario, and how everyone is drawn."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.errors import CompanionError
from unlearn_lib.figures.book import spaced
from unlearn_lib.figures.closer_look import STAGE_MARKS, short
from unlearn_lib.figures.style import (
    BEFORE,
    BROKEN,
    DEGENERATE_LIMIT,
    GOAL,
    SOUND,
    legend_mark,
    sign,
)
from unlearn_lib.tables.closer_look import BASE, REFERENCE, STAGES
from unlearn_lib.tables.common import Pooled, place, remedy
from unlearn_lib.tables.eco import ECO, PROMPTING, EcoPart, eco_parts, eco_rows, who_is_shown

GUARD_MARKS = {ECO: ("*", GOAL), PROMPTING: ("s", "#CC79A7")}
NAMES = {ECO: "guard (ECO)", PROMPTING: "prompting"}
TASK_NAMES = {"entities": "Fictitious authors", "book": "Book", "science": "Multiple choice"}
AFTER = ("unlearned", "guarded")


@dataclass(frozen=True)
class Scene(EcoPart):
    """One model in one scenario, as it is drawn."""

    def quality(self, who: str) -> Pooled | None:
        """Pool the forget quality, a p-value that has no interval: its bar is the seeds' range."""
        found = self.of("forget_quality", "forget", who)
        if found is None or found.seeds == 1:
            return found
        known = self.known("forget_quality", "forget", who)
        return replace(found, low=min(known), high=max(known))

    def shown(
        self, metrics: Iterable[str], labels: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Return who has one of some metrics, and their short names."""
        return short(who_is_shown(self.rows[self.rows["metric"].isin(list(metrics))], labels))

    @property
    def retained(self) -> str:
        """Who never saw what is to be forgotten: the reference, else the base."""
        return REFERENCE if self.rows["stage"].eq(REFERENCE).any() else BASE

    def mark(self, who: str, judged: bool = True) -> tuple[str, str]:
        """Return marker and colour; orange, and a cross for a method, unless known to be sound.

        Sound: on every split at most `DEGENERATE_LIMIT` degenerate answers, or no more than the
        interval of the retained model reaches to. Not `judged`: taken to be sound.
        """
        if who in STAGES:
            return STAGE_MARKS[who], BEFORE
        marker, colour = GUARD_MARKS.get(who, ("o", SOUND))
        if not judged or self._sound(who):
            return marker, colour
        return marker if who in GUARD_MARKS else "X", BROKEN

    def _sound(self, who: str) -> bool:
        known = {split: self.of("degenerate_share", split, who) for split in self._limits}
        found = {split: each for split, each in known.items() if each}
        return bool(found) and all(each.value <= self._limits[s] for s, each in found.items())

    @functools.cached_property
    def _limits(self) -> dict[str, float]:
        """How many degenerate answers are taken to be sound on each split."""
        splits = self.rows.loc[self.rows["metric"].eq("degenerate_share"), "split"].unique()
        usual = {split: self.of("degenerate_share", split, self.retained) for split in splits}
        highs = {split: each.high if each else math.nan for split, each in usual.items()}
        return {split: max(DEGENERATE_LIMIT, high) for split, high in highs.items()}


def scenes(
    frame: pd.DataFrame, scenario: str, metrics: Iterable[str], profile_name: str = ""
) -> list[Scene]:
    """Return each model that has some metrics in a scenario after unlearning or guarding.

    Raises `CompanionError` as `eco_rows` does, and without such a model, with the command that
    makes it.
    """
    found = [
        Scene(part.rows, part.model, part.scenario)
        for part in eco_parts(eco_rows(frame, profile_name), scenario)
        if (part.rows["stage"].isin(AFTER) & part.rows["metric"].isin(list(metrics))).any()
    ]
    if not found:
        raise CompanionError(
            f"No guarded or unlearned model in scenario {scenario} of experiment eco in "
            f"{place(profile_name)}: {remedy(profile_name)}."
        )
    return found


def handles_of(
    present: Sequence[tuple[Scene, str]], judged: bool, hollow: bool = False
) -> list[Line2D]:
    """Return a legend's handles for all marks of those present; stages hollow if asked."""
    style = {"mfc": "white", "mew": 1.1} if hollow else {}
    shown = {who for _, who in present}
    handles = [
        legend_mark(STAGE_MARKS[who], BEFORE, who, **style) for who in STAGES if who in shown
    ]
    marks = {scene.mark(who, judged): who for scene, who in present if who not in STAGES}
    usual = " or ".join(dict.fromkeys(scene.retained for scene, _ in present))
    limit = spaced(f"{DEGENERATE_LIMIT:.0%}")
    for marker, colour in sorted(marks, key=lambda mark: ("*soX".index(mark[0]), mark[1])):
        label = NAMES.get(marks[marker, colour], "unlearned")
        if judged and colour == BROKEN:
            label += ", more degenerate"
        elif judged and marker == "o":
            label += f", degenerate ≤ {limit} or as {usual}"
        handles.append(legend_mark(marker, colour, label))
    return handles


def signed(
    figure: Figure,
    found: Iterable[Scene],
    profile_name: str,
    provenance: Mapping[str, Any] | None,
    counted: str = "questions",
    bars: bool = True,
) -> None:
    """Write the footer of some scenes; `counted` and `bars` as for `sign`."""
    rows = pd.concat([scene.rows for scene in found])
    sign(figure, rows, profile_name, provenance, counted, bars)
