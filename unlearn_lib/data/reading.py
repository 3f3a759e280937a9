"""A book that a reader brings (.txt, .epub, .pdf), as chapters of clean text.

Each format becomes a list of paragraphs and headings, which is then cut at its headings. Left out
are what precedes the first heading, Project Gutenberg's licence, of a PDF the running headers,
footers and page numbers, and of an EPUB notes, their marks and page numbers, where it says which
they are. Nothing is written to disk.
"""

import math
import posixpath
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile

import numpy as np
import pypdfium2
from bs4 import BeautifulSoup, Tag
from bs4.exceptions import ParserRejectedMarkup
from charset_normalizer import from_bytes

from unlearn_lib.data.formats import FORMATS, looks_like
from unlearn_lib.data.headings import HEADING, WIDE, WORD, count_words, missing_numbers
from unlearn_lib.data.markup import BORDER, LINE_BREAK, MARK, parsed_document, text_of
from unlearn_lib.util import CompanionError, expanded

LEAST_CHAPTERS = 3
LEAST_WORDS = 1000  # of a book
CHAPTER_WORDS = 25  # a heading with fewer words beneath it is an entry of the table of contents
PART_WORDS = 1500
LONG_LINE = 160  # characters; no wrapped text is wider, so each such line is a paragraph
FULL = 0.75  # of the usual width: more than that, with the next line's first word, is a full line
LARGEST = 50_000_000  # bytes of all documents of an EPUB, unpacked
CONTROL_SHARE = 0.002  # of a text's characters; more control characters are a binary file's

ENCODINGS = "utf_16 utf_32 cp1252 cp1250 cp1251 koi8_r mac_roman".split()
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
FRONT_MATTER = re.compile(r"(table of )?contents|copyright.*|also by .*", re.I)
LICENCE_START = re.compile(r"\*{3} ?START OF|\*END\*THE SMALL PRINT")
LICENCE_END = re.compile(r"\*{3} ?END OF")
PAGE_NUMBER = re.compile(r"\W*(page )?(\d{1,4}|[ivxlc]{1,7})( ?(of|/) ?\d{1,4})?\W*", re.I)
NOTES = {*"footnote footnotes endnote endnotes rearnote rearnotes noteref pagenum".split()}
LINKS = "nav:first-of-type a[href], navPoint > content[src]"
NOTE_MARK = re.compile(r"[(\[]?(\d{1,3}|[*†‡§]+)[)\]]?")
COLUMN_SHARE = 0.2  # of the pages with text; an index in columns is less
DAMAGE = (BadZipFile, EOFError, LookupError, OSError, RuntimeError, ValueError, zlib.error)
FAULTS = (*DAMAGE, ParserRejectedMarkup)


class Block(NamedTuple):
    """A paragraph or a heading; verse keeps its line breaks."""

    text: str
    heading: bool


class Chapter(NamedTuple):
    """A chapter, or the part that stands in for one.

    Attributes:
        title: "Chapter One: The Sluice", or "part 3" in a book without chapters.
        text: paragraphs separated by one empty line; verse keeps its line breaks.
    """

    title: str
    text: str


class BookText(NamedTuple):
    """A book as clean text.

    Attributes:
        title: as the file names it, else the file's name without its ending.
        chapters: in reading order.
        units: "chapters", or "parts": equal parts of about 1,500 words, cut between paragraphs.
    """

    title: str
    chapters: tuple[Chapter, ...]
    units: str

    @property
    def summary(self) -> str:
        """A sentence on what was read: how many chapters, the longest, numbers that are missing."""
        words = [count_words(chapter.text) for chapter in self.chapters]
        longest = self.chapters[int(np.argmax(words))].title
        cut = f" of equal length, since fewer than {LEAST_CHAPTERS} chapter headings were found"
        missing = missing_numbers([chapter.title for chapter in self.chapters])
        return (
            f"'{self.title}' has {len(words)} {self.units}{cut * (self.units == 'parts')}; the "
            f"longest, '{longest}', holds {max(words):,} of {sum(words):,} words"
            f"{f'; no heading was found for {missing}' * bool(missing)}."
        )


