"""The data cards as pages and as one table: what each data set is, whose, and how many rows."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mistune
import pandas as pd
import yaml

from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import ROOT
from unlearn_lib.report.page import Page

CARDS = ROOT / "data_cards"
KEYS = ("pretty_name", "license", "companion")
FROM = {
    "embedded": "shipped: written for this project",
    "wheel": "fetched: a pinned wheel",
    "hub": "fetched: the hub, its cache or a mirror",
    "user": "the reader's own file",
}
SCROLL = "<div class='scroll' role='region' aria-label='{}' tabindex='0'>"
USED_IN = {
    "harmful": "harm_stand_in normal_questions pyrit_harm truthful_qa pku_saferlhf "
    "jigsaw_toxic_comments",
    "book": "saga plain_prose narrative_qa bookcorpus normal_questions truthful_qa",
    "tofu": "fictitious_authors tofu real_authors world_facts refusals known_people",
    "eco": "invented_science wmdp mmlu fictitious_authors tofu real_authors world_facts refusals "
    "known_people saga plain_prose narrative_qa bookcorpus normal_questions truthful_qa",
}
"""Which cards' data an experiment reads, in one profile or another."""


def pages() -> list[Page]:
    """One page per data card: its header as a small table, its text below."""
    return [_page(path) for path in _paths()]


def summary() -> pd.DataFrame:
    """All data cards, one a row: name, licence, where from, rows, experiments and profiles."""
    rows = []
    for path in _paths():
        header, _ = read(path)
        companion = header["companion"]
        rows.append(
            {
                "data set": header["pretty_name"],
                "licence": _licence(header),
                "from": FROM[companion["origin"]],
                "rows": _rows(companion["files"]),
                "experiments": ", ".join(_experiments(path.stem)),
                "profiles": ", ".join(companion["profiles"]),
                "page": f"{page_name(path.stem)}.html",
            }
        )
    return pd.DataFrame(rows)


def page_name(card: str) -> str:
    """The name of a card's page: `card_saga`."""
    return f"card_{card}"


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Split a card into its YAML header and its text.

    Raises:
        CompanionError: no header, or one without a name, a licence or what the companion needs.
    """
    start, _, rest = path.read_text(encoding="utf-8").partition("---\n")
    head, mark, body = rest.partition("\n---\n")
    header = yaml.safe_load(head) if mark and not start else None
    absent = [key for key in KEYS if key not in (header or {})]
    if header is None or absent:
        lacks = ", ".join(absent)
        raise CompanionError(f"The data card {path.name} lacks {lacks} in its header; add it.")
    return header, body


def _paths() -> list[Path]:
    return sorted(CARDS.glob("*.md"))


def _licence(header: Mapping[str, Any]) -> str:
    """One licence, or those of several parts."""
    found = header["license"]
    return found if isinstance(found, str) else ", ".join(found)


def _rows(files: Sequence[Mapping[str, Any]]) -> str:
    """The rows of all files, or when they are counted."""
    counts = [entry["rows"] for entry in files]
    return str(sum(counts)) if all(isinstance(n, int) for n in counts) else str(counts[-1])


def _experiments(card: str) -> list[str]:
    return [name for name, cards in USED_IN.items() if card in cards.split()]


def _page(path: Path) -> Page:
    header, body = read(path)
    body = "\n".join(line for line in body.splitlines() if not line.startswith("# "))
    render = mistune.create_markdown(escape=True, plugins=["table"])
    text = str(render(body)).replace("<table>", f"{SCROLL.format('Files')}<table>")
    text = text.replace("</table>", "</table></div>")
    rows = _rows(header["companion"]["files"])
    note = f"{_licence(header)}; {FROM[header['companion']['origin']]}; rows: {rows}"
    return Page(page_name(path.stem), header["pretty_name"], _header(header) + text, note)


def _header(header: Mapping[str, Any]) -> str:
    companion = header["companion"]
    source = [companion.get(key) for key in ("wheel", "hub_id")]
    version = [companion.get(key) for key in ("version", "revision")]
    facts = {
        "licence": _licence(header),
        "from": FROM[companion["origin"]],
        "source": " ".join(str(part) for part in (*source, *version) if part),
        "used in": f"profiles {', '.join(companion['profiles'])}",
        "fields": ", ".join(companion["fields"]),
        **{name.replace("_", " "): n for name, n in companion.get("counts", {}).items()},
        "tags": ", ".join(header.get("tags", [])),
    }
    lines = [(name, html.escape(str(value))) for name, value in facts.items() if value]
    for entry in companion["files"]:
        path, rows, digest = (html.escape(str(entry[key])) for key in ("path", "rows", "sha256"))
        lines.append(("file", f"<code>{path}</code>: {rows} rows, sha256 <code>{digest}</code>"))
    cells = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td>{value}</td></tr>"
        for name, value in lines
    )
    table = f"<table class='card-facts'><tbody>{cells}</tbody></table>"
    return f"{SCROLL.format('What the card says in short')}{table}</div>"
