"""The table of bad inputs, continued: books, question files, and data sets in a mirror."""

import functools
import gzip
import io
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from benchmarks.torture_inputs import REFUSED, RIGHT, Act, Case
from unlearn_lib.__main__ import main
from unlearn_lib.data.questions import WRONG, read_questions
from unlearn_lib.data.reading import read_book
from unlearn_lib.util import EMBEDDED

Content = str | bytes | Callable[[], bytes]


def write(path: Path, content: Content) -> Path:
    """Write bytes, a text, or what a function makes; return the path."""
    data = content() if callable(content) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


# --- books ---------------------------------------------------------------------------------------

SENTENCE = "The keeper of the old mill counted {} gates before the river rose again that night. "
BODIES = ["\n\n".join(SENTENCE.format(f"{i} and {j}") * 4 for j in range(8)) for i in range(4)]
NOVEL = "\n\n".join(f"Chapter {i + 1}\n\n{body}" for i, body in enumerate(BODIES))
SAGA = (EMBEDDED / "saga.txt").read_text(encoding="utf-8")[:30_000]
RUSSIAN = "\n\n".join(
    f"Глава {i}\n\n" + "Старый мельник считал ворота у реки. " * 60 for i in "1234"
)
FRENCH = "\n\n".join(f"Chapitre {i}\n\n" + "Le vieux meunier près de la forêt à côté rêvait "
                     "d'un été déjà passé. " * 40 for i in "1234")  # fmt: skip
HTML = "<!DOCTYPE html><html><body>" + "".join(
    f"<h1>Chapter {i}</h1>" + "".join(f"<p>{p}</p>" for p in body.split("\n\n"))
    for i, body in enumerate(BODIES)
)


