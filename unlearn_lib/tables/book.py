"""The book experiment's table: the counterpart of Arora et al. (2024), Table 2.

For each model the base (never taught the book), the implanted model and each method, with their
95 % intervals, and the rows that the paper reports. What is missing stays an empty cell.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from unlearn_lib.errors import CompanionError
from unlearn_lib.tables.common import (
    PAPER_SIMILARITY,
    SQUARE_BRACKETS,
    Column,
    Pooled,
    check_columns,
    claims_of,
    method_labels,
    paper_note,
    pick,
    place,
    pool,
    remedy,
    show,
)

BASE, IMPLANTED = "base", "implanted"
SHARES = ("verbatim_share", "degenerate_share", "bleu")
DEGENERATE = "Degenerate answers (%)"
ORIGINAL = "Similarity to original, normal prompts (cosine)"
KS_DISTANCE = "KS distance to base, forget (p)"
PAPER_TEXT = "Similarity to the book (paper's measure)"
TABLE_TWO = (
    Column("Similarity to the book, forget (cosine)", "similarity_text", 1, 2, "forget"),
    Column("BLEU, forget", "bleu", 1, 3, "forget"),
    Column("Verbatim, forget (%)", "verbatim_share", 100, 1, "forget"),
    Column("Verbatim, kept (%)", "verbatim_share", 100, 1, "kept"),
    Column("Extraction strength, forget", "extraction_strength", 1, 3, "forget"),
    Column("Perplexity, forget", "perplexity", 1, 1, "forget"),
    Column(ORIGINAL, "similarity_original", 1, 2, "normal"),
)
BY_DEFINITION = {ORIGINAL: "1", KS_DISTANCE: "0"}
FOOTNOTES = (
    SQUARE_BRACKETS,
    "Base: the exact answer to never having seen the embedded saga, which was written for this "
    "project. A published book, as the paper's, may be known to the base model already.",
    "Similarity to the book: ours is the cosine of sentence embeddings of a continuation and the "
    "true text. The paper states BLEU, while its released code computes a MiniLM cosine on one "
    "excerpt; which of the two its column holds is not known.",
    "Similarity to original: ours is the cosine of the answers to normal prompts with the base "
    "model's own answers, so the base is 1 by definition. The paper's measure gives .611 "
    "(OPT-1.3B) to the original itself, so it is another: the two columns must not be compared.",
    "Verbatim: prompts whose continuation holds a run of 20 or more tokens of the true text.",
    "KS distance: two-sample Kolmogorov-Smirnov distance between the losses of the passages, "
    "unlearned against base, 0 for the base itself; a small p tells the two apart. With several "
    "seeds p is the range over them.",
    "Degenerate answers: the highest share among the chapters to forget, those kept and normal "
    "prompts. n: prompts from the chapters to forget.",
)


def book_rows(frame: pd.DataFrame, profile_name: str = "") -> pd.DataFrame:
    """Return the rows of the book experiment, or say what is missing and what makes it.

    Raises `CompanionError` for missing columns, without the base model's `verbatim_share` on the
    chapters to forget, and for shares outside 0 to 1.
    """
    check_columns(frame, profile_name)
    where = place(profile_name)
    rows = frame[frame["experiment"] == "book"]
    text = rows[rows["scenario"].eq("text") & rows["value"].notna()]
    base = text[text["stage"].eq("base") & text["split"].eq("forget")]
    if not base["metric"].eq("verbatim_share").any():
        raise CompanionError(
            f"No verbatim_share of the base model on the chapters to forget in {where}: "
            f"{remedy(profile_name)}."
        )
    if not text.loc[text["metric"].isin(SHARES), "value"].between(0, 1).all():
        raise CompanionError(f"A {', '.join(SHARES)} in {where} is no fraction from 0 to 1.")
    return rows


def estimate(
    rows: pd.DataFrame, metric: str, split: str, model: str, who: str, scenario: str = "text"
) -> Pooled | None:
    """Pool the seeds of one number; `who` is `BASE`, `IMPLANTED` or a method; None if absent."""
    chosen = _chosen(rows, metric, split, model, who, scenario)
    return pool(chosen, f"{metric} on {split} for {model}, {who}")


def _chosen(
    rows: pd.DataFrame, metric: str, split: str, model: str, who: str, scenario: str
) -> pd.DataFrame:
    wanted = {"metric": metric, "split": split, "model": model, "scenario": scenario}
    if who in (BASE, IMPLANTED):
        return pick(rows, **wanted, stage=who)
    return pick(rows, **wanted, stage="unlearned", method=who)


def worst_degenerate(rows: pd.DataFrame, model: str, who: str) -> Pooled | None:
    """Return the highest share of degenerate answers among forget, kept and normal prompts."""
    splits = ("forget", "kept", "normal")
    found = [estimate(rows, "degenerate_share", split, model, who) for split in splits]
    return max(filter(None, found), key=lambda each: each.value, default=None)


def shown_models(
    rows: pd.DataFrame, labels: Mapping[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """Return, for each model, who has measured values and under what name they are shown.

    The base and the implanted model come first, then the methods in the order of `labels`.
    """
    text = rows[rows["scenario"].eq("text") & rows["value"].notna()]
    found = {}
    for model in dict.fromkeys(text["model"]):
        own = text[text["model"].eq(model)]
        stages = {who: who for who in (BASE, IMPLANTED) if own["stage"].eq(who).any()}
        found[model] = stages | method_labels(own, labels)
    return found


def table_two(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the counterpart of Arora et al., Table 2: text cells, ours beside the paper's.

    Rows: for each model the base, the implanted one, then each method; then the paper's.
    `labels` gives display names and order of methods. `attrs["footnotes"]` of the result says how
    to read it.
    """
    rows = book_rows(frame, profile_name)
    shown = shown_models(rows, labels)
    lines = [
        _our_line(rows, model, who, label)
        for model, present in shown.items()
        for who, label in present.items()
    ]
    lines += _paper_lines(claims_of(claims, "Arora", "Table 2"), set(shown))
    headings = [column.heading for column in TABLE_TWO]
    headings.insert(1, PAPER_TEXT)
    ours = ["Source", "Model", "Method", *headings[:-1], KS_DISTANCE, headings[-1]]
    order = [*ours, PAPER_SIMILARITY, DEGENERATE, "n", "Seeds", "Note"]
    table = pd.DataFrame(lines, columns=order).fillna("")
    table.attrs["footnotes"] = list(FOOTNOTES)
    return table


