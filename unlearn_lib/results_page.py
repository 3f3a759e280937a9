"""RESULTS.md: the verdicts and the main tables of a profile's results, as one page of Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import StrictUndefined, Template

from unlearn_lib import claims, tables
from unlearn_lib.results import Items

TEMPLATE = Path(__file__).with_name("results_page.md.j2")


def results_page(
    items: Items, origin: Mapping[str, Any], profile_name: str, labels: tables.Names
) -> str:
    """Return RESULTS.md: counted and headline verdicts, what they rest on, the main tables.

    Args:
        origin: of the items; its `git` and `weights` are named.
        labels: display names of methods, in order.
    """
    text = TEMPLATE.read_text(encoding="utf-8")
    verdicts = claims.judge(items, profile_name, labels)
    page = Template(text, trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    return page.render(
        profile=profile_name,
        commit=tables.commit_of(origin),
        note=origin.get("note"),
        weights=tables.weights_of(origin),
        counts=claims.counts(verdicts),
        headline=claims.table([each for each in verdicts if each.claim.headline]),
        foundations=foundations(items),
        tables={name: tables.build(name, items, labels) for name in tables.TABLES},
        notes=[tables.INTERVALS, tables.DAGGER],
        markdown=markdown,
    )


def foundations(items: Items) -> pd.DataFrame:
    """Return how many seeds, and questions by split, each task and model rests on."""
    asked = items.frame[items.frame["split"].isin(tables.SPLITS) & (items.frame["item"] != "")]
    asked = asked.drop_duplicates(["task", "model", "split", "seed", "item"])
    groups = asked.replace({"task": tables.TASKS}).groupby(["task", "model"], sort=False)
    counts = groups["split"].value_counts().unstack(fill_value=0)[asked["split"].unique()]
    return groups["seed"].nunique().rename("seeds").to_frame().join(counts).reset_index()


def markdown(frame: pd.DataFrame) -> str:
    """Return a table as Markdown, its cells plain text."""
    head, *rows = tables.to_markdown(frame)
    lines = [head, ["---"] * frame.shape[1], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
