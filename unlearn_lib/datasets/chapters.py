"""Chapters of a text: headings found and told from a table of contents, or equal parts."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from unlearn_lib.datasets.paragraphs import (
    Layout,
    ends_sentence,
    join_pages,
    layout_of,
    paragraphs_of,
    words_in,
)

MINIMUM_UNITS = 3
PART_WORDS = 1500
OPENING_WORDS = 300  # prose before the first heading that is more than front matter
CONTENTS_WORDS = 15  # a heading with fewer words beneath it may be an entry of the contents
BARE_WORDS = 100  # least median between numbers that stand alone, if they are headings
TITLE_WORDS = 12

_ONES = "one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
_NUMBERS = {word: i for words in ([*_ONES, *_TEENS], _ORDINALS) for i, word in enumerate(words, 1)}
for _ten, _word in enumerate(_TENS, start=2):
    _NUMBERS[_word] = 10 * _ten
    _NUMBERS |= {f"{_word} {one}": 10 * _ten + i for i, one in enumerate(_ONES, start=1)}
_ROMAN = re.compile("(M{0,3})(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"M": 1000, "CM": 900, "D": 500, "CD": 400, "C": 100, "XC": 90, "L": 50, "XL": 40}
_ROMAN_VALUES |= {"X": 10, "IX": 9, "V": 5, "IV": 4, "I": 1}
_PARTS = "part|book|volume|teil|partie|parte|часть"
_CHAPTERS = "chapter|canto|stave|kapitel|chapitre|capítulo|capitolo|hoofdstuk|глава"
_WORDS = "|".join(sorted(_NUMBERS, key=len, reverse=True)).replace(" ", "[- ]")
_NAMED = re.compile(
    rf"(?P<label>(?P<kind>{_PARTS}|{_CHAPTERS})\s+(?:the\s+)?(?P<number>\d+|{_WORDS}|[ivxlc]+))"
    r"(?!\w)(?P<mark>\s*[.:–—-]*)\s*(?P<title>.*)",
    re.I,
)
_ALONE = re.compile(r"(prologue|epilogue|interlude|afterword)[.:]?", re.I)
_BARE = re.compile(r"(?P<label>[IVXLC]+|\d{1,3})(?:[.:]|(?:[.:]\s+|\s*[—–]\s*)(?P<title>\D.*))?")
_LEADER = re.compile(r"(\s*\.){3,}\s*\w*$|\s{3,}\d+$")
_SMALL = frozenset("a an and as at but by for from in into nor of on or the to with".split())


@dataclass(frozen=True)
class Chapter:
    """A chapter, or the page or part that stands in for one.

    Attributes:
        title: "Chapter One: The Sluice", or "page 12", "part 3" where there are no chapters.
        text: paragraphs separated by one empty line; verse lines keep their line breaks.
    """

    title: str
    text: str


@dataclass(frozen=True)
class Draft:
    """What a format's reader found; the fields are `BookText`'s."""

    title: str
    chapters: Sequence[Chapter]
    units: str
    dropped: Counter[str]
    encoding: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading: its first line, the line after it and its title line, and what it says."""

    first: int
    after: int
    kind: str  # "chapter", "part" or "bare"
    number: int
    title: str


def chapter_of(title: str, paragraphs: Sequence[str]) -> Chapter:
    """Make a chapter of paragraphs."""
    return Chapter(title, "\n\n".join(paragraphs))


def chapters_or_parts(
    text: str, dropped: Counter[str], slack: float = 0.0
) -> tuple[list[Chapter], str]:
    """Split a cleaned text at its headings, or into equal parts where it has too few.

    Args:
        text: form feeds are page breaks.
        dropped: counts of what is left out are added to it.
        slack: see `Layout`.

    Returns:
        The chapters, and "chapters" or "parts".
    """
    found = split_at_headings(text, dropped, slack)
    if found:
        return found, "chapters"
    layout = layout_of(text, slack)
    return parts_of(paragraphs_of(join_pages(text, layout), layout, dropped)), "parts"


def split_at_headings(text: str, dropped: Counter[str], slack: float = 0.0) -> list[Chapter]:
    """Split a cleaned text at its headings; nothing where fewer than three have text."""
    layout, counts = layout_of(text, slack), Counter[str]()
    lines = join_pages(text, layout)
    headings = _without_contents(_headings(lines, layout), lines)
    if len(headings) < MINIMUM_UNITS:
        return []
    before = lines[: headings[0].first]
    opening = opening_of(paragraphs_of(before, layout, counts), counts)
    chapters = [*opening, *_chapters(lines, headings, layout, counts)]
    if len(chapters) < MINIMUM_UNITS:
        return []
    dropped.update(counts)
    return chapters