def _our_line(rows: pd.DataFrame, model: str, who: str, label: str) -> dict[str, str]:
    line = {"Source": "ours", "Model": model, "Method": label}
    for column in TABLE_TWO:
        found = estimate(rows, column.metric, column.split, model, who)
        line[column.heading] = show(found and found.scaled(column.factor), column.decimals)
    line[KS_DISTANCE] = _distance_cell(rows, model, who)
    degenerate = worst_degenerate(rows, model, who)
    line[DEGENERATE] = show(degenerate and degenerate.scaled(100))
    if who == BASE:
        line |= BY_DEFINITION
    verbatim = estimate(rows, "verbatim_share", "forget", model, who)
    if verbatim:
        line |= {"n": "" if verbatim.n is None else str(verbatim.n), "Seeds": str(verbatim.seeds)}
    return line


def _distance_cell(rows: pd.DataFrame, model: str, who: str) -> str:
    distance = show(estimate(rows, "ks_distance", "forget", model, who, "minus_base"), 2)
    chosen = _chosen(rows, "ks_p_value", "forget", model, who, "minus_base")
    known = chosen["value"].dropna()
    if not distance or known.empty:
        return distance
    both = dict.fromkeys(f"{end:.2g}" for end in (known.min(), known.max()))
    return f"{distance} (p = {'–'.join(both)})"


def _paper_lines(claims: Sequence[Mapping[str, Any]], ours: set[str]) -> list[dict[str, str]]:
    reported = {(c["model"], c["stage"], c["metric"]): float(c["value"]) for c in claims}
    lines = []
    for model, stage in dict.fromkeys((c["model"], c["stage"]) for c in claims):
        line = {"Source": "paper", "Model": model, "Method": stage}
        line["Note"] = paper_note(model, ours)
        text = reported.get((model, stage, "similarity_text"))
        similarity = reported.get((model, stage, "similarity_original"))
        if text is not None:
            line[PAPER_TEXT] = f"{text:.2f}"
        if similarity is not None:
            line[PAPER_SIMILARITY] = f"{similarity:.3f}"
        lines.append(line)
    return lines
