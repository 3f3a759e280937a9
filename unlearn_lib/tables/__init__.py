"""Tables as the papers print them, drawn from the tidy table alone.

`write_all` is what `python -m unlearn_lib figures` calls; notebooks call the tables themselves.
A table is a frame of text cells: our rows with their 95 % intervals and, beside them, the rows
that the paper reports. Seeds are pooled as `unlearn_lib.tables.common` says.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.metrics.tidy import COLUMNS
from unlearn_lib.tables.book import book_rows, table_two
from unlearn_lib.tables.common import (
    OTHER_MODEL_NOTE,
    PAPER_NOTE,
    PAPER_SIMILARITY,
    Pooled,
    experiments_in,
    method_labels,
    read_claims,
    remedy,
    show,
    to_latex,
    write_atomically,
    write_provenance,
    write_table,
)
from unlearn_lib.tables.harmful import (
    BASE,
    HARMFUL_METRICS,
    SCENARIOS,
    estimate,
    harmful_rows,
    table_one,
)

__all__ = [
    "BASE",
    "COLUMNS",
    "HARMFUL_METRICS",
    "OTHER_MODEL_NOTE",
    "PAPER_NOTE",
    "PAPER_SIMILARITY",
    "SCENARIOS",
    "Pooled",
    "book_rows",
    "estimate",
    "experiments_in",
    "harmful_rows",
    "method_labels",
    "read_claims",
    "remedy",
    "show",
    "table_one",
    "table_two",
    "to_latex",
    "write_all",
    "write_atomically",
    "write_provenance",
    "write_table",
]

TABLES = {
    "harmful": ("table1_harmful", table_one),
    "book": ("table2_book", table_two),
}


def write_all(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    claims_path: Path,
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Path]:
    """Write the table of every experiment that the tidy table holds; returns the paths written.

    `labels` maps, for each experiment, method names to display names, in order. Raises
    `CompanionError` where rows are missing, with the command that makes them.
    """
    claims = read_claims(claims_path)
    details = {**provenance, "profile": profile_name}
    paths = []
    for experiment, rows in experiments_in(frame, TABLES, profile_name).items():
        name, table_of = TABLES[experiment]
        table = table_of(rows, claims, (labels or {}).get(experiment), profile_name)
        paths += write_table(table, folder, name, details)
    return paths
