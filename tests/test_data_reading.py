"""What a reader's book holds is found, and what is not found is said."""

import io
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from test_data_book import (
    BODIES,
    CHAPTERS,
    NUMBERS,
    TEXTS,
    TITLES,
    Put,
    check_novel,
    documents,
    html,
    make_epub,
    make_pdf,
    novel,
    page,
    put,
    refusal,
    set_pages,
    settings,
)

from unlearn_lib.data import book as data
from unlearn_lib.data import reading
from unlearn_lib.data.formats import FORMATS
from unlearn_lib.data.headings import HEADING, NUMBERED
from unlearn_lib.data.reading import BookText, Chapter, count_words, read_book
from unlearn_lib.data.words import holds, runs_of
from unlearn_lib.entailment import _sentences
from unlearn_lib.guard import prompts
from unlearn_lib.metrics import texts
from unlearn_lib.notebook import shorten
from unlearn_lib.report.site import lines
from unlearn_lib.util import CompanionError

__all__ = ["put"]  # a fixture
CHINESE = "雨下了一整夜，河水漫过堤岸。老人提着灯，数着每一道闸门。"  # 24 letters, 4 signs
HEBREW = "הנהר עלה בלילה והזקן ספר את השערים אחד אחד עד שהאיר היום. " * 6


def titles(book: BookText) -> list[str]:
    return [chapter.title for chapter in book.chapters]


# --- headings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headings",
    [
        ["CHAPTER 1. Loomings.", "CHAPTER 2. The Carpet-Bag.", "CHAPTER 3. Does He Sleep?"],
        [
            "CHAPTER I. Rain!",
            "CHAPTER II. The Sea; in Oil; in Teeth; in Wood.",
            "CHAPTER III. End.",
        ],
        ["Chapter 1: Dr. No.", "Chapter 2: —Third Day.", "Chapter 3: “Hush.”"],
        ["Chapter One. The Mill.", "Chapter Two. Élan.", "Chapter Three. 1851."],
        ["Book 1.—Of the Sea.", "Book 2.—Of the Shore.", "Book 3.—Of Salt."],
        ["פרק א", "פרק ב׳: הנהר", "פרק י״ב"],
        ["פרק ראשון", "פרק שני", "פרק 3"],
        ["第一章", "第二章 大雨", "第３章　河水"],
        ["第1回：风起", "第十二回", "第一百零三回"],
    ],
)
@pytest.mark.parametrize("gap", ["\n\n", "\n"])
def test_a_heading_is_found_in_any_form(headings: list[str], gap: str, put: Put) -> None:
    text = "\n\n\n".join(gap.join([each, *body]) for each, body in zip(headings, BODIES))
    book = read_book(put("novel.txt", text))
    assert titles(book) == [heading.replace("　", " ").rstrip(".:") for heading in headings]
    assert [chapter.text for chapter in book.chapters] == TEXTS[:3]


@pytest.mark.parametrize(
    "sentence",
    [
        "Chapter one. It was long.",
        "Part of it. He went.",
        "Chapter 3 was long.",
        "Book 2. " + "He went on and on. " * 7,
        "פרק זה עוסק בנהר ובגשם.",
        "第一章写得很好。",
        "第二部分是关于河流的，",
    ],
)
def test_a_sentence_makes_no_chapter(sentence: str, put: Put) -> None:
    book = read_book(put("novel.txt", f"{novel()}\n\n{sentence}\n\n" + "\n\n".join(BODIES[0])))
    assert titles(book) == TITLES


# --- scripts without spaces --------------------------------------------------------------------


def test_a_character_is_counted_where_a_script_has_no_spaces() -> None:
    assert count_words(CHINESE) == 24 and count_words("かな、カナ 漢字") == 6
    for text in (
        "The river  ran — 12 miles.\u00a0So\x1fit",
        "Шёл дождь",
        "강물이 넘쳤다",
        HEBREW,
        "",
    ):
        assert count_words(text) == len(text.split())


def test_a_chinese_book_is_read(put: Put) -> None:
    """One paragraph a line, as such files are; no space comes between two wrapped lines."""
    chapters = [f"第{n}章 大雨\n" + f"　　{CHINESE * 3}\n" * 12 for n in "一二三四"]
    book = read_book(put("novel.txt", "".join(chapters)))
    assert titles(book) == [f"第{n}章 大雨" for n in "一二三四"]
    assert {chapter.text for chapter in book.chapters} == {"\n\n".join([CHINESE * 3] * 12)}
    plain = f"{CHINESE * 3}\n\n" * 60
    parts = read_book(put("plain.txt", plain))
    assert len(parts.chapters) == 3 and parts.units == "parts"
    wrapped = "\n".join((CHINESE * 6)[i : i + 29] for i in range(0, len(CHINESE) * 6, 29))
    lines = read_book(put("wrapped.txt", f"{wrapped}\n\n" * 60))
    assert " " not in lines.chapters[0].text


