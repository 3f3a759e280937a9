"""A book that a user brings: clean text from every format, and one clear sentence when it fails."""

import io
import json
import random
import re
import textwrap
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from unlearn_lib.datasets import chapters, epub, paragraphs, readers
from unlearn_lib.datasets.readers import BookText, read_book
from unlearn_lib.errors import CompanionError

WORDS = (
    "the river ran past mill and meadow while old keepers counted every sluice gate under rain "
    "because nobody else remembered how water climbs when wind turns and tide comes back again"
).split()
NUMBERS = ("One", "Two", "Three", "Four")
NAMES = ("The Sluice", "A Long Night", "What the Keeper Saw", "High Water")


def prose(words: int = 420, seed: int = 0) -> list[str]:
    """Paragraphs of sentences, together at least so many words."""
    choose = random.Random(seed)
    found: list[str] = []
    while sum(len(p.split()) for p in found) < words:
        sentences = [
            " ".join(choose.choices(WORDS, k=choose.randint(6, 14))).capitalize() + "."
            for _ in range(choose.randint(2, 6))
        ]
        found.append(" ".join(sentences))
    return found


BODIES = [prose(seed=i) for i in range(4)]
TEXTS = ["\n\n".join(body) for body in BODIES]
TITLES = [f"Chapter {n}: {name}" for n, name in zip(NUMBERS, NAMES)]


def novel(wrap: int = 0, indent: str = "", gap: str = "\n\n", head: str = "The Keeper\n\n") -> str:
    """Four chapters as plain text, set as asked."""
    parts = []
    for number, name, body in zip(NUMBERS, NAMES, BODIES):
        shown = [textwrap.fill(p, wrap, initial_indent=indent) if wrap else p for p in body]
        parts.append(f"Chapter {number}\n{name}\n\n" + gap.join(shown))
    return head + "\n\n\n".join(parts) + "\n"


