"""Tables as the papers print them, drawn from the tidy table alone.

`table_one` is the counterpart of Arora et al. (2024), Table 1: our rows with their 95 % intervals
and, beside them, the rows that the paper reports. Nothing is computed that the tidy table does
not hold, save means over seeds and ratios to the model before unlearning. What is missing stays
an empty cell.

Several seeds are pooled by `estimate`: the value is the mean over seeds, the interval reaches
from the lowest lower end to the highest upper end of the seeds' own intervals. It therefore
covers the spread over prompts and over seeds, and is wider than a 95 % interval of the mean.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics.tidy import COLUMNS

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
CLAIM_KEYS = "id paper place statement metric stage model value unit tolerance judged_in".split()
BASE = "original"
LATEX_SYMBOLS = {
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "ε": r"$\varepsilon$",
    "×": r"$\times$",
    "−": "$-$",
}
PAPER_NOTE = "as reported; other data and judge"
OTHER_MODEL_NOTE = "as reported; other model, data and judge"
FOOTNOTES = (
    "Square brackets: 95 % bootstrap interval over prompts; with several seeds, the mean over "
    "seeds and an interval from the lowest to the highest end of the seeds' intervals.",
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


@dataclass(frozen=True)
class Pooled:
    """A value with its 95 % interval, the number of items behind it, and of seeds pooled."""

    value: float
    low: float
    high: float
    n: int | None
    seeds: int

    def scaled(self, factor: float) -> "Pooled":
        """Return the same estimate in another unit, `factor` times as large."""
        value, low, high = (factor * end for end in (self.value, self.low, self.high))
        return replace(self, value=value, low=low, high=high)


@dataclass(frozen=True)
class Column:
    """One column of numbers: its heading, the metric in it, its unit factor and decimals."""

    heading: str
    metric: str
    factor: float = 1.0
    decimals: int = 1


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
PAPER_SIMILARITY = "Similarity to original (paper's measure)"


def remedy(profile_name: str) -> str:
    """Return the half-sentence that names the command which makes missing results."""
    return f"run `make reproduce PROFILE={profile_name or 'laptop'}`"


def harmful_rows(frame: pd.DataFrame, profile_name: str = "") -> pd.DataFrame:
    """Return the rows of the harmful experiment, or say what is missing and what makes it.

    Raises `CompanionError` for missing columns, for a metric of `HARMFUL_METRICS` without rows or
    (harmful rate, perplexity) without the original model's, and for shares outside 0 to 1.
    """
    place = f"the tidy table of profile {profile_name}" if profile_name else "the tidy table"
    absent = [column for column in COLUMNS if column not in frame.columns]
    if absent:
        text = f"{place} lacks the columns {', '.join(absent)}; {remedy(profile_name)}."
        raise CompanionError(text[0].upper() + text[1:])
    rows = frame[frame["experiment"] == "harmful"]
    absent = [metric for metric in HARMFUL_METRICS if metric not in set(rows["metric"])]
    if absent:
        raise CompanionError(
            f"No {', '.join(absent)} of the harmful experiment in {place}: {remedy(profile_name)}."
        )
    before = set(rows.loc[rows["stage"].eq("base"), "metric"])
    absent = [metric for metric in ("harmful_rate", "retain_perplexity") if metric not in before]
    if absent:
        raise CompanionError(
            f"No {', '.join(absent)} before unlearning in {place}: {remedy(profile_name)}."
        )
    shares = rows[rows["metric"].isin(["harmful_rate", "degenerate_share"])]
    if not shares["value"].between(0, 1).all():
        raise CompanionError(
            f"A harmful_rate or degenerate_share in {place} is no fraction from 0 to 1."
        )
    return rows


def method_labels(rows: pd.DataFrame, labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return method name to display name, in the order of `labels`, then of appearance."""
    unlearned = rows[rows["stage"].eq("unlearned") & rows["metric"].eq("harmful_rate")]
    present = list(dict.fromkeys(unlearned["method"]))
    ordered = {name: label for name, label in (labels or {}).items() if name in present}
    return ordered | {name: name for name in present if name not in ordered}


