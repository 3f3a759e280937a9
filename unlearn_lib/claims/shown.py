"""Tables of verdicts, and what `make verify` prints."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.claims.judging import Verdict, judge_all
from unlearn_lib.claims.rules import NOT_JUDGED, NOT_REPRODUCED, RULES, VERDICTS
from unlearn_lib.tables.common import write_table

HEADINGS = {
    "statement": "Claim",
    "paper": "Paper",
    "place": "Place",
    "reported": "Reported",
    "measured": "Measured",
    "verdict": "Verdict",
    "why": "Why",
}


def _table(verdicts: Iterable[Verdict], columns: Iterable[str]) -> pd.DataFrame:
    frame = pd.DataFrame([asdict(each) for each in verdicts], columns=list(columns))
    table = frame.rename(columns=HEADINGS)
    table.attrs["footnotes"] = list(RULES)
    return table


def verdicts_table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Build the table of all claims, those judged here first; the rules are its footnotes."""
    return _table(sorted(verdicts, key=lambda each: each.verdict == NOT_JUDGED), HEADINGS)


def headline(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Build the short table of the claims that matter most, with the same footnotes."""
    chosen = (each for each in verdicts if each.headline)
    return _table(chosen, [name for name in HEADINGS if name != "place"])


def verdicts_summary(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """Count the claims of each paper by verdict, a row a paper and one for all."""
    papers = list(dict.fromkeys(each.paper for each in verdicts))
    lines = [
        {"Paper": name, **_counts(each for each in verdicts if name in (each.paper, "all"))}
        for name in [*papers, "all"]
    ]
    return pd.DataFrame(lines, columns=["Paper", *VERDICTS])


def _counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    counted = Counter(each.verdict for each in verdicts)
    return {verdict: counted[verdict] for verdict in VERDICTS}


def write(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    claims_path: Path,
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Path]:
    """Judge every claim and write the tables `verdicts` and `verdicts_headline`; as `judge_all`."""
    verdicts = judge_all(frame, profile_name, claims_path, labels)
    details = {**provenance, "profile": profile_name}
    return [
        *write_table(verdicts_table(verdicts), folder, "verdicts", details),
        *write_table(headline(verdicts), folder, "verdicts_headline", details),
    ]


def verify(verdicts: Sequence[Verdict]) -> tuple[str, bool]:
    """Return what to print of the claims that are judged here, and whether none failed.

    A line for each, then the number of each verdict, then those not reproduced.
    """
    judged = [each for each in verdicts if each.verdict != NOT_JUDGED]
    lines = [_line(each) for each in judged]
    counts = _counts(verdicts)
    lines += ["", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())]
    failed = [each.id for each in judged if each.verdict == NOT_REPRODUCED]
    if failed:
        lines += ["Not reproduced:", *(f"  {name}" for name in failed)]
    return "\n".join(lines), not failed


def _line(each: Verdict) -> str:
    against = f"reported {each.reported}, measured" if each.reported else "measured"
    why = f" ({each.why})" if each.why else ""
    return f"{each.verdict:<16}  {each.id}: {against} {each.measured}{why}"
