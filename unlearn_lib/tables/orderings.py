"""Verdicts on what A Closer Look claims as orderings: which method keeps more at similar cost.

A pair is judged by the paired difference of two methods on the same questions (`mu_difference`,
`fe_difference` in the tidy table, seeds pooled as in `unlearn_lib.tables.common`):

- upheld: the interval of the MU difference lies above 0, and FE is not lower by more than the
  claim's margin;
- not upheld: that interval lies below 0, or FE is lower by more than the margin;
- undecided: anything else.

A claim is upheld when all its measured pairs are, and not upheld when one is not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import yaml

from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.settings import Scenario
from unlearn_lib.tables.closer_look import Part, closer_look_rows, parts
from unlearn_lib.tables.common import Pooled, pool, show

UPHELD, NOT_UPHELD, UNDECIDED = "upheld", "not upheld", "undecided"
METRICS = ("mu", "fe")
FOOTNOTES = (
    "Differences: the better-claimed method minus the other, on the same questions; square "
    "brackets: 95 % bootstrap interval over questions; with several seeds, the mean over seeds and "
    "an interval from the lowest to the highest end of the seeds' intervals.",
    "Upheld: the interval of the difference in MU lies above 0, and FE is not lower by more than "
    "the margin. Not upheld: that interval lies below 0, or FE is lower by more than the margin. "
    "Undecided: anything else. A claim is judged by its measured pairs.",
)


@dataclass(frozen=True)
class Ordering:
    """One claim of an ordering: a method keeps more than others at similar cost.

    Attributes:
        id, paper, place, statement: which claim, where it stands, and what it says.
        scenario: `fictitious`, `continual` (its last task) or `real_world`.
        better, than: the profile's names of the methods.
        metric: `mu` or `fe`, which is claimed to be higher.
        similar: the other one, which must not be lower by more than `margin`.
    """

    id: str
    paper: str
    place: str
    statement: str
    scenario: str
    better: str
    than: tuple[str, ...]
    metric: str
    similar: str
    margin: float


@dataclass(frozen=True)
class Judged:
    """A pair of a claim as measured: both differences, None where absent, and the verdict."""

    other: str
    difference: Pooled | None
    similar: Pooled | None
    verdict: str


def read_orderings(path: Path) -> list[Ordering]:
    """Read the claims of orderings from `orderings.yaml`.

    Raises `CompanionError` in one sentence for a missing file, for no YAML, and for an entry with
    a key that is missing or unknown or a value of another kind.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompanionError(f"There is no {path.name} at {path}; restore it from git.") from None
    except yaml.YAMLError as error:
        raise CompanionError(f"{path.name} is no YAML; restore it from git ({error}).") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CompanionError(f"{path.name} is no list of claims; restore it from git.")
    found = [_checked(entry, f"{path.name}: ordering {entry.get('id')}") for entry in entries]
    for place, ordering in enumerate(found):
        if ordering.id in {other.id for other in found[:place]}:
            raise CompanionError(f"{path.name}: ordering {ordering.id} stands there twice.")
    return found


def _checked(entry: Mapping[str, Any], where: str) -> Ordering:
    keys = [field.name for field in fields(Ordering)]
    for key in entry:
        if key not in keys:
            raise CompanionError(f"{where} has the key '{key}'{nearest(str(key), keys)}.")
    absent = [key for key in keys if key not in entry]
    if absent:
        raise CompanionError(f"{where} lacks {', '.join(absent)}.")
    scenarios = get_args(Scenario)
    if entry["scenario"] not in scenarios:
        known = nearest(str(entry["scenario"]), scenarios)
        raise CompanionError(f"{where} has the scenario '{entry['scenario']}'{known}.")
    if {entry["metric"], entry["similar"]} != set(METRICS):
        raise CompanionError(f"{where}: metric and similar are mu and fe, or fe and mu.")
    than, margin = entry["than"], entry["margin"]
    if not (isinstance(than, list) and than and all(isinstance(name, str) for name in than)):
        raise CompanionError(f"{where}: than lists the names of one or more methods.")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= 1:
        raise CompanionError(f"{where}: margin is {margin!r}; give a number from 0 to 1.")
    return Ordering(**{**entry, "than": tuple(than)})


