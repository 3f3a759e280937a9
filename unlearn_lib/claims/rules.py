"""The five verdicts and when each is given; `RULES` says it to the reader, in one place.

Everything here is a function of estimates; which rows they come from is `judging`'s business.
"""

import math
from collections.abc import Iterable, Sequence

from unlearn_lib.tables.common import SQUARE_BRACKETS, Pooled

REPRODUCED = "reproduced"
WITHIN_TOLERANCE = "within tolerance"
DIRECTION_ONLY = "direction only"
NOT_REPRODUCED = "not reproduced"
NOT_JUDGED = "not judged here"
VERDICTS = (REPRODUCED, WITHIN_TOLERANCE, DIRECTION_ONLY, NOT_REPRODUCED, NOT_JUDGED)
"""The best first."""

SHOWN, SEEN, CONTRARY = "shown", "seen", "contrary"
"""A comparison goes the claimed way beyond both intervals, by the values alone, or not at all."""

ROUNDING = 1e-9
RULES = (
    "A number, on the paper's own model and data: reproduced if ours is within the tolerance and "
    "our 95 % interval holds the paper's value; within tolerance if only the first; direction only "
    "if neither, but the change goes the paper's way beyond the intervals; else not reproduced. "
    "Tolerances are ours: the papers print no intervals.",
    "A number of another model or of other data: its direction alone can be judged. Direction only "
    "if the change goes the paper's way and the intervals before and after do not touch; not "
    "reproduced if they do, or if it goes the other way.",
    "A claim in words is judged on the profile's own models and data: reproduced if the intervals "
    "support it, direction only if the values alone do, not reproduced if they contradict it.",
    "Several models or parts: the worst verdict counts. Not judged here: `why` says what is "
    "missing. Secondary sources, and re-runs by others, are named as such in claims.yaml.",
    SQUARE_BRACKETS,
)


def ordered(ours: Pooled, other: Pooled, above: bool) -> str:
    """Say whether `ours` lies above `other` (or below it): SHOWN, SEEN or CONTRARY.

    Intervals that touch, or that are unknown, show nothing.
    """
    upper, lower = (ours, other) if above else (other, ours)
    if upper.value <= lower.value:
        return CONTRARY
    return SHOWN if upper.low > lower.high else SEEN


def bar(value: float) -> Pooled:
    """Return a fixed number as an estimate, to be compared with."""
    return Pooled(value, value, value, None, 0)


def number(ours: Pooled, reported: float, tolerance: float) -> str:
    """Judge a number of the same model and data; outside the tolerance it is not reproduced."""
    if abs(ours.value - reported) > tolerance + ROUNDING:
        return NOT_REPRODUCED
    held = ours.low - ROUNDING <= reported <= ours.high + ROUNDING
    return REPRODUCED if held else WITHIN_TOLERANCE


def in_words(outcomes: Sequence[str], partly: bool = False) -> str:
    """Judge a claim in words by its comparisons; with `partly`, one that holds is a direction."""
    if not outcomes:
        return NOT_JUDGED
    if CONTRARY in outcomes:
        some = partly and set(outcomes) != {CONTRARY}
        return DIRECTION_ONLY if some else NOT_REPRODUCED
    return REPRODUCED if set(outcomes) == {SHOWN} else DIRECTION_ONLY


def worst(verdicts: Iterable[str]) -> str:
    """Return the worst verdict of those judged; without any, not judged here."""
    judged = [verdict for verdict in verdicts if verdict != NOT_JUDGED]
    return max(judged, key=VERDICTS.index, default=NOT_JUDGED)


def change(after: Pooled, before: Pooled) -> Pooled:
    """Return after minus before; identical estimates differ by exactly 0, others by an unknown.

    A difference of two intervals is no interval of the difference, so that it has none.
    """
    same = all(
        math.isclose(one, other, rel_tol=1e-4, abs_tol=ROUNDING)
        for one, other in zip(
            (after.value, after.low, after.high),
            (before.value, before.low, before.high),
            strict=True,
        )
    )
    ends = (0.0, 0.0) if same else (math.nan, math.nan)
    return Pooled(after.value - before.value, *ends, after.n, after.seeds)
