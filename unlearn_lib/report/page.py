"""One page of the report, as every part of it hands it over."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page of the report: its file stem, its title, its body (HTML) and a line below the title.

    `name` is the stem of the file (`01_parrots` becomes `01_parrots.html`), `title` and `note` are
    plain text, `body` is HTML that is already escaped where it holds text from elsewhere.
    """

    name: str
    title: str
    body: str
    note: str = ""
