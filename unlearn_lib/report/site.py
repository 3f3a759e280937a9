"""The site itself: everything is gathered, rendered beside its place, and put there by renames."""

import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unlearn_lib import claims
from unlearn_lib.profile import Profile
from unlearn_lib.report import notebooks
from unlearn_lib.report.cards import cards
from unlearn_lib.report.grid import Grid, lines
from unlearn_lib.report.notes import notes
from unlearn_lib.report.texts import Texts, blocks

HERE = Path(__file__).parent
TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
)
TEMPLATES.filters["lines"] = lines
SYMBOLS = dict(zip(claims.OUTCOMES, "✔✘?–", strict=True))
"""A symbol for each outcome, so that no colour is needed to tell them apart."""

LAST = ("Model", "Task", "Place")
"""Columns that stand at the end of a table."""


def write_report(
    stored: Any,
    folder: Path,
    profile: Profile,
    costs: pd.DataFrame,
    texts: Texts,
    figures: Path | None = None,
    tables: Path | None = None,
    executed: Path | None = None,
) -> Path:
    """Write the report of a profile as `folder / "report"`; return the path of its first page.

    Args:
        stored: `items`, `origin` (commit, machine, versions), `where` (whose results they are).
        folder: of the profile's results.
        costs: columns kind (`notebook` or `run`), name, seconds, peak_memory_bytes; may be empty.
        texts: task, heading and a table of texts each; those of task harm are folded.
        figures, tables, executed: folders of figures, tables and executed notebooks; default:
            `figures`, `tables` and `notebooks` in `folder`.
    """
    target, new, old = (folder / name for name in ("report", ".report.new", ".report.old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    for source, name in ((figures, "figures"), (tables, "tables")):
        source = source or folder / name
        if source.is_dir():
            shutil.copytree(source, new / name)
    for path in (*HERE.glob("*.css"), *HERE.glob("*.js")):
        shutil.copyfile(path, new / path.name)
    (new / "code.css").write_text(notebooks.style(), encoding="utf-8")
    stored.items.frame.to_parquet(new / "items.parquet", index=False)
    costs.to_csv(new / "costs.csv", index=False, lineterminator="\n", float_format="%.6g")
    index, overview, pages = _index(new, stored, profile), *cards()
    shown = notebooks.pages(executed or folder / "notebooks")
    for name, (title, note, body) in {**shown, **pages}.items():
        _write(new, name, "page.html", index, title=title, note=note, body=body)
    index |= {"notebooks": shown, "cards": overview}
    _write(new, "index", "index.html", index, costs=_costs(costs), texts=blocks(texts))
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target / "index.html"


def _index(site: Path, stored: Any, profile: Profile) -> dict[str, Any]:
    """What the first page shows of results that figures and tables in `site` were drawn from."""
    git = stored.origin.get("git") or {}
    verdicts = claims.judge(stored.items, profile.name, profile.labels())
    headline = [verdict for verdict in verdicts if verdict.claim.headline]
    return {
        "profile": profile,
        "where": stored.where,
        "commit": f"{git.get('commit') or 'unknown'}"[:10] + "+" * bool(git.get("dirty")),
        "symbols": SYMBOLS,
        "counts": claims.counts(verdicts),
        "headline": _verdicts("headline", "The claims that matter most", headline),
        "every": _verdicts("claims", "Every claim", verdicts),
        "rules": claims.rules(),
        "digest": claims.digest_of_claims(),
        "parts": yaml.safe_load((HERE / "captions.yaml").read_text(encoding="utf-8")),
        "drawn": {path.stem for path in (site / "figures").glob("*.svg")},
        "tables": _tables(site / "tables"),
        "machine": _machine(stored),
        "notes": notes(stored.items, profile.name),
    }


def _write(site: Path, name: str, template: str, common: Mapping[str, Any], **more: Any) -> None:
    text = TEMPLATES.get_template(template).render(**common, **more)
    (site / f"{name}.html").write_text(text, encoding="utf-8", newline="\n")


def _verdicts(name: str, title: str, verdicts: list[claims.Verdict]) -> Grid:
    frame = claims.table(verdicts)
    orders = {"Verdict": [claims.OUTCOMES.index(outcome) for outcome in frame["Verdict"]]}
    return Grid(name, title, frame, orders=orders, facets=("Paper", "Verdict"), stacked=True)


def _tables(folder: Path) -> dict[str, Grid]:
    """The tables that were written, by name."""
    grids = {}
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame = frame[sorted(frame, key=lambda name: (name in LAST, name != "Method"))]
        remarks = path.with_suffix(".md").read_text(encoding="utf-8").strip().split("\n\n")[1:]
        grids[path.stem] = Grid(f"table-{path.stem}", path.stem, frame, remarks)
    return grids


def _machine(stored: Any) -> dict[str, Any]:
    """What the results are of and what computed them, by name."""
    origin, frame = stored.origin, stored.items.frame
    known = {name: ", ".join(map(str, sorted(frame[name].unique()))) for name in ("model", "seed")}
    known |= {"items": f"{len(frame):,}", **(origin.get("machine") or {})}
    known |= {"Python": origin.get("python"), **(origin.get("versions") or {})}
    return {name: "not recorded" if value is None else value for name, value in known.items()}


def _costs(costs: pd.DataFrame) -> list[Grid]:
    """Time and peak memory of each notebook and of each stage, the longest first."""
    grids = []
    for kind, heading in (("notebook", "Notebook"), ("run", "Stage")):
        groups = costs[costs["kind"] == kind].groupby("name")
        seconds = groups["seconds"].sum().sort_values(ascending=False)
        peaks = groups["peak_memory_bytes"].max()[seconds.index]
        frame = pd.DataFrame({heading: seconds.index})
        frame["Time in all"] = [str(timedelta(seconds=round(each))) for each in seconds]
        frame["Peak memory (GB)"] = [f"{each / 1e9:.2f}" for each in peaks]
        orders = {"Time in all": list(seconds)}
        grids.append(Grid(f"costs-{kind}", f"Per {heading.lower()}", frame, orders=orders))
    return [grid for grid in grids if len(grid.frame)]
