"""What the papers claim and what our items say of it: the only place where a verdict is given.

    verdicts = judge(stored(profile).items, "laptop")
    table(verdicts)

`notebooks/claims.yaml` holds the claims, each with a kind, a margin that stood before the run, and
gates that must be open. A verdict is one of four outcomes, with its number and interval.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from unlearn_lib.results import Difference, Estimate, Items, compare, estimate
from unlearn_lib.tables import NAMES, Column, Names, conditions_of
from unlearn_lib.util import ROOT, CompanionError, nearest

CLAIMS = ROOT / "notebooks" / "claims.yaml"
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"
NOT_TESTABLE = "not testable here"
OUTCOMES = (SUPPORTED, REFUTED, UNDECIDED, NOT_TESTABLE)
WORST_FIRST = (REFUTED, UNDECIDED, NOT_TESTABLE, SUPPORTED)
"""A claim of several comparisons has the first of these that one of them has."""
SAME, UNTESTED, NOISE_FLOOR = "same_measurement_as", "not_testable", "noise_floor"
SIGNIFICANCE, POWER = 0.05, 0.8
GATE = ("says", "metric", "method", "task", "split", "least", "most", "untaught")
KS_MEAN = math.sqrt(math.pi / 2) * math.log(2)
"""Mean of Kolmogorov's distribution: two samples of n from one model are KS_MEAN √(2/n) apart."""


@dataclass(frozen=True)
class Claim:
    """One claim of a paper; the head of `claims.yaml` says what each key means."""

    id: str
    paper: Mapping[str, Any]
    place: str
    statement: str
    reported: str
    notebook: str
    kind: str
    headline: bool = False
    task: str = ""
    metric: Sequence[str] = ()
    first: Sequence[str] = ()
    second: Sequence[str] = ()
    value: float | str | None = None
    claimed: str = "higher"
    margin: float = 0.0
    split: str | None = None
    condition: Sequence[str | None] = (None,)
    other_condition: str | None = None
    model: str = ""
    gates: Sequence[Mapping[str, Any]] = ()
    tags: Sequence[str] = ()
    same_measurement_as: str = ""
    why: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is said of one claim, or of one of its comparisons.

    Attributes:
        outcome: one of `OUTCOMES`. measured: the numbers with their intervals, in words.
        why: what decides, or what is missing.
        p: of the test that supports the claim, of a headline after Holm; nan without a test.
    """

    claim: Claim
    outcome: str
    measured: str = ""
    why: str = ""
    tags: Sequence[str] = ()
    p: float = math.nan

    @property
    def text(self) -> str:
        """The verdict as plain sentences."""
        parts = (f"{self.outcome}: {self.claim.statement}", self.measured, self.why)
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


@dataclass(frozen=True)
class Region:
    """Where a difference must lie, in margins, if the first is claimed to be higher.

    Attributes:
        support: the interval must lie inside. meant: one that lies below, or above all support,
            refutes.
        power: of each side of the test, for the smallest effect that it detects.
    """

    support: tuple[float, float]
    meant: float
    confidence: float
    power: float = POWER


BEYOND = Region((0, math.inf), 1, 0.95)
NOT_WORSE = Region((-1, math.inf), -1, 0.9)
WITHIN = Region((-1, 1), -1, 0.9, (1 + POWER) / 2)
REGIONS = {"superiority": BEYOND, "matched": BEYOND}
REGIONS |= {"non_inferiority": NOT_WORSE, "equivalence": WITHIN}
KINDS = (*REGIONS, "bound", "by_construction", SAME, UNTESTED)


def rules() -> list[str]:
    """Return how a verdict is given, in sentences."""
    return list(yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))["rules"])


def read_claims(path: Path = CLAIMS) -> list[Claim]:
    """Read the claims; CompanionError names an unknown key or kind and the nearest right one."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]
    keys = [field.name for field in fields(Claim)]
    for entry in entries:
        words = [(entry["kind"], KINDS), *((key, keys) for key in entry)]
        words += [(key, GATE) for gate in entry.get("gates", ()) for key in gate]
        for word, known in words:
            if word not in known:
                where = f"{path.name}: claim {entry['id']}"
                raise CompanionError(f"{where} says '{word}'{nearest(word, known)}.")
    return [Claim(**entry) for entry in entries]


