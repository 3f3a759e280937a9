"""The data cards as pages and as one table: what each data set is, whose, and how many rows."""

import mistune
import pandas as pd
import yaml

from unlearn_lib.report.grid import Grid
from unlearn_lib.util import ROOT

FROM = {
    "embedded": "shipped: written for this project",
    "wheel": "fetched: a pinned wheel",
    "hub": "fetched: the hub, its cache or a mirror",
    "user": "the reader's own file",
}
REGION = "<div class='scroll' role='region' aria-label='Files' tabindex='0'><table>"


def cards() -> tuple[Grid, dict[str, tuple[str, str, str]]]:
    """Return the table of all cards, and title, note and body of each one's page by its name."""
    rows, pages, links = [], {}, {}
    render = mistune.create_markdown(escape=True, plugins=["table"])
    for path in sorted((ROOT / "data_cards").glob("*.md")):
        _, head, body = path.read_text(encoding="utf-8").split("---\n", 2)
        header = yaml.safe_load(head)
        title, own = header["pretty_name"], header["companion"]
        licence = header["license"]
        licence = licence if isinstance(licence, str) else ", ".join(licence)
        counts = [file["rows"] for file in own["files"]]
        count = sum(counts) if all(isinstance(n, int) for n in counts) else counts[-1]
        row = {"Data set": title, "Licence": licence, "From": FROM[own["origin"]]}
        rows.append(row | {"Rows": str(count), "Profiles": ", ".join(own["profiles"])})
        text = str(render("\n".join(x for x in body.splitlines() if not x.startswith("# "))))
        text = text.replace("<table>", REGION).replace("</table>", "</table></div>")
        links[title] = f"card_{path.stem}.html"
        pages[f"card_{path.stem}"] = (title, f"{licence}; {row['From']}; {count} rows", text)
    return Grid("cards", "Every data set that a task reads", pd.DataFrame(rows), links=links), pages
