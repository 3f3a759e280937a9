"""Whether a guard can read a prompt: it has text, in scripts that the guard was trained on."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from unlearn_lib.text_classifier import plain

SEEN_SHARE = 0.01
"""Share of the training prompts that must use a script for it to count as seen."""


def scripts_of(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return sorted names of the scripts that at least `SEEN_SHARE` of the prompts use.

    A letter's script is the first word of its Unicode name, such as LATIN, CYRILLIC or CJK.
    """
    names = [set(map(_script, "".join(_words(prompt)))) for prompt in prompts]
    used = Counter(name for each in names for name in each)
    return tuple(sorted(name for name in used if used[name] >= SEEN_SHARE * len(prompts)))


def refusal(prompt: str, seen: Sequence[str]) -> str:
    """Return why a guard cannot judge a prompt, a sentence; empty: it can.

    A prompt is refused without text, when more than half of its letters are of unseen scripts, or
    when a word of three letters or more (two where the script has no upper and lower case) has one
    of an unseen script: a name may be written so, and a look-alike letter may hide one. Greek
    letters in formulas, of one or two letters, are let through, and so are digits and emoji alone.

    Args:
        seen: names of scripts, as `scripts_of` gives them.
    """
    if not plain(prompt):
        return "A prompt is empty: it is refused; ask in words."
    words = _words(prompt)
    foreign = [letter for word in words for letter in word if _script(letter) not in seen]
    unseen = set(foreign)
    refused = 2 * len(foreign) > sum(map(len, words))
    for word in words:
        shortest = 2 if unicodedata.category(word[0]) == "Lo" else 3
        refused |= len(word) >= shortest and not unseen.isdisjoint(word)
    scripts, known = sorted(set(map(_script, unseen))), ", ".join(seen) or "no letters"
    reason = (
        f"The guard cannot read a prompt in {', '.join(scripts)}, it was trained on {known}: it is "
        "refused; write it in letters that the guard knows."
    )
    return reason if refused else ""


def _words(text: str) -> list[str]:
    """Return runs of letters, without combining and letter-like marks (ʻ): of any script."""
    marks = ("Mn", "Mc", "Me", "Lm")
    letters = (letter for letter in plain(text) if unicodedata.category(letter) not in marks)
    return re.findall(r"[^\W\d_]+", "".join(letters))


@functools.lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
