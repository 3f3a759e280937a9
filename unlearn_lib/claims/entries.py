"""`notebooks/claims.yaml` as checked entries: what its header says, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unlearn_lib.claims.rules import VERDICTS
from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.tables.common import read_claims

ROW = ("experiment", "scenario", "stage", "method", "split", "metric")
SIDES = ("above", "below")
NESTED: dict[str, tuple[str, ...]] = {
    "ours": ROW,
    "direction": (*SIDES, "judged_in"),
    "words": ("ordering", "eco", "compare", "given", "partly", "at_most", "because"),
}
COMPARISON = ("of", *SIDES, "times")


@dataclass(frozen=True)
class Claim:
    """One claim of a paper; the header of `claims.yaml` says what each key means."""

    id: str
    paper: str
    place: str
    statement: str
    metric: str | None
    stage: str
    model: str | None
    value: float | None
    unit: str
    tolerance: float | None
    judged_in: tuple[str, ...]
    experiment: str = ""
    scenario: str = ""
    data: str = ""
    split: str = ""
    method: str = ""
    printed_model: str = ""
    note: str = ""
    short: str = ""
    reported: str = ""
    why: str = ""
    see: str = ""
    headline: bool = False
    needs_book: bool = False
    ours: Mapping[str, str] = field(default_factory=dict)
    direction: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)

    @property
    def row(self) -> dict[str, str]:
        """Where our number stands in the tidy table: column to value."""
        own = {
            "experiment": self.experiment,
            "scenario": self.scenario,
            "stage": self.stage,
            "method": self.method,
            "split": self.split,
            "metric": self.metric or "",
        } | dict(self.ours)
        if own["experiment"] == "tofu" and not own["split"]:
            own["split"] = "all" if self.metric in ("mu", "model_utility") else "forget"
        return {column: value for column, value in own.items() if value}


def read(path: Path) -> list[Claim]:
    """Read and check the claims.

    Raises `CompanionError` in one sentence for a missing file, for no YAML, for a key that is
    missing or unknown, for an id that stands there twice, and for a `see` that leads nowhere.
    """
    entries = read_claims(path)
    claims = [_checked(entry, f"{path.name}: claim {entry['id']}") for entry in entries]
    ids = [claim.id for claim in claims]
    for claim in claims:
        if ids.count(claim.id) > 1:
            raise CompanionError(f"{path.name}: claim {claim.id} stands there twice.")
        if claim.see and claim.see not in ids:
            raise CompanionError(
                f"{path.name}: claim {claim.id} refers to '{claim.see}'{nearest(claim.see, ids)}."
            )
    return claims


def _checked(entry: Mapping[str, Any], where: str) -> Claim:
    _refuse_unknown(entry, [each.name for each in fields(Claim)], where)
    for key, known in NESTED.items():
        if not isinstance(entry.get(key, {}), dict):
            raise CompanionError(f"{where}: '{key}' is no mapping of {', '.join(known)}.")
        _refuse_unknown(entry.get(key, {}), known, f"{where}, {key},")
    words = entry.get("words", {})
    for comparison in [*words.get("compare", []), *filter(None, [words.get("given")])]:
        _check_comparison(comparison, f"{where}, words,")
    if words.get("at_most", VERDICTS[0]) not in VERDICTS:
        raise CompanionError(f"{where}: at_most is one of {', '.join(VERDICTS)}.")
    if len({"ordering", "eco", "compare"} & set(words)) != bool(words):
        raise CompanionError(f"{where}: words has one of ordering, eco and compare.")
    if not isinstance(entry["judged_in"], list):
        raise CompanionError(f"{where}: judged_in lists the names of profiles.")
    return Claim(**{**entry, "judged_in": tuple(entry["judged_in"])})


def _check_comparison(comparison: Mapping[str, Any], where: str) -> None:
    _refuse_unknown(comparison, COMPARISON, where)
    for side in ("of", *SIDES):
        if isinstance(comparison.get(side), dict):
            _refuse_unknown(comparison[side], ROW, f"{where} {side},")
    if len(set(SIDES) & set(comparison)) != 1 or "of" not in comparison:
        raise CompanionError(f"{where} a comparison has 'of' and one of above and below.")


def _refuse_unknown(entry: Mapping[str, Any], known: tuple[str, ...] | list[str], at: str) -> None:
    for key in entry:
        if key not in known:
            raise CompanionError(f"{at} has the key '{key}'{nearest(str(key), known)}.")
