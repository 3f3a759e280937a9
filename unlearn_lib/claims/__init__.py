"""The papers' claims and what our numbers say of each; knows nothing of torch.

`entries` reads `notebooks/claims.yaml`, `rules` holds the five verdicts and when each is given,
`judging` finds the rows of the tidy table that judge a claim, `shown` makes tables of verdicts and
the lines of `make verify`.
"""

from unlearn_lib.claims.entries import Claim, read
from unlearn_lib.claims.judging import Verdict, judge_all
from unlearn_lib.claims.rules import (
    DIRECTION_ONLY,
    NOT_JUDGED,
    NOT_REPRODUCED,
    REPRODUCED,
    RULES,
    VERDICTS,
    WITHIN_TOLERANCE,
)
from unlearn_lib.claims.shown import headline, verdicts_summary, verdicts_table, verify, write

__all__ = [
    "DIRECTION_ONLY",
    "NOT_JUDGED",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "RULES",
    "VERDICTS",
    "WITHIN_TOLERANCE",
    "Claim",
    "Verdict",
    "headline",
    "judge_all",
    "read",
    "verdicts_summary",
    "verdicts_table",
    "verify",
    "write",
]
