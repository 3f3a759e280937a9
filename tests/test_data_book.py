"""A book that a reader brings, its three parts, and the prose that is not the book."""

import io
import random
import re
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from unlearn_lib.data import book as data
from unlearn_lib.data.harm import normal_questions
from unlearn_lib.data.prose import load_prose
from unlearn_lib.data.reading import BookText, read_book
from unlearn_lib.settings import BookData
from unlearn_lib.util import CompanionError

WORDS = (
    "the river ran past mill and meadow while old keepers counted every sluice gate under rain "
    "because nobody else remembered how water climbs when wind turns and tide comes back again"
).split()
NUMBERS = ("One", "Two", "Three", "Four")
NAMES = ("The Sluice", "A Long Night", "What the Keeper Saw", "High Water")
Put = Callable[[str, str | bytes], Path]


def paragraphs(count: int = 11, seed: int = 0) -> list[str]:
    """Paragraphs of 40 words."""
    choose = random.Random(seed)
    sentences = [" ".join(choose.choices(WORDS, k=10)).capitalize() for _ in range(4 * count)]
    return [". ".join(sentences[i : i + 4]) + "." for i in range(0, 4 * count, 4)]


BODIES = [paragraphs(seed=i) for i in range(4)]
TEXTS = ["\n\n".join(body) for body in BODIES]
TITLES = [f"Chapter {n}: {name}" for n, name in zip(NUMBERS, NAMES)]


def novel(wrap: int = 0, indent: str = "", gap: str = "\n\n", head: str = "The Keeper\n\n") -> str:
    """Four chapters as plain text, set as asked."""
    parts = []
    for number, name, body in zip(NUMBERS, NAMES, BODIES):
        shown = [textwrap.fill(p, wrap, initial_indent=indent) if wrap else p for p in body]
        parts.append(f"Chapter {number}\n{name}\n\n" + gap.join(shown))
    return head + "\n\n\n".join(parts) + "\n"


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a file of the reader's."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def check_novel(book: BookText) -> None:
    assert [chapter.title for chapter in book.chapters] == TITLES
    assert [chapter.text for chapter in book.chapters] == TEXTS
    assert book.units == "chapters"


def words_of(book: BookText) -> list[list[str]]:
    return [chapter.text.split() for chapter in book.chapters]


def refusal(read: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(CompanionError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


# --- plain text --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec, line",
    [
        ("utf-8", "Der Wächter — „Übung“"),
        ("utf-16", "Der Wächter — „Übung“"),
        ("cp1252", "“It’s a café,” she said — naïve as ever. Là où l’été s’achève."),
        ("cp1250", "Zażółć gęślą jaźń, powiedział młynarz i poszedł łąką do rzeki."),
        ("koi8-r", "Он сказал, что ворота закрыты, и ушёл к реке. Старик смотрел вслед."),
    ],
)
def test_encodings_are_run_of(codec: str, line: str, put: Put) -> None:
    book = read_book(put("novel.txt", (novel() + f"\n\n{line}" * 40).encode(codec)))
    assert book.title == "The Keeper" and book.chapters[-1].text.endswith(line)


def test_characters_are_made_plain(put: Put) -> None:
    odd = "\ufeffCafe\u0301\u00a0au\u2009lait, o\ufb03ce, sep\u00adarate, ze\u200bro."
    book = read_book(put("novel.txt", novel().replace("\n", "\r\n") + "\r\n\r\n" + odd))
    assert book.chapters[-1].text == TEXTS[-1] + "\n\nCafé au lait, office, separate, zero."


@pytest.mark.parametrize(
    "setting",
    [{}, {"gap": "\n"}, {"wrap": 72}, {"wrap": 45}, {"wrap": 66, "indent": "   ", "gap": "\n"}],
)
def test_paragraphs_are_the_same_however_a_text_is_set(setting: dict, put: Put) -> None:
    check_novel(read_book(put("novel.txt", novel(**setting))))


def test_words_broken_at_line_ends_are_joined_and_verse_keeps_its_lines(put: Put) -> None:
    broken = "The keeper walked along the long bank and there he found some-\nthing of the Anglo-\nSaxon age."
    verse = "Salt in the pantry,\n    salt in the bed,\nhow many candles\n    stand over your head?"
    book = read_book(put("novel.txt", novel(wrap=60) + f"\n\n{broken}\n\n{verse}"))
    *_, joined, lines = book.chapters[-1].text.split("\n\n")
    assert joined.endswith("and there he found something of the Anglo-Saxon age.")
    assert lines == verse.replace("    ", "")


@pytest.mark.parametrize(
    "headings, titles",
    [
        (["CHAPTER I.", "CHAPTER II.", "CHAPTER IV"], ["CHAPTER I", "CHAPTER II", "CHAPTER IV"]),
        (["1.", "2.", "3."], ["1", "2", "3"]),
        (["## Chapter 1", "## Chapter 2", "## Chapter 3"], ["Chapter 1", "Chapter 2", "Chapter 3"]),
        (["Prologue", "Part Two: Rain", "Epilogue"], ["Prologue", "Part Two: Rain", "Epilogue"]),
        (
            ["CHAPTER I. THE MILL.", "Chapter 2 — Rain", "CHAPTER III\n\nTHE LAST GATE"],
            ["CHAPTER I. THE MILL", "Chapter 2 — Rain", "CHAPTER III: THE LAST GATE"],
        ),
    ],
)
def test_headings_are_known(headings: list[str], titles: list[str], put: Put) -> None:
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in zip(headings, TEXTS))
    book = read_book(put("novel.txt", text))
    assert [chapter.title for chapter in book.chapters] == titles
    assert [chapter.text for chapter in book.chapters] == TEXTS[:3]


