"""Headings of chapters, the numbers that they leave out, and how many words a text has.

What a heading is in English, Hebrew and Chinese; what a word is in scripts with and without spaces.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

UNITS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
TENS = "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = dict(zip(f"{UNITS} {TENS}".split(), [*range(1, 21), *range(30, 100, 10)]))
ROMAN = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}
HEADING = re.compile(
    r"(?i:chapter|part|book) (?:\d+|[IVXLC]+|[A-Z][A-Za-z]+(?:-[A-Za-z]+)?)"
    r"(?:[.:]?|[.:]?(?: ?[–—-])? ?[A-Z0-9“‘\"'].{0,60}(?:[^.,;:]|[A-Z]\.)"
    r"|[.:] ?[–—-]? ?[^\Wa-z_].{0,100})"  # "CHAPTER 1. Loomings.": a title with a full stop
    r"|(?i:prologue|epilogue)[.:]?|\d{1,3}\.|פרק [א-ת\d׳״'\"]+[.:]?(?: ?[.:–—-] ?\S.{,60}[^.,:!?])?"
    r"|第 ?[\d〇零一二三四五六七八九十百千两兩]+ ?[章回節节話话卷][^。，；！？…”,.;!?]{0,30}"
)
KINDS = r"chapter |part |book |第 ?|פרק |(?!\S*\w )"  # a bare number is followed by no title
NUMBERED = re.compile(rf"({KINDS})(\d{{1,3}}|[ivxlc]+|[a-z]+(?:-[a-z]+)?)(?=[\W章回節节]|$)", re.I)
SPACELESS = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WIDE = re.compile(f"[{SPACELESS}\u3000-\u303f\uff00-\uffef]")
"""Letters and signs of Chinese and Japanese."""
WORD = re.compile(rf"[{SPACELESS}]|[^\s{WIDE.pattern[1:-1]}]+")


def count_words(text: str) -> int:
    """Return how many words a text has: those between spaces, and each Chinese character."""
    return len(WORD.findall(text))


def missing_numbers(titles: Sequence[str]) -> str:
    """Return the numbers that the commonest kind of numbered title leaves out, as "3, 5–8".

    Fewer than three titles of a kind say nothing. Numbers may begin again, as in a book of several
    parts; those after the last are not known.
    """
    parts = [match.groups() for match in map(NUMBERED.match, titles) if match]
    pairs = [(kind.lower(), _number(number)) for kind, number in parts]
    kinds = Counter(kind for kind, number in pairs if number)
    numbers = [each for kind, each in pairs if each and kinds[kind] == max(3, *kinds.values())]
    ranges = []
    for last, number in pairwise([0, *numbers]):
        first = last + 1 if number >= last else 1
        if number > first:
            ranges.append("–".join(dict.fromkeys((str(first), str(number - 1)))))
    return ", ".join(ranges)


def _number(text: str) -> int:
    """Return the number that digits, a Roman numeral or English words say; 0 where none is."""
    if text.isdecimal():
        return int(text)
    if set(text) <= set(ROMAN):
        values = [ROMAN[letter] for letter in text]
        return sum(-one if one < after else one for one, after in pairwise([*values, 0]))
    return sum(NUMBER_WORDS.get(part, 0) for part in text.lower().split("-"))
