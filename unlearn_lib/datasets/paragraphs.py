"""Lines of a book to clean paragraphs: odd characters, licence, wrapped lines, hyphens, verse.

The text of every format ends up here. Paragraphs may be separated by empty lines, by indented
first lines, or stand one a line; wrapped lines are joined, lines of verse keep their breaks.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

LONG_LINE = 160  # no hard-wrapped text is this wide: each line is then a paragraph
WRAPPED_LINE = 0.75  # of the width that a line fills when the next one starts in lower case
LISTED_LINES = 8  # lines, each a sentence, that are paragraphs rather than verse

_SPACES = (0xA0, 0x202F, 0x205F, 0x3000, *range(0x2000, 0x200B))
_CONTROLS = (*range(9), *range(14, 32), 0x7F, 0x200B, 0xFEFF)
_LIGATURES = dict(enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"), start=0xFB00))
_CHARACTERS = dict.fromkeys(_CONTROLS, "") | dict.fromkeys(_SPACES, " ") | _LIGATURES
_LICENCE_START = re.compile(r"^ *(\*{3} ?START OF\b[^\n]*|\*END\*THE SMALL PRINT[^\n]*)\n", re.M)
_LICENCE_END = re.compile(r"^ *\*{3} ?END OF\b", re.M)
_SENTENCE_END = re.compile(r"[.!?…:][\"'”’»)\]*_]*$")
_DASH_END = re.compile(r"\w(—|--)$")
_COMPOUND = re.compile(r"[^\W\d_]+-[^\W\d_]+")


@dataclass(frozen=True)
class Layout:
    """How a text is set, found from all of its lines.

    Attributes:
        width: of a full line, in characters.
        slack: share of the width by which a full line may fall short (proportional fonts).
        spaced: whether empty lines separate its paragraphs.
        compounds: words that it writes with a hyphen within a line, and never without.
    """

    width: int
    slack: float
    spaced: bool
    compounds: frozenset[str]


def layout_of(text: str, slack: float = 0.0) -> Layout:
    """Find how a cleaned text is set; `slack` is the Layout's."""
    lines = text.replace("\f", "\n\n").split("\n")
    lengths = sorted(len(line) for line in lines if line) or [0]
    width = lengths[int(0.95 * (len(lengths) - 1))]
    words = set(re.findall(r"[^\W\d_]+", text.lower()))
    compounds = {
        word for word in _COMPOUND.findall(text.lower()) if word.replace("-", "") not in words
    }
    return Layout(width, slack, len(lengths) < 0.9 * len(lines), frozenset(compounds))


def clean(text: str) -> str:
    """Make characters plain: NFC, one kind of line end and space, no control or soft hyphen."""
    text = re.sub(r"\r\n?|\x0b|\x85|\u2028", "\n", text).replace("\u2029", "\n\n")
    text = unicodedata.normalize("NFC", text.translate(_CHARACTERS))
    text = re.sub(r"(?<=\w)\u00ad+ *(?=[\n\f])", "-", text).replace("\u00ad", "").expandtabs(4)
    return re.sub(r" +$", "", text, flags=re.M)


def cut_licence(text: str, dropped: Counter[str]) -> str:
    """Leave out what stands before and after Project Gutenberg's markers, and count it."""
    half = len(text) // 2
    last = next((m.start() for m in _LICENCE_END.finditer(text) if m.start() > half), len(text))
    first = max((m.end() for m in _LICENCE_START.finditer(text) if m.end() < half), default=0)
    dropped["header and licence characters"] += first + len(text) - last
    return text[first:last]


def is_licence_mark(line: str) -> str:
    """Return 'start' or 'end' for a line that is a marker of the licence, else ''."""
    return (_LICENCE_START.match(line + "\n") and "start") or (
        (_LICENCE_END.match(line) and "end") or ""
    )


def ends_sentence(line: str) -> bool:
    """Tell whether a line ends as a sentence does."""
    return bool(_SENTENCE_END.search(line))


