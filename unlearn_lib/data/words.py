"""Words of a text in any script."""

import re
import unicodedata

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese put no spaces between words."""
CODES = (*range(0x300, 0xFE00), *range(0xFE20, 0x1F000))  # all but the variation selectors
MARKS = "".join(sign for sign in map(chr, CODES) if unicodedata.category(sign)[0] == "M")
"""Accents, and vowel signs of Indian and other scripts: part of the letter before."""
WORD = re.compile(rf"[^\W_](?:[^\W_]|[{MARKS}])*")


def spaced(text: str) -> str:
    """Return a text with spaces around each character of a script that puts none between words."""
    return re.sub(rf"([{UNSPACED}][{MARKS}]*)", r" \1 ", text)


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation, ligatures spelt out.

    Where a script puts no spaces between words (`UNSPACED`), each character is a word.
    """
    return [unicodedata.normalize("NFKC", word).lower() for word in WORD.findall(spaced(text))]


def runs_of(text: str, length: int) -> list[tuple[str, ...]]:
    """Return all runs of so many words in a row."""
    words = words_of(text)
    return list(zip(*(words[start:] for start in range(length))))


def holds(text: str, phrase: str) -> bool:
    """Return whether a text holds the words of a phrase, whole and in a row.

    Case, accents and punctuation make no difference: «Charlotte Bronte, in 1847!» holds «Brontë»
    and «1847», and not «184»; «首都は東京です» holds «東京».
    """
    from sklearn.feature_extraction.text import strip_accents_unicode

    plain = (words_of(strip_accents_unicode(each.casefold())) for each in (text, phrase))
    whole, part = (f" {' '.join(words)} " for words in plain)
    return part in whole
