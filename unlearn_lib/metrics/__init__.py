"""Arrays or texts in, a value with its confidence interval out; knows nothing of models.

`intervals` holds rates and their bootstrap, `means` one number from many measures, `text` what
can be said of answers as texts, `continuation` how much of a true text they hold, `perplexity` the
one formula; `tofu` (on `logs`), `closer_look` and `privacy` the metrics of the field, `similarity`
and `choices` those of ECO. `names` lists every metric, `tidy` is the table in which every number of
a profile ends.

Scikit-learn, nltk, rouge-score and sacrebleu are imported where they are called: figures and tables
need none of them, and start faster.
"""

from unlearn_lib.metrics.choices import at_chance, choice_accuracy, probe_accuracy
from unlearn_lib.metrics.closer_look import (
    cosine_similarity,
    entailed,
    entailment_premise,
    fe,
    mu,
    paired_fe_difference,
    paired_mu_difference,
    token_entropy,
)
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
from unlearn_lib.metrics.names import METRICS, Metric
from unlearn_lib.metrics.perplexity import perplexity, perplexity_difference
from unlearn_lib.metrics.privacy import (
    attack_auc,
    exact_memorisation,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    privleak,
    privleak_estimate,
    zlib_score,
)
from unlearn_lib.metrics.similarity import SIMILARITIES, asg, leak, meteor, unique_token_ratio
from unlearn_lib.metrics.text import (
    cosine_rows,
    degenerate,
    refusals,
    rouge_l,
    rouge_l_recall,
    word_counts,
)
from unlearn_lib.metrics.tidy import COLUMNS, Row
from unlearn_lib.metrics.tofu import (
    SetLog,
    TofuLog,
    folded_truth_ratio,
    forget_distance,
    forget_quality,
    model_utility,
    official_log,
    probabilities,
    truth_ratios,
)

__all__ = [
    "COLUMNS",
    "METRICS",
    "SIMILARITIES",
    "VERBATIM_TOKENS",
    "Estimate",
    "Metric",
    "Row",
    "SetLog",
    "TofuLog",
    "area_under_curve",
    "asg",
    "at_chance",
    "attack_auc",
    "bleu",
    "bootstrap",
    "choice_accuracy",
    "cosine_rows",
    "cosine_similarity",
    "degenerate",
    "difference",
    "effectiveness",
    "entailed",
    "entailment_premise",
    "exact_memorisation",
    "extraction_strength",
    "fe",
    "folded_truth_ratio",
    "forget_distance",
    "forget_quality",
    "leak",
    "longest_run",
    "loss_distance",
    "loss_score",
    "meteor",
    "min_k_plus_plus_score",
    "min_k_score",
    "model_utility",
    "mu",
    "official_log",
    "paired",
    "paired_fe_difference",
    "paired_mu_difference",
    "perplexity",
    "perplexity_difference",
    "privleak",
    "privleak_estimate",
    "probabilities",
    "probe_accuracy",
    "proportion",
    "ratio",
    "refusals",
    "rouge_l",
    "rouge_l_recall",
    "token_entropy",
    "truth_ratios",
    "unique_token_ratio",
    "word_counts",
    "zlib_score",
]
