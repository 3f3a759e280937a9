"""The system's Chromium for tests: it reaches this machine only, and what a page complains of or
asks of anybody else is written down."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "UNLEARN_CHROMIUM"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def executable() -> str:
    """Where Chromium is: what the environment names, else the system's; skip where there is none."""
    named = os.environ.get(VARIABLE)
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        tried = f"{VARIABLE}={named}" if named else f"{', '.join(NAMES)} and {VARIABLE}"
        pytest.skip(f"No Chromium here (tried {tried}).")
    return found


@contextmanager
def launched() -> Iterator["Browser"]:
    """A headless Chromium, closed at the end; skip where Chromium or playwright is missing.

    While it is open, its thread holds an event loop: close it before other tests need one.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = executable()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """One window of a browser, and the record of it: `page`, `complaints`, `strangers`.

    Args:
        browser: from fixture `chromium`.
        size: `desktop` or `phone`.
        origin: the local server that may be asked, `http://127.0.0.1:8888`; None for files only.
    """

    def __init__(self, browser: "Browser", size: str = "desktop", origin: str | None = None):
        width, height = SIZES[size]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, service_workers="block"
        )
        self.complaints: list[str] = []
        """Errors on the console, and errors that no script caught."""
        self.strangers: list[str] = []
        """Addresses that were asked for and belong to nobody here; they are refused."""
        own = [re.escape(f"{origin}/"), re.escape(f"{origin}/").replace("http", "ws", 1)]
        allowed = ["file:", "data:", "blob:", "about:", *(own if origin else [])]
        self._foreign = re.compile(rf"^(?!{'|'.join(allowed)})")
        self.context.route(self._foreign, lambda route: route.abort())
        self.context.on("request", lambda request: self._asked(request.url))
        self.context.on("page", self._watch)
        self.page = self.context.new_page()

    def _asked(self, address: str) -> None:
        if self._foreign.match(address):
            self.strangers.append(address)

    def _watch(self, page: "Page") -> None:
        page.on("websocket", lambda socket: self._asked(socket.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._said)

    def _said(self, line: "ConsoleMessage") -> None:
        if line.type == "error":
            self.complaints.append(f"{line.text} ({line.location['url']})")

    def close(self) -> None:
        """Close the window and forget its cookies."""
        self.context.close()


RULES = """button-name color-contrast empty-table-header heading-order html-has-lang image-alt
    label link-name nested-interactive scrollable-region-focusable select-name summary-name""".split()
"""What axe checks of every page of the report."""
_UNFOLD = "document.querySelectorAll('details').forEach(each => { each.open = true; })"
_PICTURES = """async () => {
  const pictures = [...document.images];
  pictures.forEach(each => { each.loading = 'eager'; });
  await Promise.all(pictures.map(each => each.decode().catch(() => null)));
  return pictures.filter(each => !each.naturalWidth || !each.alt.trim())
    .map(each => `${each.src.slice(0, 90)} alt='${each.alt}' width=${each.naturalWidth}`);
}"""
_TOO_WIDE = """() => document.documentElement.scrollWidth > innerWidth
  ? [`${document.documentElement.scrollWidth} pixels of ${innerWidth}`] : []"""
_LINKS = "found => found.map(each => each.href)"


def faults(visit: Visit, path: Path) -> list[str]:
    """Open a page from disk and return all that is wrong with it, folded parts included."""
    from axe_playwright_python.sync_playwright import Axe

    visit.page.goto(path.as_uri())
    visit.page.evaluate(_UNFOLD)
    found = [f"picture: {each}" for each in visit.page.evaluate(_PICTURES)]
    found += [f"wider than the window: {each}" for each in visit.page.evaluate(_TOO_WIDE)]
    options = {"runOnly": {"type": "rule", "values": RULES}, "resultTypes": ["violations"]}
    for violation in Axe().run(visit.page, options=options).response["violations"]:
        for node in violation["nodes"]:
            why = " ".join(each["message"] for each in node["any"])
            found.append(f"{violation['id']}: {node['html'][:120]} {why}")
    found += [f"console: {each}" for each in visit.complaints]
    found += [f"asked for: {each}" for each in visit.strangers]
    visit.complaints.clear()
    visit.strangers.clear()
    return [f"{path.name}: {each}" for each in found]


def dead_links(visit: Visit, site: Path) -> list[str]:
    """Every link of a site's pages that leads to no file or no place of it; others are https."""
    names: dict[str, set[str]] = {}
    links: set[tuple[str, str]] = set()
    for path in sorted(site.glob("*.html")):
        visit.page.goto(path.as_uri())
        ids = visit.page.eval_on_selector_all("[id]", "found => found.map(each => each.id)")
        names[path.as_uri()] = {"", *ids}
        found = visit.page.eval_on_selector_all("a[href], link[href]", _LINKS)
        links |= {(path.name, each) for each in found}
    return [f"{page}: {link}" for page, link in sorted(links) if not _leads(link, site, names)]


def _leads(link: str, site: Path, names: Mapping[str, set[str]]) -> bool:
    address, fragment = urldefrag(link)
    scheme = urlsplit(address).scheme
    if scheme != "file":
        return scheme in ("https", "data")
    path = Path(unquote(urlsplit(address).path))
    inside = path.is_file() and path.is_relative_to(site)
    return inside and unquote(fragment) in names.get(address, {""})
