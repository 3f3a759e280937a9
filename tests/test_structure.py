"""The package's shape: imports run one way and in no circle, figures need no torch, files are short."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "unlearn_lib"
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
ORDER = """util model_settings settings task_settings source profile assets store data model unlearn metrics text_classifier judges
    entailment guard evaluation tasks stages results experiment stored tables claims results_page
    figures notebook report check __main__""".split()
SHOWING = ("figures", "tables", "claims", "results", "results_page", "notebook", "report", "stored")
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "sentence_transformers"}
LONGEST_FILE, LONGEST_LINE = 400, 100
TEXTS = [*PACKAGE.rglob("*.py"), *ROOT.glob("docs/*.py")]


def layer(module: str) -> str:
    """`unlearn_lib.model.loading` is of layer `model`."""
    return module.split(".")[1]


@cache
def imports(module: str, everywhere: bool = True) -> frozenset[str]:
    """What a module imports: dotted names; those within functions only if `everywhere`."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else (n for node in tree.body for n in _outside(node))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & set(FILES) or {node.module}
    return frozenset(names)


def _outside(node: ast.stmt) -> list[ast.AST]:
    return [] if isinstance(node, ast.FunctionDef | ast.ClassDef) else list(ast.walk(node))


def test_every_module_has_a_layer() -> None:
    assert {layer(module) for module in FILES if "." in module} <= set(ORDER)


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter({name: imports(name) & set(FILES) for name in FILES}).prepare()


@pytest.mark.parametrize("module", sorted(set(FILES) - {"unlearn_lib"}))
def test_a_module_imports_only_layers_before_its_own(module: str) -> None:
    below = ORDER[: ORDER.index(layer(module)) + 1]
    own = {name for name in imports(module) if name in FILES and name != "unlearn_lib"}
    assert {layer(name) for name in own} <= set(below)


@pytest.mark.parametrize("start", [*SHOWING, "data", "metrics"])
def test_what_shows_or_counts_needs_no_torch(start: str) -> None:
    waiting = [name for name in FILES if "." in name and layer(name) == start]
    reached: set[str] = set()
    while waiting:
        module = waiting.pop()
        reached.add(module)
        names = imports(module, everywhere=False)
        assert not {name.split(".")[0] for name in names} & HEAVY, module
        waiting += names & set(FILES) - reached


def test_files_and_lines_are_short() -> None:
    lines = {path: path.read_text(encoding="utf-8").split("\n") for path in TEXTS}
    long_files = {path.name for path in lines if len(lines[path]) - 1 > LONGEST_FILE}
    wide = {path.name for path in lines if max(map(len, lines[path])) > LONGEST_LINE}
    assert (long_files, wide) == (set(), set())
