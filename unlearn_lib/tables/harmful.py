"""The harmful experiment's table: the counterpart of Arora et al. (2024), Table 1.

Our rows with their 95 % intervals and, beside them, the rows that the paper reports. Nothing is
computed that the tidy table does not hold, save means over seeds and ratios to the model before
unlearning. What is missing stays an empty cell.
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

SCENARIOS = {
    "harmful_rate": "held_out",
    "harmful_rate_length_matched": "held_out",
    "effectiveness": "held_out",
    "degenerate_share": "held_out",
    "answer_tokens": "held_out",
    "retain_perplexity": "retained_text",
    "similarity_original": "normal",
    "rougeL_original": "normal",
    "refusal_share_normal": "normal",
    "classifier_auc": "classifier",
    "classifier_accuracy": "classifier",
}
HARMFUL_METRICS = ("harmful_rate", "degenerate_share", "retain_perplexity", "similarity_original")
BASE = "original"
FOOTNOTES = (
    SQUARE_BRACKETS,
    "Shortness control: the original model's answers cut to the lengths of the unlearned model's "
    "and judged again; a drop that it shows as well is only a drop in length.",
    "Similarity: ours is the cosine of sentence embeddings of the answers to normal prompts, "
    "unlearned against original, so the original is 1 by definition. The paper's measure is "
    "another, not confirmed (its values reach below -1; BLEURT would fit): the two columns must "
    "not be compared.",
    "Perplexity ratio: perplexity on retained text over that of the original model, whose own "
    "value is taken as fixed in the interval.",
    "Effectiveness of the paper's rows: worked out here from its two harmful rates.",
)
TABLE_ONE = (
    Column("Harmful rate (%)", "harmful_rate", 100),
    Column("Shortness control (%)", "harmful_rate_length_matched", 100),
    Column("Effectiveness (%)", "effectiveness"),
    Column("Similarity to original (cosine)", "similarity_original", decimals=2),
    Column("ROUGE-L to original", "rougeL_original", decimals=2),
    Column("Degenerate answers (%)", "degenerate_share", 100),
    Column("Perplexity ratio", "perplexity_ratio", decimals=2),
    Column("Answer length (tokens)", "answer_tokens"),
    Column("Refusals, normal prompts (%)", "refusal_share_normal", 100),
)
ONE_BY_DEFINITION = ("Similarity to original (cosine)", "ROUGE-L to original", "Perplexity ratio")


def harmful_rows(frame: pd.DataFrame, profile_name: str = "") -> pd.DataFrame:
    """Return the rows of the harmful experiment, or say what is missing and what makes it.

    Raises `CompanionError` for missing columns, for a metric of `HARMFUL_METRICS` without rows or
    (harmful rate, perplexity) without the original model's, and for shares outside 0 to 1.
    """
    check_columns(frame, profile_name)
    where = place(profile_name)
    rows = frame[frame["experiment"] == "harmful"]
    absent = [metric for metric in HARMFUL_METRICS if metric not in set(rows["metric"])]
    if absent:
        raise CompanionError(
            f"No {', '.join(absent)} of the harmful experiment in {where}: {remedy(profile_name)}."
        )
    before = set(rows.loc[rows["stage"].eq("base"), "metric"])
    absent = [metric for metric in ("harmful_rate", "retain_perplexity") if metric not in before]
    if absent:
        raise CompanionError(
            f"No {', '.join(absent)} before unlearning in {where}: {remedy(profile_name)}."
        )
    shares = rows[rows["metric"].isin(["harmful_rate", "degenerate_share"])]
    if not shares["value"].between(0, 1).all():
        raise CompanionError(
            f"A harmful_rate or degenerate_share in {where} is no fraction from 0 to 1."
        )
    return rows


def estimate(rows: pd.DataFrame, metric: str, model: str, method: str) -> Pooled | None:
    """Pool the seeds of one number; `method` is a method's name or `BASE`; None if absent.

    `perplexity_ratio` is `retain_perplexity` over the value of the original model. Raises
    `CompanionError` when one seed has two rows, which would mix two things in one mean.
    """
    if metric == "perplexity_ratio":
        found, base = (estimate(rows, "retain_perplexity", model, who) for who in (method, BASE))
        return found.scaled(1 / base.value) if found and base else None
    wanted = {"metric": metric, "model": model, "scenario": SCENARIOS[metric]}
    wanted |= {"stage": "base"} if method == BASE else {"method": method}
    return pool(pick(rows, **wanted), f"{metric} for {model}, {method}")


def table_one(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the counterpart of Arora et al., Table 1: text cells, ours beside the paper's.

    Rows: for each model the original, then each method; then the paper's. `labels` gives display
    names and order of methods. `attrs["footnotes"]` of the result says how to read it.
    """
    rows = harmful_rows(frame, profile_name=profile_name)
    methods = {BASE: BASE} | method_labels(rows, labels)
    lines = [
        line
        for model in dict.fromkeys(rows["model"])
        for method, label in methods.items()
        if (line := _our_line(rows, model, method, label))
    ]
    lines += _paper_lines(claims_of(claims, "Arora", "Table 1"), set(rows["model"]))
    headings = [column.heading for column in TABLE_ONE]
    headings.insert(4, PAPER_SIMILARITY)
    order = ["Source", "Model", "Method", *headings, "n", "Seeds", "Note"]
    table = pd.DataFrame(lines, columns=order).fillna("")
    table.attrs["footnotes"] = [*FOOTNOTES, *_classifier_footnotes(rows)]
    return table


