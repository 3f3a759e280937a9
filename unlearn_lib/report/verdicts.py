"""The verdict table of the report: a word and a symbol for each claim, with what was measured."""

from collections import Counter
from collections.abc import Iterable, Sequence

from unlearn_lib.claims import (
    DIRECTION_ONLY,
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    VERDICTS,
    WITHIN_TOLERANCE,
    Verdict,
)
from unlearn_lib.report.figures import caption_of, links
from unlearn_lib.report.grid import Cell, Grid, Row

SYMBOLS = {
    REPRODUCED: "✔",
    WITHIN_TOLERANCE: "≈",
    DIRECTION_ONLY: "↗",
    NOT_REPRODUCED: "✘",
    NOT_JUDGED: "–",
}
"""A symbol for each verdict, so that no colour is needed to tell them."""
FILES = {"headline": "verdicts_headline", "claims": "verdicts"}
"""The tables of the page, and the files that `make figures` writes of them."""
COLUMNS = ("Verdict", "Claim", "Reported", "Measured here", "Why", "Paper", "See")


def verdict_grid(verdicts: Iterable[Verdict], name: str, title: str, shown: set[str]) -> Grid:
    """Return the table of some verdicts, those judged here first.

    `name` is one of `FILES`; `shown` names the experiments that have figures.
    """
    ordered = sorted(verdicts, key=lambda verdict: verdict.verdict == NOT_JUDGED)
    rows = [_row(verdict, name, shown) for verdict in ordered]
    files = links(FILES[name], "csv md tex")
    return Grid(name, title, COLUMNS, rows, heading=1, files=files, stacked=True)


def verdict_counts(verdicts: Sequence[Verdict]) -> list[tuple[str, str, int]]:
    """Return word, symbol and number of claims of every verdict, the best first."""
    counts = Counter(verdict.verdict for verdict in verdicts)
    return [(word, SYMBOLS[word], counts[word]) for word in VERDICTS]


def verdict_filters(verdicts: Sequence[Verdict]) -> dict[str, list[str]]:
    """Return by what the table can be filtered: the papers that it holds, and every verdict."""
    papers = dict.fromkeys(verdict.paper for verdict in verdicts)
    return {"paper": list(papers), "verdict": list(VERDICTS)}


def _row(verdict: Verdict, name: str, shown: set[str]) -> Row:
    kind = f"badge {verdict.verdict.replace(' ', '-')}"
    see = Cell("")
    if verdict.experiment in shown:
        title = caption_of("experiments", verdict.experiment)["title"]
        see = Cell(title, link=f"#figures-{verdict.experiment}")
    cells = [
        Cell(
            f"{SYMBOLS[verdict.verdict]} {verdict.verdict}",
            order=str(VERDICTS.index(verdict.verdict)),
            kind=kind,
        ),
        Cell(verdict.statement),
        Cell(verdict.reported),
        Cell(verdict.measured),
        Cell(verdict.why),
        Cell(f"{verdict.paper}, {verdict.place}"),
        see,
    ]
    facets = {"paper": verdict.paper, "verdict": verdict.verdict}
    return Row(cells, f"{name}-{verdict.id}", facets)
