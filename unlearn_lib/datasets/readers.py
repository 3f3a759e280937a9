"""A book that a user brings (.txt, .epub, .pdf, .jsonl), as chapters of clean text.

Each format has its reader here or in `epub.py` and `pdf.py`; they share the cleaning of
`paragraphs.py` and the headings of `chapters.py`. Nothing is written to disk.

    book = read_book(Path("novel.epub"))
    book.chapters[0].title, book.units, book.dropped
"""

import codecs
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from charset_normalizer import from_bytes

from unlearn_lib.datasets.chapters import (
    MINIMUM_UNITS,
    Chapter,
    Draft,
    chapter_of,
    chapters_or_parts,
    is_heading,
    parts_of,
)
from unlearn_lib.datasets.epub import read_epub
from unlearn_lib.datasets.paragraphs import clean, cut_licence, layout_of, paragraphs_of, words_in
from unlearn_lib.datasets.pdf import read_pdf
from unlearn_lib.errors import CompanionError, nearest

MINIMUM_WORDS = 1000
ONE_LINE_WORDS = 2000
MAXIMUM_BYTES = 300 * 2**20
SHORT_ROW_WORDS = 150  # rows with fewer (median) are paragraphs or pages, not chapters
WRONG_SHARE = 0.0005  # of a text's characters that may speak against its encoding
CONTROL_SHARE = 0.002  # of a text's characters; more are a binary file's

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_SINGLE_BYTE = ["cp1252", "cp1250", "iso8859_2", "mac_roman", "cp1251", "koi8_r", "cp1253"]
# Unused codes, box drawings, and two scripts in a word: what tells a wrong guess.
_WRONG = re.compile("[\x80-\x9f\u2500-\u25ff]|[A-Za-z][\u0400-\u04ff]|[\u0400-\u04ff][A-Za-z]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")


@dataclass(frozen=True)
class BookText:
    """A book as clean text.

    Attributes:
        title: as the file names it, else the file's name without its ending.
        chapters: in reading order.
        format: "txt", "epub", "pdf" or "jsonl".
        encoding: "utf-8", "utf-16-le", "cp1252", ...; "" for epub and pdf.
        sha256: of the file's bytes.
        units: "chapters", or what stands in for them: "pages" (pdf), or "parts", equal parts of
            about 1,500 words cut at paragraph ends.
        dropped: how much was cleaned away, by reason ("page numbers", "hyphenations joined",
            "front matter characters", "empty pages", ...); reasons that did not occur are absent.
    """

    title: str
    chapters: tuple[Chapter, ...]
    format: str
    encoding: str
    sha256: str
    units: str
    dropped: dict[str, int]


def read_book(path: Path) -> BookText:
    """Read a book, its format told by the file name's ending.

    Raises:
        CompanionError: no such file, another format, damaged, encrypted, of an unknown encoding,
            without text, or too short to be split into chapters or parts.
    """
    path = Path(path).expanduser()
    data = _bytes_of(path)
    draft = _READERS[path.suffix.lower()](path, data)
    words = sum(words_in(chapter.text) for chapter in draft.chapters)
    count = len(draft.chapters)
    if count < MINIMUM_UNITS or words < MINIMUM_WORDS:
        raise CompanionError(
            f"{path} is too short to be split: it holds {words} words in {count} {draft.units}, "
            f"and {MINIMUM_WORDS} words in {MINIMUM_UNITS} are needed; bring a longer text."
        )
    return BookText(
        title=draft.title or path.stem,
        chapters=tuple(draft.chapters),
        format=path.suffix.lower()[1:],
        encoding=draft.encoding,
        sha256=hashlib.sha256(data).hexdigest(),
        units=draft.units,
        dropped={reason: count for reason, count in draft.dropped.items() if count},
    )