def _our_line(rows: pd.DataFrame, model: str, method: str, label: str) -> dict[str, str] | None:
    rate = estimate(rows, "harmful_rate", model, method)
    if rate is None:
        return None
    line = {"Source": "ours", "Model": model, "Method": label}
    for column in TABLE_ONE:
        found = estimate(rows, column.metric, model, method)
        line[column.heading] = show(found and found.scaled(column.factor), column.decimals)
    if method == BASE:
        line |= dict.fromkeys(ONE_BY_DEFINITION, "1")
    return line | {"n": "" if rate.n is None else str(rate.n), "Seeds": str(rate.seeds)}


def _paper_lines(claims: Sequence[Mapping[str, Any]], ours: set[str]) -> list[dict[str, str]]:
    reported = {(c["model"], c["stage"], c["metric"]): float(c["value"]) for c in claims}
    lines = []
    for model, stage in dict.fromkeys((c["model"], c["stage"]) for c in claims):
        line = {"Source": "paper", "Model": model}
        line["Note"] = paper_note(model, ours)
        line["Method"] = BASE if stage == "base" else stage
        rate = reported.get((model, stage, "harmful_rate"))
        before = reported.get((model, "base", "harmful_rate"))
        similarity = reported.get((model, stage, "similarity_original"))
        if rate is not None:
            line["Harmful rate (%)"] = f"{rate:g}"
        if stage != "base" and rate is not None and before:
            line["Effectiveness (%)"] = f"{100 * (before - rate) / before:.1f}"
        if similarity is not None:
            line[PAPER_SIMILARITY] = f"{similarity:.3f}"
        lines.append(line)
    return lines


def _classifier_footnotes(rows: pd.DataFrame) -> list[str]:
    names = {"classifier_auc": "AUC", "classifier_accuracy": "accuracy"}
    found = rows[rows["metric"].isin(names) & rows["value"].notna()]
    parts: list[str] = []
    for metric, each in found.groupby("metric", sort=True):
        pooled = Pooled(each["value"].mean(), each["low"].min(), each["high"].max(), None, 1)
        parts.insert(0, f"{names[str(metric)]} {show(pooled, 2)}")
    return [f"Judge of harm, on its own held-out data: {', '.join(parts)}."] if parts else []