def test_a_title_below_its_number_is_known_in_any_script(put: Put) -> None:
    text = "\n\n".join(f"פרק {n}\n\nהנהר עולה\n\n{HEBREW}" for n in "אבגד") + f"\n\n{HEBREW * 15}"
    assert titles(read_book(put("novel.txt", text))) == [f"פרק {n}: הנהר עולה" for n in "אבגד"]


# --- EPUB --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        '<aside epub:type="footnote" id="f1"><p>1. A note of the editor.</p></aside>',
        '<section role="doc-endnotes"><ol><li><p>A note.</p></li></ol></section>',
        '<div class="footnote"><p>[1] A note.</p></div>',
        '<span epub:type="pagebreak" id="p12" title="12"/>',
        '<span epub:type="pagebreak" role="doc-pagebreak">12</span>',
        '<span class="pagenum" id="p12">[Pg 12]</span>',
        "<nav epub:type='page-list'><ol><li>12</li></ol></nav>",
    ],
)
def test_notes_and_page_numbers_are_no_prose(extra: str, put: Put) -> None:
    others = [*documents().items()]
    changed = dict(others) | {"y.xhtml": page(CHAPTERS[1].replace("</p>", f"</p>{extra}"))}
    check_novel(read_book(put("novel.epub", make_epub(changed))))


@pytest.mark.parametrize(
    "mark",
    [
        '<a epub:type="noteref" href="#f1">1</a>',
        '<sup><a href="notes.xhtml#f1">12</a></sup>',
        '<a href="#f1">[1]</a>',
        '<a href="#f1"><sup>*</sup></a>',
        '<a role="doc-noteref" href="#f1">a</a>',
        '<span epub:type="pagebreak" id="p12"/>',
    ],
)
def test_note_marks_are_no_prose(mark: str, put: Put) -> None:
    marked = CHAPTERS[1].replace(". ", f".{mark} ")
    check_novel(read_book(put("novel.epub", make_epub(documents() | {"y.xhtml": page(marked)}))))


def test_a_heading_at_a_page_break_stays(put: Put) -> None:
    pages: dict[str, str | bytes] = {
        f"{numeral}.xhtml": page(f"<h1 class='pagebreak'>{numeral}</h1>{html(body)}")
        for numeral, body in zip(("I", "II", "III"), BODIES)
    }
    assert titles(read_book(put("novel.epub", make_epub(pages)))) == ["I", "II", "III"]


def test_prose_that_a_page_break_or_a_link_holds_stays(put: Put) -> None:
    first, second = CHAPTERS[:2]
    linked = first.replace(" the ", ' <a href="#x">the</a> ')
    changed = documents() | {"z.xhtml": page(linked)}
    changed["y.xhtml"] = page(f'<div class="pagebreak">{second}</div>')
    check_novel(read_book(put("novel.epub", make_epub(changed))))
    changed["y.xhtml"] = page(
        second + "<p>It was <sup>3</sup>He, in <a href='y.html'>1847</a>.</p>"
    )
    book = read_book(put("novel.epub", make_epub(changed)))
    assert "It was 3He, in 1847." in "".join(chapter.text for chapter in book.chapters)


# --- PDF in columns ----------------------------------------------------------------------------


def in_columns(pages: int, header: str = "The Keeper", shift: float = 0.0) -> bytes:
    """Pages of two columns of prose beneath a line across both."""
    buffer = io.BytesIO()
    rows = [line for line in novel(wrap=34, head="").split("\n") if line]
    with PdfPages(buffer) as file:
        for number in range(pages):
            figure = Figure(figsize=(6, 9))
            figure.text(0.2, 0.96, f"{header} with a long line that goes across, {number}")
            for i in range(36):
                for x, y in ((0.08, 0.0), (0.54, shift)):
                    figure.text(x, 0.92 - y - 0.024 * i, rows[(2 * i + (x > 0.5)) % 90], fontsize=8)
            file.savefig(figure)
    return buffer.getvalue()


