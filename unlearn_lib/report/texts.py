"""What models said before and after, side by side: cut to a few words, harm behind a warning."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from unlearn_lib.notebook import shorten

MOST_PROMPTS, CHARACTERS = 12, 160
WORDS, HARMFUL_WORDS = 24, 12
WARNING = "Harmful prompts and what models answered, each cut to a few words. Open to read."
Texts = Iterable[tuple[str, str, pd.DataFrame]]
"""Task, heading, and a table of texts: prompts first, then what each model said."""


def blocks(texts: Texts) -> list[dict[str, Any]]:
    """Return what the page shows: of each table some rows, each text cut and masked."""
    shown = []
    for task, title, rows in texts:
        harmful = task == "harm"
        words = HARMFUL_WORDS if harmful else WORDS
        cells = [[cut(str(text), words) for text in row] for row in rows.to_numpy()[:MOST_PROMPTS]]
        block = {"title": title, "columns": list(rows.columns), "rows": cells}
        shown.append(block | {"warning": WARNING if harmful else ""})
    return shown


def cut(text: str, words: int) -> str:
    """Return the first words of a text, masked, and no word without an end."""
    short = shorten(text, words) or "(nothing)"
    return short if len(short) <= CHARACTERS else f"{short[:CHARACTERS]} …"
