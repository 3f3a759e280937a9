"""From the tidy table to a verdict on every claim of `claims.yaml`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unlearn_lib.claims import rows
from unlearn_lib.claims.comparing import OTHER_WAY, TOUCHING, Bench, Found, compared, gathered
from unlearn_lib.claims.entries import Claim, read
from unlearn_lib.claims.in_words import judge_words
from unlearn_lib.claims.rules import (
    CONTRARY,
    DIRECTION_ONLY,
    NOT_JUDGED,
    NOT_REPRODUCED,
    SEEN,
    SHOWN,
    WITHIN_TOLERANCE,
    change,
    number,
)
from unlearn_lib.profiles import OWN_BOOK, PROFILES, profile_files
from unlearn_lib.tables.common import Pooled, check_columns
from unlearn_lib.tables.orderings import read_orderings


@dataclass(frozen=True)
class Verdict:
    """What is said of one claim, in words to be printed.

    Attributes:
        id, paper, place: which claim, and where it stands.
        statement: what is claimed, in short.
        reported, measured: with units and intervals; empty where there is none.
        verdict: one of `VERDICTS`.
        why: what is missing, or what keeps it from a better verdict.
        experiment: harmful, book, tofu or eco; empty for what belongs to none.
        headline: whether it is one of the few that matter most.
    """

    id: str
    paper: str
    place: str
    statement: str
    reported: str
    measured: str
    verdict: str
    why: str
    experiment: str
    headline: bool = False


def judge_all(
    frame: pd.DataFrame,
    profile_name: str,
    claims_path: Path,
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Verdict]:
    """Judge every claim by the tidy table of a profile, in the order of the file.

    Args:
        frame: the tidy table.
        profile_name: whose it is; one that extends another is judged in words as that one.
        claims_path: `claims.yaml`; `orderings.yaml` stands beside it.
        labels: for each experiment, method names to display names.

    Raises:
        CompanionError: missing columns, a broken claims.yaml or orderings.yaml, or two rows of
            one number and seed.
    """
    check_columns(frame, profile_name)
    profile, book, _ = profile_name.partition(OWN_BOOK)
    shipped = (PROFILES / f"{profile}.yaml").is_file()
    bench = Bench(
        frame=frame[frame["value"].notna()],
        profile=profile,
        own_book=bool(book),
        family=tuple(path.stem for path in profile_files(profile)) if shipped else (profile,),
        orderings={e.id: e for e in read_orderings(claims_path.with_name("orderings.yaml"))},
        labels={name: label for own in (labels or {}).values() for name, label in own.items()},
    )
    return [_dressed(claim, _judge(claim, bench), bench) for claim in read(claims_path)]


def _dressed(claim: Claim, found: Found, bench: Bench) -> Verdict:
    return Verdict(
        id=claim.id,
        paper=claim.paper,
        place=claim.place,
        statement=rows.statement(claim, bench.labels),
        reported=rows.reported(claim),
        measured=found.measured,
        verdict=found.verdict,
        why=found.why,
        experiment=claim.row.get("experiment", ""),
        headline=claim.headline,
    )


def _judge(claim: Claim, bench: Bench) -> Found:
    of_family = set(bench.family)
    if claim.words:
        if of_family & set(claim.judged_in):
            return judge_words(claim, bench)
    elif bench.profile in claim.judged_in and (bench.own_book or not claim.needs_book):
        return _number(claim, bench)
    elif of_family & set(claim.direction.get("judged_in", [])):
        return gathered(_directions(claim, bench))
    return Found(NOT_JUDGED, why=_why_not(claim))


def _why_not(claim: Claim) -> str:
    why, able = claim.why, " or ".join(claim.judged_in)
    if not why and claim.words:
        why = f"judged in profile {able}"
    elif not why:
        book = " and the paper's book" if claim.needs_book else ""
        why = f"needs {claim.model or 'its models and data'}{book} (profile {able})"
    return f"{why}; see {claim.see}" if claim.see else why


def _number(claim: Claim, bench: Bench) -> Found:
    ours = rows.estimates(bench.frame, claim.row)
    if rows.is_change(claim):
        old = rows.before(bench.frame, claim.row)
        ours = {model: change(ours[model], old[model]) for model in ours if model in old}
    mine = {model: each for model, each in ours.items() if claim.model in (None, model)}
    found = {model: _one_number(claim, each) for model, each in mine.items()}
    if claim.direction:
        directions = _directions(claim, bench)
        for model, each in found.items():
            directed = directions.get(model, each)
            if each.verdict == NOT_REPRODUCED and directed.verdict == DIRECTION_ONLY:
                found[model] = Found(DIRECTION_ONLY, directed.measured, each.why)
    return gathered(found)


def _one_number(claim: Claim, ours: Pooled) -> Found:
    assert claim.value is not None and claim.tolerance is not None
    text = rows.in_unit(ours, claim.row["metric"], signed=rows.is_change(claim))
    verdict = number(rows.percent(claim, ours), claim.value, claim.tolerance)
    unknown = math.isnan(ours.low) or math.isnan(ours.high)
    held = "ours has no interval" if unknown else "our interval does not hold the paper's value"
    why = {WITHIN_TOLERANCE: held, NOT_REPRODUCED: f"off by more than {claim.tolerance:g}"}
    return Found(verdict, f"{text}{rows.count(ours)}", why.get(verdict, ""))


def _directions(claim: Claim, bench: Bench) -> dict[str, Found]:
    why = {SHOWN: "another model or other data", SEEN: TOUCHING, CONTRARY: OTHER_WAY}
    found = {}
    for model, each in compared(claim.direction, claim.row, bench.frame).items():
        verdict = DIRECTION_ONLY if each.outcome == SHOWN else NOT_REPRODUCED
        found[model] = Found(verdict, f"{each.text}{each.count}", why[each.outcome])
    return {claim.model: found[claim.model]} if claim.model in found else found