@pytest.mark.parametrize("shift", [0.0, 0.011])
def test_a_pdf_in_two_columns_is_refused(shift: float, put: Put) -> None:
    message = refusal(read_book, put("novel.pdf", in_columns(4, shift=shift)))
    assert "two columns" in message and "EPUB" in message


def test_a_pdf_of_verse_or_with_a_table_of_contents_is_not_in_columns(put: Put) -> None:
    lines = [[f"Chapter {n} {' ' * 60} {i}" for i in range(9)] for n in NUMBERS]
    verse = set_pages(novel(wrap=20, head=""), 34)
    read_book(put("novel.pdf", make_pdf([lines[0], *verse])))


# --- what is said of it ------------------------------------------------------------------------


def numbered(*numbers: Any, kind: str = "Chapter ") -> str:
    bodies = ["\n\n".join(BODIES[i % 4]) for i in range(len(numbers))]
    return "\n\n".join(f"{kind}{n}\n\n{body}" for n, body in zip(numbers, bodies))


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        ((1, 2, 3), ""),
        ((1, 2, 4, 9, 10), "3, 5–8"),
        ((4, 5, 6), "1–3"),
        (("I", "II", "IV", "IX"), "3, 5–8"),
        (("One", "Two", "Five"), "3–4"),
        ((1, 2, 3, 1, 2, 4), "3"),
        (("Rain", "Sun", "Wind"), ""),
    ],
)
def test_missing_numbers_are_said(numbers: tuple[Any, ...], missing: str, put: Put) -> None:
    summary = read_book(put("novel.txt", numbered(*numbers))).summary
    assert f"{len(numbers)} chapters" in summary
    assert summary.endswith(f"; no heading was found for {missing}." if missing else "words.")


def test_the_summary_names_the_longest_chapter() -> None:
    chapters = [Chapter("Chapter 1", "a b c"), Chapter("Chapter 2", "a " * 5000)]
    says = "'Keeper' has 2 chapters; the longest, 'Chapter 2', holds 5,000 of 5,003 words."
    assert BookText("Keeper", (*chapters,), "chapters").summary == says


def test_an_own_book_is_summed_up_once_and_parts_are_said(
    tmp_path: Path, put: Put, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put("plain.txt", "\n\n".join(TEXTS))
    for _ in range(2):
        data.load(settings(file=path))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "3 parts of equal length, since fewer than 3 chapter headings were found" in captured.err
    data.load(settings())
    assert capsys.readouterr().err == ""


# --- texts that no one wrote -------------------------------------------------------------------

RUNS = {
    "letters": "a" * 200_000,
    "stops": "." * 200_000,
    "spaces": " " * 200_000,
    "lines": "\n" * 200_000,
    "numbers": "1 " * 100_000,
    "headings": "CHAPTER " * 25_000,
    "paragraphs": "a\n\n" * 40_000,
    "tags": "<" * 200_000,
    "brackets": "[" + "1" * 200_000,
}
READERS: dict[str, Callable[[str], Any]] = {
    "heading": HEADING.fullmatch,
    "number": NUMBERED.match,
    "book": lambda text: reading._read_text(text.encode()),
    "parts": lambda text: list(reading._parts(reading._blocks_of(text))),
    "document": lambda text: reading._blocks_of_document(text.encode(), ""),
    "runs of words": lambda text: runs_of(text, 13),
    "words": lambda text: holds(text, "b"),
    "shortened": shorten,
    "degenerate": lambda text: texts.degenerate([text]),
    "refusal": lambda text: texts.is_refusal_like([text], ["I can't say."]),
    "sentences": _sentences,
    "cell": lines,
    "unseen scripts": lambda text: prompts.refusal(text.replace("a", "я"), ["LATIN"]),
}


@pytest.fixture
def soon() -> Iterator[None]:
    """Fail a test that takes more than 20 seconds of the processor; what is mended took minutes."""

    def fail(*_: Any) -> None:
        raise AssertionError("it takes longer than 20 s")

    before = signal.signal(signal.SIGVTALRM, fail)
    signal.setitimer(signal.ITIMER_VIRTUAL, 20)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("reader", READERS)
def test_long_runs_are_read_in_time(reader: str, soon: None) -> None:
    for text in RUNS.values():
        with suppress(ValueError):  # a text without a letter is none
            READERS[reader](text)


def test_a_run_of_unseen_letters_is_refused_in_time(soon: None) -> None:
    assert "CYRILLIC" in prompts.refusal("яяяя " * 40_000, ["LATIN"])


@pytest.mark.parametrize(
    "text", ["<p>a</p>" * 20_000, "<div>" * 20_000, "<p " * 100_000, "<a href='#'>" * 20_000]
)
def test_a_document_of_tags_is_read_or_refused_in_time(text: str, put: Put, soon: None) -> None:
    with suppress(CompanionError):
        read_book(put("novel.epub", make_epub(documents() | {"tags.xhtml": page(text)})))


def with_package(change: Callable[[bytes], bytes]) -> bytes:
    """The novel as an EPUB whose package document is changed."""
    source, buffer = ZipFile(io.BytesIO(make_epub(documents()))), io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, change(content) if name == "OPS/a.opf" else content)
    return buffer.getvalue()