def words_in(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


def join_pages(text: str, layout: Layout) -> list[str]:
    """Return the lines of a text without page breaks: a paragraph goes on over one if it seems to.

    It does when the page's last line is full and ends no sentence, or the next page begins in
    lower case; otherwise the break becomes an empty line.
    """
    lines: list[str] = []
    for page in text.split("\f"):
        page = page.strip("\n")
        if not page:
            continue
        last = lines[-1] if lines else ""
        full = len(last) >= WRAPPED_LINE * layout.width and page[0] != " "
        goes_on = last and not ends_sentence(last) and (full or page[0].islower())
        lines += ([] if goes_on else [""]) + page.split("\n")
    return lines


def paragraphs_of(lines: Sequence[str], layout: Layout, dropped: Counter[str]) -> list[str]:
    """Join lines into paragraphs; verse keeps its line breaks. Counts the hyphens it takes out."""
    found = []
    for filled, group in groupby(lines, key=bool):
        if filled:
            found += _paragraphs_of_block(list(group), layout, dropped)
    return found


def _paragraphs_of_block(block: list[str], layout: Layout, dropped: Counter[str]) -> list[str]:
    """The paragraphs of lines without an empty one between them."""
    if layout.width > LONG_LINE:
        verse = layout.spaced and max(map(len, block)) < LONG_LINE
    else:
        if _is_wrapped(block, layout):
            return [_joined(group, layout, dropped) for group in _split_at_starts(block, layout)]
        sentences = sum(map(ends_sentence, block))
        verse = len(block) < LISTED_LINES or sentences < 0.7 * len(block)
    plain = [re.sub(" {2,}", " ", line.strip()) for line in block]
    return ["\n".join(plain)] if verse else plain


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _is_full(line: str, following: str, layout: Layout) -> bool:
    """Whether the next line's first word had no room left on this line."""
    room = layout.width * (1 - layout.slack)
    return len(line) + 1 + len(following.split()[0]) > room


def _is_wrapped(block: list[str], layout: Layout) -> bool:
    """Whether half of the lines or more are full, or break a word, as those of verse are not."""
    base = min(map(_indent, block))
    pairs = [(line, after) for line, after in zip(block, block[1:]) if _indent(after) == base]
    pairs = pairs or list(zip(block, block[1:]))
    lower = [after.strip()[0].islower() for _, after in pairs]
    if len(pairs) > 2 and not any(lower):  # capitals at every line: verse, unless exactly full
        layout = replace(layout, slack=0)
    long = WRAPPED_LINE * layout.width
    wrapped = sum(
        _is_full(*pair, layout) or (small and (len(pair[0]) >= long or pair[0][-1] in "-‐"))
        for pair, small in zip(pairs, lower)
    )
    if len(pairs) > 3 and sum(lower) > len(pairs) / 2:  # set narrower, such as a letter
        narrow = replace(layout, width=max(map(len, block)))
        wrapped = max(wrapped, sum(_is_full(*pair, narrow) for pair in pairs))
    return wrapped >= len(pairs) / 2


def _split_at_starts(block: list[str], layout: Layout) -> list[list[str]]:
    """Split a wrapped block at indented lines, and after short lines that end a sentence."""
    base = min(map(_indent, block))
    groups = [[block[0]]]
    for line, after in zip(block, block[1:]):
        short = len(line) + 1 + len(after.split()[0]) < 0.8 * layout.width
        ended = short and ends_sentence(line) and not after.strip()[0].islower()
        if _indent(after) > base or ended:
            groups.append([])
        groups[-1].append(after)
    return groups


def _joined(lines: list[str], layout: Layout, dropped: Counter[str]) -> str:
    """One paragraph of wrapped lines, words broken at a line's end made whole."""
    text = lines[0].strip()
    for line in lines[1:]:
        after = line.strip()
        if len(text) > 1 and text[-1] in "-‐" and text[-2].isalpha():
            first = re.split(r"\W", after, maxsplit=1)[0]
            compound = f"{re.split(r'[^a-z]', text[:-1].lower())[-1]}-{first}"
            if first in ("and", "or", "to"):
                text += " " + after
            elif text[-2].islower() and after[0].islower() and compound not in layout.compounds:
                text = text[:-1] + after
                dropped["hyphenations joined"] += 1
            else:
                text += after
        else:
            text += after if _DASH_END.search(text) else " " + after
    return re.sub(" {2,}", " ", text)