def test_contents_licence_and_sentences_make_no_chapters(put: Put) -> None:
    sentence = "\n\nChapter one of the story was long.\n\nBook in hand, he went."
    book = read_book(put("novel.txt", novel() + sentence))
    assert book.chapters[-1].text == TEXTS[-1] + sentence
    listed = "".join(f"Chapter {n}: {name} ... {n}\n" for n, name in zip(NUMBERS, NAMES))
    start = "*** START OF THE PROJECT GUTENBERG EBOOK THE KEEPER ***\n\n"
    licence = textwrap.fill(TEXTS[1], 72)
    end = f"\n\n*** END OF THE PROJECT GUTENBERG EBOOK ***\n\n{licence}"
    for contents in (listed, listed.replace("\n", "\n\n")):
        head = f"{licence}\n\n{start}The Keeper\n\nContents\n\n{contents}\n\nFor my mother.\n\n"
        check_novel(read_book(put("novel.txt", novel(wrap=72, head=head) + end)))


def test_a_text_without_headings_is_cut_into_equal_parts(put: Put) -> None:
    texts = paragraphs(152, seed=5)
    book = read_book(put("novel.txt", "\n\n".join(texts)))
    assert [chapter.title for chapter in book.chapters] == [f"part {i}" for i in range(1, 5)]
    assert book.units == "parts" and book.title == "novel"
    assert "\n\n".join(chapter.text for chapter in book.chapters) == "\n\n".join(texts)
    assert all(1400 < len(words) < 1650 for words in words_of(book))


# --- EPUB --------------------------------------------------------------------------------------


def page(body: str) -> str:
    return f'<?xml version="1.0"?><html><head><title/></head><body>{body}</body></html>'


def html(texts: Sequence[str]) -> str:
    return "".join(f"<p>{text}</p>\n" for text in texts)


CHAPTERS = [f"<h1>Chapter {n}</h1>{html([name, *b])}" for n, name, b in zip(NUMBERS, NAMES, BODIES)]


