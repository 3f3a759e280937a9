"""RESULTS.md: the verdicts and the main tables of a profile's results, as one page of Markdown."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from unlearn_lib import claims, tables
from unlearn_lib.results import Items

SECTIONS = {
    "table1_harmful": "Fewer harmful answers",
    "table2_book": "A book, taught and forgotten",
    "table3_closer_look": "A closer look: authors, one group after another, real people",
    "eco_comparison": "A guard beside methods that train: authors",
    "eco_science": "A guard beside methods that train: multiple choice",
    "eco_robustness": "Ways past the guard",
    "guards": "What the guards flag",
    "judges": "Judges, on pairs that they never saw",
}
"""The tables on the page, and their headings."""
SHOWN = ["Claim", "Verdict", "Reported", "Measured here", "Why", "Paper"]


def results_page(
    items: Items, origin: Mapping[str, Any], profile_name: str, labels: Mapping[str, str]
) -> str:
    """Return RESULTS.md: counted and headline verdicts, what they rest on, the main tables.

    Args:
        origin: of the items; its `git` is named.
        labels: display names of methods, in order.
    """
    verdicts = claims.judge(items, profile_name, labels)
    headline = claims.table([each for each in verdicts if each.claim.headline])
    counts = [f"{count} {outcome}" for outcome, count in claims.counts(verdicts).items()]
    git = origin.get("git") or {}
    commit = f"{git.get('commit') or 'unknown'}"[:10] + "+" * bool(git.get("dirty"))
    parts = [
        f"# Results of profile {profile_name}",
        f"Computed at commit {commit}; `make figures PROFILE={profile_name}` writes this page. "
        "`make verify` prints the verdict on every claim, and every figure and table lies in "
        f"[figures/{profile_name}](figures/{profile_name}). {origin.get('note', '')}".strip(),
        f"## Verdicts\n\nOf all claims: {', '.join(counts)}. The headline claims:",
        markdown(headline[SHOWN]),
        "\n".join(f"- {rule}" for rule in claims.rules()),
        "## Seeds and questions\n\nQuestions of all seeds together, by split.",
        markdown(foundations(items)),
    ]
    for name, heading in SECTIONS.items():
        frame = tables.build(name, items, labels).drop(columns=["Source", "Model"], errors="ignore")
        if len(frame):
            parts += [f"## {heading}", markdown(frame)]
    return "\n\n".join([*parts, tables.INTERVALS, tables.DAGGER]) + "\n"


def foundations(items: Items) -> pd.DataFrame:
    """Return how many seeds, and questions by split, each task and model rests on."""
    asked = items.frame[items.frame["split"].isin(tables.SPLITS) & (items.frame["item"] != "")]
    asked = asked.drop_duplicates(["task", "model", "split", "seed", "item"])
    groups = asked.replace({"task": tables.TASKS}).groupby(["task", "model"], sort=False)
    counts = groups["split"].value_counts().unstack(fill_value=0)[asked["split"].unique()]
    return groups["seed"].nunique().rename("seeds").to_frame().join(counts).reset_index()


def markdown(frame: pd.DataFrame) -> str:
    """Return a table as Markdown; a bar within a cell is escaped."""
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    cells = ([str(cell).replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
