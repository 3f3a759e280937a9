"""The notebooks as files: clean, in small cells, with imports that exist. Others execute them."""

import ast
from pathlib import Path

import nbformat
import pytest

from unlearn_lib.util import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_LINES, MOST_ONE_CALL = 25, 0.15
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def is_one_call(source: str) -> bool:
    imports = (ast.Import, ast.ImportFrom)
    body = [node for node in ast.parse(source).body if not isinstance(node, imports)]
    return len(body) == 1 and isinstance(getattr(body[0], "value", None), ast.Call)


def test_there_are_six_notebooks() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05"]


@notebooks
def test_notebook_is_valid_and_holds_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not any(cell.outputs or cell.execution_count for cell in code_cells(path))


@notebooks
def test_parameters_come_first_and_are_literals_with_a_comment(path: Path) -> None:
    cells = code_cells(path)
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == cells[:1]
    values = {}
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.Assign)
        values[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
    assert values["profile"] == "smoke"
    assert all("  # " in line for line in tagged[0].source.splitlines())


@notebooks
def test_cells_are_small_steps_that_can_be_changed(path: Path) -> None:
    sources = [cell.source for cell in code_cells(path)[1:]]
    assert max(len(source.splitlines()) for source in sources) <= MOST_LINES
    assert sum(map(is_one_call, sources)) <= MOST_ONE_CALL * len(sources)


@notebooks
def test_imports_are_public_and_exist(path: Path) -> None:
    for cell in code_cells(path):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                assert not any(name.startswith("_") for name in names)
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(compile(ast.Module([node], []), path.name, "exec"), {})
