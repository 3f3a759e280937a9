"""Which rows of the tidy table stand for a claim, and how a reported or measured number reads."""

from collections.abc import Mapping

import pandas as pd

from unlearn_lib.claims.entries import Claim
from unlearn_lib.metrics.names import METRICS
from unlearn_lib.tables.common import Pooled, pool, show

TRAINED = ("unlearned", "guarded")


def estimates(frame: pd.DataFrame, wanted: Mapping[str, str]) -> dict[str, Pooled]:
    """Return one number of each model, its seeds pooled; models without it are left out.

    Args:
        frame: the tidy table.
        wanted: column to value; a method counts for `TRAINED` stages only.
    """
    chosen = frame[frame["value"].notna()]
    for column, value in wanted.items():
        if column != "method" or wanted.get("stage") in TRAINED:
            chosen = chosen[chosen[column].eq(value)]
    what = " ".join(filter(None, wanted.values()))
    found = {
        str(model): pool(own, f"{what} for {model}")
        for model, own in chosen.groupby("model", sort=False)
    }
    return {model: pooled for model, pooled in found.items() if pooled}


def before(frame: pd.DataFrame, wanted: Mapping[str, str]) -> dict[str, Pooled]:
    """Return the number of each model before anything was forgotten: as implanted, else as base."""
    base = estimates(frame, {**wanted, "stage": "base"})
    return base | estimates(frame, {**wanted, "stage": "implanted"})


def percent(claim: Claim, found: Pooled) -> Pooled:
    """Return a share in per cent where the claim is in per cent."""
    share = claim.metric in METRICS and METRICS[claim.metric].unit == "share"
    return found.scaled(100) if share and claim.unit.endswith("per cent") else found


def is_change(claim: Claim) -> bool:
    """Whether the claim's value is after minus before."""
    return claim.unit.startswith("difference")


def in_unit(found: Pooled, metric: str, signed: bool = False) -> str:
    """Print an estimate of a metric in its unit; `signed`: a change, with its sign."""
    unit = METRICS[metric].unit
    if unit == "p-value":
        return f"p = {found.value:.2g}"
    factor, decimals, end = {
        "share": (100, 1, " %"),
        "per cent": (1, 1, " %"),
        "ms": (1, 2, " ms"),
    }.get(unit, (1, 3, ""))
    text = show(found.scaled(factor), decimals)
    return f"{'+' if signed and not text.startswith('-') else ''}{text}{end}"


def count(found: Pooled) -> str:
    """Print the number of items, and of seeds where there are several, to follow an estimate."""
    items = f", n {found.n}" if found.n and found.n > 1 else ""
    return f"{items}{f', {found.seeds} seeds' if found.seeds > 1 else ''}"


def by_model(texts: Mapping[str, str]) -> str:
    """Join what was measured of each model; a single model needs no name."""
    if len(texts) < 2:
        return "".join(texts.values())
    return "; ".join(f"{model.rsplit('/', 1)[-1]}: {text}" for model, text in texts.items())


def reported(claim: Claim) -> str:
    """Print what the source reports, with its unit; empty where it gives no number."""
    if claim.reported or claim.value is None:
        return claim.reported
    kind, _, unit = claim.unit.rpartition(", ")
    number = f"{claim.value:{'+' if is_change(claim) else ''}g}"
    if unit == "per cent":
        number += " points" if is_change(claim) else " %"
    elif unit == "p-value":
        number = f"p = {number}"
    elif unit != "score":
        number += f" {unit}" if "paper's measure" not in claim.unit else f" ({claim.unit})"
    return f"below {number}" if kind == "upper bound" else number


def statement(claim: Claim, labels: Mapping[str, str]) -> str:
    """Say in short what is claimed: the claim's own short words, or model, data, who and what."""
    if claim.short:
        return claim.short
    if not claim.printed_model:
        return claim.statement
    who = {"base": "before", "reference": "taught what is to be kept"}.get(claim.stage, claim.stage)
    if claim.method not in ("", "none"):
        who = labels.get(claim.method, claim.method)
    metric = claim.metric or claim.unit
    what = metric.upper() if metric in ("mu", "fe") else metric.replace("_", " ")
    what += ", change" if is_change(claim) else ""
    return f"{', '.join(filter(None, [claim.printed_model, claim.data, who]))}: {what}"