def _bytes_of(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise CompanionError(f"{path} is a folder; name the book's file in it.")
        if not path.is_file():
            raise CompanionError(f"There is no file {path}; check the book's path.")
        if path.suffix.lower() not in _READERS:
            raise CompanionError(
                f"{path} has none of the known endings ({', '.join(_READERS)}); convert it to one."
            )
        if path.stat().st_size > MAXIMUM_BYTES:
            raise CompanionError(
                f"{path} is larger than a book ({MAXIMUM_BYTES >> 20} MiB); bring another file."
            )
        data = path.read_bytes()
    except OSError as error:
        raise CompanionError(f"{path} cannot be read ({error.strerror}).") from error
    if not data.strip():
        raise CompanionError(f"{path} is empty; bring a file with the book's text.")
    return data


def _read_txt(path: Path, data: bytes) -> Draft:
    raw, encoding = _decoded(path, data)
    text = clean(raw)
    if not text.strip():
        raise CompanionError(f"{path} is empty; bring a file with the book's text.")
    _check_lines(text, str(path))
    dropped: Counter[str] = Counter()
    title = _title_of(text)
    chapters, units = chapters_or_parts(cut_licence(text, dropped), dropped)
    return Draft(title, chapters, units, dropped, encoding)


def _check_lines(text: str, place: str) -> None:
    """Refuse a text that has no paragraphs to see."""
    longest = max(text.split("\n"), key=len)
    if words_in(longest) > ONE_LINE_WORDS and len(longest) > 0.9 * len(text):
        raise CompanionError(f"{place} is all one line; put an empty line between paragraphs.")


def _title_of(text: str) -> str:
    """Project Gutenberg's title, or a first line that is short, alone and no heading."""
    named = re.search(r"^Title: *(.+)$", text[:5000], re.M)
    if named:
        return named[1]
    first, *rest = text.lstrip().split("\n", 2)
    alone = not rest or not rest[0].strip()
    title = first.strip(" #*_=")
    return title if alone and len(title.split()) <= 12 and not is_heading(title) else ""


def _decoded(path: Path, data: bytes) -> tuple[str, str]:
    """The text and the name of its encoding."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _strictly(path, data[len(mark) :], encoding), encoding
    if b"\0" in data:
        return _wide(path, data)
    try:
        text, encoding = data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        text, encoding = _single_byte(path, data)
    if len(_CONTROLS.findall(text)) > CONTROL_SHARE * len(text):
        raise _no_text(path)
    return text, encoding


def _strictly(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise CompanionError(
            f"{path} is marked as {encoding}, but its byte {error.start} is not ({error.reason}); "
            "it is damaged or was saved wrongly: save it again as UTF-8."
        ) from error


def _wide(path: Path, data: bytes) -> tuple[str, str]:
    """UTF-32 or UTF-16 without a mark: the one that reads as lines of words."""
    found = {}
    for encoding in _WIDE:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _CONTROLS.search(text):
            found[encoding] = (text.count(" ") + text.count("\n"), text)
    encoding = max(found, key=lambda name: found[name][0], default="")
    if not encoding or not found[encoding][0]:
        raise _no_text(path)
    return found[encoding][1], encoding


def _single_byte(path: Path, data: bytes) -> tuple[str, str]:
    """An older encoding, guessed; of those that read about equally well, the one most in use."""
    found = {}
    for match in list(from_bytes(data, cp_isolation=_SINGLE_BYTE) or from_bytes(data)):
        for name in match.could_be_from_charset:
            text = data.decode(name, errors="ignore")
            if len(_WRONG.findall(text)) <= WRONG_SHARE * len(text):
                found[name] = match.chaos
    for name in sorted(found, key=lambda name: (found[name] - 0.01 * (name == "cp1252"), name)):
        try:
            return data.decode(name), codecs.lookup(name).name
        except UnicodeDecodeError:
            continue
    raise CompanionError(f"{path} is in no encoding that can be told; save it as UTF-8.")


def _no_text(path: Path) -> CompanionError:
    return CompanionError(f"{path} is a binary file, no text; bring the book as text in UTF-8.")


def _read_jsonl(path: Path, data: bytes) -> Draft:
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CompanionError(
            f"{path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8."
        ) from error
    dropped: Counter[str] = Counter()
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_row(path, number, line))
    dropped["empty rows"] = sum(not row["text"] for row in rows)
    rows = [row for row in rows if row["text"]]
    if not rows:
        raise CompanionError(f"{path} is empty: no row has a 'text'; bring the book's text.")
    titles = {row["title"] for row in rows}
    one_title = titles.pop() if len(titles) == 1 and len(rows) > 1 else ""
    chapters, units = _chapters_of_rows(rows, one_title, dropped)
    return Draft(one_title, chapters, units, dropped, "utf-8")


def _row(path: Path, number: int, line: str) -> dict[str, str]:
    """A row's text, title and chapter as strings, "" for what it lacks."""
    place = f"Line {number} of {path}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CompanionError(
            f"{place} is no JSON ({error}); put one object on each line."
        ) from error
    if not isinstance(row, dict):
        raise CompanionError(f'{place} is no JSON object; write it as {{"text": ...}}.')
    if "text" not in row:
        raise CompanionError(f"{place} has no 'text'{nearest('text', row) if row else ''}.")
    if not isinstance(row["text"], str):
        raise CompanionError(f"{place} has a 'text' that is no string; put the text there.")
    text = clean(row["text"]).strip()
    _check_lines(text, place)
    return {"text": text, "title": _name(row.get("title")), "chapter": _name(row.get("chapter"))}


def _name(value: Any) -> str:
    """A chapter's name: 3 becomes "Chapter 3"."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"Chapter {value}"
    return " ".join(clean(value).split()) if isinstance(value, str) else ""


def _chapters_of_rows(
    rows: list[dict[str, str]], book: str, dropped: Counter[str]
) -> tuple[list[Chapter], str]:
    """Rows of one chapter together; short ones without chapters in equal parts."""
    layout = layout_of("\n\n".join(row["text"] for row in rows))
    found: list[tuple[str, list[str]]] = []
    for place, (chapter, group) in enumerate(
        groupby(enumerate(rows), key=lambda pair: pair[1]["chapter"] or pair[0])
    ):
        members = [row for _, row in group]
        named = chapter if isinstance(chapter, str) else ""
        title = members[0]["title"] if members[0]["title"] != book else ""
        name = ": ".join(dict.fromkeys(filter(None, (named, title)))) or f"chapter {place + 1}"
        lines = "\n\n".join(row["text"] for row in members).replace("\f", "\n\n").split("\n")
        found.append((name, paragraphs_of(lines, layout, dropped)))
    if median(sum(map(words_in, paragraphs)) for _, paragraphs in found) < SHORT_ROW_WORDS:
        return parts_of([p for _, paragraphs in found for p in paragraphs]), "parts"
    return [chapter_of(name, paragraphs) for name, paragraphs in found], "chapters"


_READERS: dict[str, Callable[[Path, bytes], Draft]] = {
    ".txt": _read_txt,
    ".epub": read_epub,
    ".pdf": read_pdf,
    ".jsonl": _read_jsonl,
}