def read_book(path: Path) -> BookText:
    """Read a book; the ending of the file's name tells its format.

    A chapter begins at a heading with at least 25 words beneath it ("Chapter One", "CHAPTER IV.
    RAIN", "CHAPTER 1. Loomings.", "1.", "第一章", "פרק א", an h1 or h2 of an EPUB or an entry of
    its table of contents). A book with fewer than three chapters is cut into parts. What was read
    and which numbers are missing says `BookText.summary`.

    Raises:
        CompanionError: missing, of another format, damaged, protected, without text, a PDF in two
            columns, or too short to be split into chapters or parts.
    """
    readers = {".txt": _read_text, ".epub": _read_epub, ".pdf": _read_pdf}
    path = expanded(path)
    kind = path.suffix.lower()
    if kind not in readers or not path.is_file():
        raise CompanionError(f"There is no {', '.join(readers)} file {path}; check its path.")
    try:
        data = path.read_bytes()
        if (like := looks_like(data)) not in ("", *FORMATS[kind]):
            raise CompanionError(
                f"{path} is {like} by its content, not {FORMATS[kind][0]}; save it as plain text "
                "(UTF-8), or give it the ending of what it is."
            )
        title, blocks = readers[kind](data)
    except FAULTS as error:
        raise CompanionError(
            f"{path} cannot be read ({_tidy(str(error))}); bring a whole copy without protection."
        ) from error
    starts = [i + 1 for i, block in enumerate(blocks) if LICENCE_START.match(block.text)]
    ends = [i for i, block in enumerate(blocks) if LICENCE_END.match(block.text)]
    blocks = blocks[max(starts, default=0) : max(ends, default=len(blocks))]
    chapters, units = tuple(_chapters(blocks)), "chapters"
    if len(chapters) < LEAST_CHAPTERS:
        chapters, units = tuple(_parts(blocks)), "parts"
    words = sum(count_words(chapter.text) for chapter in chapters)
    if len(chapters) < LEAST_CHAPTERS or words < LEAST_WORDS:
        raise CompanionError(
            f"{path} is too short: it holds {words} words in {len(chapters)} {units}, and "
            f"{LEAST_WORDS} in {LEAST_CHAPTERS} are needed; put an empty line between paragraphs."
        )
    return BookText(title or path.stem, chapters, units)


def _chapters(blocks: Sequence[Block]) -> Iterator[Chapter]:
    """Yield the text beneath each heading; a title on the line below its number belongs to it."""
    title, texts = "", list[str]()
    for block in [*blocks, Block("", True)]:
        if title and not texts and _is_title(block, title):
            title = f"{title.rstrip('.:')}: {block.text}"
        elif not block.heading:
            texts.append(block.text)
        else:
            text = "\n\n".join(texts)
            enough = count_words(text) >= CHAPTER_WORDS
            if title and enough and not FRONT_MATTER.fullmatch(title):
                yield Chapter(title.rstrip(".:"), text)
            title, texts = block.text, []


def _is_title(block: Block, heading: str) -> bool:
    """Tell whether the block below a heading is its title, as below "Chapter 1"."""
    text = block.text
    if block.heading or len(heading.split()) > 2 or count_words(text) > 12 or "\n" in text:
        return False
    begins = text[0].isalpha() and not text[0].islower()  # many scripts have no capitals
    return begins and (text[-1] not in '.,;:!?…’”"。，！？」』' or text.isupper())


def _parts(blocks: Sequence[Block]) -> Iterator[Chapter]:
    """Yield equal parts of a book without chapters."""
    words = np.array([count_words(block.text) for block in blocks])
    count = max(LEAST_CHAPTERS, round(words.sum() / PART_WORDS))
    numbers = (words.cumsum() - words / 2) * count // max(words.sum(), 1)
    parts = groupby(zip(numbers, blocks), key=lambda pair: pair[0])
    for i, (_, pairs) in enumerate(parts, start=1):
        yield Chapter(f"part {i}", "\n\n".join(block.text for _, block in pairs))


