"""The tables of experiment 3, ECO: a guard in front of a model beside methods that train it.

One table for each of the three tasks (Liu et al. 2024: entities, copyrighted content, hazardous
knowledge), one of costs and one of robustness. Ours come from the tidy table, what papers report
from the claims; what is missing stays an empty cell.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from unlearn_lib.errors import CompanionError
from unlearn_lib.tables.closer_look import QUALITY, STAGES
from unlearn_lib.tables.common import (
    SQUARE_BRACKETS,
    Column,
    Pooled,
    check_columns,
    method_labels,
    pick,
    place,
    pool,
    remedy,
    show,
)

ECO, PROMPTING = "eco", "prompting"
GUARDS = {ECO: "ECO (guard)", PROMPTING: "prompting"}
TASKS = ("entities", "book", "science")
ROBUSTNESS_SETS = (
    "as asked,paraphrased,prefix,suffix,typos,other spelling,half a question,keywords,buried"
).split(",")
SHARES = (
    "leak_share refusal_share degenerate_share verbatim_share unique_token_ratio choice_accuracy "
    "probe_accuracy false_positive_rate false_negative_rate unchanged_share forget_quality "
    "model_utility"
).split()
MISSED = "Missed by the guard, FNR (%)"
SIMILARITIES = (
    Column("BLEU, forget", "bleu", 1, 3, "forget"),
    Column("ROUGE-L recall, forget", "rougeL_recall", 1, 3, "forget"),
    Column("METEOR, forget", "meteor", 1, 3, "forget"),
    Column("Cosine, forget", "cosine_similarity", 1, 3, "forget"),
)
COMPARISON = (
    Column(QUALITY, "forget_quality", 1, 4, "forget"),
    Column("Model utility", "model_utility", 1, 3, "all"),
    Column("ASG, forget", "asg", 1, 3, "forget"),
    *SIMILARITIES,
    Column("Perplexity, forget", "perplexity", 1, 1, "forget"),
    Column("Unique tokens, forget", "unique_token_ratio", 1, 2, "forget"),
    Column("Leaked, forget (%)", "leak_share", 100, 1, "forget"),
    Column("Refusals, retain (%)", "refusal_share", 100, 1, "retain"),
)
BOOK = (
    Column("Verbatim, forget (%)", "verbatim_share", 100, 1, "forget"),
    *SIMILARITIES,
    Column("ASG, forget", "asg", 1, 3, "forget"),
    Column("Perplexity, forget", "perplexity", 1, 1, "forget"),
    Column("Verbatim, kept (%)", "verbatim_share", 100, 1, "kept"),
    Column("ROUGE-L recall, kept", "rougeL_recall", 1, 3, "kept"),
)
SCIENCE = (
    Column("Accuracy, forget (%)", "choice_accuracy", 100, 1, "forget"),
    Column("Accuracy, retain (%)", "choice_accuracy", 100, 1, "retain"),
    Column("Accuracy, general (%)", "choice_accuracy", 100, 1, "general"),
    Column("Probe accuracy, forget (%)", "probe_accuracy", 100, 1, "forget"),
)
COSTS = (
    Column("Seconds to unlearn", "seconds", 1, 1),
    Column("Extra ms a prompt", "milliseconds_per_prompt", 1, 2),
    Column("Extra ms a token", "milliseconds_per_token", 1, 2),
    Column("Parameters changed", "parameters_changed", 1, 0),
    Column("Bytes stored", "bytes_stored", 1, 0),
)
REPORTED = (
    "Rows of others: other settings, mostly another model, so not to be compared cell by cell. The "
    "tables of Liu et al. were not found as text; what stands here is secondary."
)
COMPARISON_NOTES = (
    SQUARE_BRACKETS,
    "Base: never taught. Implanted: taught everything. Reference: taught the retain set only, the "
    "exact answer to forgetting. Forget quality: p-value against the reference; a small one tells "
    "the two apart; it has no interval, with several seeds it is the range over them.",
    "ASG: mean absolute gap to the reference over BLEU, ROUGE-L, METEOR and cosine; 0 is best. "
    "Leaked: answers that hold the fact to forget. Unique tokens: low where an answer repeats "
    "itself. Perplexity: of the answers, under one fixed model for all rows.",
)
BOOK_NOTES = (
    SQUARE_BRACKETS,
    "Base: never saw the book, the exact answer to forgetting it; ASG is the mean absolute gap to "
    "it over BLEU, ROUGE-L, METEOR and cosine. Kept: a chapter that was taught and is to stay. "
    "Perplexity: of the answers, under one fixed model for all rows.",
)
SCIENCE_NOTES = (
    SQUARE_BRACKETS,
    "Four choices: chance is 25 %. Probe: a linear classifier on the model's logits that is to "
    "find the right choice; at chance nothing is left to be found there.",
)
COST_NOTES = (
    SQUARE_BRACKETS,
    "Seconds to unlearn: for a guard, training of its classifier and search of its strength. A "
    "guard changes no parameter: whoever holds the weights holds the knowledge.",
)
ROBUSTNESS_NOTES = (
    SQUARE_BRACKETS,
    "Per cent of the answers that hold the fact to forget, for each way of asking. FNR: questions "
    "about what is to be forgotten that the guard does not flag.",
)


@dataclass(frozen=True)
class EcoPart:
    """One model in one scenario.

    Attributes:
        rows: its tidy rows, those alone.
        model: the profile's name for it.
        scenario: as in the tidy table, such as `entities` or `guard`.
    """

    rows: pd.DataFrame
    model: str
    scenario: str

    def of(self, metric: str, split: str, who: str) -> Pooled | None:
        """Pool the seeds of one number; `who`: a stage, a guard or a method; None if absent."""
        what = f"{metric} on {split} for {self.model}, {who}, {self.scenario}"
        return pool(self._rows(metric, split, who), what)

    def known(self, metric: str, split: str, who: str) -> list[float]:
        """Return one number of each seed."""
        return self._rows(metric, split, who)["value"].dropna().tolist()

    def _rows(self, metric: str, split: str, who: str) -> pd.DataFrame:
        wanted = {"metric": metric, "split": split}
        if who in STAGES:
            return pick(self.rows, **wanted, stage=who)
        stage = "guarded" if who in GUARDS else "unlearned"
        return pick(self.rows, **wanted, stage=stage, method=who)


def eco_rows(frame: pd.DataFrame, profile_name: str = "") -> pd.DataFrame:
    """Return the rows of experiment 3 that have a value, or say what makes them.

    Raises `CompanionError` for missing columns, without any row, and for shares outside 0 to 1.
    """
    check_columns(frame, profile_name)
    where = place(profile_name)
    rows = frame[frame["experiment"].eq("eco") & frame["value"].notna()]
    if rows.empty:
        raise CompanionError(f"No rows of experiment eco in {where}: {remedy(profile_name)}.")
    wrong = rows[rows["metric"].isin(SHARES) & ~rows["value"].between(0, 1)]
    if not wrong.empty:
        metric, model, value = wrong.iloc[0][["metric", "model", "value"]]
        raise CompanionError(
            f"The {metric} of {model} in {where} is {value:g}, no fraction from 0 to 1; "
            f"{remedy(profile_name)}."
        )
    return rows


def eco_parts(rows: pd.DataFrame, scenario: str) -> list[EcoPart]:
    """Return each model that has rows of a scenario, in order of appearance."""
    here = rows[rows["scenario"].eq(scenario)]
    models = dict.fromkeys(here["model"])
    return [EcoPart(here[here["model"].eq(model)], model, scenario) for model in models]


def who_is_shown(rows: pd.DataFrame, labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return who has rows and under what name: the stages, the guards, then the methods."""
    before = {who: who for who in STAGES if rows["stage"].eq(who).any()}
    guarded = set(rows.loc[rows["stage"].eq("guarded"), "method"])
    guards = {who: label for who, label in GUARDS.items() if who in guarded}
    return before | guards | method_labels(rows, labels)