Put = Callable[[str, str | bytes], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file of the user's."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def check_novel(book: BookText, format: str, encoding: str = "") -> None:
    assert [chapter.title for chapter in book.chapters] == TITLES
    assert [chapter.text for chapter in book.chapters] == TEXTS
    assert (book.format, book.encoding, book.units) == (format, encoding, "chapters")


def refusal(path: Path) -> str:
    """The sentence with which a file is refused; it names the file, and nothing is written."""
    folder = path.parent
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")} if folder.exists() else {}
    with pytest.raises(CompanionError) as caught:
        read_book(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and message.endswith(".")
    after = {p: p.stat().st_mtime_ns for p in folder.rglob("*")} if folder.exists() else {}
    assert before == after
    return message


# Text: encodings


@pytest.mark.parametrize(
    "codec, mark, name",
    [
        ("utf-8", b"", "utf-8"),
        ("utf-8-sig", b"", "utf-8"),
        ("utf-16-le", b"\xff\xfe", "utf-16-le"),
        ("utf-16-be", b"\xfe\xff", "utf-16-be"),
        ("utf-16-le", b"", "utf-16-le"),
        ("utf-16-be", b"", "utf-16-be"),
        ("utf-32", b"", "utf-32-le"),
        ("utf-32-be", b"", "utf-32-be"),
    ],
)
def test_unicode_text_is_read_with_and_without_mark(
    codec: str, mark: bytes, name: str, put: Put
) -> None:
    text = novel(head="Der Wächter — „Übung“\n\n")
    book = read_book(put("novel.txt", mark + text.encode(codec)))
    check_novel(book, "txt", name)
    assert book.title == "Der Wächter — „Übung“"


@pytest.mark.parametrize(
    "codec, line",
    [
        ("cp1252", "“It’s a café,” she said — naïve as ever. Là où l’été s’achève."),
        ("cp1250", "Zażółć gęślą jaźń, powiedział młynarz i poszedł łąką do rzeki."),
        ("koi8-r", "Он сказал, что ворота закрыты, и ушёл к реке. Старик молча смотрел вслед."),
        ("cp1251", "Он сказал, что ворота закрыты, и ушёл к реке. Старик молча смотрел вслед."),
        ("mac-roman", "“It’s a café,” she said — naïve as ever. Là où l’été s’achève…"),
    ],
)
def test_older_encodings_are_guessed(codec: str, line: str, put: Put) -> None:
    text = novel() + "\n\n" + "\n\n".join([line] * 40)
    book = read_book(put("novel.txt", text.encode(codec)))
    assert book.encoding == codec
    assert book.chapters[-1].text.endswith(line)


def test_characters_are_made_plain(put: Put) -> None:
    odd = "\ufeffCafe\u0301\u00a0au\u2009lait, o\ufb03ce, sep\u00adarate, ze\u200bro."
    book = read_book(put("novel.txt", novel().replace("\n", "\r\n") + "\r\n\r\n" + odd))
    assert book.chapters[-1].text == TEXTS[-1] + "\n\nCafé au lait, office, separate, zero."
    assert not any("\r" in chapter.text for chapter in book.chapters)


# Text: paragraphs


@pytest.mark.parametrize(
    "setting",
    [
        {},
        {"gap": "\n"},
        {"wrap": 72},
        {"wrap": 45},
        {"wrap": 66, "indent": "   ", "gap": "\n"},
    ],
)
def test_paragraphs_are_found_however_the_text_is_set(setting: dict, put: Put) -> None:
    check_novel(read_book(put("novel.txt", novel(**setting))), "txt", "utf-8")


def test_words_broken_at_line_ends_are_joined_and_counted(put: Put) -> None:
    broken = (
        "The keeper walked along the bank and there he found some-\n"
        "thing that he had not looked for, a well-known long-\n"
        "legged bird, such as the Anglo-\n"
        "Saxon poets knew, in pre-\n"
        "and post-war times alike. Soft hyphens went sepa\u00ad\n"
        "rately, as the long-legged do."
    )
    book = read_book(put("novel.txt", novel(wrap=60) + "\n\n" + broken))
    assert book.chapters[-1].text.split("\n\n")[-1] == (
        "The keeper walked along the bank and there he found something that he had not looked for, "
        "a well-known long-legged bird, such as the Anglo-Saxon poets knew, in pre- and post-war "
        "times alike. Soft hyphens went separately, as the long-legged do."
    )
    assert book.dropped["hyphenations joined"] == 2


def test_verse_keeps_its_line_breaks(put: Put) -> None:
    flush = "Salt in the pantry,\nsalt in the bed,\nhow many candles\nstand over your head?"
    stepped = "The moon was high\n    above the lake,\nAnd all was still\n    for pity’s sake."
    book = read_book(put("novel.txt", novel(wrap=72) + f"\n\n{flush}\n\n{stepped}\n"))
    *_, first, second = book.chapters[-1].text.split("\n\n")
    assert first == flush
    assert second == stepped.replace("    ", "")


def test_a_paragraph_goes_on_over_a_page_break(put: Put) -> None:
    pages = novel(wrap=60).replace("\n", "\f", 30).replace("\f", "\n", 28)
    check_novel(read_book(put("novel.txt", pages)), "txt", "utf-8")


paragraph = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzäß", min_size=1, max_size=12), min_size=1, max_size=90
).map(lambda words: " ".join(words).capitalize() + ".")


@hypothesis_settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(paragraph, min_size=1, max_size=8),
    wrap=st.sampled_from([0, 40, 72]),
    indent=st.sampled_from(["", "  "]),
)
def test_cleaning_loses_no_word(texts: list[str], wrap: int, indent: str) -> None:
    shown = [
        textwrap.fill(p, wrap, initial_indent=indent, break_long_words=False) if wrap else p
        for p in texts
    ]
    text = paragraphs.clean("\n\n".join(shown))
    counts: Counter[str] = Counter()
    found, _ = chapters.chapters_or_parts(paragraphs.cut_licence(text, counts), counts)
    assert " ".join(c.text for c in found).split() == " ".join(texts).split()
    assert not counts.total()


# Text: chapters