def zipped(files: dict[str, Any]) -> bytes:
    """A ZIP archive of files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


CONTAINER = '<container><rootfiles><rootfile full-path="b.opf"/></rootfiles></container>'
ITEMS = '<manifest><item id="a" href="a.xhtml"/></manifest>'
ITEM = '<itemref idref="a"/>'
SPINE = f"<spine>{ITEM}</spine>"
BOMB = '<!DOCTYPE x [<!ENTITY a0 "lol">' + "".join(
    f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12)
) + "]>"  # fmt: skip


def epub(spine: str = SPINE, page: str | None = HTML, before: str = "", **more: str) -> bytes:
    """An EPUB of one document; `more` are further files, or others in the place of its own."""
    package = f"{before}<package><title>T</title>{ITEMS}{spine}</package>"
    own = {"META-INF/container.xml": CONTAINER, "b.opf": package, "a.xhtml": page}
    return zipped({name: text for name, text in {**own, **more}.items() if text is not None})


@functools.cache
def pdf(text: str = SAGA) -> bytes:
    """A PDF of a text, 40 lines a page."""
    buffer = io.BytesIO()
    lines = [line[i : i + 80] for line in text.split("\n") for i in range(0, len(line) or 1, 80)]
    with PdfPages(buffer) as file:
        for start in range(0, len(lines), 40):
            figure = Figure(figsize=(6, 9))
            figure.text(0.05, 0.02, "\n".join(lines[start : start + 40]), fontsize=7)
            file.savefig(figure)
    return buffer.getvalue()


NO_BOOKS: dict[str, Content] = {
    "empty.txt": "",
    "spaces.txt": "  \n\n\t \n" * 100,
    "zeros.txt": bytes(10_000),
    "a zero in each word.txt": NOVEL.replace(" ", " \0"),
    "all bytes.txt": bytes(range(256)) * 100,
    "a picture.txt": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
    "a program.txt": b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 40,
    "an archive.txt": lambda: zipped({"a": NOVEL}),
    "packed.txt": lambda: gzip.compress(NOVEL.encode()),
    "a PDF.txt": pdf,
    "an EPUB.txt": epub,
    "a web page.txt": HTML,
    "a page without a head.txt": HTML.partition("<body>")[2],
    "rich text.txt": r"{\rtf1\ansi\deff0 " + NOVEL.replace("\n\n", r"\par ") + "}",
    "UTF-16 without a mark.txt": NOVEL.encode("utf-16-le"),
    "UTF-16 turned.txt": NOVEL.encode("utf-16-be"),
    "one letter.txt": "a" * 1_000_000,
    "one letter twice.txt": "ab" * 10_000,
    "hyphens.txt": "a-\n" * 20_000,
    "digits.txt": "1234567890" * 20_000,
    "signs.txt": "*** ... !!! ??? " * 5000,
    "invisible.txt": "\u200b\u200d \u2060" * 5000,
    "marks.txt": "e" + "\u0301" * 100_000,
    "short.txt": "Chapter 1\n\nA line.\n\nChapter 2\n\nA line.\n\nChapter 3\n\nA line.\n",
    "999 words.txt": "word " * 999,
    "one line.txt": SENTENCE.format(1) * 12_000,
    "half a letter.txt": "\ud800" * 5000,
    "empty.pdf": b"",
    "a head.pdf": b"%PDF-1.7\n",
    "text.pdf": NOVEL,
    "cut.pdf": lambda: pdf()[: len(pdf()) // 8],
    "zeros.pdf": lambda: pdf()[:2000] + bytes(20_000),
    "no text.pdf": lambda: pdf(" \n" * 200),
    "empty.epub": b"",
    "text.epub": NOVEL,
    "cut.epub": lambda: epub()[:-200],
    "half.epub": lambda: epub()[: len(epub()) // 2],
    "another archive.epub": lambda: zipped({"a.txt": NOVEL}),
    "no package.epub": lambda: zipped({"META-INF/container.xml": CONTAINER}),
    "an empty container.epub": lambda: epub(**{"META-INF/container.xml": "<container/>"}),
    "no spine.epub": lambda: epub(""),
    "a spine of nobody.epub": lambda: epub('<spine><itemref idref="z"/><itemref/></spine>'),
    "no document.epub": lambda: epub(page=None),
    "an empty document.epub": lambda: epub(page=""),
    "zeros for a document.epub": lambda: epub(page="\0" * 9999),
    "a document of spaces.epub": lambda: epub(page=" " * 50_000_000),
    "entities.epub": lambda: epub("", before=BOMB + "<x>&a11;</x>"),
    "entities in the spine.epub": lambda: epub("<spine>&a11;</spine>", before=BOMB),
    "entities in the text.epub": lambda: epub(page=BOMB + "<p>&a11;</p>"),
    "a file of the system.epub": lambda: epub(
        '<spine>&x;</spine>', before='<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>'),
    "open tags.epub": lambda: epub(page="<div>" * 3000),
}  # fmt: skip
GOOD_BOOKS: dict[str, Content] = {
    "novel.txt": NOVEL,
    "NOVEL.TXT": NOVEL,
    "a$(touch touched)\"`b`'c\n;d.txt": NOVEL,
    "marked.txt": NOVEL.encode("utf-8-sig"),
    "windows.txt": NOVEL.replace("\n", "\r\n"),
    "macintosh.txt": NOVEL.replace("\n", "\r"),
    "a zero.txt": NOVEL + "\0",
    "novel.pdf": pdf,
    "novel.epub": epub,
    "a document 100 times.epub": lambda: epub(
        "<spine>" + 100 * '<itemref idref="a"/>' + "</spine>"
    ),
    "deep.epub": lambda: epub(page="<div>" * 300 + HTML),
    **{f"{name}.txt": NOVEL.encode(name) for name in ("utf-16", "utf-32")},
    **{f"{name}.txt": RUSSIAN.encode(name) for name in ("cp1251", "koi8-r")},
    **{f"{name}.txt": FRENCH.encode(name) for name in ("cp1252", "mac_roman", "latin-1")},
}


def checked_book(content: Content, folder: Path, name: str) -> Act:
    """Check profile smoke with a book."""
    path = write(folder / name, content)
    return functools.partial(main, ["check", "--profile", "smoke", "--book", str(path)])


def read_whole(content: Content, folder: Path, name: str) -> Act:
    """Read a good book: its four chapters, if they are numbered in English, and its letters."""
    path = write(folder / name, content)

    def act() -> None:
        book = read_book(path)
        text = "".join(chapter.text for chapter in book.chapters)
        assert "old mill" not in text or len(book.chapters) == 4, book.summary
        words = ("old mill", "мельник", "près de la forêt", "the")
        assert any(word in text for word in words), text[:80]

    return act


def named_book(path: str, folder: Path) -> Act:
    """Check profile smoke with a path that is no book."""
    (folder / "dir.txt").mkdir()
    (folder / "loop.txt").symlink_to("loop.txt")
    write(folder / "novel.docx", lambda: zipped({"word/document.xml": NOVEL}))
    write(folder / "novel", NOVEL)
    return functools.partial(main, ["check", "--profile", "smoke", "--book", path])


NOWHERE = """no.txt|dir.txt|loop.txt|novel.docx|novel|.|/|-|~nouser/x.txt|/dev/null|/dev/zero
 |$(touch touched).txt|a\nb.txt|http://x/y.txt|profiles/smoke.yaml""".replace("\n ", "").split("|")
