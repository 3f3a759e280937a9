"""What a prompt is written in: its plain form, its scripts, and whether a guard can read it."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from unlearn_lib.errors import CompanionError

SEEN_SHARE = 0.01
"""Share of the training prompts that must use a script for it to count as seen."""

_WORD = re.compile(r"[^\W\d_]+")


def plain(text: str) -> str:
    """Wide, bold and joined letters made plain (NFKC), invisible marks dropped, spaces single."""
    normal = unicodedata.normalize("NFKC", text)
    kept = (letter for letter in normal if unicodedata.category(letter) != "Cf")
    return " ".join("".join(kept).split())


def check_text(what: str, prompt: Any, rest: str) -> None:
    """CompanionError `{what} is ...{rest}` for no text, a blank one, or half a character in it."""
    if not isinstance(prompt, str):
        raise CompanionError(f"{what} is no text but {type(prompt).__name__}{rest}")
    if not plain(prompt):
        raise CompanionError(f"{what} is empty{rest}")
    if any(unicodedata.category(letter) == "Cs" for letter in prompt):
        raise CompanionError(f"{what} has half a character (a lone surrogate){rest}")


def scripts_of(prompts: Sequence[str]) -> tuple[str, ...]:
    """Sorted names of the scripts that at least `SEEN_SHARE` of the prompts have a letter of.

    A letter's script is the first word of its Unicode name, such as LATIN, CYRILLIC or CJK.
    """
    counts = Counter(script for prompt in prompts for script in _scripts("".join(_words(prompt))))
    least = SEEN_SHARE * len(prompts)
    return tuple(sorted(script for script, count in counts.items() if count >= least))


def check_scripts(prompt: str, seen: Sequence[str]) -> None:
    """Refuse a prompt in other scripts than those seen.

    It is refused when more than half of its letters are of unseen scripts, or when a word of three
    letters or more (two where the script has no upper and lower case) has one of an unseen script:
    a name may be written so, and a look-alike letter may hide one. Greek letters in formulas, of
    one or two letters, are let by, and so are digits and emoji alone.

    Raises:
        CompanionError: names the scripts that it has and those that were seen.
    """
    words = _words(prompt)
    letters = Counter(map(_script, "".join(words)))
    unseen = {script: count for script, count in letters.items() if script not in seen}
    if 2 * sum(unseen.values()) > letters.total():
        raise _refusal(f"its letters are {', '.join(sorted(unseen))}", seen)
    for word in words:
        least = 2 if unicodedata.category(word[0]) == "Lo" else 3
        foreign = sorted(_scripts(word) & set(unseen))
        if foreign and len(word) >= least:
            raise _refusal(f"its word '{word}' has letters of {', '.join(foreign)}", seen)


def _refusal(found: str, seen: Sequence[str]) -> CompanionError:
    known = ", ".join(seen) or "no letters"
    return CompanionError(
        f"The guard cannot read this prompt ({found}; it was trained on {known}): it is refused; "
        "write it in letters that the guard knows."
    )


def _words(text: str) -> list[str]:
    """Runs of letters, without combining and letter-like marks (ʻ), which belong to any script."""
    kept = (x for x in plain(text) if unicodedata.category(x) not in ("Mn", "Mc", "Me", "Lm"))
    return _WORD.findall("".join(kept))


def _scripts(letters: Iterable[str]) -> set[str]:
    return {_script(letter) for letter in letters}


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