@pytest.mark.parametrize(
    "headings, titles",
    [
        (["CHAPTER I.", "CHAPTER II.", "CHAPTER III."], ["CHAPTER I", "CHAPTER II", "CHAPTER III"]),
        (["I", "II", "III"], ["I", "II", "III"]),
        (["1.", "2.", "3."], ["1", "2", "3"]),
        (["I. THE MILL", "II. RAIN", "III. TIDE"], ["I: THE MILL", "II: RAIN", "III: TIDE"]),
        (["BOOK I", "BOOK II", "Epilogue"], ["BOOK I", "BOOK II", "Epilogue"]),
        (["Prologue", "Part Two", "Part the Third"], ["Prologue", "Part Two", "Part the Third"]),
        (
            ["Chapter 20: Rain", "Chapter Twenty-One — Tide", "Chapter XXII\n\nTHE LAST GATE"],
            ["Chapter 20: Rain", "Chapter Twenty-One: Tide", "Chapter XXII: THE LAST GATE"],
        ),
        (["## Chapter 1", "## Chapter 2", "## Chapter 3"], ["Chapter 1", "Chapter 2", "Chapter 3"]),
        (["Глава 1", "Глава 2", "Kapitel 3"], ["Глава 1", "Глава 2", "Kapitel 3"]),
    ],
)
def test_headings_are_known(headings: list[str], titles: list[str], put: Put) -> None:
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in zip(headings, TEXTS))
    book = read_book(put("novel.txt", text))
    assert [chapter.title for chapter in book.chapters] == titles
    assert [chapter.text for chapter in book.chapters] == TEXTS[:3]


@pytest.mark.parametrize(
    "line",
    [
        "Chapter one of the story was long.",
        "Part two of the plan failed again",
        "Book in hand, he went.",
        "I",
        "Part mix",
    ],
)
def test_a_sentence_is_no_heading(line: str, put: Put) -> None:
    text = novel().replace("Chapter Two", f"{line}\n\nChapter Two")
    book = read_book(put("novel.txt", text))
    assert [chapter.title for chapter in book.chapters] == TITLES
    assert line in book.chapters[0].text


def test_a_table_of_contents_makes_no_chapters(put: Put) -> None:
    listed = "".join(
        f"Chapter {n}: {name} ..... {i}\n" for i, (n, name) in enumerate(zip(NUMBERS, NAMES))
    )
    spread = listed.replace("\n", "\n\n")
    for contents in (listed, spread, "\n".join(f"Chapter {n}" for n in NUMBERS)):
        head = f"The Keeper\n\nContents\n\n{contents}\n\nFor my mother, with thanks.\n\n"
        book = read_book(put("novel.txt", novel(head=head)))
        check_novel(book, "txt", "utf-8")
        assert book.dropped["front matter characters"] > 40
        assert book.title == "The Keeper"


def test_long_prose_before_the_first_heading_is_kept(put: Put) -> None:
    preface = "\n\n".join(prose(320, seed=9))
    book = read_book(put("novel.txt", novel(head=f"The Keeper\n\n{preface}\n\n")))
    assert [chapter.title for chapter in book.chapters] == ["opening", *TITLES]
    assert book.chapters[0].text == preface
    assert book.dropped == {"front matter characters": len("The Keeper")}


def test_chapters_numbered_anew_in_each_part_are_told_apart(put: Put) -> None:
    halves = (TEXTS[:1], TEXTS[1:])
    text = "\n\n".join(
        f"PART {part}\n\n" + "\n\n".join(f"Chapter {i}\n\n{t}" for i, t in enumerate(half, 1))
        for part, half in zip(("ONE", "TWO"), halves)
    )
    book = read_book(put("novel.txt", text))
    expected = ["PART ONE, Chapter 1", "PART TWO, Chapter 1", "Chapter 2", "Chapter 3"]
    assert [chapter.title for chapter in book.chapters] == expected
    assert [chapter.text for chapter in book.chapters] == TEXTS


def test_the_licence_of_project_gutenberg_is_cut_off(put: Put) -> None:
    start = "Title: The Keeper\n\n*** START OF THE PROJECT GUTENBERG EBOOK THE KEEPER ***\n\n"
    end = "\n\n*** END OF THE PROJECT GUTENBERG EBOOK THE KEEPER ***\n\nLicence, " + TEXTS[0][:500]
    book = read_book(put("novel.txt", start + novel(wrap=72, head="") + end))
    check_novel(book, "txt", "utf-8")
    assert book.title == "The Keeper"
    assert book.dropped["header and licence characters"] > 550