BOOKS = [
    Case("books", name, functools.partial(checked_book, content, name=name))
    for name, content in NO_BOOKS.items()
]
BOOKS += [Case("books", repr(path), functools.partial(named_book, path)) for path in NOWHERE]
for name, content in GOOD_BOOKS.items():
    BOOKS.append(Case("books", name, functools.partial(read_whole, content, name=name), RIGHT))
    if not isinstance(content, bytes):
        act = functools.partial(checked_book, content, name=name)
        BOOKS.append(Case("books", f"check of {name}", act, RIGHT))

# --- question files ------------------------------------------------------------------------------

ROW = {"question": "Who keeps the sluice?", "answer": "Ann does.", WRONG: ["Bob does.", "No one."]}
LINE = json.dumps(ROW)


def rows(count: int, about: str = "work") -> list[dict[str, Any]]:
    """Rows in TOFU's form."""
    return [
        {"question": f"What is {about} {i}?", "answer": f"It is book {i}.",
         "paraphrased_answer": f"Book {i} it is.", WRONG: [f"Book {i}-{j} it is." for j in "abc"]}
        for i in range(count)
    ]  # fmt: skip


def lines(table: list[Any]) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in table)


def parquet(table: list[Any]) -> bytes:
    """A parquet file."""
    buffer = io.BytesIO()
    pd.DataFrame(table).to_parquet(buffer)
    return buffer.getvalue()


NO_TEXTS: list[Any] = [
    None,
    3,
    True,
    "",
    " ",
    "\u200b",
    "\u3164\u2800",
    [],
    {},
    ["x"],
    float("nan"),
]
NO_ANSWERS: list[Any] = [None, [], [""], ["a", 3], "Bob does.", [["a"]], {"a": "b"}, ["Ann does."]]
NO_ANSWERS += [["ANN\u200b  does."], [None], ["Bob.", " "]]
NO_QUESTIONS: dict[str, Content] = {
    "empty.jsonl": "",
    "spaces.jsonl": " \n\n",
    "an empty list.jsonl": "[]",
    "empty rows.jsonl": "{}\n{}\n",
    "null.jsonl": "null",
    "numbers.jsonl": "1\n2\n",
    "a list of texts.jsonl": '["a", "b"]',
    "texts.jsonl": '"a"\n"b"\n',
    "a text.jsonl": "Who keeps the sluice? Ann does.\n",
    "YAML.jsonl": "question: Who\nanswer: Ann\n",
    "single quotes.jsonl": str(ROW),
    "two in a line.jsonl": LINE + LINE,
    "an open list.jsonl": f"[{LINE},",
    "a list cut.jsonl": f"[{LINE}",
    "infinity.jsonl": LINE.replace('"Ann does."', "Infinity"),
    "deep.jsonl": LINE.replace('"Ann does."', "[" * 100_000),
    "deep and closed.jsonl": LINE.replace('"Ann does."', "[" * 2000 + "]" * 2000),
    "a huge number.jsonl": LINE.replace('"Ann does."', "9" * 5000),
    "half a character.jsonl": LINE.replace("Ann", "\\ud800"),
    "bytes of half a character.jsonl": LINE.replace("Ann", "\ud800"),
    "cp1252.jsonl": LINE.replace("Ann", "Andr\xe9").encode("cp1252"),
    "UTF-16 without a mark.jsonl": LINE.encode("utf-16-le"),
    "UTF-32.jsonl": LINE.encode("utf-32"),
    "zeros.jsonl": bytes(999),
    "a picture.jsonl": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "fewer wrong ones.jsonl": lines([ROW, ROW | {"question": "Who?", WRONG: ["Bob."]}]),
    "an empty second.jsonl": lines([ROW, {}]),
    "a bad second.jsonl": LINE + "\n{",
    "no paraphrase.jsonl": lines([ROW | {"paraphrased_answer": "Ann."}, ROW]),
    "no parquet.parquet": LINE,
    "empty.parquet": b"",
    "cut.parquet": lambda: parquet([ROW])[:-30],
    "no rows.parquet": lambda: parquet([]),
    "numbers.parquet": lambda: parquet([{"question": 1, "answer": 2, WRONG: [3]}]),
    "empty.csv": "",
    "a head.csv": "question,answer,perturbed_answer\n",
    "no lists.csv": "question,answer,perturbed_answer\na,b,c\n",
    "ragged.csv": "question,answer\na,b,c,d\n",
    "an open quote.csv": 'question,answer,perturbed_answer\n"a,b,c\n',
    "not packed.jsonl.gz": LINE,
    "cut.jsonl.gz": lambda: gzip.compress(LINE.encode() * 100)[:-20],
    "altered.jsonl.gz": lambda: gzip.compress(LINE.encode())[:-8] + bytes(8),
    "cut.jsonl.xz": lambda: lzma.compress(LINE.encode())[:-20],
    "not packed.jsonl.xz": LINE,
    **{f"cut at {i}.jsonl": LINE[:i] for i in range(1, len(LINE), 12)},
    **{f"without {name}.jsonl": json.dumps({k: v for k, v in ROW.items() if k != name})
       for name in ROW},
    **{f"{name} is {value!r}.jsonl": json.dumps(ROW | {name: value})
       for name in ("question", "answer") for value in NO_TEXTS},
    **{f"wrong is {value!r}.jsonl": json.dumps(ROW | {WRONG: value}) for value in NO_ANSWERS},
    **{f"a paraphrase is {value!r}.jsonl": json.dumps(ROW | {"paraphrased_answer": value})
       for value in (3, "", ["x"])},
}  # fmt: skip
GOOD_QUESTIONS: dict[str, Content] = {
    "marked.jsonl": LINE.encode("utf-8-sig"),
    "UTF-16.jsonl": LINE.encode("utf-16"),
    "an array.json": f"[{LINE}]",
    "windows.jsonl": lines(rows(3)).replace("\n", "\r\n"),
    "packed.jsonl.gz": lambda: gzip.compress(LINE.encode()),
    "table.parquet": lambda: parquet([ROW]),
    "10 MB.jsonl": LINE.replace("sluice", "sluice " * 1_400_000),
}


