"""Arrays or texts in, a value with its confidence interval out; knows nothing of models.

`intervals` holds rates and their bootstrap, `text` what can be said of answers as texts,
`perplexity` the one formula, `tidy` the table in which every number of a profile ends.
"""

from unlearn_lib.metrics.continuation import (
    VERBATIM_TOKENS,
    bleu,
    difference,
    extraction_strength,
    longest_run,
    loss_distance,
)
from unlearn_lib.metrics.intervals import (
    Estimate,
    area_under_curve,
    bootstrap,
    effectiveness,
    paired,
    proportion,
    ratio,
)
from unlearn_lib.metrics.perplexity import perplexity, perplexity_difference
from unlearn_lib.metrics.text import (
    cosine_rows,
    degenerate,
    refusals,
    rouge_l,
    rouge_l_recall,
    word_counts,
)
from unlearn_lib.metrics.tidy import COLUMNS, METRICS, Metric, Row

__all__ = [
    "COLUMNS",
    "METRICS",
    "VERBATIM_TOKENS",
    "Estimate",
    "Metric",
    "Row",
    "area_under_curve",
    "bleu",
    "bootstrap",
    "cosine_rows",
    "degenerate",
    "difference",
    "effectiveness",
    "extraction_strength",
    "longest_run",
    "loss_distance",
    "paired",
    "perplexity",
    "perplexity_difference",
    "proportion",
    "ratio",
    "refusals",
    "rouge_l",
    "rouge_l_recall",
    "word_counts",
]