def estimate(rows: pd.DataFrame, metric: str, model: str, method: str) -> Pooled | None:
    """Pool the seeds of one number; `method` is a method's name or `BASE`; None if absent.

    `perplexity_ratio` is `retain_perplexity` over the value of the original model. Raises
    `CompanionError` when one seed has two rows, which would mix two things in one mean.
    """
    if metric == "perplexity_ratio":
        found, base = (estimate(rows, "retain_perplexity", model, who) for who in (method, BASE))
        return found.scaled(1 / base.value) if found and base else None
    chosen = rows[rows["metric"].eq(metric) & rows["model"].eq(model)]
    chosen = chosen[chosen["scenario"].eq(SCENARIOS[metric])]
    chosen = chosen[chosen["stage"].eq("base") if method == BASE else chosen["method"].eq(method)]
    chosen = chosen[chosen["value"].notna()]
    if chosen.empty:
        return None
    if chosen["seed"].astype(str).duplicated().any():
        raise CompanionError(
            f"The tidy table has two values of {metric} for {model}, {method} and one seed; "
            "keep one split of it."
        )
    count = chosen["n"].min()
    return Pooled(
        value=float(chosen["value"].mean()),
        low=float(chosen["low"].min()),
        high=float(chosen["high"].max()),
        n=None if pd.isna(count) else int(count),
        seeds=len(chosen),
    )


def show(found: Pooled | None, decimals: int = 1) -> str:
    """Print an estimate as `36.0 [28.1, 44.3]`; without an interval, its value; None as ''."""
    if found is None or math.isnan(found.value):
        return ""
    style = f".{decimals}f" if abs(found.value) < 10_000 else ".2g"
    text = f"{found.value:{style}}"
    if math.isnan(found.low) or math.isnan(found.high):
        return text
    return f"{text} [{found.low:{style}}, {found.high:{style}}]"


def read_claims(path: Path) -> list[dict[str, Any]]:
    """Read the papers' reported numbers from `claims.yaml`; each entry has every key."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompanionError(f"There is no {path.name} at {path}; restore it from git.") from None
    except yaml.YAMLError as error:
        raise CompanionError(f"{path.name} is no YAML; restore it from git ({error}).") from None
    for entry in entries:
        absent = [key for key in CLAIM_KEYS if key not in entry]
        if absent:
            raise CompanionError(f"{path.name}: claim {entry.get('id')} lacks {', '.join(absent)}.")
    return entries


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
    reported = [claim for claim in claims if claim["place"] == "Table 1"]
    lines += _paper_lines(reported, set(rows["model"]))
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
        line["Note"] = PAPER_NOTE if model in ours else OTHER_MODEL_NOTE
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


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all: a temporary file beside it, then one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_provenance(path: Path, provenance: Mapping[str, Any], source: pd.DataFrame) -> Path:
    """Write the JSON beside a figure or table; `source_sha256` is of the rows it shows."""
    digest = sha256(source.to_csv(index=False, lineterminator="\n").encode()).hexdigest()
    details = {**provenance, "source_sha256": digest}
    text = json.dumps(details, indent=2, sort_keys=True, default=str)
    return write_atomically(path, f"{text}\n".encode())


def to_latex(table: pd.DataFrame) -> str:
    """Print a table with booktabs rules, every cell escaped, as wide as the text, with notes."""
    body = table.to_latex(index=False, escape=True, column_format="l" * table.shape[1])
    body = f"% needs booktabs and graphicx\n\\resizebox{{\\textwidth}}{{!}}{{%\n{body}}}\n"
    for note in table.attrs.get("footnotes", []):
        escaped = "".join(f"\\{letter}" if letter in "%&_#" else letter for letter in note)
        body += f"\n\\par{{\\footnotesize {escaped}}}"
    for symbol, command in LATEX_SYMBOLS.items():
        body = body.replace(symbol, command)
    return body.rstrip("\n") + "\n"


def write_table(
    table: pd.DataFrame, folder: Path, name: str, provenance: Mapping[str, Any]
) -> list[Path]:
    """Write CSV, Markdown, LaTeX, HTML and a provenance JSON named `name` into `folder`.

    The same table gives the same bytes; NaN becomes an empty cell. Returns the paths.
    """
    table = table.astype(object).where(table.notna(), "")
    notes = list(table.attrs.get("footnotes", []))
    markdown = table.to_markdown(index=False, disable_numparse=True)
    texts = {
        "csv": table.to_csv(index=False, lineterminator="\n"),
        "md": "\n\n".join([markdown, *notes]) + "\n",
        "tex": to_latex(table),
        "html": table.to_html(index=False, border=0) + "".join(f"\n<p>{n}</p>" for n in notes),
    }
    paths = [write_atomically(folder / f"{name}.{end}", t.encode()) for end, t in texts.items()]
    details = {**provenance, "table": name, "footnotes": notes}
    return [*paths, write_provenance(folder / f"{name}.json", details, table)]


def write_all(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    claims_path: Path,
    labels: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write every table that the tidy table of a profile allows; returns the paths written.

    `labels` maps method names to display names, in order. Raises `CompanionError` where rows are
    missing, with the command that makes them.
    """
    table = table_one(frame, read_claims(claims_path), labels, profile_name)
    return write_table(table, folder, "table1_harmful", {**provenance, "profile": profile_name})