def _read_text(data: bytes) -> tuple[str, list[Block]]:
    """Return the first line, where it is a title, and the blocks of a text.

    The text is UTF-8, or else in the encoding in which it reads best.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        matches = from_bytes(data, cp_isolation=ENCODINGS)
        order = sorted(matches, key=lambda m: (-m.coherence, m.chaos, m.encoding != "cp1252"))
        text = str(order[0]) if order else "\0"
    blocks = _blocks_of(text)
    if not blocks or len(CONTROLS.findall(text)) > CONTROL_SHARE * len(text):
        raise ValueError("it holds no text in a known encoding: save it as UTF-8")
    first = blocks[0].text
    return first if count_words(first) <= 12 and not blocks[0].heading else "", blocks


def _blocks_of(text: str, wrapped: bool = True) -> list[Block]:
    """Join the lines of a text to paragraphs, and mark its headings.

    Most texts have empty lines between paragraphs. In one that has not, as a PDF's, a paragraph
    ends with a line that is not full, and a heading may stand on any line.
    """
    lines = [line.rstrip() for line in _clean(text).strip("\n").split("\n")]
    lengths = sorted(map(len, filter(None, lines))) or [0]
    width = lengths[int(0.95 * (len(lengths) - 1))]
    full = FULL * width if wrapped and width <= LONG_LINE else math.inf
    spaced = lines.count("") > 0.1 * len(lines)
    blocks: list[Block] = []
    paragraph: list[str] = []
    for line in [*lines, ""]:
        heading = _tidy(line.strip("#*_= " + MARK))
        marked = MARK in line or (HEADING.fullmatch(heading) and not (spaced and paragraph))
        if paragraph and (marked or not line):
            verse = spaced and max(map(len, paragraph)) < LONG_LINE
            joined = _joined(paragraph, full, "\n" if verse else BORDER)
            blocks += [Block(text, False) for text in joined.split(BORDER)]
            paragraph = []
        if marked:
            blocks.append(Block(heading, True))
        elif line:
            paragraph.append(line)
    return blocks


def _clean(text: str) -> str:
    """Make characters plain, and words whole that are broken between two small letters."""
    text = unicodedata.normalize("NFC", re.sub(r"\r\n?|[\f\v\x85\u2028]", "\n", text))
    text = re.sub("[\ufb00-\ufb06]", lambda sign: unicodedata.normalize("NFKC", sign[0]), text)
    text = re.sub("\u00ad\n?|[\u200b\ufeff]", "", CONTROLS.sub("", text))
    return re.sub(r"(?<=[a-zß-ÿ])-\n *([a-zß-ÿ]\S*)[ \n]?", r"\1\n", text)


def _joined(lines: Sequence[str], full: float, between: str) -> str:
    """Join wrapped lines by spaces, and verse, titles or paragraphs by `between`.

    A line is wrapped if with the next one's first word it had more than `full` characters, and
    the next one is not indented. Lines of Chinese or Japanese are joined without a space.
    """
    text = _tidy(lines[0])
    for line, after in pairwise(lines):
        first = "".join(WORD.findall(after)[:1])
        wrapped = line.endswith("-") or len(line) + 1 + len(first) > full
        indented = after.startswith(" ") and not line.startswith(" ") or after.startswith("\u3000")
        space = (
            "" if text.endswith(("-", "—")) or WIDE.search(text[-1] + after.lstrip()[0]) else " "
        )
        text += (space if wrapped and not indented else between) + _tidy(after)
    return text


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _read_pdf(data: bytes) -> tuple[str, list[Block]]:
    """Return the title and the blocks of a PDF's text layer."""
    with pypdfium2.PdfDocument(data) as document:
        title = document.get_metadata_value("Title").strip()
        layers = [page.get_textpage() for page in document]
        texts = [layer.get_text_range() for layer in layers]
        in_columns = sum(map(_in_columns, layers))
    broken = (text.replace("\ufffe", "-\n") for text in texts)  # pdfium's sign at a line's end
    pages = [[line for line in text.splitlines() if line.strip()] for text in broken]
    if sum(map(bool, pages)) <= len(pages) / 2:
        raise ValueError("its pages are pictures without text: run OCR first")
    if in_columns > COLUMN_SHARE * sum(map(bool, pages)):
        raise ValueError("its pages are set in two columns: bring it as EPUB or text")
    return title, _blocks_of("\n".join(_body_lines(pages)))


def _in_columns(layer: pypdfium2.PdfTextPage) -> bool:
    """Tell whether half of a page's text stands left and right of a gap of 4 points in its middle.

    Text counts as 10 points higher and deeper than it is, so that lines need not stand level.
    """
    boxes = np.array([layer.get_rect(i) for i in range(layer.count_rects())]).reshape(-1, 4)
    left, bottom, right, top = boxes.T
    rows = np.arange(bottom.min(initial=0), top.max(initial=0))[:, None]
    covers = ((rows > bottom - 10) & (rows < top + 10)).astype(np.float32)
    for middle in np.linspace(0.4, 0.6, 50) * (left.min(initial=0) + right.max(initial=0)):
        before, after = covers @ (right < middle - 2), covers @ (left > middle + 2)
        parted = (before > 0) & (after > 0) & (before + after == covers.sum(axis=1))
        if parted.sum() > covers.any(axis=1).sum() / 2:
            return True
    return False


