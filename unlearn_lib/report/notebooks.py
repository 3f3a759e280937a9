"""Executed notebooks as pages: code, text, tables and pictures; nothing that runs or is fetched.

nbconvert's bare template gives the body; what it gives is then cleaned: no script, no style sheet
of its own, no picture from elsewhere, no path of the machine that ran it. Formulas become
pictures, pictures get their caption as alternative text, long cells of code are folded.
"""

import base64
import functools
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bleach
import nbformat
from bleach.css_sanitizer import CSSSanitizer
from bs4 import BeautifulSoup, Tag
from matplotlib import mathtext
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

from unlearn_lib.profiles import ROOT, Profile
from unlearn_lib.report.page import Page

NOTEBOOKS = ROOT / "notebooks"
FOLDED_LINES = 12
"""Cells of code longer than this are folded."""
ELSEWHERE = ("home", "root", "tmp", "work", "mnt", "media", "Users", "private", "var", "opt", "usr")
PATH = re.compile(rf"(?<![\w.:/~])/(?:{'|'.join(ELSEWHERE)})(?:/[^\s'\"<>&;:,()\[\]{{}}\\]+)+/?")
FORMULA = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
TAGS = frozenset(
    "a b blockquote br caption code details div em h2 h3 h4 h5 h6 hr i img li ol p pre s section "
    "small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
PROPERTIES = frozenset(
    "background background-color color font-style font-weight text-align vertical-align "
    "white-space".split()
)
ATTRIBUTES = frozenset("aria-label class colspan id role rowspan scope style tabindex".split())
DARKER = ".highlight .ow, .highlight .nd { color: #7a1fc0 } .highlight .nl { color: #5f5f00 }"
"""What of pygments' default style has less contrast than WCAG's 4.5."""
UNSAID = "No description has been provided for this image"


def pages(profile: Profile) -> list[Page]:
    """One page per executed notebook of a profile; a notebook never executed shows no outputs."""
    made = []
    for source in sorted(NOTEBOOKS.glob("*.ipynb")):
        found = executed(profile, source.stem)
        made += [_page(path, _told(path, profile)) for path in found]
        if not found:
            note = f"Not executed with profile {profile.name}, so without outputs. "
            made.append(_page(source, f"{note}To execute it: {profile.command}"))
    return made


def executed(profile: Profile, name: str) -> list[Path]:
    """The executed copies of a notebook, one per model and seed; failed ones are none."""
    folder = profile.results / "notebooks"
    found = [*folder.glob(f"{name}.ipynb"), *folder.glob(f"{name}__*.ipynb")]
    return sorted(path for path in found if not path.stem.endswith(".failed"))


def style() -> str:
    """The style sheet of highlighted code, for every page that holds a notebook."""
    return f"{HtmlFormatter(style='default').get_style_defs('.highlight')}\n{DARKER}\n"


def without_paths(text: str) -> str:
    """A text in which folders of this machine, or of another, are replaced by what they lead to.

    Paths within the repository become relative ones; of others only the last name is left.
    """
    text = re.sub(rf"{re.escape(str(ROOT))}(?:/|(?=[^\w.-]|$))", "", text)
    return PATH.sub(lambda found: f"…/{Path(found[0]).name}", text)


def _told(path: Path, profile: Profile) -> str:
    _, _, of = path.stem.partition("__")
    model, _, seed = of.rpartition("__s")
    which = f", model {model}, seed {seed}" if model else ""
    return f"Executed with profile {profile.name}{which}."


def _page(path: Path, note: str) -> Page:
    notebook = nbformat.read(path, as_version=4)
    title = _prepared(notebook) or path.stem
    body, _ = _exporter().from_notebook_node(notebook)
    return Page(path.stem, title, _clean(body, title), note)


@functools.cache
def _exporter() -> HTMLExporter:
    return HTMLExporter(template_name="basic")


def _prepared(notebook: Any) -> str:
    """Leave out what is not to be shown, mask paths, draw formulas; return the title."""
    title = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = re.match(r"#\s+(.+)\n?", cell.source)
            if heading and not title:
                title = heading[1].strip()
                cell.source = cell.source[heading.end() :]
            cell.source = FORMULA.sub(lambda found: _drawn(found[1].strip()), cell.source)
        cell.source = without_paths(cell.source)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_shown(output)]
            for output in cell.outputs:
                _mask(output)
    return title


