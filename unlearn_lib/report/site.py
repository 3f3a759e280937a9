"""The site itself: everything is gathered, rendered beside its place, and put there by renames."""

import re
import shutil
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from unlearn_lib import claims
from unlearn_lib.notebook import machine, shorten
from unlearn_lib.profile import Profile
from unlearn_lib.report import pages
from unlearn_lib.report.notes import notes
from unlearn_lib.stored import Stored
from unlearn_lib.tables import commit_of, weights_of
from unlearn_lib.util import digest

HERE = Path(__file__).parent
NUMBER = re.compile(r"[-−+]?\d")
INTERVAL = re.compile(r"\[[^\[\]\d]*\d[^\[\]]*\]")
SYMBOLS = dict(zip(claims.OUTCOMES, "✔✘?–", strict=True))
"""A symbol for each outcome, so that no colour is needed to tell them apart."""
LAST = ("Model", "Task", "Place")
"""Columns that stand at the end of a table."""


def numeric(frame: pd.DataFrame) -> set[str]:
    """Return the columns after the first that hold nothing but numbers."""
    cells = {name: [cell for cell in frame[name] if cell] for name in frame.columns[1:]}
    return {name for name in cells if cells[name] and all(map(NUMBER.match, cells[name]))}


def lines(text: str) -> Markup:
    """Return a cell's text as HTML: a line per part after `; `, intervals set apart."""
    parts = [str(escape(part)) for part in text.split("; ")]
    marked = [INTERVAL.sub(r'<span class="interval">\g<0></span>', part) for part in parts]
    return Markup(";<br>".join(marked))


TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
)
TEMPLATES.filters |= {"lines": lines, "numeric": numeric, "shorten": shorten}
TEMPLATES.globals["timedelta"] = timedelta


def write_report(stored: Stored, profile: Profile) -> Path:
    """Write the report of a profile as `report` in its results; return the path of its first page.

    Executed notebooks are read from `notebooks` in its results. Texts of task harm are folded.
    """
    folder, costs = profile.results, stored.costs
    verdicts = claims.judge(stored.items, profile.name, profile.labels())
    content = {
        "profile": profile,
        "stored": stored,
        "commit": commit_of(stored.origin),
        "weights": weights_of(stored.origin),
        "symbols": SYMBOLS,
        "counts": claims.counts(verdicts),
        "headline": claims.table([verdict for verdict in verdicts if verdict.claim.headline]),
        "every": claims.table(verdicts),
        "digest": digest(claims.CLAIMS.read_text(encoding="utf-8")),
        "parts": yaml.safe_load((HERE / "captions.yaml").read_text(encoding="utf-8")),
        "drawn": {path.stem for path in stored.figures.glob("*.svg")},
        "tables": _tables(stored.figures),
        "notebooks": pages.notebooks(folder / "notebooks"),
        "cards": pages.cards(),
        "machine": machine(stored.origin)["value"],
        "costs": costs,
        "notes": notes(stored.items, profile.name),
        "texts": stored.texts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".report.") as temporary:
        target, new, old = folder / "report", Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        if stored.figures.is_dir():
            shutil.copytree(stored.figures, new / "figures")
        for path in (*HERE.glob("*.css"), *HERE.glob("*.js")):
            shutil.copyfile(path, new / path.name)
        stored.items.frame.to_parquet(new / "items.parquet", index=False)
        costs.to_csv(new / "costs.csv", index=False, lineterminator="\n", float_format="%.6g")
        _write(new, "index", "index.html", content)
        for name, (title, note, body) in content["notebooks"].items():
            _write(new, name, "page.html", content, title=title, note=note, body=body)
        for name, (card, body) in content["cards"].items():
            _write(new, name, "card.html", content, card=card, body=body)
        if target.exists():
            target.rename(old)
        new.rename(target)
    return target / "index.html"


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables that were written, by name, with their notes in `attrs`."""
    frames = {}
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frames[path.stem] = frame[sorted(frame, key=lambda name: (name in LAST, name != "Method"))]
        remarks = path.with_suffix(".md").read_text(encoding="utf-8").strip().split("\n\n")[1:]
        frames[path.stem].attrs["notes"] = remarks
    return frames


def _write(site: Path, name: str, template: str, content: dict[str, Any], **more: Any) -> None:
    page = TEMPLATES.get_template(template).stream(content, **more)
    page.dump(str(site / f"{name}.html"), "utf-8")