def eco_comparison(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of entities: forgetting, utility and similarity of every method.

    Rows: for each model the stages before, the guard, the prompting baseline and each method in
    the order of `labels`; then what papers report. Text cells; `attrs["footnotes"]` of the result
    says how to read it. Raises `CompanionError` as `eco_rows` does.
    """
    rows = eco_rows(frame, profile_name)
    return _table_of(rows, "entities", COMPARISON, COMPARISON_NOTES, claims, labels)


def eco_book(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of the book, rows as in `eco_comparison`, which see."""
    rows = eco_rows(frame, profile_name)
    return _table_of(rows, "book", BOOK, BOOK_NOTES, claims, labels)


def eco_science(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of multiple choice, rows as in `eco_comparison`, which see."""
    rows = eco_rows(frame, profile_name)
    return _table_of(rows, "science", SCIENCE, SCIENCE_NOTES, claims, labels)


def eco_costs(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of costs: a row per model, task and method, then what the paper reports."""
    rows, lines = eco_rows(frame, profile_name), []
    for part in eco_parts(rows, "costs"):
        for task in (each for each in TASKS if part.rows["split"].eq(each).any()):
            here = part.rows[part.rows["split"].eq(task)]
            for who, label in who_is_shown(here, labels).items():
                lines.append(_our_line(part, COSTS, who, label, task) | {"Task": task})
    reported = _reported_lines(claims, rows, "costs", COSTS, labels)
    order = ["Source", "Model", "Task", "Method", *(c.heading for c in COSTS), "Seeds", "Note"]
    return _finished(lines, reported, order, COST_NOTES)


def eco_robustness(
    frame: pd.DataFrame,
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None = None,
    profile_name: str = "",
) -> pd.DataFrame:
    """Build the table of robustness: a row per model and way of asking, a column per method.

    `claims` is not read: no number of this kind is reported.
    """
    rows, lines = eco_rows(frame, profile_name), []
    leaks = rows["scenario"].eq("robustness") & rows["metric"].eq("leak_share")
    shown = who_is_shown(rows[leaks], labels)
    for part in eco_parts(rows, "robustness"):
        for split in (each for each in ROBUSTNESS_SETS if part.rows["split"].eq(each).any()):
            columns = {label: part.of("leak_share", split, who) for who, label in shown.items()}
            columns[MISSED] = part.of("false_negative_rate", split, ECO)
            cells = {name: show(each and each.scaled(100)) for name, each in columns.items()}
            cells |= _counts(columns.values())
            lines.append({"Model": part.model, "Questions": split, **cells})
    order = ["Model", "Questions", *shown.values(), MISSED, "n", "Seeds"]
    return _finished(lines, [], order, ROBUSTNESS_NOTES)


def _table_of(
    rows: pd.DataFrame,
    task: str,
    columns: Sequence[Column],
    notes: Sequence[str],
    claims: Sequence[Mapping[str, Any]],
    labels: Mapping[str, str] | None,
) -> pd.DataFrame:
    lines = [
        _our_line(part, columns, who, label)
        for part in eco_parts(rows, task)
        for who, label in who_is_shown(part.rows, labels).items()
    ]
    reported = _reported_lines(claims, rows, task, columns, labels)
    headings = [column.heading for column in columns]
    order = ["Source", "Model", "Method", *headings, "n", "Seeds", "Note"]
    return _finished(lines, reported, order, notes)


def _our_line(
    part: EcoPart, columns: Sequence[Column], who: str, label: str, split: str = ""
) -> dict[str, str]:
    line = {"Source": "ours", "Model": part.model, "Method": label}
    found = {column: part.of(column.metric, column.split or split, who) for column in columns}
    for column, each in found.items():
        if column.metric == "forget_quality":
            values = sorted(part.known(column.metric, column.split, who))
            text = "–".join(dict.fromkeys(f"{end:.2g}" for end in (*values[:1], *values[-1:])))
        elif column.decimals:
            text = show(each and each.scaled(column.factor), column.decimals)
        else:
            text = f"{each.value:,.0f}" if each else ""
        line[column.heading] = text
    return line | _counts(found.values())


def _counts(found: Iterable[Pooled | None]) -> dict[str, str]:
    first = next(filter(None, found), None)
    if first is None:
        return {}
    return {"n": "" if first.n is None else str(first.n), "Seeds": str(first.seeds)}


def _reported_lines(
    claims: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame,
    scenario: str,
    columns: Sequence[Column],
    labels: Mapping[str, str] | None,
) -> list[dict[str, str]]:
    headings = {(column.metric, column.split): column.heading for column in columns}
    names = {**(labels or {}), **GUARDS}
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for claim in claims:
        if claim.get("experiment") != "eco" or claim["scenario"] != scenario:
            continue
        heading, method = headings.get((claim["metric"], claim["split"])), claim["method"]
        if heading is None or claim["value"] is None:
            continue
        in_cell = claim["metric"] == "choice_accuracy"
        other = "" if rows["model"].eq(claim["model"]).any() else "other model"
        notes = ["" if in_cell else claim["data"], other, claim["note"]]
        line = {
            "Source": claim["paper"].split(", ")[0],
            "Model": claim["printed_model"],
            "Method": claim["stage"] if method == "none" else names.get(method, method),
            "Note": "; ".join(filter(None, notes)),
        }
        kept = lines.setdefault(tuple(line.values()), line)
        cell = f"{claim['data']} {_printed(claim)}" if in_cell else _printed(claim)
        kept[heading] = ", ".join(filter(None, [kept.get(heading), cell]))
    return list(lines.values())


def _printed(claim: Mapping[str, Any]) -> str:
    kind, _, unit = claim["unit"].rpartition(", ")
    decimals = {"per cent": 1, "ms": 0}.get(unit, 4)
    if kind == "difference":
        return f"difference {claim['value']:+.{decimals}f}"
    return f"{'below ' if kind == 'upper bound' else ''}{claim['value']:.{decimals}f}"


def _finished(
    ours: list[dict[str, str]],
    reported: list[dict[str, str]],
    order: Sequence[str],
    notes: Iterable[str],
) -> pd.DataFrame:
    table = pd.DataFrame(ours + reported, columns=list(order)).fillna("")
    table.attrs["footnotes"] = [*notes, *([REPORTED] if reported else [])]
    return table
