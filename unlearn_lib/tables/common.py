"""What every table shares: pooled seeds, papers' claims, and files in four formats.

Several seeds are pooled by `pool`: the value is the mean over seeds, the interval reaches from
the lowest lower end to the highest upper end of the seeds' own intervals. It therefore covers
the spread over prompts and over seeds, and is wider than a 95 % interval of the mean.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from unlearn_lib.errors import CompanionError
from unlearn_lib.metrics.tidy import COLUMNS

FAST_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CLAIM_KEYS = "id paper place statement metric stage model value unit tolerance judged_in".split()
POOLED = ["seed", "value", "low", "high", "n"]
"""The columns that `pool` reads."""
LATEX_SYMBOLS = {
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "ε": r"$\varepsilon$",
    "×": r"$\times$",
    "−": "$-$",
}
PAGE_ROWS = 45
"""A printed table with more rows than this runs over pages."""
PAPER_NOTE = "as reported; other data and judge"
OTHER_MODEL_NOTE = "as reported; other model, data and judge"
PAPER_SIMILARITY = "Similarity to original (paper's measure)"
SQUARE_BRACKETS = (
    "Square brackets: 95 % bootstrap interval over prompts; with several seeds, the mean over "
    "seeds and an interval from the lowest to the highest end of the seeds' intervals."
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
    """One column of numbers: its heading, metric, unit factor, decimals, and the metric's split."""

    heading: str
    metric: str
    factor: float = 1.0
    decimals: int = 1
    split: str = ""


def remedy(profile_name: str) -> str:
    """Return the half-sentence that names the command which makes missing results."""
    name, _, own_book = profile_name.partition("-book-")
    book = "BOOK=<your book> " if own_book else ""
    return f"run `{book}make reproduce PROFILE={name or 'laptop'}`"


def place(profile_name: str) -> str:
    """Return the words for the tidy table in an error, with the profile's name if it is known."""
    return f"the tidy table of profile {profile_name}" if profile_name else "the tidy table"


def check_columns(frame: pd.DataFrame, profile_name: str = "") -> None:
    """Raise `CompanionError` for missing columns; it names them and the remedy."""
    absent = [column for column in COLUMNS if column not in frame.columns]
    if absent:
        text = f"{place(profile_name)} lacks the columns {', '.join(absent)}"
        raise CompanionError(f"{text[0].upper()}{text[1:]}; {remedy(profile_name)}.")


def experiments_in(
    frame: pd.DataFrame, known: Iterable[str], profile_name: str = ""
) -> dict[str, pd.DataFrame]:
    """Return the rows of each known experiment that the tidy table holds, in the order known.

    Raises `CompanionError` for missing columns, and for a table with none of the experiments.
    """
    check_columns(frame, profile_name)
    known = list(known)
    found = {name: frame[frame["experiment"] == name] for name in known}
    found = {name: rows for name, rows in found.items() if not rows.empty}
    if not found:
        raise CompanionError(
            f"No rows of {' or '.join(known)} in {place(profile_name)}: {remedy(profile_name)}."
        )
    return found


def method_labels(rows: pd.DataFrame, labels: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return name to display name of the unlearned methods in `rows`, in the order of `labels`.

    Methods that `labels` lacks follow in order of appearance, under their own names.
    """
    present = list(dict.fromkeys(rows.loc[rows["stage"].eq("unlearned"), "method"]))
    ordered = {name: label for name, label in (labels or {}).items() if name in present}
    return ordered | {name: name for name in present if name not in ordered}


def pick(rows: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Return what `pool` reads of the rows whose columns have the wanted values.

    On arrays, and without the columns of text: taking whole rows of a frame costs five times this.
    """
    chosen = np.ones(len(rows), dtype=bool)
    for column, value in wanted.items():
        chosen &= np.asarray(rows[column].array == value, dtype=bool)
    places = np.flatnonzero(chosen)
    return pd.DataFrame({name: rows[name].to_numpy()[places] for name in POOLED})


def pool(chosen: pd.DataFrame, what: str) -> Pooled | None:
    """Pool the seeds of one number, a row a seed; None without a value.

    Raises `CompanionError` that names `what` when one seed has two rows, which would mix two
    things in one mean.
    """
    known = chosen["value"].notna()
    if not known.all():
        chosen = chosen[known]
    if chosen.empty:
        return None
    if len(chosen) > 1 and chosen["seed"].astype(str).duplicated().any():
        raise CompanionError(
            f"The tidy table has two values of {what} and one seed; keep one split of it."
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
    style = f"z.{decimals}f" if abs(found.value) < 10_000 else ".2g"
    text = f"{found.value:{style}}"
    if math.isnan(found.low) or math.isnan(found.high):
        return text
    return f"{text} [{found.low:{style}}, {found.high:{style}}]"


def read_claims(path: Path) -> list[dict[str, Any]]:
    """Read the papers' reported numbers from `claims.yaml`; each entry has every key."""
    try:
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=FAST_YAML)
    except FileNotFoundError:
        raise CompanionError(f"There is no {path.name} at {path}; restore it from git.") from None
    except yaml.YAMLError as error:
        raise CompanionError(f"{path.name} is no YAML; restore it from git ({error}).") from None
    for entry in entries:
        absent = [key for key in CLAIM_KEYS if key not in entry]
        if absent:
            raise CompanionError(f"{path.name}: claim {entry.get('id')} lacks {', '.join(absent)}.")
    return entries


def claims_of(
    claims: Sequence[Mapping[str, Any]], paper: str, place: str
) -> list[Mapping[str, Any]]:
    """Return the claims that stand in one place of a paper, whose entry begins with `paper`."""
    return [each for each in claims if each["place"] == place and each["paper"].startswith(paper)]


def paper_note(model: str, ours: Iterable[str]) -> str:
    """Return the note of a paper's row, which says whether we have the same model."""
    return PAPER_NOTE if model in ours else OTHER_MODEL_NOTE


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
    """Print a table with booktabs rules, every cell escaped, as wide as the text, with notes.

    One of more than `PAGE_ROWS` rows runs over pages, its columns equally wide.
    """
    columns = table.shape[1]
    if len(table) > PAGE_ROWS:
        column = f">{{\\raggedright\\arraybackslash}}p{{{0.8 / columns:.3f}\\textwidth}}"
        body = table.to_latex(
            index=False, escape=True, column_format=column * columns, longtable=True
        )
        body = f"% needs array, booktabs and longtable\n{{\\scriptsize\n{body}}}\n"
    else:
        body = table.to_latex(index=False, escape=True, column_format="l" * columns)
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
    """Write CSV, Markdown, LaTeX, HTML and `<name>.table.json`, its provenance, into `folder`.

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
    return [*paths, write_provenance(folder / f"{name}.table.json", details, table)]
