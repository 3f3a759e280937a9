"""Executed notebooks as pages: code, text, tables and pictures; nothing that runs or is fetched.

nbconvert's bare template gives the body; what it gives is then cleaned: no script, no style sheet
of its own, no picture from elsewhere, no path of the machine that ran it. Formulas become
pictures, pictures get a text in their place, long cells of code are folded.
"""

import base64
import io
import re
from pathlib import Path

import bleach
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup, Tag
from matplotlib import mathtext
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from unlearn_lib.util import ROOT

NOTEBOOKS = ROOT / "notebooks"
FOLDED_LINES = 12
"""Cells of code longer than this are folded."""
ELSEWHERE = "home|root|tmp|work|mnt|media|Users|private|var|opt|usr"
PATH = re.compile(rf"(?<![\w.:/~+])/(?:{ELSEWHERE})(?:/[^\s'\"<>&;:,()\[\]{{}}\\]+)+/?")
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
WIDGET = "application/vnd.jupyter.widget-view+json"
TAGS = frozenset(
    "a b blockquote br caption code details div em h2 h3 h4 h5 h6 hr i img li ol p pre s section "
    "small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
PROPERTIES = (
    "background background-color color font-style font-weight text-align vertical-align white-space"
)
ATTRIBUTES = "alt aria-label class colspan id open role rowspan scope style tabindex".split()
DARKER = ".highlight .ow, .highlight .nd { color: #7a1fc0 } .highlight .nl { color: #5f5f00 }"
"""What of pygments' default style has less contrast than WCAG's 4.5."""
UNSAID = (None, "", "No description has been provided for this image")


def style() -> str:
    """Return the style sheet of highlighted code."""
    return f"{HtmlFormatter(style='default').get_style_defs('.highlight')}\n{DARKER}\n"


def pages(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Return title, note and body of each notebook by the name of its page.

    A notebook has a page per executed copy in `folder` (one per model and seed); one that was never
    executed is shown without outputs.
    """
    shown = {}
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        copies = [*folder.glob(f"{source.stem}.ipynb"), *folder.glob(f"{source.stem}__*.ipynb")]
        executed = sorted(path for path in copies if not path.stem.endswith(".failed"))
        for path in executed or [source]:
            of = path.stem.partition("__")[2].replace("__s", ", seed ")
            note = f"Executed {of}" if executed else "Not executed, so without outputs"
            title, body = page(path)
            shown[path.stem] = (title, note.strip(), body)
    return shown


def page(path: Path) -> tuple[str, str]:
    """Return the title of a notebook and its body as clean HTML."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(lambda match: _drawn(match[1].strip()), cell.source)
        else:
            outputs = [
                output for output in cell.get("outputs", []) if output.get("name") != "stderr"
            ]
            cell["outputs"] = [output for output in outputs if WIDGET not in output.get("data", {})]
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    soup = BeautifulSoup(exporter.from_notebook_node(notebook)[0], "html.parser")
    first = soup.find("h1")
    title = first.extract().get_text().strip() if isinstance(first, Tag) else path.stem
    _tidy(soup, title)
    body = bleach.clean(
        without_paths(str(soup)),
        tags=TAGS,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=CSSSanitizer(allowed_css_properties=PROPERTIES.split()),
        strip=True,
    )
    return title, body


def without_paths(text: str) -> str:
    """Return a text in which folders of a machine are replaced by what they lead to.

    Paths within the repository become relative ones; of others only the last name is left.
    """
    text = re.sub(rf"{re.escape(str(ROOT))}(?:/|(?=[^\w.-]|$))", "", text)
    return PATH.sub(lambda match: f"…/{Path(match[0]).name}", text)


def _drawn(formula: str) -> str:
    """A formula as a picture that is part of the page, its TeX in its place."""
    drawn = io.BytesIO()
    mathtext.math_to_image(f"${formula.rstrip('.')}$", drawn, dpi=160, format="png")
    code = base64.b64encode(drawn.getvalue()).decode()
    text = formula.replace('"', "'")
    return f'<img class="formula" src="data:image/png;base64,{code}" alt="Formula: {text}">'


def _allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute stays: pictures only from within, links to everywhere but data."""
    if (tag, name) == ("img", "src"):
        return value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
    return (tag, name) == ("a", "href") and not value.startswith("data:") or name in ATTRIBUTES


def _tidy(soup: BeautifulSoup, title: str) -> None:
    """Leave out what runs; describe pictures, fold long code, let wide tables scroll."""
    unwanted = "script, style, link, iframe, object, embed, div.prompt"
    for tag in soup.select(f"{unwanted}, img:not([src^='data:image/'])"):
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