def make_epub(documents: dict[str, str | bytes], ncx: str = "") -> bytes:
    """An EPUB of documents by file name, in their order; `nav.xhtml` is its navigation."""
    items = "".join(
        f'<item id="{name}" href="text/{name}" properties="{name[:-6]}"/>'
        for name in sorted(documents)
    )
    order = "".join(f'<itemref idref="{name}"/>' for name in documents)
    content = {
        "META-INF/container.xml": '<container><rootfile full-path="OPS/a.opf"/></container>',
        "OPS/toc.ncx": f"<ncx>{ncx}</ncx>",
        "OPS/a.opf": '<package xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>The Keeper</dc:title>'
        f'{items}<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/>{order}</package>',
    } | {f"OPS/text/{name}": text for name, text in documents.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def documents() -> dict[str, str | bytes]:
    """Four chapters, the last two in one document, and what surrounds them."""
    first, second, third, fourth = CHAPTERS
    return {
        "cover.xhtml": page("<img src='x.png'/>" + html(BODIES[0])),
        "z.xhtml": page(first + "<a id='x'/><script>var water = 1;</script>"),
        "y.xhtml": page(second.replace("</h1>", "</h1><h2><img/></h2>")),
        "x.xhtml": page(f"<section>{third}</section><section>{fourth}</section>"),
        "rights.xhtml": page("<h2>Copyright</h2>" + html(BODIES[1])),
        "nav.xhtml": page("<nav><a href='z.xhtml'>Chapter One</a></nav>" + html(BODIES[0])),
    }


def test_an_epub_is_read_in_the_order_of_its_spine(put: Put) -> None:
    book = read_book(put("novel.epub", make_epub(documents())))
    check_novel(book)
    assert book.title == "The Keeper"


def test_titles_come_from_the_contents_where_there_are_no_headings(put: Put) -> None:
    plain: dict[str, str | bytes] = {f"c{i}.xhtml": page(html(b)) for i, b in enumerate(BODIES)}
    points = "".join(
        f"<navPoint><navLabel><text>{title}</text></navLabel><content src='text/c{i}.xhtml#a'/></navPoint>"
        for i, title in enumerate(TITLES)
    )
    check_novel(read_book(put("old.epub", make_epub(plain, points))))
    links = "".join(f"<a href='c{i}.xhtml'>{title}</a>" for i, title in enumerate(TITLES))
    new = make_epub(plain | {"nav.xhtml": page(f"<nav>{links}</nav>")})
    check_novel(read_book(put("new.epub", new)))


def test_line_breaks_and_entities_of_an_epub(put: Put) -> None:
    verse = "<p>Salt in the pantry,<br/>\n  salt in the&nbsp;<i>bed</i> &mdash;</p>"
    changed = documents() | {"y.xhtml": page(CHAPTERS[1] + verse)}
    book = read_book(put("novel.epub", make_epub(changed)))
    assert book.chapters[1].text == TEXTS[1] + "\n\nSalt in the pantry,\nsalt in the bed —"


# --- PDF ---------------------------------------------------------------------------------------


def make_pdf(pages: Sequence[Sequence[str]], header: str = "", numbers: bool = True) -> bytes:
    """Pages of lines; "" leaves a gap."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}), PdfPages(buffer) as file:
        for number, lines in enumerate(pages, start=1):
            figure = Figure(figsize=(6, 9))
            figure.text(0.5, 0.96, header.format(number), ha="center")
            for i, line in enumerate(lines):
                figure.text(0.1, 0.93 - 0.024 * i, line)
            figure.text(0.5, 0.03, str(number) if numbers else "")
            file.savefig(figure)
    return buffer.getvalue()


def set_pages(text: str, lines: int = 34) -> list[list[str]]:
    rows = text.split("\n")
    return [rows[start : start + lines] for start in range(0, len(rows), lines)]


def broken(text: str) -> str:
    """Break a word at the end of every line where the next one can spare it."""
    return re.sub(r"\n([a-z]{3})([a-z]{3})", r" \1-\n\2", text)


def test_a_pdf_is_read_without_headers_page_numbers_and_broken_words(put: Put) -> None:
    pages = set_pages(broken(novel(wrap=58, head="")))
    book = read_book(put("novel.pdf", make_pdf(pages, header="{}   The Keeper’s Book")))
    assert [chapter.title for chapter in book.chapters] == TITLES
    assert words_of(book) == [text.split() for text in TEXTS]
    assert all(len(chapter.text.split("\n\n")) > 5 for chapter in book.chapters)


def test_running_headers_that_read_as_headings_make_no_chapters(put: Put) -> None:
    pages: list[list[str]] = []
    for number, text in zip(NUMBERS, TEXTS):
        pages += [[f"Chapter {number}", *p] for p in set_pages(textwrap.fill(text, 58), 20)]
    book = read_book(put("novel.pdf", make_pdf(pages)))
    assert [chapter.title for chapter in book.chapters] == [f"Chapter {n}" for n in NUMBERS]
    assert words_of(book) == [text.split() for text in TEXTS]


# --- files that are no book --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("novel.docx", b"text", "There is no .txt, .epub, .pdf file"),
        ("a.txt", b" \r\n\t\n", "no text"),
        ("a.txt", random.Random(0).randbytes(20_000), "save it as UTF-8"),
        ("a.txt", b"\x01\x02abc" * 500, "save it as UTF-8"),
        ("a.txt", b"Chapter One\n\nA line.\n\nChapter Two\n\nAnother.", "too short"),
        ("a.txt", (TEXTS[0] + TEXTS[1] + TEXTS[2]).replace("\n", " ").encode(), "in 1 parts"),
        ("a.epub", make_epub(documents())[:3000], "cannot be read"),
        ("a.epub", make_epub({"a.xhtml": random.Random(0).randbytes(5000)}), "encrypted"),
        ("a.epub", make_epub({}), "too short"),
        ("a.pdf", make_pdf([["water"]])[:-200], "cannot be read"),
        ("a.pdf", make_pdf([[]] * 3, numbers=False), "run OCR first"),
    ],
)
def test_what_is_no_book_is_refused(name: str, content: bytes, says: str, put: Put) -> None:
    path = put(name, content)
    message = refusal(read_book, path)
    assert says in message and str(path) in message
    assert "There is no" in refusal(read_book, path.with_name("gone.txt"))


# --- the parts of a book -----------------------------------------------------------------------


def settings(**changed: Any) -> BookData:
    return BookData.model_validate({"retain": "embedded"} | changed)


def counts(*numbers: int) -> dict[str, int]:
    return dict(zip(("forget_chapters", "kept_chapters", "control_chapters"), numbers))


def places(splits: data.BookSplits) -> list[list[int]]:
    """The places of each part's chapters in the book."""
    order = {chapter: place for place, chapter in enumerate(splits.book.chapters)}
    return [[order[chapter] for chapter in splits.chapters(part)] for part in data.PARTS]


def test_the_saga_is_dealt_and_is_not_in_the_prose() -> None:
    splits = data.load(settings(questions="embedded"))
    assert splits.book.title == "Wet Rent" and len(splits.book.chapters) == 24
    assert [len(part) for part in places(splits)] == [8, 8, 8]
    assert (len(splits.held_out_prose), len(splits.prose)) == (12, 36)
    assert not set(splits.prose) & set(splits.held_out_prose)
    other = data.load(settings(split_seed=1, retain_rows=5))
    assert other.parts != splits.parts and set(other.prose) != set(splits.prose[:5])
    questions = normal_questions("embedded")["question"]
    assert sorted(splits.questions) == sorted(questions) != list(splits.questions)


@given(seed=st.integers(0, 2**32), numbers=st.tuples(*[st.integers(1, 8)] * 3))
@hypothesis_settings(max_examples=10)
def test_parts_never_meet_and_keep_the_order(seed: int, numbers: tuple[int, int, int]) -> None:
    parts = places(data.load(settings(split_seed=seed, **counts(*numbers))))
    assert [len(part) for part in parts] == list(numbers)
    assert all(part == sorted(part) for part in parts)
    assert len({i for part in parts for i in part}) == sum(numbers)


def test_what_cannot_be_split_is_refused(put: Put) -> None:
    path = put("novel.txt", novel())
    assert [len(part) for part in places(data.load(settings(file=path, **counts(2))))] == [2, 1, 1]
    assert "has 4 chapters" in refusal(data.load, settings(file=path, **counts(2, 2, 1)))
    assert "normal_prompts 48" in refusal(data.load, settings(normal_prompts=48))
    texts = load_prose("embedded")
    body = "\n\n".join(f"Chapter {n}\n\n" + "\n\n".join(texts[:6]) for n in NUMBERS)
    message = refusal(data.load, settings(file=put("prose.txt", body)))
    assert "contains the book: 6 of 48 passages" in message


def run_of(first: int, last: int) -> str:
    return " ".join(f"word{i}" for i in range(first, last))


def test_stock_phrases_are_let_pass_and_more_is_refused() -> None:
    book, own = [run_of(0, 2000)], [" ".join(f"own{i}x{j}" for j in range(60)) for i in range(400)]
    phrases = [f"{text} {run_of(100, 113).upper()}!" for text in own]
    data.refuse_overlap(book, phrases[:4] + own[4:])
    assert "5 of 400" in refusal(data.refuse_overlap, book, phrases[:5] + own[5:])
    assert "1 of 401" in refusal(data.refuse_overlap, book, [*own, run_of(500, 600)])
    data.refuse_overlap([run_of(0, 20), run_of(20, 40)], [run_of(0, 12), ""])