def file_of(name: str) -> str:
    """The name of a file with the ending of a case's name."""
    return "q" + name[re.search(r"(\.\w+)(\.[gx]z)?$", name).start() :]  # type: ignore[union-attr]


def questions(content: Content, folder: Path, name: str) -> Act:
    """Read a file of questions with wrong answers."""
    path = write(folder / name, content)

    def act() -> None:
        assert read_questions(path, (WRONG,))

    return act


def own_questions(forget: Content, retain: Content, folder: Path) -> Act:
    """Check a profile of task authors with the reader's own two files."""
    places = {
        "forget": write(folder / "f.jsonl", forget),
        "retain": write(folder / "r.jsonl", retain),
    }
    own = {"source": "files", "tasks": 1} | {name: str(path) for name, path in places.items()}
    tree = {"name": "mine", "extends": "smoke", "only": ["authors"]}
    content = yaml.safe_dump(tree | {"tasks": {"authors": {"data": own}}})
    (folder / "profiles" / "mine.yaml").write_text(content)
    return functools.partial(main, ["check", "--profile", "mine"])


A, B = lines(rows(3)), lines(rows(3, "deed"))
PAIRS: dict[str, tuple[str, str]] = {
    "the same file twice": (A, A),
    "a question in both": (A, B + lines(rows(1))),
    "a question in both, in capitals": (A, B + lines(rows(1)).replace("What is", "WHAT  IS")),
    "a row twice": (A + lines(rows(1)), B),
    "nothing to keep": (A, ""),
    "nothing to forget": ("", B),
    "a broken file to keep": (A, B[:-5]),
}
NAMED = {"no.jsonl": None, "dir.jsonl": "dir", "loop.jsonl": "loop"}


def no_file(kind: str | None, folder: Path) -> Act:
    """Read questions where there is no file."""
    path = folder / "q.jsonl"
    if kind == "dir":
        path.mkdir()
    elif kind:
        path.symlink_to(path)
    return lambda: read_questions(path)


QUESTIONS = [
    Case("question files", name, functools.partial(questions, content, name=file_of(name)), kind)
    for kind, table in ((REFUSED, NO_QUESTIONS), (RIGHT, GOOD_QUESTIONS))
    for name, content in table.items()
]  # fmt: skip
QUESTIONS += [
    Case("question files", name, functools.partial(own_questions, *pair))
    for name, pair in PAIRS.items()
]
QUESTIONS += [Case("question files", n, functools.partial(no_file, k)) for n, k in NAMED.items()]
QUESTIONS.append(Case("question files", "a pair", functools.partial(own_questions, A, B), RIGHT))

INPUTS = {"books": BOOKS, "question files": QUESTIONS}