def _is_shown(output: Any) -> bool:
    progress = output.output_type == "stream" and output.name == "stderr"
    return not progress and "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def _mask(output: Any) -> None:
    if output.output_type == "stream":
        output.text = without_paths(output.text)
    for kind, content in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = without_paths(content)


def _drawn(formula: str) -> str:
    """A formula as a picture that is part of the page, its TeX as alternative text."""
    drawn = io.BytesIO()
    mathtext.math_to_image(f"${formula.rstrip('.')}$", drawn, dpi=160, format="png")
    code = base64.b64encode(drawn.getvalue()).decode()
    said = formula.replace('"', "'")
    return f'<img class="formula" src="data:image/png;base64,{code}" alt="Formula: {said}">'


def _clean(body: str, title: str) -> str:
    soup = BeautifulSoup(body, "html.parser")
    for tag in soup.find_all(["script", "style", "link", "iframe", "object", "embed"]):
        tag.decompose()
    for tag in soup.select("a.anchor-link, div.prompt"):
        tag.decompose()
    _lower_headings(soup)
    for corner in soup.find_all("th"):
        if not corner.get_text(strip=True):
            corner.name = "td"
    _describe(soup, title)
    _fold(soup)
    _scroll(soup)
    return bleach.clean(
        str(soup),
        tags=TAGS,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},
        css_sanitizer=CSSSanitizer(allowed_css_properties=PROPERTIES),
        strip=True,
    )


def _allowed(tag: str, name: str, value: str) -> bool:
    """Whether an attribute stays: pictures only from within, links to everywhere but data."""
    if tag == "img":
        within = value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
        return within if name == "src" else name in ("alt", "class")
    if tag == "a" and name == "href":
        return not value.strip().lower().startswith("data:")
    return name in ATTRIBUTES or (tag == "details" and name == "open")


def _lower_headings(soup: BeautifulSoup) -> None:
    """The page's own title is its only h1."""
    for heading in soup.find_all("h1"):
        heading.name = "h2"


def _describe(soup: BeautifulSoup, title: str) -> None:
    """Say of every picture what it shows, by the last heading and sentence before it."""
    count: dict[str, int] = {}
    for image in soup.find_all("img"):
        if not str(image.get("src", "")).startswith("data:image/"):
            image.decompose()
            continue
        if image.get("alt") and image["alt"] != UNSAID:
            continue
        heading = image.find_previous(["h2", "h3", "h4"])
        what = _text(heading) or title
        count[what] = count.get(what, 0) + 1
        sentence = _last_sentence(image, heading)
        image["alt"] = f"{what}, picture {count[what]}{f': {sentence}' if sentence else ''}"


def _text(tag: Any) -> str:
    return " ".join(tag.get_text().split()) if isinstance(tag, Tag) else ""


def _last_sentence(image: Tag, heading: Any) -> str:
    """The first sentence of the last paragraph between a picture and the heading above it."""
    paragraph = image.find_previous("p")
    if paragraph is None or (heading is not None and paragraph.find_next(["h2", "h3", "h4"]) is
                             heading):  # fmt: skip
        return ""
    return re.split(r"(?<=[.:])\s", _text(paragraph), maxsplit=1)[0][:200]


def _fold(soup: BeautifulSoup) -> None:
    for block in soup.select("div.input"):
        lines = block.get_text().strip().count("\n") + 1
        if lines > FOLDED_LINES:
            summary = soup.new_tag("summary")
            summary.string = f"Code, {lines} lines"
            block.wrap(soup.new_tag("details", attrs={"class": "code"})).insert(0, summary)


def _scroll(soup: BeautifulSoup) -> None:
    """Wide tables and code scroll by themselves, with the keyboard too, so the page need not."""
    tables: Iterable[Tag] = soup.find_all("table")
    for table in tables:
        del table["border"]
        heading = _text(table.find_previous(["h2", "h3", "h4"]))
        region = {"class": "scroll", "role": "region", "tabindex": "0"}
        table.wrap(soup.new_tag("div", attrs=region | {"aria-label": f"Table, {heading or 'top'}"}))
    for code in soup.find_all("pre"):
        code["tabindex"] = "0"
