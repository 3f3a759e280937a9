"""Tables of estimates: a row per model before or after unlearning, a column per estimate.

    build("table2_book", items, {"npo": "NPO"})

A cell is text, `36.0 [28.1, 44.3]`: a value and its 95 % interval. What others report stands below
ours. Nothing here imports matplotlib or torch.
"""

import functools
import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import pandas as pd
from tabulate import tabulate

from unlearn_lib import profile
from unlearn_lib.results import Estimate, Items, Metric, estimate, metric_of
from unlearn_lib.util import entry_of, write_text

Names = Mapping[str, str]
Reported: TypeAlias = pd.DataFrame | None
DEGENERATE_LIMIT = 0.10
NAMES = {**profile.NAMES, "eco": "ECO (guard)", "prompting": "prompting"}
TASKS = {"harm": "Harmful prompts", "book": "Book", "authors": "Fictitious authors"}
TASKS |= {"continual": "Continual", "people": "Real people", "science": "Multiple choice"}
TASKS |= {"subjects": "MMLU subjects"}
PARTS, ATTACKS, SIZES = r"\d", r"[a-z][a-z ]*", r"\d+ parameters"
"""Conditions: parts of the continual task, ways of asking, sizes of the model."""
MARKUP = re.compile(r"[\\`|*$]|~(?=~)|(?<!\w)_|_(?!\w)|<(?=[a-zA-Z/!?])|\](?=\()")
"""What is not plain text in Markdown."""
INTERVALS = "[ ]: 95 % interval. n: questions behind the first number, all seeds together."
DAGGER = f"†: more than {100 * DEGENERATE_LIMIT:.0f} % of the answers on a split are degenerate."
SPLITS = ("forget", "retain", "general", "unrelated")
STYLES = {"score": ".3f", "share": ".2f", "cosine": ".2f", "p-value": ".2g", "ms": ".2f"}
STYLES |= {"parameters": ",.0f", "bytes": ",.0f", "none": ".2f"}


@dataclass(frozen=True)
class Column:
    """An estimate to show: a metric, and a split if not the metric's own.

    `relative`: divided by the base model's value, which is taken as exact.
    """

    metric: str
    split: str | None = None
    relative: bool = False

    @classmethod
    def parsed(cls, text: str, **settings: Any) -> list[Self]:
        """Return columns of `metric`, `metric@split`, `metric@split/base` (then relative)."""
        names = re.findall(r"(\w+)@?(\w*)/?(\w*)", text)
        return [cls(name, split or None, bool(base), **settings) for name, split, base in names]

    @property
    def entry(self) -> Metric:
        """The catalogue's entry."""
        return metric_of(self.metric)

    @property
    def percent(self) -> bool:
        """Whether it is shown in per cent: rates are."""
        return self.entry.statistic.interval == "rate"

    @property
    def heading(self) -> str:
        """The label with split and unit."""
        split = self.split or "-".join(self.entry.splits)
        unit = " (× base)" if self.relative else " (%)" if self.percent else ""
        return self.entry.label + (f", {split}" if split in SPLITS else "") + unit

    def read(self, items: Items, **where: Any) -> Estimate | None:
        """Estimate it in the unit in which it is shown; `where` as for `estimate`."""
        where = {"split": self.split, **where}
        number = estimate(items, self.metric, **where)
        base = estimate(items, self.metric, **where | {"method": "base"}) if self.relative else None
        if number is None or math.isnan(number.value) or self.relative and base is None:
            return None
        return self.shown(number, base.value if base else 1)

    def shown(self, number: Estimate, base: float = 1) -> Estimate:
        """Return a number in the unit in which it is shown: rates in per cent."""
        factor = (100 if self.percent else 1) / base
        value, low, high = (factor * end for end in (number.value, number.low, number.high))
        return Estimate(value, low, high, number.n, number.seeds)

    def text(self, number: Estimate | None) -> str:
        """Print a number as `36.0 [28.1, 44.3]`; without an interval its value; None as ''."""
        if number is None or math.isnan(number.value):
            return ""
        style = ".1f" if self.percent else STYLES.get(self.entry.unit, ".1f")
        style = ".2g" if number.value >= 1e5 and "," not in style else style
        value, low, high = (f"{x:z{style}}" for x in (number.value, number.low, number.high))
        return value if math.isnan(number.low) else f"{value} [{low}, {high}]"

    def size(self, value: float) -> str:
        """Print an effect in the metric's own unit, 0.05, as `5 points` (of a rate) or `0.05`."""
        return f"{100 * value:.3g} points" if self.percent else f"{value:.3g}"

    def words(self, number: Estimate) -> str:
        """Print a number as `36.0 [28.1, 44.3] (n 64, 3 seeds)`."""
        seeds = f", {number.seeds} seeds" if number.seeds > 1 else ""
        return f"{self.text(number)} (n {number.n}{seeds})"


