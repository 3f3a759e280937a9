"""Executed notebooks and data cards as pages; nothing on them runs or is fetched.

nbconvert's bare template gives the body; what it gives is then cleaned: no script, no style sheet
of its own, no picture from elsewhere, no path of the machine that ran it. Formulas become
pictures, pictures get a text in their place, long cells of code are folded.
"""

import base64
import io
import re
from pathlib import Path
from typing import Any

import bleach
import nbformat
import yaml
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup
from matplotlib import mathtext
from nbconvert import HTMLExporter

from unlearn_lib.util import ROOT

NOTEBOOKS, CARDS = ROOT / "notebooks", ROOT / "data_cards"
FOLDED_LINES = 12
"""Cells of code longer than this are folded."""
ELSEWHERE = "home|root|tmp|work|mnt|media|Users|private|var|opt|usr"
PATH = re.compile(rf"(?<![\w.:/~+])/(?:{ELSEWHERE})(?:/[^\s'\"<>&;:,()\[\]{{}}\\]+)+/?")
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
TAGS = frozenset(
    "a b blockquote br caption code details div em h2 h3 h4 h5 h6 hr i img li ol p pre s section "
    "small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
ATTRIBUTES = "alt aria-label class colspan id open role rowspan scope style tabindex".split()
UNWANTED = (
    "script, style, link, iframe, object, embed, .output_stderr, img:not([src^='data:image/'])"
)
UNSAID = (None, "", "No description has been provided for this image")


def notebooks(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Return title, note and body of each notebook by the name of its page.

    A notebook has a page per executed copy in `folder` (one per model and seed); one that was never
    executed is shown without outputs.
    """
    shown = {}
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        copies = sorted(folder.glob(f"{source.stem}*.ipynb"))
        executed = [path for path in copies if not path.stem.endswith(".failed")]
        for path in executed or [source]:
            of = path.stem.partition("__")[2].replace("__s", ", seed ")
            note = f"Executed {of}".strip() if executed else "Not executed, so without outputs"
            title, body = page(nbformat.read(path, as_version=4), path.stem)
            shown[path.stem] = (title, note, body)
    return shown


def cards() -> dict[str, tuple[dict[str, Any], str]]:
    """Return the head of each data card and its text as clean HTML, by the name of its page."""
    shown = {}
    for path in sorted(CARDS.glob("*.md")):
        _, head, text = path.read_text(encoding="utf-8").split("---\n", 2)
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="card")])
        shown[f"card_{path.stem}"] = (yaml.safe_load(head), page(notebook, path.stem)[1])
    return shown


def page(notebook: nbformat.NotebookNode, name: str) -> tuple[str, str]:
    """Return the title of a notebook, by default its name, and its body as clean HTML."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(_drawn, cell.source)
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    title = soup.h1.extract().get_text().strip() if soup.h1 else name
    _tidy(soup, title)
    body = bleach.clean(
        without_paths(str(soup)),
        tags=TAGS,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=CSSSanitizer(),
        strip=True,
    )
    return title, body


def without_paths(text: str) -> str:
    """Return a text in which folders of a machine are replaced by what they lead to.

    Paths within the repository become relative ones; of others only the last name is left.
    """
    text = re.sub(rf"{re.escape(str(ROOT))}(?:/|(?=[^\w.-]|$))", "", text)
    return PATH.sub(lambda match: f"…/{Path(match[0]).name}", text)


def _drawn(match: re.Match[str]) -> str:
    """A formula as a picture that is part of the page, its TeX in its place."""
    formula, picture = match[1].strip(), io.BytesIO()
    mathtext.math_to_image(f"${formula.rstrip('.')}$", picture, dpi=160, format="png")
    code, text = base64.b64encode(picture.getvalue()).decode(), formula.replace('"', "'")
    return f'<img class="formula" src="data:image/png;base64,{code}" alt="Formula: {text}">'


def _allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute stays: pictures only from within, links to everywhere but data."""
    if (tag, name) == ("img", "src"):
        return value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
    return (tag, name) == ("a", "href") and not value.startswith("data:") or name in ATTRIBUTES


def _tidy(soup: BeautifulSoup, title: str) -> None:
    """Leave out what runs; describe pictures, fold long code, let wide tables scroll."""
    for tag in soup.select(f"{UNWANTED}, img:not([src^='data:image/'])"):
        tag.decompose()
    for heading in soup.find_all("h1"):
        heading.name = "h2"
    for corner in soup.find_all("th"):
        corner.name = "th" if corner.get_text(strip=True) else "td"
    for image in soup.find_all("img"):
        above = image.find_previous(["h2", "h3", "h4"]), image.find_previous("p")
        words = [" ".join(tag.get_text().split()) for tag in above if tag]
        if image.get("alt") in UNSAID:
            image["alt"] = ": ".join(words)[:240]
    for block in soup.select("div.input"):
        count = block.get_text().strip().count("\n") + 1
        if count > FOLDED_LINES:
            summary = soup.new_tag("summary", string=f"Code, {count} lines")
            block.wrap(soup.new_tag("details")).insert(0, summary)
    for number, table in enumerate(soup.find_all("table"), 1):
        region = {"class": "scroll", "role": "region", "aria-label": f"Table {number} of {title}"}
        table.wrap(soup.new_tag("div", attrs=region | {"tabindex": "0"}))
    for code in soup.find_all("pre"):
        code["tabindex"] = "0"