def judge(
    items: Items, profile_name: str, labels: Names = NAMES, claims: Sequence[Claim] = ()
) -> list[Verdict]:
    """Judge claims by the items of a profile, in their order.

    Args:
        profile_name: named where it did not run what a claim needs.
        labels: display names of methods; default: of models before unlearning and guards only.
        claims: default: those of `claims.yaml`.
    """
    claims, names = claims or read_claims(), {**NAMES, **labels}
    own = [_judged(claim, items, profile_name, names) for claim in claims if claim.kind != SAME]
    verdicts = {verdict.claim.id: verdict for verdict in own}
    for paper in {verdict.claim.paper["title"] for verdict in own}:
        verdicts |= _holm([v for v in own if v.claim.paper["title"] == paper])
    for claim in claims:
        if claim.kind == SAME:
            other = verdicts[claim.same_measurement_as]
            why = f"the same measurement as '{other.claim.statement}'"
            verdicts[claim.id] = Verdict(claim, other.outcome, why=why, tags=other.tags)
    return [verdicts[claim.id] for claim in claims]


def _holm(verdicts: Sequence[Verdict]) -> dict[str, Verdict]:
    """The headline claims of a paper, their p-values corrected for their number (Holm 1979)."""
    tested = [v for v in verdicts if v.claim.headline and not math.isnan(v.p)]
    corrected, highest = {}, 0.0
    for rank, verdict in enumerate(sorted(tested, key=lambda v: v.p)):
        highest = max(highest, min(1.0, (len(tested) - rank) * verdict.p))
        if verdict.outcome == SUPPORTED and highest > SIGNIFICANCE:
            why = f"supported alone; among {len(tested)} headline claims p = {highest:.2g} (Holm)"
            verdict = replace(verdict, outcome=UNDECIDED, why=why)
        corrected[verdict.claim.id] = replace(verdict, p=highest)
    return corrected


def _judged(claim: Claim, items: Items, profile_name: str, names: Names) -> Verdict:
    """Judge one claim on every model that it is of, by all its comparisons."""
    models = [model for model in items.models(claim.task) if claim.model in ("", model)]
    if claim.kind == UNTESTED or not models:
        missing = f"profile {profile_name} did not run {claim.model or f'task {claim.task}'}"
        return Verdict(claim, NOT_TESTABLE, why=claim.why or missing, tags=claim.tags)
    for model, gate in itertools.product(models, claim.gates):
        if closed := _closed(gate, claim.task, items, model):
            return Verdict(claim, NOT_TESTABLE, why=closed, tags=claim.tags)
    choices = (models, claim.metric, claim.first, claim.second or ("",), claim.condition)
    parts = [_compared(claim, items, names, each) for each in itertools.product(*choices)]
    worst = min(parts, key=lambda part: WORST_FIRST.index(part.outcome))
    measured = "; ".join(part.measured for part in parts if part.measured)
    other = ("another model",) if set(models) - set(claim.paper["models"]) else ()
    p = float(np.max([part.p for part in parts]))
    return replace(worst, measured=measured, tags=(*claim.tags, *other), p=p)


def _closed(gate: Mapping[str, Any], task: str, items: Items, model: str) -> str:
    """Why a gate keeps a claim from a verdict; empty where it is open."""
    where: dict[str, Any] = {"task": gate.get("task", task), "model": model}
    method, least = gate["method"], gate.get("least", -math.inf)
    if "untaught" in gate and method not in items.methods(**where):
        method, least = "base", gate["untaught"]
    for split in gate.get("split", (None,)):
        number = estimate(items, gate["metric"], method=method, split=split, **where)
        if number is None or not least <= number.value <= gate.get("most", math.inf):
            column = Column(gate["metric"], split)
            measured = column.words(column.shown(number)) if number else "not measured"
            return f"it does not hold that {gate['says']} ({column.heading}: {measured})"
    return ""


