"""What code computes a run: a digest of the modules that its stage imports from this package.

Docstrings and comments are left out, so that prose may change. Modules of many small functions
(FINE) count function by function: a change of one loss touches the runs that use that loss.
"""

import ast
import functools
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
FINE = "unlearn_lib.unlearn.losses"
APART = (FINE, "unlearn_lib.unlearn.methods")
"""Modules that are never taken whole: a run says which of their entries it uses."""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_of(
    *modules: str, functions: Iterable[Callable[..., Any] | None] = (), apart: str = ""
) -> str:
    """Return the digest of modules, of all that they import from this package, and of functions.

    Args:
        modules: dotted names, such as `unlearn_lib.unlearn.trainer`.
        functions: functions of the module of losses that are used besides.
        apart: modules whose names begin so are left out, since the stage does not run them.
    """
    losses = {each.__name__ for each in functions if each is not None}
    sources = {}
    for name in sorted(_closure(tuple(modules), apart)):
        sources[name] = _source(name)
        losses |= _names_of_losses(name)
    parts = [f"{name} {text}" for name, text in sources.items()]
    parts += [f"{FINE} {text}" for text in _definitions(frozenset(losses))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _tree(module: str) -> ast.Module:
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
    return tree


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@functools.cache
def _source(module: str) -> str:
    return ast.dump(_tree(module))


def _file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _closure(modules: tuple[str, ...], apart: str) -> frozenset[str]:
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        skipped = module in APART or (apart and module.startswith(apart))
        if module not in reached and not skipped:
            reached.add(module)
            waiting += _imports(module)
    return frozenset(reached)


@functools.cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of this package that a module imports, wherever the import stands."""
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{each.name}" for each in node.names}
    return tuple(sorted(n for n in names if n.startswith("unlearn_lib.") and _file(n).is_file()))


@functools.cache
def _names_of_losses(module: str) -> frozenset[str]:
    """The losses that a module calls: `from ...losses import x`, or `losses.x`.

    A loss that is only compared with (`loss is losses.npo`) is not called.
    """
    names: set[str] = set()
    compared = {
        id(each)
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.Compare)
        for each in node.comparators
    }
    for node in ast.walk(_tree(module)):
        if id(node) in compared:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == FINE:
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "losses" else set()
    return frozenset(names)


@functools.cache
def _definitions(names: frozenset[str]) -> tuple[str, ...]:
    """The definitions of some names of the module of losses, with all that they use of it."""
    defined: dict[str, ast.stmt] = {}
    for node in _tree(FINE).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined[node.name] = node
        elif isinstance(node, ast.Assign):
            defined |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
    reached: set[str] = set()
    waiting = [name for name in names if name in defined]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            used = {n.id for n in ast.walk(defined[name]) if isinstance(n, ast.Name)}
            waiting += sorted(used & set(defined))
    return tuple(ast.dump(defined[name]) for name in sorted(reached))
