"""A document of an EPUB as text with signs for its blocks, its headings and its line breaks."""

from typing import Any

from bs4 import BeautifulSoup, CData, NavigableString, Tag

HEADS = ("h1", "h2")
BLOCK_TAGS = "p div section h1 h2 h3 h4 h5 h6 li blockquote pre tr td th dt dd".split()
BORDER, LINE_BREAK, MARK = "\ue000", "\ue001", "\ue002"  # in the text of an EPUB's document
DEEPEST = 2_000  # tags within each other; paragraphs that are never closed count


def parsed_document(data: bytes, parser: str) -> BeautifulSoup:
    """Return a document parsed; ValueError where tags nest deeper than any book's."""
    soup, depths = BeautifulSoup(data, parser), dict[int, int]()
    for tag in soup(True):
        depths[id(tag)] = depths.get(id(tag.parent), 0) + 1
    if max(depths.values(), default=0) > DEEPEST:
        raise ValueError(f"its tags are nested more than {DEEPEST:,} deep")
    return soup


def text_of(soup: Tag) -> str:
    """Return the text of a document in one pass, a BORDER around blocks, a MARK before headings."""
    waiting: list[Any] = [soup]
    texts: list[str] = []
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tag):
            inside, heading = node.contents[::-1], node.get_text() if node.name in HEADS else ""
            border = [BORDER] * (node.name in BLOCK_TAGS)
            waiting += [*border, *([MARK + heading] if heading.strip() else inside), *border]
        elif type(node) in (str, NavigableString, CData):
            texts.append(node)
    return "".join(texts)