def _compared(claim: Claim, items: Items, names: Names, choice: Sequence[Any]) -> Verdict:
    """Judge a metric of one model beside that of another, or beside the claim's value.

    `choice`: model, metric, first, second and the pattern of the condition.
    """
    model, metric, first, second, pattern = choice
    column = Column(metric, claim.split)
    where: dict[str, Any] = {"task": claim.task, "model": model, "split": claim.split}
    condition = _condition(items, claim.task, pattern, -1)
    other = _condition(items, claim.task, claim.other_condition or pattern, 0)
    number = estimate(items, metric, method=first, condition=condition, **where)
    where |= {"condition": condition, "other_condition": other}
    difference = _beside(number, claim.value) if number else None
    if second:
        difference = compare(items, metric, first, second, **where)
    sides = [(name, place) for name, place in ((first, condition), (second, other)) if name]
    named = [names.get(name, name) + f" ({place})" * (condition != other) for name, place in sides]
    if number is None or difference is None:
        return Verdict(claim, NOT_TESTABLE, why=f"not run: {' and '.join(named)}")
    shown = column.words(column.shown(difference if second else number))
    part = Verdict(claim, UNDECIDED, f"{column.heading}, {' minus '.join(named)}: {shown}")
    if claim.kind in ("bound", "by_construction"):
        return _bounded(part, number)
    sign = -1 if claim.claimed == "lower" else 1
    part = _tested(part, REGIONS[claim.kind], difference, column, sign)
    if claim.kind == "matched":
        return _matched(part, compare(items, "fe", first, second, **where))
    return part


def _condition(items: Items, task: str, pattern: str | None, rank: int) -> str:
    """One of the conditions that match a pattern, in the order of their numbers."""
    ordered = sorted(conditions_of(items, task, pattern), key=lambda name: (len(name), name))
    return ordered[rank] if ordered else str(pattern)


def _beside(number: Estimate, value: float | str | None) -> Difference:
    """An estimate minus a value; its error is that of the longer arm of its interval."""
    if value == NOISE_FLOOR:
        value = KS_MEAN * math.sqrt(2 * number.seeds / number.n)
    value, low, high = (end - float(value or 0) for end in (number.value, number.low, number.high))
    error = max(high - value, value - low) / stats.norm.ppf(0.975)
    return Difference(value, low, high, number.n, number.seeds, error, math.inf, math.nan)


def _tested(part: Verdict, region: Region, gap: Difference, column: Column, sign: int) -> Verdict:
    """Judge a difference by its interval; undecided without one."""
    if math.isnan(gap.error):
        return replace(part, why="it has no interval")
    margin = part.claim.margin
    low, high = sorted(sign * end for end in gap.interval(region.confidence))
    least, most = (margin * bound for bound in region.support)
    room = np.array([sign * gap.value - least, most - sign * gap.value])
    tails = stats.t.sf(room / max(gap.error, 1e-12), gap.freedom)
    part = replace(part, p=min(1.0, 2 * SIGNIFICANCE / (1 - region.confidence) * float(max(tails))))
    if high < margin * region.meant or low > most:
        why = f"the interval excludes the smallest effect that is meant, {column.size(margin)}"
        return replace(part, outcome=REFUTED, why=why)
    if least < low and high < most:
        return replace(part, outcome=SUPPORTED)
    times = np.geomspace(1, 1e4, 1000)
    levels = ((1 + region.confidence) / 2, region.power)
    quantiles = sum(stats.t.ppf(level, gap.freedom * times) for level in levels)
    effects = quantiles * gap.error / np.sqrt(times)
    why = f"so many questions can show an effect of {column.size(effects[0])}"
    for n in gap.n * times[effects <= margin][:1]:
        why += f"; {column.size(margin)} take about {float(f'{n:.2g}'):,.0f}"
    return replace(part, why=why)