def test_a_text_without_headings_is_cut_into_equal_parts(put: Put) -> None:
    texts = prose(6100, seed=5)
    book = read_book(put("novel.txt", "\n\n".join(texts)))
    assert [chapter.title for chapter in book.chapters] == [f"part {i}" for i in range(1, 5)]
    assert book.units == "parts" and book.title == "novel"
    assert "\n\n".join(chapter.text for chapter in book.chapters) == "\n\n".join(texts)
    assert all(1400 < len(chapter.text.split()) < 1650 for chapter in book.chapters)


def test_the_project_s_own_saga_has_its_chapters() -> None:
    path = Path(readers.__file__).parent / "embedded" / "saga.txt"
    book = read_book(path)
    assert len(book.chapters) == 24 and book.units == "chapters" and book.title == "Wet Rent"
    assert all(chapter.title.startswith("Chapter ") for chapter in book.chapters)


# JSON lines


def json_lines(rows: Sequence[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_rows_are_chapters(put: Put) -> None:
    rows = [{"title": t, "text": text} for t, text in zip(TITLES, TEXTS)]
    check_novel(read_book(put("novel.jsonl", "\ufeff" + json_lines(rows))), "jsonl", "utf-8")


def test_rows_of_one_chapter_belong_together_and_one_title_is_the_book_s(put: Put) -> None:
    rows = [
        {"title": "The Keeper", "chapter": i, "text": text}
        for i, body in enumerate(BODIES, 1)
        for text in [*body, " "]
    ]
    book = read_book(put("novel.jsonl", json_lines(rows)))
    assert [chapter.title for chapter in book.chapters] == [f"Chapter {i}" for i in range(1, 5)]
    assert [chapter.text for chapter in book.chapters] == TEXTS
    assert (book.title, book.dropped) == ("The Keeper", {"empty rows": 4})


def test_short_rows_are_grouped_into_parts(put: Put) -> None:
    texts = prose(6100, seed=6)
    book = read_book(put("novel.jsonl", json_lines([{"text": text} for text in texts])))
    assert book.units == "parts" and len(book.chapters) == 4
    assert "\n\n".join(chapter.text for chapter in book.chapters) == "\n\n".join(texts)


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"text": "abc', "Line 2 of"),
        ("[1, 2]", "no JSON object"),
        ('{"texts": "abc", "id": 1}', "has no 'text' (did you mean 'texts'?)"),
        ("{}", "has no 'text'"),
        ('{"text": 3}', "no string"),
        (json.dumps({"text": "water " * 2100}), "is all one line; put an empty line between"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_line(line: str, says: str, put: Put) -> None:
    message = refusal(put("novel.jsonl", json_lines([{"text": TEXTS[0]}]) + line))
    assert "Line 2" in message and says in message


def test_rows_in_another_encoding_or_without_text_are_refused(put: Put) -> None:
    assert "is not UTF-8" in refusal(put("a.jsonl", '{"text": "é"}'.encode("latin-1")))
    assert "is empty" in refusal(put("b.jsonl", '{"text": ""}\n{"text": " "}\n'))


# EPUB


CONTAINER = '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'


def page(body: str, kind: str = "") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml" '
        'xmlns:epub="http://www.idpf.org/2007/ops"><head><title/><script src="x"/><style>p{}</style>'
        f"</head><body{kind}>{body}</body></html>"
    )


def html(texts: Sequence[str]) -> str:
    return "".join(f"<p>{text}</p>\n" for text in texts)


def make_epub(
    documents: dict[str, str],
    extra: dict[str, str] | None = None,
    attributes: dict[str, str] | None = None,
    spine: Sequence[str] | None = None,
) -> bytes:
    """An EPUB of documents by file name; `attributes` are of their manifest items."""
    given = attributes or {}
    items = "".join(
        f'<item id="{name}" href="text/{name}" media-type="application/xhtml+xml" {given.get(name, "")}/>'
        for name in sorted(documents)
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in spine or documents)
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f"<metadata><dc:title>The Keeper</dc:title></metadata><manifest>{items}"
        '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
        f"<spine>{order}</spine></package>"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", CONTAINER)
        archive.writestr("OPS/book.opf", package)
        for name, content in documents.items():
            archive.writestr(f"OPS/text/{name}", content)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def documents() -> dict[str, str]:
    """Four chapters, the last two in one document, and what surrounds them."""
    first, second, third, fourth = (
        f"<h1>Chapter {n}</h1><h2>{name}</h2>{html(body)}"
        for n, name, body in zip(NUMBERS, NAMES, BODIES)
    )
    return {
        "cover.xhtml": page("<img src='x.png'/>" + html(BODIES[0])),
        "z.xhtml": page(first + "<a id='x'/><img src='x.png'/><script>var water = 1;</script>"),
        "y.xhtml": page(second),
        "notice.xhtml": page("<p>Printed in Vennick.</p>"),
        "rights.xhtml": page(html(BODIES[1]), ' epub:type="copyright-page"'),
        "x.xhtml": page(f"<section>{third}</section><section>{fourth}</section>"),
        "toc.xhtml": page("<nav><a href='z.xhtml'>Chapter One</a></nav>" + html(BODIES[0])),
    }


def test_an_epub_is_read_in_the_order_of_its_spine(put: Put) -> None:
    book = read_book(put("novel.epub", make_epub(documents())))
    check_novel(book, "epub")
    assert book.title == "The Keeper"
    assert book.dropped == {"skipped documents": 3, "short documents": 1, "images": 1}


def test_titles_come_from_the_navigation_where_there_are_no_headings(put: Put) -> None:
    plain = {f"c{i}.xhtml": page(html(body)) for i, body in enumerate(BODIES)}
    points = "".join(
        f"<navPoint><navLabel><text>{title}</text></navLabel><content src='text/c{i}.xhtml#a'/></navPoint>"
        for i, title in enumerate(TITLES)
    )
    old = make_epub(plain, {"OPS/toc.ncx": f"<ncx>{points}</ncx>"})
    check_novel(read_book(put("old.epub", old)), "epub")
    links = "".join(f"<li><a href='c{i}.xhtml'>{title}</a></li>" for i, title in enumerate(TITLES))
    nav = {"n.xhtml": page(f"<nav><ol>{links}</ol></nav>")}
    new = make_epub(plain | nav, attributes={"n.xhtml": 'properties="nav"'})
    check_novel(read_book(put("new.epub", new)), "epub")


def test_a_document_without_title_goes_on_with_the_chapter_before(put: Put) -> None:
    rest = {"w.xhtml": page(html(BODIES[0]))}
    book = read_book(put("novel.epub", make_epub(documents() | rest)))
    assert [chapter.title for chapter in book.chapters] == TITLES
    assert book.chapters[-1].text == TEXTS[3] + "\n\n" + TEXTS[0]


def test_an_epub_without_any_title_is_split_as_text_is(put: Put) -> None:
    plain = {"all.xhtml": page(html([p for t, b in zip(TITLES, BODIES) for p in (t, *b)]))}
    check_novel(read_book(put("headings.epub", make_epub(plain))), "epub")
    parts = read_book(put("parts.epub", make_epub({"all.xhtml": page(html(prose(6100)))})))
    assert parts.units == "parts" and len(parts.chapters) == 4


def test_line_breaks_and_entities_of_an_epub(put: Put) -> None:
    verse = "<p>Salt in the pantry,<br/>\n  salt in the&nbsp;<i>bed</i> &mdash;<br/><br/>caf&eacute;</p>"
    named = documents() | {
        "y.xhtml": page(f"<h1>Chapter Two<br/>{NAMES[1]}</h1>" + html(BODIES[1]) + verse)
    }
    book = read_book(put("novel.epub", make_epub(named)))
    assert book.chapters[1].title == TITLES[1]
    assert book.chapters[1].text == TEXTS[1] + "\n\nSalt in the pantry,\nsalt in the bed —\n\ncafé"


ENCRYPTION = '<encryption xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData><enc:EncryptionMethod Algorithm="{}"/><enc:CipherData><enc:CipherReference URI="{}"/></enc:CipherData></enc:EncryptedData></encryption>'


def test_a_protected_epub_is_refused_but_obfuscated_fonts_are_not(put: Put) -> None:
    place = "META-INF/encryption.xml"
    aes = ENCRYPTION.format("http://www.w3.org/2001/04/xmlenc#aes128-cbc", "OPS/text/y.xhtml")
    assert "is protected (DRM)" in refusal(put("a.epub", make_epub(documents(), {place: aes})))
    font = ENCRYPTION.format("http://www.idpf.org/2008/embedding", "OPS/font.otf")
    check_novel(read_book(put("b.epub", make_epub(documents(), {place: font}))), "epub")


@pytest.mark.parametrize("kept", [10, 3000, -40])
def test_a_truncated_epub_is_refused(kept: int, put: Put) -> None:
    message = refusal(put("novel.epub", make_epub(documents())[:kept]))
    assert "cannot be read as an EPUB" in message and "fetch it again" in message


@pytest.mark.parametrize(
    "name, content",
    [
        ("META-INF/container.xml", "<container"),
        ("META-INF/container.xml", "<container/>"),
        ("META-INF/container.xml", CONTAINER.replace("book.opf", "gone.opf")),
        ("META-INF/encryption.xml", "no xml"),
        ("OPS/book.opf", '<!DOCTYPE x [<!ENTITY a "b">]><package>&a;</package>'),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_epub_is_refused(name: str, content: str, put: Put) -> None:
    message = refusal(put("novel.epub", make_epub(documents(), {name: content})))
    assert "cannot be read as an EPUB" in message


def test_a_spine_that_names_a_missing_document_is_refused(put: Put) -> None:
    data = make_epub(documents()).replace(b"OPS/text/y.xhtml", b"OPS/text/q.xhtml")
    assert "cannot be read as an EPUB" in refusal(put("novel.epub", data))


def test_an_epub_without_text_is_refused(put: Put) -> None:
    only = {"cover.xhtml": page(html(BODIES[0])), "a.xhtml": page("<p>Vennick.</p>")}
    assert "holds no chapter of text" in refusal(put("novel.epub", make_epub(only)))
    assert "holds no chapter of text" in refusal(put("none.epub", make_epub({})))


def test_an_epub_that_unpacks_too_large_is_refused(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put("novel.epub", make_epub(documents()))
    monkeypatch.setattr(epub, "MAXIMUM_DOCUMENT", 4000)
    assert "unpacks to" in refusal(path)
    monkeypatch.setattr(epub, "MAXIMUM_DOCUMENT", 10**6)
    monkeypatch.setattr(epub, "MAXIMUM_TOTAL", 9000)
    assert "unpacks to" in refusal(path)


# PDF


def make_pdf(pages: Sequence[Sequence[str]], header: str = "", numbers: bool = True) -> bytes:
    """Pages of lines, indented where they begin with spaces; "" leaves a gap."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(buffer) as file:
        for number, lines in enumerate(pages, start=1):
            figure = Figure(figsize=(6, 9))
            figure.text(0.5, 0.96, header.format(number), ha="center")
            for i, line in enumerate(lines):
                indent = len(line) - len(line.lstrip())
                figure.text(0.1 + 0.01 * indent, 0.93 - 0.024 * i, line.strip())
            figure.text(0.5, 0.03, str(number) if numbers else "")
            file.savefig(figure)
    return buffer.getvalue()


def set_pages(text: str, lines: int = 34) -> list[list[str]]:
    """Cut a text into pages; no page begins with an empty line."""
    rest, pages = text.split("\n"), []
    while rest:
        while rest and not rest[0]:
            del rest[0]
        pages.append(rest[:lines])
        del rest[:lines]
    return [page for page in pages if page]


def test_a_pdf_is_read_without_headers_and_page_numbers(put: Put) -> None:
    text = novel(wrap=58, indent="   ", gap="\n", head="")
    pages = set_pages(text)
    book = read_book(put("novel.pdf", make_pdf(pages, header="{}   The Keeper’s Book")))
    check_novel(book, "pdf")
    assert book.title == "novel"
    assert book.dropped == {
        "page header or footer lines": len(pages),
        "page numbers": len(pages),
    }


def test_broken_words_of_a_pdf_are_joined(put: Put) -> None:
    lines = novel(wrap=58, head="").split("\n")
    ends = [i for i, after in enumerate(lines[1:]) if re.match("[a-z]{6}", after)]
    for i in ends:
        lines[i], lines[i + 1] = f"{lines[i]} {lines[i + 1][:3]}-", lines[i + 1][3:]
    book = read_book(put("novel.pdf", make_pdf(set_pages("\n".join(lines)))))
    check_novel(book, "pdf")
    assert len(ends) > 20 and book.dropped["hyphenations joined"] == len(ends)


def test_running_headers_that_read_as_headings_make_no_chapters(put: Put) -> None:
    pages, headers = [], []
    for number, text in zip(NUMBERS, TEXTS):
        wrapped = "\n\n".join(textwrap.fill(p, 58) for p in text.split("\n\n"))
        own = set_pages(f"Chapter {number}\n\n{wrapped}", 30)
        pages += own
        headers += ["", *[f"Chapter {number}"] * (len(own) - 1)]
    shown = [[header, "", *lines] if header else lines for header, lines in zip(headers, pages)]
    book = read_book(put("novel.pdf", make_pdf(shown)))
    assert [chapter.title for chapter in book.chapters] == [f"Chapter {n}" for n in NUMBERS]
    words = [chapter.text.split() for chapter in book.chapters]
    assert words == [text.split() for text in TEXTS]


def test_pages_stand_in_where_there_are_no_chapters(put: Put) -> None:
    text = "\n\n".join(textwrap.fill(p, 58) for p in prose(1200, seed=3))
    pages = set_pages(text)
    book = read_book(put("plain.pdf", make_pdf([pages[0], [], *pages[1:]])))
    assert book.units == "pages"
    numbers = [1, *range(3, len(pages) + 2)]
    assert [chapter.title for chapter in book.chapters] == [f"page {i}" for i in numbers]
    assert " ".join(chapter.text for chapter in book.chapters).split() == text.split()
    assert book.dropped == {"empty pages": 1, "page numbers": len(pages) + 1}


def pictures(count: int) -> bytes:
    buffer = io.BytesIO()
    with PdfPages(buffer) as file:
        for _ in range(count):
            figure = Figure(figsize=(3, 4))
            figure.figimage(np.full((20, 20, 3), 200, np.uint8))
            file.savefig(figure)
    return buffer.getvalue()


def test_a_pdf_of_pictures_is_refused(put: Put) -> None:
    message = refusal(put("scan.pdf", pictures(4)))
    assert "holds pictures of pages without text" in message and "run OCR first" in message


def locked_pdf() -> bytes:
    """The least that is an encrypted PDF: the password's checks (/O, /U) fit no empty password."""
    objects = (
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]>>",
        b"<</Filter/Standard/V 1/R 2/P -4/O<" + b"5a" * 32 + b">/U<" + b"a5" * 32 + b">>>",
    )
    data, places = b"%PDF-1.4\n", b"0000000000 65535 f \n"
    for number, content in enumerate(objects, start=1):
        places += b"%010d 00000 n \n" % len(data)
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    trailer = b"trailer<</Size 5/Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>\nstartxref\n%d\n%%%%EOF\n"
    return data + b"xref\n0 5\n" + places + trailer % len(data)


def test_an_encrypted_pdf_is_refused(put: Put) -> None:
    assert "is encrypted and needs a password" in refusal(put("novel.pdf", locked_pdf()))


@pytest.mark.parametrize("kept", [30, 0.5, 0.98])
def test_a_truncated_pdf_is_refused(kept: float, put: Put) -> None:
    data = make_pdf([["water"]] * 3)
    size = kept if isinstance(kept, int) else int(kept * len(data))
    message = refusal(put("novel.pdf", data[:size]))
    assert "is no whole PDF" in message and "fetch it again" in message


def test_a_damaged_pdf_is_refused(put: Put) -> None:
    message = refusal(put("novel.pdf", b"<html>not found</html>\n%%EOF\n"))
    assert "cannot be read as a PDF" in message


@pytest.fixture(scope="module")
def sources() -> dict[str, bytes]:
    return {
        "a.epub": make_epub(documents()),
        "a.pdf": make_pdf(set_pages(novel(wrap=58, head=""))),
        "a.jsonl": json_lines([{"text": text} for text in TEXTS]).encode(),
        "a.txt": novel(wrap=60).encode("utf-16"),
    }


@pytest.mark.parametrize("name", ["a.epub", "a.pdf", "a.jsonl", "a.txt"])
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), min_size=1))
def test_altered_bytes_give_a_book_or_a_sentence(
    name: str, changes: list[tuple[float, int]], sources: dict[str, bytes], put: Put
) -> None:
    data = bytearray(sources[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    message = ""
    try:
        assert read_book(put(name, bytes(data))).chapters
    except CompanionError as error:
        message = str(error)
    assert "\n" not in message


# Files that are no book


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "There is no file" in refusal(tmp_path / "gone.txt")
    (tmp_path / "book.txt").mkdir()
    assert "is a folder" in refusal(tmp_path / "book.txt")


def test_a_file_that_cannot_be_opened_or_is_too_large_is_refused(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "cannot be read" in refusal(tmp_path / ("long" * 100 + ".txt"))
    monkeypatch.setattr(readers, "MAXIMUM_BYTES", 10)
    assert "is larger than a book" in refusal(put("novel.txt", novel()))


@pytest.mark.parametrize("name", ["novel.docx", "novel", "novel.txt.gz"])
def test_another_format_is_refused_with_the_known_ones(name: str, put: Put) -> None:
    message = refusal(put(name, "text"))
    assert ".txt, .epub, .pdf, .jsonl" in message


@pytest.mark.parametrize("name", ["a.txt", "a.epub", "a.pdf", "a.jsonl"])
@pytest.mark.parametrize("content", [b"", b" \r\n\t\n"])
def test_an_empty_file_is_refused(name: str, content: bytes, put: Put) -> None:
    assert "is empty" in refusal(put(name, content))


@pytest.mark.parametrize("content", ["\ufeff", "\u00a0\n\u00ad\n", "\ufeff \n"])
def test_a_text_of_nothing_that_shows_is_refused(content: str, put: Put) -> None:
    assert "is empty" in refusal(put("a.txt", content))


def test_a_binary_file_is_no_text(put: Put) -> None:
    noise = random.Random(0).randbytes(20_000)
    for content in (
        make_epub(documents()),
        noise,
        b"\x7fELF\x02\x01\x01\0\0" + bytes(500),
        b"\x01\x02abc" * 500,
    ):
        assert "is a binary file" in refusal(put("novel.txt", content))


def test_a_text_that_belies_its_mark_is_refused(put: Put) -> None:
    broken = b"\xef\xbb\xbf" + novel().encode() + b"\xff\xfe broken"
    message = refusal(put("novel.txt", broken))
    assert "is marked as utf-8" in message and "save it again" in message
    assert "is marked as utf-16-le" in refusal(
        put("b.txt", b"\xff\xfe" + "ab".encode("utf-16-le") + b"a")
    )


def test_a_text_in_no_known_encoding_is_refused(put: Put) -> None:
    noise = random.Random(0)
    content = bytes(noise.choice(range(128, 256)) for _ in range(5000))
    assert "is in no encoding that can be told" in refusal(put("novel.txt", content))


def test_a_book_on_one_line_is_refused(put: Put) -> None:
    content = " ".join(TEXTS + prose(1000)).replace("\n\n", " ")
    for text in (content, f"The Keeper\n\n{content}\n"):
        message = refusal(put("novel.txt", text))
        assert "is all one line; put an empty line between paragraphs" in message


def test_a_book_too_short_to_split_is_refused(put: Put) -> None:
    few = "\n\n".join(f"Chapter {n}\n\n{TEXTS[0][:600]}" for n in NUMBERS)
    assert "is too short to be split: it holds" in refusal(put("a.txt", few))
    two = " ".join(TEXTS[:2]).replace("\n\n", " ") + "\n\n" + TEXTS[2].replace("\n\n", " ")
    assert "in 2 parts" in refusal(put("b.txt", two))
    rows = json_lines([{"text": text, "chapter": i} for i, text in enumerate(TEXTS[:2])])
    assert "in 2 chapters" in refusal(put("c.jsonl", rows))


def test_the_same_file_gives_the_same_book(put: Put) -> None:
    path = put("novel.txt", novel())
    assert read_book(path) == read_book(path)
    assert len(read_book(path).sha256) == 64
