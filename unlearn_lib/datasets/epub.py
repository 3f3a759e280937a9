"""EPUB: the documents of the spine in reading order, split at their headings."""

import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from lzma import LZMAError
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, ParseError
from zipfile import BadZipFile, ZipFile

from bs4 import BeautifulSoup
from bs4.dammit import UnicodeDammit
from bs4.element import NavigableString, Tag
from defusedxml.ElementTree import fromstring

from unlearn_lib.datasets.chapters import (
    MINIMUM_UNITS,
    Chapter,
    Draft,
    chapter_of,
    chapters_or_parts,
    is_heading,
    opening_of,
)
from unlearn_lib.datasets.paragraphs import clean, is_licence_mark, words_in
from unlearn_lib.errors import CompanionError

MAXIMUM_DOCUMENT = 50 * 2**20  # bytes, uncompressed
MAXIMUM_TOTAL = 300 * 2**20
SHORT_DOCUMENT_WORDS = 50

_FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_XHTML = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_MATTER = "cover|title-?page|half-?title-?page|copyright(-?page)?|toc|imprint|colophon"
_MATTER_NAME = re.compile(rf"(\d*[-_.])?({_MATTER}|nav|contents|wrap0*)\d*", re.I)
_MATTER_TITLE = re.compile(r"(table of )?contents|copyright.*|also by .*|imprint|colophon", re.I)
_BLOCKS = frozenset(
    "address article aside blockquote body dd div dl dt fieldset figcaption figure footer form "
    "header hr li main nav ol p pre section table td th tr ul".split()
)
_SKIPPED = frozenset("head nav rp rt script style template".split())
_IMAGES = frozenset("image img svg".split())
# An HTML parser may take <title/> or <a id="x"/> for an opening tag.
_SELF_CLOSED = re.compile(r"<(?!(?:br|hr|img|image|meta|link|col)\b)([A-Za-z][\w:-]*)([^<>]*)/>")


@dataclass
class _Package:
    """What the book's package file says: its title, and paths and navigation titles."""

    title: str
    spine: list[str]
    titles: dict[str, str]
    skipped: int


@dataclass
class _Section:
    """A heading ("" for none yet) and the paragraphs beneath it."""

    title: str
    paragraphs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Block:
    """A paragraph, or a heading of level 1 to 6."""

    text: str
    level: int