def _matched(part: Verdict, forgetting: Difference | None) -> Verdict:
    """The verdict on a difference where forgetting is equal, or makes it all the stronger."""
    if forgetting is None:
        return replace(part, outcome=NOT_TESTABLE, why="forgetting was not measured", p=math.nan)
    column, margin = Column("fe"), part.claim.margin
    equal = _tested(part, NOT_WORSE, forgetting, column, 1)
    both = f"{part.measured}; FE: {column.words(column.shown(forgetting))}"
    part = replace(part, measured=both, p=float(np.max([part.p, equal.p])))
    low, high = forgetting.interval(NOT_WORSE.confidence)
    if {SUPPORTED: low > -margin, REFUTED: high < margin}.get(part.outcome):
        return part
    if low > margin or high < -margin:
        return replace(part, outcome=NOT_TESTABLE, why="the two do not forget equally", p=math.nan)
    return replace(part, outcome=UNDECIDED, why=part.why or f"FE: {equal.why}")


def _bounded(part: Verdict, number: Estimate) -> Verdict:
    """Judge a rate by its exact one-sided 95 % bounds (Clopper and Pearson 1934)."""
    bound, count = float(part.claim.value or 0), round(number.value * number.n)
    test = stats.binomtest(count, number.n, bound, alternative="less")
    low, high = stats.binomtest(count, number.n).proportion_ci(1 - 2 * SIGNIFICANCE)
    part = replace(part, measured=f"{part.measured}, at most {100 * high:.2g} %")
    if part.claim.kind == "by_construction":
        return replace(part, outcome=NOT_TESTABLE, why=f"true by construction: {part.claim.why}")
    takes = math.log(SIGNIFICANCE) / math.log1p(-bound)
    outcome = SUPPORTED if high <= bound else REFUTED if low > bound else UNDECIDED
    why = f"{100 * bound:.2g} % take {takes:.0f} prompts if none is flagged, more if some are"
    return replace(part, outcome=outcome, why=why * (outcome == UNDECIDED), p=test.pvalue)


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Return a table of verdicts as text, a row per claim; the rules are its notes in `attrs`."""
    frame = pd.DataFrame(
        {
            "Claim": verdict.claim.statement,
            "Verdict": verdict.outcome,
            "Reported": verdict.claim.reported,
            "Measured here": verdict.measured,
            "Why": f"{verdict.why[:1].upper()}{verdict.why[1:]}",
            "Paper": verdict.claim.paper["title"],
            "Place": verdict.claim.place,
            "Tags": ", ".join(verdict.tags),
        }
        for verdict in verdicts
    )
    frame.attrs["notes"] = rules()
    return frame


def of_notebook(verdicts: Sequence[Verdict], notebook: str) -> pd.DataFrame:
    """Return the table of a notebook's claims that can be tested, `01` to `04`."""
    own = [v for v in verdicts if v.claim.notebook == notebook]
    return table([v for v in own if v.claim.kind not in (SAME, UNTESTED)])


def counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Count the verdicts by outcome; what another claim's measurement decides counts once."""
    counted = Counter(verdict.outcome for verdict in verdicts if verdict.claim.kind != SAME)
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def verify(verdicts: Sequence[Verdict]) -> tuple[str, bool]:
    """Return what to print, and whether no headline claim is refuted."""
    own = [verdict for verdict in verdicts if verdict.claim.kind not in (SAME, UNTESTED)]
    lines = [f"{verdict.claim.id}: {verdict.text}" for verdict in own]
    lines.append(", ".join(f"{count} {outcome}" for outcome, count in counts(verdicts).items()))
    failed = [v.claim.id for v in own if v.claim.headline and v.outcome == REFUTED]
    lines += [f"Refuted: {', '.join(failed)}"] if failed else []
    return "\n".join(lines), not failed
