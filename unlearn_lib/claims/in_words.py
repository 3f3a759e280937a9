"""Claims in words: by comparisons of numbers, by orderings.yaml, or by the verdicts on ECO."""

from collections.abc import Mapping

from unlearn_lib.claims import rows
from unlearn_lib.claims.comparing import (
    NOT_MEASURED,
    OTHER_WAY,
    TOUCHING,
    Bench,
    Compared,
    Found,
    compared,
)
from unlearn_lib.claims.entries import Claim
from unlearn_lib.claims.rules import (
    CONTRARY,
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    SEEN,
    SHOWN,
    VERDICTS,
    in_words,
)
from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.tables import closer_look, orderings
from unlearn_lib.tables.common import show
from unlearn_lib.tables.eco_verdicts import ECO_CLAIMS

HOME = "paper"
"""The profile with the papers' own models and data."""

OUTCOMES = {orderings.UPHELD: SHOWN, orderings.UNDECIDED: SEEN, orderings.NOT_UPHELD: CONTRARY}


def judge_words(claim: Claim, bench: Bench) -> Found:
    """Judge a claim in words; `at_most` caps its verdict, `because` says why.

    Raises `CompanionError` for an ordering or a verdict on ECO that there is not.
    """
    words = claim.words
    if "eco" in words:
        found = _by_eco(words["eco"], bench)
    elif "ordering" in words:
        found = _by_ordering(words["ordering"], bench)
    else:
        found = _by_comparisons(claim, bench)
    cap = words.get("at_most", REPRODUCED)
    if VERDICTS.index(found.verdict) < VERDICTS.index(cap):
        return Found(cap, found.measured, words.get("because", ""))
    if found.verdict == REPRODUCED and HOME not in bench.family:
        return Found(REPRODUCED, found.measured, "on another model and other data")
    return found


def _by_comparisons(claim: Claim, bench: Bench) -> Found:
    words = claim.words
    if "given" in words:
        premise = compared(words["given"], claim.row, bench.frame)
        if not premise or any(each.outcome != SHOWN for each in premise.values()):
            return Found(NOT_JUDGED, why="what it presupposes was not seen here")
    every: list[Compared] = []
    texts = []
    for comparison in words["compare"]:
        found = compared(comparison, claim.row, bench.frame)
        every += found.values()
        if found:
            measured = rows.by_model({model: each.text for model, each in found.items()})
            texts.append(f"{_name(comparison['of'], bench)}: {measured}")
    counts = dict.fromkeys(each.count for each in every)
    measured = f"{'; '.join(texts)}{' or'.join(counts)}"
    return _found([each.outcome for each in every], measured, bool(words.get("partly")))


def _name(of: Mapping[str, str], bench: Bench) -> str:
    who = bench.labels.get(of.get("method", ""), of.get("method")) or of.get("stage", "")
    return ", ".join(filter(None, [who, of.get("metric", "").replace("_", " ")]))


def _found(outcomes: list[str], measured: str, partly: bool = False) -> Found:
    verdict = in_words(outcomes, partly)
    why = {NOT_JUDGED: NOT_MEASURED, REPRODUCED: "", NOT_REPRODUCED: OTHER_WAY}
    in_part = "in part only" if CONTRARY in outcomes else TOUCHING
    return Found(verdict, measured, why.get(verdict, in_part))


def _by_eco(name: str, bench: Bench) -> Found:
    known = {claim.id: claim for claim in ECO_CLAIMS if claim.id}
    if name not in known:
        raise CompanionError(f"claims.yaml: no verdict on ECO is '{name}'{nearest(name, known)}.")
    frame = bench.frame
    findings = known[name].judge(frame[frame["experiment"].eq("eco")])
    models = dict.fromkeys(finding.model for finding in findings)
    texts = {
        model: "; ".join(
            f"{each.part}: {each.measured}" if each.part else each.measured
            for each in findings
            if each.model == model
        )
        for model in models
    }
    outcomes = [OUTCOMES[finding.verdict] for finding in findings]
    return _found(outcomes, rows.by_model(texts))


def _by_ordering(name: str, bench: Bench) -> Found:
    if name not in bench.orderings:
        known = nearest(name, bench.orderings)
        raise CompanionError(f"claims.yaml: orderings.yaml has no '{name}'{known}.")
    ordering, frame = bench.orderings[name], bench.frame
    every: list[orderings.Judged] = []
    texts = {}
    for part in closer_look.parts(frame[frame["experiment"].eq("tofu")]):
        judged = orderings.judge(part, ordering)
        if part.scenario.split(" ")[0] == ordering.scenario and judged:
            every += judged
            pairs = [_pair(each, ordering, bench) for each in judged]
            texts[part.model] = f"{'; '.join(pairs)} ({len(judged)} of {len(ordering.than)} pairs)"
    found = _found([_outcome(each) for each in every], rows.by_model(texts))
    if found.verdict != NOT_REPRODUCED:
        return found
    too_low = any(each.similar and each.similar.value < -ordering.margin for each in every)
    why = f"{ordering.similar.upper()} is lower by more than {ordering.margin:g}"
    return Found(NOT_REPRODUCED, found.measured, why if too_low else OTHER_WAY)


def _outcome(judged: orderings.Judged) -> str:
    """Say how a pair came out; an undecided one is SEEN if its value goes the right way."""
    undecided = judged.verdict == orderings.UNDECIDED
    if undecided and not (judged.difference and judged.difference.value > 0):
        return CONTRARY
    return OUTCOMES[judged.verdict]


def _pair(judged: orderings.Judged, ordering: orderings.Ordering, bench: Bench) -> str:
    """Print the differences of a pair, better minus other."""
    both = {ordering.metric: judged.difference}
    if ordering.margin < 1:
        both[ordering.similar] = judged.similar
    texts = [f"{metric.upper()} {show(found, 3) or 'unknown'}" for metric, found in both.items()]
    return f"over {bench.labels.get(judged.other, judged.other)}: {', '.join(texts)}"
