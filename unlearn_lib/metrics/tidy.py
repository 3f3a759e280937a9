"""The one table of a profile: every figure, table and claim is drawn from it.

A row is one metric of one run. `write` and `read` keep it byte-stable, so that the committed twin
changes only when a number does.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from unlearn_lib.errors import nearest
from unlearn_lib.metrics.names import METRICS

FLOAT_FORMAT = "%.6g"


@dataclass(frozen=True)
class Row:
    """One metric of one run; `Row(..., **dataclasses.asdict(estimate))` fills the last numbers.

    Attributes:
        experiment: harmful, book, tofu or eco.
        scenario: the experiment's part, empty where it has none.
        model: the profile's name for the base model.
        method: name in the registry of methods.
        stage: base, implanted, reference, unlearned or guarded.
        split: of the data that was scored.
        seed: of the run.
        metric: a name in METRICS.
        value, low, high: in the metric's unit, with its 95 % interval; nan where undefined.
        n: prompts or rows behind it.
        run: key of the run in the run store.
    """

    experiment: str
    scenario: str
    model: str
    method: str
    stage: str
    split: str
    seed: int
    metric: str
    value: float
    low: float
    high: float
    n: int
    run: str


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row))
_NUMBERS = ("value", "low", "high")
_INTEGERS = ("seed", "n")
_TEXTS = tuple(name for name in COLUMNS if name not in _NUMBERS + _INTEGERS)
_ORDER = [*(name for name in _TEXTS if name != "run"), "seed", "run", *_NUMBERS, "n"]


def to_frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a data frame with exactly COLUMNS, in the order given; none gives an empty frame.

    Raises:
        ValueError: a metric name that METRICS lacks.
    """
    frame = pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))
    return _validated(frame, "The rows")


def write(path: Path, frame: pd.DataFrame) -> None:
    """Write the table whole or not at all, byte-stable: sorted rows, `%.6g`, "\\n" line ends.

    What `read` gives back, written again, makes the same bytes. nan becomes an empty cell.

    Args:
        path: CSV file; its folder is made if need be.
        frame: exactly COLUMNS, in any order.

    Raises:
        ValueError: missing or unknown columns, unknown metric names, whole numbers that are not.
    """
    frame = _validated(frame, f"The table for {path}")
    for name in _NUMBERS:
        # + 0.0 turns -0 into 0: the two sort as equals but print apart.
        frame[name] = [float(FLOAT_FORMAT % value) + 0.0 for value in frame[name]]
    frame = frame.sort_values(_ORDER, kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        frame.to_csv(
            unfinished,
            index=False,
            float_format=FLOAT_FORMAT,
            lineterminator="\n",
            encoding="utf-8",
        )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: Path) -> pd.DataFrame:
    """Read a table that `write` made: text as str, seed and n as int64, the rest float64.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such table in it: missing, unknown or renamed columns, unknown metric
            names, or cells that are no numbers.
    """
    try:
        frame = pd.read_csv(
            path,
            dtype=dict.fromkeys(_TEXTS, str),
            keep_default_na=False,
            na_values={name: [""] for name in _NUMBERS},
            float_precision="round_trip",
            encoding="utf-8",
        )
    except ValueError as error:
        raise ValueError(f"{path} is no readable table ({error}): write it anew.") from error
    return _validated(frame, str(path))


def _validated(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    for name in frame.columns:
        if name not in COLUMNS:
            raise ValueError(f"{where}: unknown column '{name}'{nearest(str(name), COLUMNS)}.")
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"{where}: column {', '.join(missing)} is missing: add it.")
    for name in frame["metric"].unique():
        if name not in METRICS:
            raise ValueError(f"{where}: unknown metric '{name}'{nearest(str(name), METRICS)}.")
    frame = frame[list(COLUMNS)].reset_index(drop=True)
    for names, kind in ((_TEXTS, "str"), (_NUMBERS, "float64"), (_INTEGERS, "int64")):
        for name in names:
            frame[name] = _converted(frame[name], kind, where)
    return frame


def _converted(column: pd.Series, kind: str, where: str) -> pd.Series:
    try:
        converted = column.astype(kind)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: column {column.name} does not hold {kind} ({error}): mend that cell."
        ) from error
    if kind == "int64" and not (converted == column.astype("float64")).all():
        raise ValueError(f"{where}: column {column.name} holds fractions: give whole numbers.")
    return converted