def pairs(
    orderings: Iterable[Ordering], scenario: str, names: Iterable[str]
) -> list[tuple[str, str]]:
    """Return the pairs (better, other) whose differences the claims of a scenario need.

    Args:
        scenario: `fictitious`, `continual` or `real_world`.
        names: of the methods that run there; pairs with another are left out.
    """
    known = set(names)
    wanted = [
        (each.better, other)
        for each in orderings
        if each.scenario == scenario
        for other in each.than
    ]
    return [pair for pair in dict.fromkeys(wanted) if known.issuperset(pair)]


def verdict(difference: Pooled | None, similar: Pooled | None, margin: float) -> str:
    """Judge one pair by its two differences, better minus other; what is absent decides nothing."""
    if difference is not None and difference.high < 0:
        return NOT_UPHELD
    if similar is not None and similar.value < -margin:
        return NOT_UPHELD
    known = difference is not None and similar is not None
    return UPHELD if known and difference.low > 0 else UNDECIDED  # type: ignore[union-attr]


def overall(verdicts: Sequence[str]) -> str:
    """Judge a claim by the verdicts on its pairs; without any it is undecided."""
    if NOT_UPHELD in verdicts:
        return NOT_UPHELD
    return UPHELD if verdicts and set(verdicts) == {UPHELD} else UNDECIDED


def judge(part: Part, ordering: Ordering) -> list[Judged]:
    """Judge the measured pairs of one claim on one model."""
    found = []
    for other in ordering.than:
        both = [_difference(part, name, ordering.better, other) for name in METRICS]
        if any(both):
            difference, similar = both if ordering.metric == "mu" else both[::-1]
            judged = verdict(difference, similar, ordering.margin)
            found.append(Judged(other, difference, similar, judged))
    return found


def _difference(part: Part, metric: str, better: str, other: str) -> Pooled | None:
    rows = part.rows
    chosen = rows["metric"].eq(f"{metric}_difference") & rows["method"].eq(better)
    what = f"{metric}_difference of {better} and {other} for {part.model}, {part.scenario}"
    return pool(rows[chosen & rows["split"].eq(other)], what)


def orderings_table(
    frame: pd.DataFrame,
    orderings: Sequence[Ordering],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of verdicts: for each claim and model a row, then one for each pair.

    `frame` is the tidy table; models without the claim's scenario are left out, and a claim of
    which no pair was measured is undecided. `attrs["footnotes"]` says how to read it.
    """
    rows = closer_look_rows(frame, profile_name)
    lines = [
        line
        for ordering in orderings
        for part in parts(rows)
        if part.scenario.split(" ")[0] == ordering.scenario
        for line in _lines(part, ordering, labels or {})
    ]
    names = ["Claim", "Paper", "Model", "Scenario", "Better", "Than"]
    order = [*names, "Difference in MU", "Difference in FE", "Verdict", "n", "Seeds"]
    table = pd.DataFrame(lines, columns=order).fillna("")
    table.attrs["footnotes"] = [*FOOTNOTES, *_margins(orderings)]
    return table


def _lines(part: Part, ordering: Ordering, labels: Mapping[str, str]) -> list[dict[str, str]]:
    judged = judge(part, ordering)
    better = labels.get(ordering.better, ordering.better)
    shared = {
        "Claim": ordering.statement,
        "Paper": f"{ordering.paper}, {ordering.place}",
        "Model": part.model,
        "Scenario": part.title,
        "Better": better,
    }
    claim = {
        **shared,
        "Than": f"{len(judged)} of {len(ordering.than)} pairs measured",
        "Verdict": overall([each.verdict for each in judged]),
    }
    lines = [claim]
    for each in judged:
        by_metric = {ordering.metric: each.difference, ordering.similar: each.similar}
        first = each.difference or each.similar
        assert first is not None
        lines.append(
            {
                **shared,
                "Than": labels.get(each.other, each.other),
                "Difference in MU": show(by_metric["mu"], 3),
                "Difference in FE": show(by_metric["fe"], 3),
                "Verdict": each.verdict,
                "n": "" if first.n is None else str(first.n),
                "Seeds": str(first.seeds),
            }
        )
    return lines


def _margins(orderings: Sequence[Ordering]) -> list[str]:
    margins = sorted({each.margin for each in orderings})
    return [f"Margin: {', '.join(f'{each:g}' for each in margins)}."] if margins else []