def opening_of(paragraphs: Sequence[str], dropped: Counter[str]) -> list[Chapter]:
    """Keep what precedes the first heading as a chapter if it is prose, else count it."""
    prose = [i for i, paragraph in enumerate(paragraphs) if words_in(paragraph) >= 10]
    long = sum(words_in(paragraphs[i]) for i in prose) > OPENING_WORDS
    first = prose[0] if long else len(paragraphs)
    dropped["front matter characters"] += sum(map(len, paragraphs[:first]))
    return [chapter_of("opening", paragraphs[first:])] if long else []


def parts_of(paragraphs: Sequence[str]) -> list[Chapter]:
    """Cut paragraphs into parts of about 1,500 words, three at least, at paragraph ends."""
    ends = list(accumulate(words_in(paragraph) for paragraph in paragraphs)) or [0]
    count = max(MINIMUM_UNITS, round(ends[-1] / PART_WORDS))
    groups: list[list[str]] = [[] for _ in range(count)]
    for start, end, paragraph in zip([0, *ends], ends, paragraphs):
        groups[min(count - 1, int((start + end) / 2 / max(ends[-1], 1) * count))].append(paragraph)
    filled = [group for group in groups if group]
    return [chapter_of(f"part {i}", group) for i, group in enumerate(filled, start=1)]


def is_heading(line: str) -> bool:
    """Tell whether a line alone reads as a heading with a word ("Chapter IV", "Prologue")."""
    return _heading(line, 0) is not None


def _chapters(
    lines: Sequence[str], headings: Sequence[Heading], layout: Layout, dropped: Counter[str]
) -> list[Chapter]:
    """The text beneath each heading; one that repeats the last goes on with it."""
    found: list[tuple[str, str, list[str]]] = []
    part, last = "", None
    starts = [heading.first for heading in headings[1:]] + [len(lines)]
    for heading, start in zip(headings, starts):
        paragraphs = paragraphs_of(lines[heading.after : start], layout, dropped)
        if heading.kind == "part":
            part = heading.title
        same = (part, heading.kind, heading.number or heading.title)
        if found and last == same:
            found[-1][2].extend(paragraphs)
        elif paragraphs:
            found.append(("" if part == heading.title else part, heading.title, paragraphs))
        elif heading.kind != "part":
            dropped["headings without text"] += 1
        last = same if paragraphs else last
    often = Counter(title for _, title, _ in found)
    return [
        chapter_of(f"{part}, {title}" if part and often[title] > 1 else title, paragraphs)
        for part, title, paragraphs in found
    ]


def _headings(lines: Sequence[str], layout: Layout) -> list[Heading]:
    """Headings in their order; numbers that stand alone only where there is nothing better."""
    named: list[Heading] = []
    bare: list[Heading] = []
    last = 0
    for i, line in enumerate(lines):
        if not line or (layout.spaced and i and lines[i - 1] and i != last):
            continue
        heading = _heading(line, i)
        if heading:
            named.append(_with_title_line(heading, lines, layout))
            last = named[-1].after
        elif bare_heading := _bare_heading(i, lines, layout):
            bare.append(_with_title_line(bare_heading, lines, layout))
    if sum(heading.kind == "chapter" for heading in named) >= MINIMUM_UNITS:
        return named
    return sorted([*named, *_in_sequence(bare, named, lines)], key=lambda heading: heading.first)


def _heading(line: str, place: int) -> Heading | None:
    text = _LEADER.sub("", line.strip(" #*_="))
    if _ALONE.fullmatch(text):
        return Heading(place, place + 1, "chapter", 0, text.rstrip(".:"))
    match = _NAMED.fullmatch(text)
    if not match or len(text.split()) > TITLE_WORDS + 3:
        return None
    title = match["title"].strip(" *_")
    marked = match["mark"].strip()
    if title and not (_is_title(title) and (marked or _is_capitalised(title))):
        return None
    number = _number(match["number"])
    if number is None:
        return None
    kind = "part" if re.fullmatch(_PARTS, match["kind"], re.I) else "chapter"
    label = match["label"] + (f": {title}" if title else "")
    return Heading(place, place + 1, kind, number, label)


