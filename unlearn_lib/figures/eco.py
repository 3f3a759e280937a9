"""Dot plots of experiment 3, a guard beside methods that train: measures, choices, book."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.figures.closer_look import model_name
from unlearn_lib.figures.eco_panels import DASHED, Block, Measure, dot_figure
from unlearn_lib.figures.eco_scenes import Scene, scenes
from unlearn_lib.figures.style import CONTROL, LIMIT, legend_mark

CHANCE = 25
HOLLOW_KEY: dict[str, Any] = {"mfc": "white", "mew": 0.7}
ENTITIES = (
    Measure("forget_quality", "log₁₀ forget\nquality (p)", scale="quality"),
    Measure("model_utility", "Model\nutility →", "all"),
    Measure("asg", "← Gap to\nref. (ASG)", scale="plain"),
    Measure("leak_share", "← Facts\nleaked (%)", scale="share"),
    Measure("rougeL_recall", "← ROUGE-L\nrecall"),
    Measure("perplexity", "Perplexity\n", scale="perplexity"),
    Measure("unique_token_ratio", "Unique\ntokens →"),
)
BOOK = (
    Measure("verbatim_share", "Verbatim\n(%)", scale="share", hollow=("verbatim_share", "kept")),
    Measure("rougeL_recall", "ROUGE-L\nrecall", hollow=("rougeL_recall", "kept")),
    Measure("meteor", "METEOR\n", hollow=("meteor", "kept")),
    Measure("cosine_similarity", "Cosine\nsimilarity", hollow=("cosine_similarity", "kept")),
    Measure("asg", "← Gap to\nbase (ASG)", scale="plain"),
    Measure("perplexity", "Perplexity\n", scale="perplexity", hollow=("perplexity", "kept")),
)
SCIENCE = (
    Measure(
        "choice_accuracy", "← To forget:\nright choices (%)", "forget", "share",
        ("probe_accuracy", "forget"), CHANCE,
    ),
    Measure("choice_accuracy", "To retain:\nright choices (%) →", "retain", "share", line=CHANCE),
    Measure("choice_accuracy", "General:\nright choices (%) →", "general", "share", line=CHANCE),
)  # fmt: skip


def _blocks(
    found: Sequence[Scene],
    measures: Sequence[Measure],
    labels: Mapping[str, str] | None,
    retained: bool = True,
) -> list[Block]:
    metrics = [measure.metric for measure in measures]
    return [
        Block(
            scene=scene,
            names=scene.shown(metrics, labels),
            measures=measures,
            title=model_name(scene.model),
            band=scene.retained if retained else "",
            judged=retained,
        )
        for scene in found
    ]


def eco_methods_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw every measure of the models before, the guards and each method on the authors.

    Of the scenario entities, one row of panels per model, with 95 % bars; all but model utility
    are of the questions to forget. Forget quality is the logarithm of a p-value, where an arrow
    stands for one below 1e-12, and its bar is the range of the seeds; perplexity is logarithmic.
    The grey band is the reference. A measure that nobody has loses its panel. `frame` is the
    tidy table; `labels` gives display names and order of methods. Raises `CompanionError` that
    names the command which makes missing results.
    """
    metrics = [measure.metric for measure in ENTITIES]
    found = scenes(frame, "entities", metrics, profile_name)
    below = legend_mark("<", CONTROL, "forget quality p < 1e-12")
    return dot_figure(_blocks(found, ENTITIES, labels), profile_name, provenance, [below])


def eco_book_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw how near the answers come to a book: chapters to forget filled, to keep hollow.

    One row of panels per model, with 95 % bars; lower is better for what is to be forgotten. The
    gap ASG and the grey band are the base's, which never saw the book. Arguments and error as for
    `eco_methods_figure`.
    """
    metrics = [measure.metric for measure in BOOK]
    found = scenes(frame, "book", metrics, profile_name)
    kept = legend_mark("D", CONTROL, "the same, chapters to keep", **HOLLOW_KEY)
    return dot_figure(_blocks(found, BOOK, labels), profile_name, provenance, [kept])


def eco_science_figure(
    frame: pd.DataFrame,
    profile_name: str = "",
    provenance: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the share of right choices among four on three sets, beside chance, with 95 % bars.

    The hollow mark is a linear probe that reads the choice off the model's logits: above chance,
    the knowledge is still there. Arguments and error as for `eco_methods_figure`.
    """
    found = scenes(frame, "science", ["choice_accuracy", "probe_accuracy"], profile_name)
    chance = Line2D([], [], color=LIMIT, lw=0.9, ls=DASHED, label=f"chance: {CHANCE} %")
    probe = legend_mark("D", CONTROL, "linear probe on logits", **HOLLOW_KEY)
    blocks = _blocks(found, SCIENCE, labels, retained=False)
    return dot_figure(blocks, profile_name, provenance, [probe, chance])
