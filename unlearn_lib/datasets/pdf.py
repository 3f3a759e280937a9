"""PDF: the lines of its pages without running headers, footers and page numbers."""

import ctypes
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import pypdfium2
import pypdfium2.raw as pdfium

from unlearn_lib.datasets.chapters import (
    Chapter,
    Draft,
    chapter_of,
    is_heading,
    split_at_headings,
)
from unlearn_lib.datasets.paragraphs import clean, layout_of, paragraphs_of
from unlearn_lib.errors import CompanionError

BAND = 0.08  # of the page's height, at its top and bottom: where headers and footers stand
EDGE_BAND = 0.15  # the same for a page's first and last line
PARAGRAPH_GAP = 1.35  # of the usual distance of lines
SLACK = 0.15  # letters are of several widths, so full lines differ in length

_PAGE_NUMBER = re.compile(r"\W*(page )?(\d{1,4}|[ivxlc]{1,7})( ?(of|/) ?\d{1,4})?\W*", re.I)
_EDGE_NUMBER = re.compile(r"^\d{1,4}\s+(?=\D)|(?<=\w\s)\s*\d{1,4}$")
_HYPHENS = "\x02\ufffe"  # what pdfium puts for a hyphen and the line's end after it


@dataclass(frozen=True)
class _Line:
    """A line of a page: its text, left end and baseline in points, and distance from the edge."""

    text: str
    left: float
    baseline: float
    margin: float  # share of the page's height to its nearer end


def read_pdf(path: Path, data: bytes) -> Draft:
    """Read the text layer of a PDF.

    Raises:
        CompanionError: damaged, encrypted, or without a text layer.
    """
    if b"%%EOF" not in data[-2048:]:
        raise CompanionError(f"{path} is no whole PDF, its end is missing; fetch it again.")
    try:
        with pypdfium2.PdfDocument(data) as document:
            title = clean(document.get_metadata_value("Title")).strip()
            pages = [_lines_of(page) for page in document]
    except pypdfium2.PdfiumError as error:
        if error.err_code == pdfium.FPDF_ERR_PASSWORD:
            raise CompanionError(
                f"{path} is encrypted and needs a password; bring an unprotected copy."
            ) from error
        reason = str(error).rstrip(".")
        raise CompanionError(
            f"{path} cannot be read as a PDF, it may be damaged ({reason}); fetch it again."
        ) from error
    dropped: Counter[str] = Counter()
    texts = _set_out(_without_furniture(pages, dropped))
    filled = sum(map(bool, texts))
    if filled <= len(texts) / 2:
        raise CompanionError(
            f"{path} holds pictures of pages without text ({filled} of {len(texts)} pages have "
            "any); run OCR first."
        )
    dropped["empty pages"] = len(texts) - filled
    text = "\f".join(filter(None, texts))
    chapters = split_at_headings(text, dropped, SLACK)
    return Draft(
        title, chapters or _pages(texts, dropped), "chapters" if chapters else "pages", dropped
    )


def _pages(texts: Sequence[str], dropped: Counter[str]) -> list[Chapter]:
    """Each page as a unit, numbered from 1 as viewers count."""
    layout = layout_of("\f".join(texts), SLACK)
    return [
        chapter_of(f"page {i}", paragraphs_of(text.split("\n"), layout, dropped))
        for i, text in enumerate(texts, start=1)
        if text
    ]


def _lines_of(page: pypdfium2.PdfPage) -> list[_Line]:
    """The lines of a page, with their places."""
    _, bottom, _, top = page.get_bbox()
    height = max(top - bottom, 1.0)
    upright = page.get_rotation() == 0
    textpage = page.get_textpage()
    found = []
    for text, first in _runs(textpage):
        x, y = ctypes.c_double(), ctypes.c_double()
        pdfium.FPDFText_GetCharOrigin(textpage, first, x, y)
        share = (y.value - bottom) / height if upright else 0.5
        found.append(_Line(text, x.value, y.value, min(share, 1 - share)))
    return found


def _runs(textpage: pypdfium2.PdfTextPage) -> Iterator[tuple[str, int]]:
    """Each line that is not empty, and the index of its first character that shows."""
    line, first = "", -1
    for i in range(textpage.count_chars()):
        code = pdfium.FPDFText_GetUnicode(textpage, i)
        sign = chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else "\ufffd"
        if sign in _HYPHENS:
            sign = "-\n"
        if first < 0 and not sign.isspace():
            first = i
        if sign[-1] not in "\r\n":
            line += sign
            continue
        if (line + sign).strip():
            yield clean(line + sign).strip(), first
        line, first = "", -1
    if line.strip():
        yield clean(line).strip(), first


def _without_furniture(
    pages: Sequence[Sequence[_Line]], dropped: Counter[str]
) -> list[list[_Line]]:
    """Leave out page numbers, and lines at a page's ends that come again save their digits.

    Of a running header that reads as a heading the first is kept, without its page number.
    """
    often = Counter(key for page in pages for key in {_key(line) for line in _at_ends(page)})
    seen: set[str] = set()
    kept = []
    for page in pages:
        ends = _at_ends(page)
        rest = []
        for line in page:
            shorter = _EDGE_NUMBER.sub("", line.text)
            text = shorter if line in ends and is_heading(shorter) else line.text
            heading = is_heading(text)
            if line not in ends:
                rest.append(line)
            elif heading and text not in seen:
                rest.append(replace(line, text=text))
            elif _PAGE_NUMBER.fullmatch(line.text):
                dropped["page numbers"] += 1
            elif often[_key(line)] > 1:
                dropped["page header or footer lines"] += 1
            else:
                rest.append(line)
            if heading:
                seen.add(text)
        kept.append(rest)
    return kept


def _at_ends(page: Sequence[_Line]) -> list[_Line]:
    """The lines in the header's and the footer's band."""
    outer = [f(page, key=lambda line: line.baseline) for f in (min, max)] if page else []
    return [line for line in page if line.margin < (EDGE_BAND if line in outer else BAND)]


def _key(line: _Line) -> str:
    return " ".join(re.sub(r"\d+", "0", line.text).lower().split())


def _set_out(pages: Sequence[Sequence[_Line]]) -> list[str]:
    """Pages as plain text: gaps become empty lines, indented lines begin with spaces."""
    steps = [a.baseline - b.baseline for page in pages for a, b in zip(page, page[1:])]
    steps = [step for step in steps if step > 1] or [12.0]
    usual = median(steps)
    return [_page_text(page, usual) for page in pages]


def _page_text(page: Sequence[_Line], usual: float) -> str:
    places = [round(line.left) for line in page]
    often = [place for place in places if places.count(place) > 2]
    margin = min(often or places, default=0)
    written: list[str] = []
    last: _Line | None = None
    for line in page:
        if last and last.baseline - line.baseline > PARAGRAPH_GAP * usual:
            written.append("")
        spaces = max(0, round(4 * (line.left - margin) / usual)) if line.left - margin > 4 else 0
        written.append(" " * min(spaces, 40) + line.text)
        last = line
    return "\n".join(written)