def _bare_heading(place: int, lines: Sequence[str], layout: Layout) -> Heading | None:
    """A heading that is a number, or a number and a title, between paragraphs."""
    match = _BARE.fullmatch(lines[place].strip(" #*_="))
    number = _number(match["label"]) if match else None
    if not match or number is None:
        return None
    before = next((line for line in reversed(lines[:place]) if line), "")
    alone = not layout.spaced or place + 1 >= len(lines) or not lines[place + 1]
    title = (match["title"] or "").strip()
    ended = not before or ends_sentence(before) or len(before) < layout.width / 2
    if not ended or (title and not (alone and _is_capitalised(title))):
        return None
    return Heading(
        place, place + 1, "bare", number, match["label"] + (f": {title}" if title else "")
    )


def _in_sequence(
    bare: Sequence[Heading], named: Sequence[Heading], lines: Sequence[str]
) -> list[Heading]:
    """Numbers are headings if nearly each is one more than the last (or 1), and far apart."""
    kept: list[Heading] = []
    for heading in bare:
        expected = kept[-1].number + 1 if kept else 1
        if heading.number == expected or (heading.number == 1 and named):
            kept.append(heading)
    if len(kept) < 2 or len(kept) < 0.8 * len(bare):
        return []
    places = [heading.first for heading in kept]
    between = sorted(words_in(" ".join(lines[i:j])) for i, j in zip(places, [*places[1:], None]))
    return kept if between[len(between) // 2] >= BARE_WORDS else []


def _with_title_line(heading: Heading, lines: Sequence[str], layout: Layout) -> Heading:
    """Take the title that stands on the line below, or below one empty line."""
    after = heading.after
    if ":" in heading.title or after >= len(lines):
        return heading
    apart = not lines[after]
    place = after + apart
    title = lines[place].strip(" #*_=") if place < len(lines) else ""
    closed = not layout.spaced or place + 1 >= len(lines) or not lines[place + 1]
    fits = _is_capitalised(title) if apart or not layout.spaced else _is_title(title)
    if not title or not closed or not fits or is_heading(title) or _BARE.fullmatch(title):
        return heading
    return replace(heading, after=place + 1, title=f"{heading.title}: {title}")


def _is_title(text: str) -> bool:
    """Short, begins as a title does, and is no sentence in lower case."""
    if not text or len(text.split()) > TITLE_WORDS or not (text[0].isupper() or text[0].isdigit()):
        return False
    return text[-1] not in ".,;:" or text.isupper()


def _is_capitalised(text: str) -> bool:
    """A title in capitals, or with capitals at every word of weight."""
    words = re.findall(r"[^\W\d_][\w'’]*", text)
    weighty = [word for word in words if word.lower() not in _SMALL]
    return _is_title(text) and bool(words) and all(word[0].isupper() for word in weighty)


def _without_contents(headings: Sequence[Heading], lines: Sequence[str]) -> list[Heading]:
    """Leave out a table of contents: three headings or more in a row with hardly a word beneath.

    The entry after them is the last of the contents if its heading comes again.
    """
    starts = [heading.first for heading in headings[1:]] + [len(lines)]
    bare = [
        words_in(" ".join(lines[heading.after : start])) < CONTENTS_WORDS
        for heading, start in zip(headings, starts)
    ]
    kept: list[Heading] = []
    run = 0
    for i, heading in enumerate(headings):
        again = any((h.kind, h.number) == (heading.kind, heading.number) for h in headings[i + 1 :])
        if bare[i]:
            run += 1
            kept.append(heading)
            continue
        if run >= MINIMUM_UNITS:
            kept = kept[:-run]
        if run < MINIMUM_UNITS or not again:
            kept.append(heading)
        run = 0
    return kept[:-run] if run >= MINIMUM_UNITS else kept


def _number(text: str) -> int | None:
    """Read "12", "twelve", "Twenty-One", "third" or "XII"; nothing for other words."""
    if text.isdigit():
        return int(text)
    words = text.lower().replace("-", " ")
    if words in _NUMBERS:
        return _NUMBERS[words]
    if not text or not _ROMAN.fullmatch(text.upper()):
        return None
    return sum(_ROMAN_VALUES[sign] for sign in re.findall("CM|CD|XC|XL|IX|IV|.", text.upper()))