def read_epub(path: Path, data: bytes) -> Draft:
    """Read an EPUB of version 2 or 3.

    Raises:
        CompanionError: damaged, protected, too large when unpacked, or without text.
    """
    dropped: Counter[str] = Counter()
    try:
        with ZipFile(BytesIO(data)) as archive:
            _check_size(path, archive)
            package = _package(path, archive)
            _check_protection(path, archive, package)
            dropped["skipped documents"] = package.skipped
            sections = _sections(archive, package, dropped)
    except (
        BadZipFile,
        EOFError,
        KeyError,
        LZMAError,
        NotImplementedError,
        OSError,
        ParseError,
        RuntimeError,
        ValueError,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise CompanionError(
            f"{path} cannot be read as an EPUB, it may be damaged ({reason}); fetch it again."
        ) from error
    chapters, units = _chapters(sections, dropped)
    if not chapters:
        raise CompanionError(f"{path} holds no chapter of text; bring an EPUB with text in it.")
    return Draft(package.title, chapters, units, dropped)


def _check_size(path: Path, archive: ZipFile) -> None:
    sizes = [entry.file_size for entry in archive.infolist()] or [0]
    if max(sizes) > MAXIMUM_DOCUMENT or sum(sizes) > MAXIMUM_TOTAL:
        raise CompanionError(
            f"{path} unpacks to {sum(sizes) >> 20} MiB, its largest file to "
            f"{max(sizes) >> 20} MiB: more than a book has ({MAXIMUM_TOTAL >> 20} and "
            f"{MAXIMUM_DOCUMENT >> 20}); bring another file."
        )


def _check_protection(path: Path, archive: ZipFile, package: _Package) -> None:
    """Refuse encrypted documents; obfuscated fonts do no harm."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    for entry in _all(fromstring(archive.read("META-INF/encryption.xml")), "EncryptedData"):
        method = next((m.get("Algorithm") for m in _all(entry, "EncryptionMethod")), None)
        places = [unquote(c.get("URI") or "") for c in _all(entry, "CipherReference")]
        if method not in _FONT_OBFUSCATION and any(place in package.spine for place in places):
            raise CompanionError(
                f"{path} is protected (DRM): its chapters are encrypted; bring an unprotected copy."
            )


def _all(element: Element, name: str) -> Iterator[Element]:
    """Elements of a local name, whatever their namespace."""
    return (e for e in element.iter() if isinstance(e.tag, str) and e.tag.split("}")[-1] == name)


def _package(path: Path, archive: ZipFile) -> _Package:
    container = fromstring(archive.read("META-INF/container.xml"))
    place = next((e.get("full-path") for e in _all(container, "rootfile")), None)
    if not place:
        raise KeyError("META-INF/container.xml names no package file")
    package = fromstring(archive.read(place))
    items = {e.get("id"): e for e in _all(package, "item")}
    paths = {key: _resolved(place, item.get("href") or "") for key, item in items.items()}
    guide = {
        _resolved(place, e.get("href") or "")
        for e in _all(package, "reference")
        if re.fullmatch(_MATTER, e.get("type") or "", re.I)
    }
    spine, skipped = [], 0
    for reference in _all(package, "itemref"):
        key = reference.get("idref")
        if key not in items or items[key].get("media-type") not in _XHTML:
            continue
        name = posixpath.splitext(posixpath.basename(paths[key]))[0]
        matter = paths[key] in guide or _MATTER_NAME.fullmatch(name)
        nav = "nav" in (items[key].get("properties") or "").split()
        if matter or nav or reference.get("linear") == "no":
            skipped += 1
        else:
            spine.append(paths[key])
    title = next((" ".join((e.text or "").split()) for e in _all(package, "title")), "")
    return _Package(title, spine, _navigation(archive, items, paths), skipped)


def _resolved(base: str, reference: str) -> str:
    """A path in the archive, from a reference in one of its files."""
    place = unquote(reference.split("#")[0])
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), place)).lstrip("/")


def _navigation(
    archive: ZipFile, items: dict[Any, Element], paths: dict[Any, str]
) -> dict[str, str]:
    """The title that the navigation (EPUB 3, or the older NCX) gives to each document first."""
    titles: dict[str, str] = {}
    for key, item in items.items():
        if paths[key] not in archive.namelist():
            continue
        if "nav" in (item.get("properties") or "").split():
            links = [
                (str(a["href"]), a.get_text(" "))
                for a in _soup(archive.read(paths[key])).select("nav a[href]")
            ]
        elif item.get("media-type") == "application/x-dtbncx+xml":
            links = [
                (target.get("src") or "", label.text or "")
                for point in _all(fromstring(archive.read(paths[key])), "navPoint")
                for target, label in [*zip(_all(point, "content"), _all(point, "text"))][:1]
            ]
        else:
            continue
        for reference, text in links:
            titles.setdefault(_resolved(paths[key], reference), " ".join(clean(text).split()))
    return titles


def _soup(data: bytes) -> BeautifulSoup:
    text = UnicodeDammit(data).unicode_markup or ""
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)
    return BeautifulSoup(_SELF_CLOSED.sub(r"<\1\2></\1>", text), "lxml")


def _sections(archive: ZipFile, package: _Package, dropped: Counter[str]) -> list[_Section]:
    """Headings and paragraphs of all documents, in their order, between the licence's markers."""
    sections: list[_Section] = []
    for place in package.spine:
        body = _soup(archive.read(place)).body
        kind = "" if body is None else str(body.get("epub:type") or "")
        blocks = [] if body is None else list(_blocks(body, dropped))
        if re.search(rf"\b({_MATTER})\b", kind):
            dropped["skipped documents"] += 1
        elif sum(words_in(block.text) for block in blocks) < SHORT_DOCUMENT_WORDS:
            dropped["short documents"] += 1
        elif _add(sections, blocks, package.titles.get(place, ""), dropped):
            break
    return sections


def _add(sections: list[_Section], blocks: list[_Block], title: str, dropped: Counter[str]) -> bool:
    """Add a document's blocks to the sections; True after the mark that ends the book."""
    top = [block for block in blocks if 0 < block.level <= 2]
    lower = next((block.text for block in blocks if block.level == 3), "")
    if not top:
        sections.append(_Section(title or lower))
    elif not sections or top[0] is blocks[0]:
        sections.append(_Section(""))
    for block in blocks:
        mark = is_licence_mark(block.text)
        if mark == "end":
            return True
        if mark == "start":
            size = sum(len(p) for section in sections for p in section.paragraphs)
            dropped["header and licence characters"] += size
            sections[:] = [_Section("")]
        elif 0 < block.level <= 2:
            whole = len(top) == 1 and title.lower().startswith(block.text.lower())
            name = title if whole else block.text
            if sections[-1].paragraphs:
                sections.append(_Section(name))
            else:
                sections[-1].title = ": ".join(filter(None, (sections[-1].title, name)))
        elif block.level == 0 or block.text not in sections[-1].title:
            sections[-1].paragraphs.append(block.text)
    return False


def _chapters(sections: list[_Section], dropped: Counter[str]) -> tuple[list[Chapter], str]:
    """Sections with a title, each with the untitled ones that follow; else headings in the text."""
    counts: Counter[str] = Counter()
    front: list[str] = []
    found: list[_Section] = []
    for section in sections:
        if _MATTER_TITLE.fullmatch(section.title):
            counts["front matter characters"] += sum(map(len, section.paragraphs))
        elif section.title and section.paragraphs and (found or _is_long(section)):
            found.append(_Section(section.title, list(section.paragraphs)))
        else:
            (found[-1].paragraphs if found else front).extend(section.paragraphs)
    chapters = opening_of(front, counts)
    chapters += [chapter_of(section.title, section.paragraphs) for section in found]
    if len(chapters) >= MINIMUM_UNITS:
        dropped.update(counts)
        return chapters, "chapters"
    everything = [text for s in sections for text in (s.title, *s.paragraphs) if text]
    if not any(section.paragraphs for section in sections):
        return [], "chapters"
    return chapters_or_parts("\n\n".join(everything), dropped)


def _is_long(section: _Section) -> bool:
    return sum(map(words_in, section.paragraphs)) >= SHORT_DOCUMENT_WORDS


def _blocks(body: Tag, dropped: Counter[str]) -> Iterator[_Block]:
    """Paragraphs and headings of a document; line breaks stay, two in a row end a paragraph."""
    level, pieces = 0, list[str]()
    for kind, text in [*_pieces(body, dropped), ("end", "")]:
        if kind == "text":
            pieces.append(text)
            continue
        lines = [" ".join(line.split()) for line in clean("".join(pieces)).split("\n")]
        for part in re.split("\n{2,}", "\n".join(lines).strip()):
            if part:
                yield _Block(_in_one_line(part) if level else part, level)
        level, pieces = int(kind[1]) if re.fullmatch("h[1-6]", kind) else 0, []


def _in_one_line(heading: str) -> str:
    first, *rest = heading.split("\n")
    return (
        ": ".join(filter(None, (first, " ".join(rest))))
        if is_heading(first)
        else " ".join([first, *rest])
    )


def _pieces(element: Tag, dropped: Counter[str]) -> Iterator[tuple[str, str]]:
    """Runs of text ("text", ...), and where blocks begin and end: ("h2", ""), ("p", "")."""
    for child in element.children:
        if type(child) is NavigableString:
            keep = element.name == "pre"
            yield "text", str(child) if keep else re.sub(r"[ \t\r\n\f]+", " ", child)
        elif not isinstance(child, Tag) or child.name in _SKIPPED:
            continue
        elif child.name in _IMAGES:
            dropped["images"] += 1
        elif child.name == "br":
            yield "text", "\n"
        elif child.name in _BLOCKS or re.fullmatch("h[1-6]", child.name):
            yield child.name, ""
            yield from _pieces(child, dropped)
            yield "p", ""
        else:
            yield from _pieces(child, dropped)