@functools.cache
def broken(items: Items, task: str, method: str, model: str, condition: str = "") -> bool:
    """Return whether more than 10 % of a model's answers on any split are degenerate.

    The one rule of every figure and table. Where answers under a condition were not checked, those
    to the plain questions decide.
    """
    where = {"task": task, "method": method, "model": model, "condition": condition}
    splits = items.frame["split"].unique()
    shares = [estimate(items, "degenerate_share", split=split, **where) for split in splits]
    known = [share.value for share in shares if share]
    if condition and not known:
        return broken(items, task, method, model)
    return max(known, default=0) > DEGENERATE_LIMIT


def commit_of(origin: Mapping[str, Any], digits: int = 10) -> str:
    """Return the start of the commit that computed results, with `+` where files were changed."""
    git = origin.get("git") or {}
    return str(git.get("commit") or "unknown")[:digits] + "+" * bool(git.get("dirty"))


def weights_of(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return what form a model's weights have, by model; none for those as published."""
    forms = {m: source.partition(", ")[2] for m, source in origin.get("weights", {}).items()}
    return {model: form for model, form in forms.items() if form}


def methods_of(items: Items, labels: Names, **where: Any) -> dict[str, str]:
    """Return display names by method: models before and guards first, then as in `labels`."""
    present, names = items.methods(**where), {**NAMES, **labels}
    ordered = [*(name for name in names if name in present), *present]
    return {name: names.get(name, name.replace("_", " ")) for name in ordered}


def conditions_of(items: Items, task: str, pattern: str | None = None) -> list[str]:
    """Return a task's conditions that match a pattern; None: the plain one, or the last part."""
    if pattern is None:
        return sorted(conditions_of(items, task, PARTS))[-1:] or [""]
    present = dict.fromkeys(key["condition"] for key in items.keys(task=task))
    return [each for each in present if re.fullmatch(pattern, each)]


@dataclass(frozen=True)
class Table:
    """A table: names of tasks, and columns as `metric`, `metric@split`, `metric@split/base`.

    `conditions`: a pattern of those that are shown, as for `conditions_of`.
    """

    tasks: str
    metrics: str
    conditions: str | None = None


def build(name: str, items: Items, labels: Names, reported: Reported = None) -> pd.DataFrame:
    """Return a table as text, ours and then what others report; its notes in `attrs["notes"]`.

    Args:
        name: one of TABLES.
        labels: display names of methods, in order.
        reported: columns source, place, task, model, method, metric, split, value, unit; note.
    """
    table: Table = entry_of(TABLES, name, "There is no table")
    columns, rows = Column.parsed(table.metrics), list[Names]()
    for task in table.tasks.split():
        for model in items.models(task):
            for condition in conditions_of(items, task, table.conditions):
                where = {"task": task, "model": model, "condition": condition}
                for method, label in methods_of(items, labels, **where).items():
                    rows += _row(items, columns, label, method=method, **where)
    if reported is not None and rows:
        others = reported[reported["task"].isin(table.tasks.split())]
        rows += _reported(others, columns, {**NAMES, **labels})
    order = ["Source", "Model", "Task", "Condition", "Method"]
    order += [*(column.heading for column in columns), "n", "Seeds", "Place"]
    frame = pd.DataFrame(rows, columns=order).fillna("").replace({"Task": TASKS})
    frame = frame.loc[:, (frame != "").any()]
    definitions = [f"{column.heading}: {column.entry.definition}" for column in columns]
    frame.attrs["notes"] = [INTERVALS, DAGGER, *definitions]
    return frame


def _row(items: Items, columns: Sequence[Column], label: str, **where: str) -> list[Names]:
    numbers = {column: column.read(items, **where) for column in columns}
    known = [number for number in numbers.values() if number]
    if not known:
        return []
    row = {"Source": "ours", "Method": label + " †" * broken(items, **where)}
    row |= {name.capitalize(): where[name] for name in ("model", "task", "condition")}
    row |= {column.heading: column.text(number) for column, number in numbers.items()}
    return [row | {"n": str(known[0].n), "Seeds": str(known[0].seeds)}]


def _reported(others: pd.DataFrame, columns: Sequence[Column], names: Names) -> list[Names]:
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for each in others.fillna("").itertuples():
        known = [c for c in columns if c.metric == each.metric and not c.relative]
        known = [c for c in known if each.split in ("", "all", c.split, *c.entry.splits)]
        if known:
            row = {"Source": each.source, "Model": each.model, "Task": each.task}
            row["Method"] = names.get(each.method, each.method)
            row["Place"] = "; ".join(filter(None, [each.place, getattr(each, "note", "")]))
            rows.setdefault(tuple(row.values()), row)[known[0].heading] = f"{float(each.value):g}"
    return list(rows.values())


def to_markdown(frame: pd.DataFrame) -> list[list[str]]:
    """Return the header and the rows of a table as cells of a Markdown table: plain text.

    Bars, backticks, stars, dollars, tags and links are shown as they are; a line break is a space.
    """
    lines = [[str(name) for name in frame.columns], *frame.astype(str).to_numpy().tolist()]
    return [[MARKUP.sub(r"\\\g<0>", " ".join(cell.split())) for cell in line] for line in lines]


def to_latex(frame: pd.DataFrame) -> str:
    """Print a table with booktabs, as wide as the text; a long one runs over pages."""
    width = rf">{{\raggedright\arraybackslash}}p{{{0.8 / frame.shape[1]:.3f}\textwidth}}"
    widths, long = width * frame.shape[1], len(frame) > 30
    body = frame.to_latex(index=False, escape=True, column_format=widths, longtable=long)
    notes = "\n\n".join(re.sub(r"([%&_#])", r"\\\1", note) for note in frame.attrs["notes"])
    return f"% needs array, booktabs, longtable\n{{\\scriptsize\n{body}\n{notes}\n\n}}\n"


def write_all(items: Items, folder: Path, labels: Names, reported: Reported = None) -> None:
    """Write every table that has rows of ours as CSV, Markdown, LaTeX and HTML.

    Arguments as for `build`. The same items give the same bytes.
    """
    for name in TABLES:
        frame = build(name, items, labels, reported)
        if frame.empty:
            continue
        notes = frame.attrs["notes"]
        page = [frame.to_html(index=False, border=0), *(f"<p>{html.escape(n)}</p>" for n in notes)]
        head, *rows = to_markdown(frame)
        grid = tabulate(rows, head, tablefmt="pipe", disable_numparse=True)
        markdown = [grid, *notes]
        texts = {"csv": frame.to_csv(index=False, lineterminator="\n"), "tex": to_latex(frame)}
        texts |= {"md": "\n\n".join(markdown) + "\n", "html": "\n".join(page) + "\n"}
        for end, content in texts.items():
            write_text(folder / f"{name}.{end}", content)


HARMFUL = """harmful_rate harmful_rate_length_matched effectiveness similarity_original@retain
    bleurt_original rougeL_original@retain degenerate_share perplexity_text@retain
    perplexity_text@retain/base answer_tokens refusal_share@retain"""
BOOK = """similarity_text bleu verbatim_share verbatim_share@retain extraction_strength
    perplexity_text loss_ks_distance loss_ks_p_value similarity_original@general
    degenerate_share degenerate_share@retain degenerate_share@general"""
CLOSER_LOOK = """mu fe model_utility forget_quality rougeL_recall entailment token_entropy
    extraction_strength hallucinated_share degenerate_share refusal_share@retain privleak"""
COMPARISON = """forget_quality ks_distance model_utility asg bleu rougeL_recall meteor
    cosine_similarity perplexity_answer unique_token_ratio leak_share refusal_share@retain"""
ECO_BOOK = """verbatim_share bleu rougeL_recall meteor similarity_text asg perplexity_answer
    verbatim_share@retain rougeL_recall@retain"""
SCIENCE = "choice_accuracy choice_accuracy@retain choice_accuracy@general probe_accuracy"
COSTS = """seconds milliseconds_per_prompt milliseconds_per_token parameters_changed bytes_stored
    peak_memory_bytes"""
SCALING = "milliseconds_per_prompt model_milliseconds_per_prompt"
ROBUSTNESS = "leak_share rougeL_recall false_negative_rate@forget"
GUARDS = """false_positive_rate false_negative_rate guard_threshold unchanged_share time_ratio
    rougeL_original@unrelated"""
TABLES = {
    "table1_harmful": Table("harm", HARMFUL),
    "table2_book": Table("book", BOOK),
    "table3_closer_look": Table("authors continual people", CLOSER_LOOK),
    "eco_comparison": Table("authors", COMPARISON),
    "eco_book": Table("book", ECO_BOOK),
    "eco_science": Table("science subjects", SCIENCE),
    "eco_costs": Table("harm book authors continual people science subjects", COSTS, r"\d?"),
    "eco_robustness": Table("authors", ROBUSTNESS, ATTACKS),
    "eco_scaling": Table("authors", SCALING, SIZES),
    "guards": Table("authors book science subjects", GUARDS),
    "judges": Table("harm authors", "judge_accuracy judge_auc"),
}
"""Every table, by name."""