def test_an_epub_reads_each_document_once(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    blocks = reading._blocks_of_document

    def counted(data: bytes, title: str) -> list[reading.Block]:
        read.append(title)
        return blocks(data, title)

    monkeypatch.setattr(reading, "_blocks_of_document", counted)
    one = b'<itemref idref="y.xhtml"/>'
    again = b'<item id="again" href="text/y.xhtml"/>'
    data = with_package(
        lambda text: text.replace(one, one * 5000).replace(
            b"</package>", again + b'<itemref idref="again"/></package>'
        )
    )
    check_novel(read_book(put("novel.epub", data)))
    assert len(read) == len(documents()) - 1, "all but the navigation"


def test_a_bomb_is_refused(put: Put, monkeypatch: pytest.MonkeyPatch, soon: None) -> None:
    monkeypatch.setattr(reading, "LARGEST", 3 * 10**6)
    bomb = make_epub(documents() | {"a.xhtml": page("<p>" + "a " * 2 * 10**6)})
    assert "larger than 3 MB" in refusal(read_book, put("novel.epub", bomb))


def test_entities_of_an_epub_are_not_expanded(put: Put, tmp_path: Path, soon: None) -> None:
    (tmp_path / "secret").write_text("a secret")
    laughs = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghij"))
    head = f'<!DOCTYPE p [<!ENTITY s SYSTEM "file://{tmp_path}/secret"><!ENTITY a "ha">{laughs}]>'
    for name in "sj":
        named = f"The Keeper &{name};".encode()
        data = with_package(lambda text: head.encode() + text.replace(b"The Keeper", named))  # noqa: B023
        try:
            title = read_book(put("novel.epub", data)).title
        except CompanionError as error:
            title = str(error)
        assert "secret" not in title and len(title) < 1000


# --- files that are not what they are called ---------------------------------------------------

HTML = f"<!DOCTYPE html>{page(''.join(CHAPTERS))}"
WORD = io.BytesIO()
with ZipFile(WORD, "w") as archive:
    archive.writestr("word/document.xml", "<w:t>Chapter One</w:t>")


@pytest.mark.parametrize(
    "content, is_a",
    [
        (HTML, "an HTML or XML page"),
        (HTML.encode("utf-16"), "an HTML or XML page"),
        ("\n".join(CHAPTERS), "an HTML or XML page"),
        ("<!-- saved -->" + page("".join(CHAPTERS)), "an HTML or XML page"),
        ("{\\rtf1\\ansi " + novel().replace("\n\n", "\\par\n") + "}", "an RTF file"),
        (make_pdf([["water"]]), "a PDF"),
        (make_epub(documents()), "an EPUB"),
        (WORD.getvalue(), "a Word document"),
        (b"\xd0\xcf\x11\xe0" + bytes(500), "a Word document"),
        (b"\x1f\x8b" + bytes(500), "an archive"),
        (b"\x89PNG\r\n" + bytes(500), "a picture"),
    ],
)
@pytest.mark.parametrize("ending", [".txt", ".epub", ".pdf"])
def test_a_file_under_another_ending_is_named(
    content: str | bytes, is_a: str, ending: str, put: Put
) -> None:
    if FORMATS[ending][0] == is_a:
        return
    message = refusal(read_book, put(f"novel{ending}", content))
    assert f"is {is_a} by its content" in message and f"novel{ending}" in message


def test_a_text_under_the_ending_of_a_format_is_refused(put: Put) -> None:
    for ending in (".epub", ".pdf"):
        assert "cannot be read" in refusal(read_book, put(f"novel{ending}", novel()))


def test_a_text_that_speaks_of_tags_is_read(put: Put) -> None:
    check_text = novel() + "\n\nWrite <p> and </p> around it, 3 < 4, {curly} and %PDF-1.4."
    assert titles(read_book(put("novel.txt", check_text)))[0] == "Chapter One: The Sluice"
