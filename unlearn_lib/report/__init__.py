"""The report: every claim, figure, table and number of a profile on one site that works offline.

`python -m unlearn_lib report` writes it under `results/<profile>/report/`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from unlearn_lib.report.page import Page

if TYPE_CHECKING:
    from unlearn_lib.profiles import Profile

__all__ = ["Page", "write_report"]


def write_report(profile: "Profile", processes: int = 1) -> Path:
    """Write the report of a profile; see `unlearn_lib.report.site.write_report`."""
    from unlearn_lib.report import site

    return site.write_report(profile, processes)
