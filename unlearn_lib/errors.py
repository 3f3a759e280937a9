"""The one exception that a reader of a terminal should ever see."""

import difflib
from collections.abc import Iterable


class CompanionError(Exception):
    """Bad input or a missing thing: one sentence that names it, its place and the remedy."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known name, or the list of names."""
    names = sorted(known)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" (did you mean '{match[0]}'?)" if match else f" (known: {', '.join(names)})"
