"""Tables as the papers print them, drawn from the tidy table alone.

`write_all` is what `python -m unlearn_lib figures` calls; notebooks call the tables themselves.
A table is a frame of text cells: our rows with their 95 % intervals and, beside them, the rows
that the paper reports. Seeds are pooled as `unlearn_lib.tables.common` says.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn_lib.metrics.tidy import COLUMNS
from unlearn_lib.tables.book import book_rows, table_two
from unlearn_lib.tables.closer_look import closer_look_rows, table_three
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
from unlearn_lib.tables.eco import (
    eco_book,
    eco_comparison,
    eco_costs,
    eco_robustness,
    eco_rows,
    eco_science,
)
from unlearn_lib.tables.eco_verdicts import eco_verdicts
from unlearn_lib.tables.harmful import (
    BASE,
    HARMFUL_METRICS,
    SCENARIOS,
    estimate,
    harmful_rows,
    table_one,
)
from unlearn_lib.tables.orderings import orderings_table, pairs, read_orderings

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
    "closer_look_rows",
    "eco_book",
    "eco_comparison",
    "eco_costs",
    "eco_robustness",
    "eco_rows",
    "eco_science",
    "eco_verdicts",
    "estimate",
    "experiments_in",
    "harmful_rows",
    "method_labels",
    "orderings_table",
    "pairs",
    "read_claims",
    "read_orderings",
    "remedy",
    "show",
    "table_one",
    "table_three",
    "table_two",
    "to_latex",
    "write_all",
    "write_atomically",
    "write_provenance",
    "write_table",
]

TABLES: dict[str, dict[str, Callable[..., pd.DataFrame]]] = {
    "harmful": {"table1_harmful": table_one},
    "book": {"table2_book": table_two},
    "tofu": {"table3_closer_look": table_three, "closer_look_orderings": orderings_table},
    "eco": {
        "eco_comparison": eco_comparison,
        "eco_book": eco_book,
        "eco_science": eco_science,
        "eco_costs": eco_costs,
        "eco_robustness": eco_robustness,
        "eco_verdicts": eco_verdicts,
    },
}


def write_all(
    frame: pd.DataFrame,
    folder: Path,
    profile_name: str,
    provenance: Mapping[str, Any],
    claims_path: Path,
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Path]:
    """Write the tables of every experiment that the tidy table holds; returns the paths written.

    `orderings.yaml` stands beside `claims_path`. `labels` maps, for each experiment, method names
    to display names, in order. Raises `CompanionError` where rows are missing, with the command
    that makes them.
    """
    claims = read_claims(claims_path)
    claimed: dict[str, list[Any]] = {
        "closer_look_orderings": read_orderings(claims_path.with_name("orderings.yaml"))
    }
    details = {**provenance, "profile": profile_name}
    paths = []
    for experiment, rows in experiments_in(frame, TABLES, profile_name).items():
        for name, table_of in TABLES[experiment].items():
            own_labels = (labels or {}).get(experiment)
            table = table_of(rows, claimed.get(name, claims), own_labels, profile_name)
            paths += write_table(table, folder, name, details)
    return paths
