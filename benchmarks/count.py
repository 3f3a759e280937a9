"""Print the size of the library, its tests and README; exit 1 where one is above its cap.

    python -m benchmarks.count     (or: make count)

Python files are measured in lines of code: docstrings, comments and blank lines are free.
"""

import ast
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CAPS = {"unlearn_lib": 9000, "tests": 9000, "README.md": 7 * 1024}
LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def lines_of_code(path: Path) -> int:
    """Return how many lines of a Python file hold code."""
    lines: set[int] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type not in LAYOUT:
                lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        # A string that stands alone as a statement is a docstring.
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            lines.difference_update(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    return len(lines)


def size(name: str) -> int:
    """Return a folder's lines of code, or a file's bytes."""
    path = ROOT / name
    if path.is_file():
        return path.stat().st_size
    return sum(lines_of_code(file) for file in path.rglob("*.py"))


def main() -> int:
    """Print one line for each cap; return 1 where one is exceeded, else 0."""
    sizes = {name: size(name) for name in CAPS}
    for name, value in sizes.items():
        unit = "bytes" if (ROOT / name).is_file() else "lines of code"
        verdict = "ABOVE the cap of" if value > CAPS[name] else "of at most"
        print(f"{name:12s}{value:6d} {unit} {verdict} {CAPS[name]}")
    return int(any(value > CAPS[name] for name, value in sizes.items()))


if __name__ == "__main__":
    sys.exit(main())
