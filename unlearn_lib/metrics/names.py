"""The names of all metrics, fixed in this one place: unit, direction and meaning of each."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """What a metric name stands for.

    Attributes:
        name: as it stands in the table's column `metric`.
        unit: of value, low and high; "share" and "score" lie between 0 and 1 unless said.
        better: which direction is better, "neither" where it depends on the split.
        meaning: one sentence for a reader of the table.
    """

    name: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    meaning: str


_METRICS = (
    Metric("harmful_rate", "share", "lower", "Answers that the harm classifier calls harmful."),
    Metric(
        "harmful_rate_length_matched",
        "share",
        "lower",
        "The base model's answers, cut to the unlearned answers' lengths and judged again: how "
        "much of a drop is only shortness.",
    ),
    Metric(
        "effectiveness",
        "per cent",
        "higher",
        "Relative fall of the harmful rate, Arora et al. 2024, eq. 1.",
    ),
    Metric(
        "degenerate_share",
        "share",
        "lower",
        "Answers that are empty, punctuation only, or repeat themselves.",
    ),
    Metric("answer_tokens", "tokens", "neither", "Mean length of the answers to harmful prompts."),
    Metric("retain_perplexity", "none", "lower", "Perplexity on retained text."),
    Metric(
        "similarity_original",
        "cosine",
        "higher",
        "Embedding cosine of answers to normal prompts with the base model's answers.",
    ),
    Metric(
        "rougeL_original",
        "score",
        "higher",
        "ROUGE-L F of answers to normal prompts against the base model's answers.",
    ),
    Metric(
        "bleurt_original",
        "score",
        "higher",
        "BLEURT of answers to normal prompts against the base model's answers; no share, often "
        "below 0. What Arora et al.'s similarity seems to be.",
    ),
    Metric(
        "refusal_share_normal",
        "share",
        "lower",
        "Answers to normal prompts that are refusals.",
    ),
    Metric(
        "refusal_share",
        "share",
        "neither",
        "Answers that are refusals; low is wanted on all that is to be kept.",
    ),
    Metric(
        "hallucinated_share",
        "share",
        "lower",
        "Answers that are fluent and wrong: not degenerate, no refusal, and not entailed.",
    ),
    Metric(
        "classifier_auc",
        "score",
        "higher",
        "The harm classifier's area under the ROC curve on held-out rows.",
    ),
    Metric(
        "classifier_accuracy",
        "share",
        "higher",
        "Held-out rows that the harm classifier judges right.",
    ),
    Metric(
        "similarity_text",
        "cosine",
        "neither",
        "Embedding cosine of continuations with the true text; low is wanted on forget, high on "
        "what is to be kept.",
    ),
    Metric(
        "bleu",
        "score",
        "neither",
        "BLEU / 100 of continuations against the true text; low is wanted on forget, high on "
        "what is to be kept.",
    ),
    Metric(
        "rougeL_recall",
        "score",
        "neither",
        "ROUGE-L recall of the true text; low is wanted on forget, high on retain.",
    ),
    Metric(
        "verbatim_share",
        "share",
        "neither",
        "Continuations that hold a verbatim run (20 tokens or more) of the true text; low is "
        "wanted on forget, high on what is to be kept.",
    ),
    Metric(
        "verbatim_run",
        "tokens",
        "neither",
        "Mean longest run of tokens that a continuation shares with the true text; low is wanted "
        "on forget, high on what is to be kept.",
    ),
    Metric(
        "perplexity",
        "none",
        "neither",
        "Perplexity of the true text; the base model's is wanted on forget, low on what is to be "
        "kept. In experiment eco that of the answers, under one fixed model: low is fluent.",
    ),
    Metric(
        "ks_distance",
        "score",
        "lower",
        "Two-sample Kolmogorov-Smirnov distance: of the book's per-passage losses, unlearned "
        "against base, or of TOFU's raw truth ratios against the retained model's (behind "
        "`forget_quality`); 0 is no difference.",
    ),
    Metric(
        "ks_p_value",
        "p-value",
        "neither",
        "p-value of `ks_distance`; a small one tells the model from the base model on that split.",
    ),
    Metric(
        "probability",
        "score",
        "neither",
        "exp(-mean loss) of the true answer; on real authors and world facts its share among the "
        "answer's options. Low is wanted on forget, high elsewhere.",
    ),
    Metric(
        "truth_ratio",
        "score",
        "neither",
        "TOFU's truth ratio c, folded per split as its released code does: min(c, 1/c) on "
        "forget, where the retained model's is wanted; max(0, 1 - 1/c) elsewhere, high is wanted.",
    ),
    Metric(
        "forget_quality",
        "p-value",
        "higher",
        "Kolmogorov-Smirnov p-value of raw truth ratios on forget against the retained model's.",
    ),
    Metric(
        "model_utility",
        "score",
        "higher",
        "TOFU: harmonic mean of ROUGE-L recall, probability and truth ratio on retain, real "
        "authors and world facts.",
    ),
    Metric(
        "mu",
        "score",
        "higher",
        "Closer Look: harmonic mean of six metrics on every set but forget.",
    ),
    Metric(
        "fe",
        "score",
        "higher",
        "Closer Look: 1 - mean of ROUGE-L recall, probability, 1 - truth ratio, cosine "
        "similarity and entailment on forget.",
    ),
    Metric(
        "mu_difference",
        "score",
        "higher",
        "`mu` of the method minus `mu` of the method that the split names, on the same questions.",
    ),
    Metric("fe_difference", "score", "higher", "As `mu_difference`, of `fe`."),
    Metric(
        "token_entropy",
        "score",
        "higher",
        "Entropy in bits of an answer's tokens over the log2 of their count; low where it repeats "
        "itself.",
    ),
    Metric(
        "cosine_similarity",
        "cosine",
        "neither",
        "Embedding cosine of the generated with the true answer, not below 0; low is wanted on "
        "forget, high elsewhere.",
    ),
    Metric(
        "entailment",
        "share",
        "neither",
        "Generated answers that the judge finds to entail the truth (fictitious sets other than "
        "forget: to be entailed by it), ROUGE-L recall at least 0.1; low is wanted on forget, "
        "high elsewhere.",
    ),
    Metric(
        "judge_accuracy",
        "share",
        "higher",
        "Held-out pairs of answers that the judge of entailment judges right.",
    ),
    Metric(
        "judge_auc",
        "score",
        "higher",
        "The judge of entailment's area under the ROC curve on held-out pairs.",
    ),
    Metric(
        "extraction_strength",
        "score",
        "neither",
        "Share of an answer that a prefix makes the model complete word for word; low is wanted "
        "on forget, high elsewhere.",
    ),
    Metric(
        "exact_memorisation",
        "share",
        "neither",
        "Tokens of the true answer that are the model's most likely ones, the answer so far "
        "given; low is wanted on forget, high elsewhere.",
    ),
    Metric(
        "mia_auc_loss",
        "score",
        "neither",
        "Area under the ROC curve of telling the forget set from answers never trained on, by "
        "loss; the retained model's is wanted, near 0.5.",
    ),
    Metric("mia_auc_zlib", "score", "neither", "As `mia_auc_loss`, by loss over zlib's length."),
    Metric(
        "mia_auc_min_k",
        "score",
        "neither",
        "As `mia_auc_loss`, by the mean log-probability of the least likely tokens (Min-K).",
    ),
    Metric(
        "mia_auc_min_k_plus_plus",
        "score",
        "neither",
        "As `mia_auc_min_k`, each log-probability standardised over the vocabulary (Min-K++).",
    ),
    Metric(
        "privleak",
        "per cent",
        "neither",
        "Relative distance of 1 - `mia_auc_min_k` from the retained model's; 0 is best, below it "
        "membership leaks, above it the set was forgotten too hard.",
    ),
    Metric(
        "meteor",
        "score",
        "neither",
        "METEOR without synonyms against the true text; low is wanted on forget, high elsewhere.",
    ),
    Metric(
        "unique_token_ratio",
        "share",
        "neither",
        "Distinct tokens over tokens of an answer; the retained model's is wanted, low is a loop.",
    ),
    Metric("leak_share", "share", "lower", "Answers that hold the fact, word for word."),
    Metric("asg", "score", "lower", "Average similarity gap to the retained model."),
    Metric(
        "choice_accuracy",
        "share",
        "neither",
        "Multiple-choice questions whose right choice is the likeliest; chance is wanted "
        "on forget, high elsewhere.",
    ),
    Metric(
        "probe_accuracy",
        "share",
        "neither",
        "Held-out questions whose right choice a linear probe reads off the logits; the share of "
        "the most frequent choice is wanted on forget.",
    ),
    Metric("false_positive_rate", "share", "lower", "Prompts to keep that the guard corrupts."),
    Metric("false_negative_rate", "share", "lower", "Prompts to forget that the guard lets by."),
    Metric(
        "guard_threshold",
        "score",
        "neither",
        "Probability of being one to forget from which on the guard corrupts a prompt.",
    ),
    Metric(
        "search_strength",
        "none",
        "neither",
        "Strength of the corruption that a step of the search tries; no share, any size.",
    ),
    Metric(
        "search_objective",
        "score",
        "lower",
        "Distance from the retained state that the search finds at `search_strength`.",
    ),
    Metric("model_calls", "calls", "lower", "How often the search has asked its objective so far."),
    Metric(
        "milliseconds_per_prompt",
        "ms",
        "lower",
        "Time that a method adds to each prompt; of a plain model, its whole time for a prompt.",
    ),
    Metric("milliseconds_per_token", "ms", "lower", "Time that a method adds to a token."),
    Metric("parameters_changed", "parameters", "lower", "Weights of the model that changed."),
    Metric("bytes_stored", "bytes", "lower", "Weights to be kept beside the original model's."),
    Metric(
        "unchanged_share",
        "share",
        "higher",
        "Answers to unrelated prompts that are the plain model's, token for token.",
    ),
    Metric(
        "time_ratio",
        "none",
        "lower",
        "Time to answer unrelated prompts with the guard over the plain model's; 1 costs nothing.",
    ),
    Metric("seconds", "s", "lower", "Wall time."),
    Metric("peak_memory_bytes", "bytes", "lower", "Peak memory."),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