def _body_lines(pages: Sequence[list[str]]) -> Iterator[str]:
    """Yield the lines of all pages without page numbers, running headers and footers.

    Of a running header that reads as a heading the first is kept.
    """

    def key(line: str) -> str:
        return re.sub(r"\d+", "0", _tidy(line).lower())

    often = Counter(end for page in pages for end in {key(line) for line in page[:2] + page[-2:]})
    headings: set[str] = set()
    for page in pages:
        for end in (0, -1):
            while page and (PAGE_NUMBER.fullmatch(page[end]) or often[key(page[end])] > 1):
                if HEADING.fullmatch(page[end]) and page[end] not in headings:
                    break
                page.pop(end)
        headings.update(filter(HEADING.fullmatch, page))
        yield from page


def _read_epub(data: bytes) -> tuple[str, list[Block]]:
    """Return the title of an EPUB, and the blocks of its documents in the order of the spine.

    A document without a heading (h1, h2) is headed by its entry in the table of contents.
    """
    archive, left = ZipFile(BytesIO(data)), LARGEST

    def read(place: str) -> bytes:
        nonlocal left
        with archive.open(place) as stream:  # it never unpacks more than it is asked for
            content = stream.read(left + 1)
        left -= len(content)
        if left < 0:
            raise ValueError(f"its documents are larger than {LARGEST // 10**6} MB")
        return content

    def parsed(place: str) -> BeautifulSoup:
        return parsed_document(read(place), "xml")

    def resolved(base: str, reference: str) -> str:
        place = unquote(reference.split("#")[0])
        return posixpath.normpath(posixpath.join(posixpath.dirname(base), place))

    base = str(parsed("META-INF/container.xml").select("rootfile")[0]["full-path"])
    package = parsed(base)
    places = {item["id"]: resolved(base, str(item["href"])) for item in package.select("item")}
    titles: dict[str, str] = {}
    contents = package.select('[properties~="nav"], [media-type="application/x-dtbncx+xml"]')
    for place in dict.fromkeys([places.pop(item["id"]) for item in contents]):
        label = ""
        for tag in parsed(place).select(f"{LINKS}, text"):
            label = label if tag.name == "content" else _tidy(tag.get_text())
            if "href" in tag.attrs or "src" in tag.attrs:
                target = resolved(place, str(tag.get("href") or tag["src"]))
                titles.setdefault(target, label)
    blocks: list[Block] = []
    spine = package.select('itemref:not([linear="no"])')
    for place in dict.fromkeys(places.get(reference["idref"], "") for reference in spine):
        if place:
            blocks += _blocks_of_document(read(place), titles.get(place, ""))
    title = package.select_one("title")
    return _tidy(title.get_text()) if title else "", blocks


def _blocks_of_document(data: bytes, title: str) -> list[Block]:
    """Return the blocks of an XHTML document; `title` heads it where it has no heading."""
    if b"\0" in data:
        raise ValueError("its text is encrypted")
    whole, end, rest = data.rpartition(b">")
    rest = rest.split(b"<")[0]  # a tag without an end is none
    soup = parsed_document(whole + end + rest, "html.parser")
    for tag in soup("head script style nav rt".split()):
        tag.decompose()
    for tag in soup(_is_note):
        if not tag.decomposed:
            (tag.parent if tag.parent and tag.parent.name == "sup" else tag).decompose()
    for tag in soup("br"):
        tag.replace_with(LINE_BREAK)
    text = _tidy(text_of(soup)).replace(BORDER, "\n\n").replace(LINE_BREAK, "\n")
    blocks = _blocks_of(text, wrapped=False)
    has_heading = any(block.heading for block in blocks)
    return blocks if has_heading or not title else [Block(title, True), *blocks]


def _is_note(tag: Tag) -> bool:
    """Tell whether an element of an EPUB is a note, a note's mark or the number of a page."""
    kinds = f"{tag.get('epub:type', '')} {tag.get('role', '')}".replace("doc-", "").split()
    text = _tidy(tag.get_text()) if "pagebreak" in kinds or tag.name == "a" else "-"
    is_page = "pagebreak" in kinds and PAGE_NUMBER.fullmatch(text or "0")
    is_mark = "#" in str(tag.get("href")) and NOTE_MARK.fullmatch(text)
    return bool(is_page or is_mark or NOTES & {*kinds, *(tag.get("class") or ())})
