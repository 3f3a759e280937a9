"""Execute a notebook with papermill: parameters checked, written whole or not at all."""

from pathlib import Path
from typing import Any

import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from unlearn_lib.errors import CompanionError, nearest
from unlearn_lib.profiles import ROOT

NOTEBOOKS = ROOT / "notebooks"


def execute(name: str, parameters: dict[str, Any], output: Path) -> Path:
    """Execute a notebook and write it to `output` once it has run to its end.

    A notebook that fails is kept beside it as `<name>.failed.ipynb`, and never as `output`.

    Args:
        name: `01_harmful_unlearning`.
        parameters: values for the notebook's `parameters` cell.
        output: path of the executed notebook.

    Raises:
        CompanionError: no such notebook, a parameter that it does not declare, or the error
            that a cell raised.
    """
    source = NOTEBOOKS / f"{name}.ipynb"
    if not source.is_file():
        hint = nearest(name, [path.stem for path in NOTEBOOKS.glob("*.ipynb")])
        raise CompanionError(f"There is no notebook '{name}'{hint}.")
    declared = papermill.inspect_notebook(str(source))
    for parameter in parameters:
        if parameter not in declared:
            raise CompanionError(
                f"Notebook '{name}' has no parameter '{parameter}'{nearest(parameter, declared)}."
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    partial = output.with_suffix(".failed.ipynb")
    try:
        papermill.execute_notebook(
            str(source), str(partial), parameters, cwd=str(NOTEBOOKS), progress_bar=True
        )
    except PapermillExecutionError as error:
        place = f"cell {error.exec_count} of notebook '{name}'"
        reason = (
            error.evalue if error.ename == "CompanionError" else f"{error.ename}: {error.evalue}"
        )
        raise CompanionError(f"{reason} (in {place}; kept as {partial.name})") from error
    except DeadKernelError as error:
        raise CompanionError(
            f"The kernel of notebook '{name}' died, most often for lack of memory; free some or "
            f"choose a smaller batch_size (kept as {partial.name})."
        ) from error
    partial.rename(output)
    return output
