"""What code computes a run: a digest of the modules that its stage imports from this package.

Docstrings and comments are left out, so that prose may change. The module of losses, which is
of many small functions, counts definition by definition: a change of one loss touches the runs
that use that loss. A module that reads embedded data counts with all of that data.
"""

import ast
import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unlearn_lib.util import EMBEDDED, digest

PACKAGE = Path(__file__).resolve().parent
Function = Callable[..., Any] | None
LOSSES = "unlearn_lib.unlearn.losses"
APART = (LOSSES, "unlearn_lib.unlearn.methods")
"""Modules that are never taken whole: a run says which of their entries it uses."""


class _WithoutText(ast.NodeTransformer):
    """Leaves out constants that stand alone as a statement: docstrings."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def code_of(*modules: str, functions: Iterable[Function] = (), apart: str = "") -> str:
    """Return the digest of modules, of all that they import from this package, and of functions.

    Args:
        modules: dotted names, such as `unlearn_lib.unlearn.trainer`.
        functions: functions of the module of losses that are used besides.
        apart: modules whose names begin so are left out, since the stage does not run them.
    """
    waiting = [*modules, *(f"{LOSSES}.{each.__name__}" for each in functions if each is not None)]
    code: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        of_a_loss = name.startswith(f"{LOSSES}.")
        left_out = name in APART or (apart and name.startswith(apart) and not of_a_loss)
        if name not in code and not left_out:
            code[name], used = _read(name)
            waiting += used
    return digest(code)


def _tree(name: str) -> ast.AST:
    """The code of a module, or of a definition of the module of losses; else an empty module."""
    module, _, definition = name.rpartition(".")
    nothing = ast.Module([], [])
    if module == LOSSES:
        return _definitions().get(definition, nothing)
    path = PACKAGE.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return nothing
    return _WithoutText().visit(ast.parse(path.read_text(encoding="utf-8")))


@functools.cache
def _definitions() -> dict[str, ast.AST]:
    """The functions, classes and constants of the module of losses, by name."""
    definitions: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(_tree(LOSSES)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            definitions[node.name] = node
        elif isinstance(node, ast.Assign):
            definitions |= {each.id: node for each in node.targets if isinstance(each, ast.Name)}
    return definitions


@functools.cache
def _embedded() -> str:
    """The digest of the embedded data."""
    files = sorted(path for path in EMBEDDED.rglob("*") if path.is_file())
    return digest([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


@functools.cache
def _read(name: str) -> tuple[str, frozenset[str]]:
    """The code of a module, or of a definition of the module of losses, and what it uses of others.

    It uses modules that it imports, wherever the import stands, and losses that it calls: from an
    import of their names, as `losses.npo`, or in their own module by the name alone. A loss that
    is only compared with (`loss is losses.npo`) is not called.
    """
    tree = _tree(name)
    nodes = list(ast.walk(tree))
    comparisons = [node for node in nodes if isinstance(node, ast.Compare)]
    compared = {each for node in comparisons for each in node.comparators}
    text, names = ast.dump(tree), set[str]()
    for node in nodes:
        match node:
            case ast.Name(id="EMBEDDED", ctx=ast.Load()):
                text += _embedded()
            case ast.Import():
                names |= {each.name for each in node.names}
            case ast.ImportFrom():
                names |= {f"{node.module}", *(f"{node.module}.{each.name}" for each in node.names)}
            case ast.Attribute(value=ast.Name(id="losses")) if node not in compared:
                names.add(f"{LOSSES}.{node.attr}")
            case ast.Name() if name.startswith(f"{LOSSES}."):
                names.add(f"{LOSSES}.{node.id}")
    return text, frozenset(each for each in names if each.startswith("unlearn_lib."))
