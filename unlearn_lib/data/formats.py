"""What kind of file something is by its content, whatever its name says."""

import re

FORMATS = {".txt": ("plain text",), ".epub": ("an EPUB", "a ZIP archive"), ".pdf": ("a PDF",)}
"""What a file of each ending may look like; a ZIP archive may be a damaged EPUB."""
SIGNATURES = {
    "an HTML or XML page": rb"\W{0,9}<\0?(!\0?d\0?o\0?c\0?t|h\0?t\0?m\0?l|\?\0?x\0?m\0?l)",
    "an RTF file": rb"\W{0,9}\{\0?\\\0?r\0?t\0?f",
    "a PDF": rb"\s*%PDF-",
    "a Word document": rb"PK\x03\x04.*word/document\.xml|\xd0\xcf\x11\xe0",
    "an EPUB": rb"PK\x03\x04.*META-INF/container\.xml",
    "a ZIP archive": rb"PK[\x03\x05]",
    "an archive": rb"\x1f\x8b|Rar!|7z\xbc",
    "a picture": rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP",
}
"""How files begin; UTF-16 has a zero beside each letter."""
MARKUP = re.compile(r"</?(?:p|div|br|span|h[1-6]|table|td|li)\b[^<>]{0,200}>", re.I)
HEAD = 1_000_000
"""Bytes in which tags are counted."""


def looks_like(data: bytes) -> str:
    """Return what a file is by its content, such as "a PDF"; "" for text and the unknown.

    Text with a tag of HTML in every hundred words is a page, however it begins.
    """
    for name, begins in SIGNATURES.items():
        if re.match(begins, data, re.I | re.S):
            return name
    head = data[:HEAD].decode("utf-8", "ignore")
    tagged = 100 * len(MARKUP.findall(head)) > len(head.split())
    return "an HTML or XML page" if tagged else ""
