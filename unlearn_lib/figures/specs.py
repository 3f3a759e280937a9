"""Which figures there are: their kinds, tasks and measures; and how they are drawn and written."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from unlearn_lib.figures import style
from unlearn_lib.figures.kinds import Measure, Pair, curves, dots, title_of, tradeoff
from unlearn_lib.results import Items
from unlearn_lib.tables import ATTACKS, NAMES, PARTS, SIZES, TASKS, Names, conditions_of, models_of
from unlearn_lib.util import CompanionError, digest, nearest, write_text

FOOTER = "bars: 95 % intervals · n: questions, all seeds together"
TIME = Measure("milliseconds_per_prompt", label="Time a prompt (ms)", scale="log", better="neither")


@dataclass(frozen=True)
class Spec:
    """A figure: the function that draws it, with options, and what the items must hold.

    `conditions`: a pattern of the condition that is needed, as for `conditions_of`.
    """

    kind: Callable[..., Figure]
    task: str
    options: Mapping[str, Any]
    method: str = ""
    conditions: str | None = None

    def fits(self, items: Items) -> bool:
        """Whether the items hold what it needs."""
        where = {"task": self.task} | ({"method": self.method} if self.method else {})
        conditions = conditions_of(items, self.task, self.conditions)
        return any(key["condition"] in conditions for key in items.keys(**where))


def search(items: Items, labels: Names, _: str) -> Figure:
    """Draw the search of the guard's strength: the objective at each step, a line per seed."""
    rows = items.frame[items.frame["split"] == "search"]
    wide = rows.pivot_table("value", ["task", "model", "seed", "condition"], "metric")
    panels = dict(list(wide.groupby(["task", "model"], sort=False)))
    figure = style.Picture(figsize=(style.WIDTH, 2.8))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, ((task, model), steps) in zip(grid, panels.items(), strict=True):
        paths = steps.groupby("seed")
        for place, (_, path) in enumerate(paths):
            x, y = path["search_strength"], path["search_objective"]
            colour, dashes = style.SERIES[place % 6], style.DASHES[place % 6]
            axes.plot(x, y, marker="o", ms=4, lw=0.9, color=colour, ls=dashes)
            axes.plot(x[y.idxmin()], y.min(), "*", ms=11, color=style.DARK, mec="white", zorder=4)
        best = steps.loc[paths["search_objective"].idxmin(), "search_strength"]
        found = ", ".join(f"{strength:.3g}" for strength in best)
        calls = f"{steps['model_calls'].max():.0f} calls of the objective"
        axes.set(title=title_of(TASKS[task], model, list(rows["model"].unique())), xscale="log")
        axes.set_xlabel(f"Strength (best: {found})\n{calls}")
        axes.xaxis.set_major_formatter(style.short)
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.margins(0.12)
    grid[0].set_ylabel("← Distance from the\nstate that is aimed at")
    star = Line2D([], [], ls="", marker="*", ms=11, color=style.DARK)
    style.explain(figure, [], {"best step of a seed": star})
    return figure


TIME = Measure("milliseconds_per_prompt", label="Time a prompt (ms)", scale="log", better="neither")


def scaling(items: Items, labels: Names, task: str) -> Figure:
    """Draw the guard's own time a prompt and the model's by the model's size, on logarithms.

    At both ends stands the guard's share of the model's time.
    """
    names = {"base": "model: generates an answer", "eco": "guard: its own time, and its share"}
    figure = curves(items, names, task, [TIME], SIZES, "Parameters of the model", "log")
    for axes in figure.axes:
        model, guard = (line.get_xydata() for line in axes.lines if len(line.get_xdata()) > 1)
        for end in (0, -1):
            share, above = guard[end][1] / model[end][1], guard[end][1] > model[end][1]
            place = {"ha": "center", "va": "bottom" if above else "top"}
            shift = (0, 9 if above else -9)
            text = f"{100 * share:.2g} %"
            axes.annotate(text, guard[end], shift, textcoords="offset points", **place)
        axes.xaxis.set_major_formatter(style.short)
    return figure


def robustness(items: Items, labels: Names, task: str) -> Figure:
    """Draw what leaks for each way of asking, a panel per model, and what the guard misses."""
    asked = [
        key["method"] for key in items.keys(task=task) if re.fullmatch(ATTACKS, key["condition"])
    ]
    names = {**NAMES, **labels}
    measures = [
        Measure(
            "leak_share",
            "forget",
            label=f"{names.get(method, method)} leaks (%)",
            where={"method": method},
        )
        for method in dict.fromkeys(asked)
    ]
    missed = Measure(
        "false_negative_rate", "forget", label="ECO does not flag (%)", where={"method": "eco"}
    )
    return dots(items, labels, task, [*measures, missed], ATTACKS)


DEGENERATE = Measure(
    "degenerate_share", "forget", label="Degenerate answers (%)", limit=(10, "10 % degenerate")
)
QUALITY = Measure("forget_quality", label="Forget quality (p)", limit=(0.05, "p = 0.05"))
UTILITY = Measure("model_utility", label="Model utility", band="retain_model")
RECALL = Measure("rougeL_recall", "forget", label="ROUGE-L recall", band="retain_model")
VERBATIM = Measure(
    "verbatim_share", "forget", label="Verbatim, to forget (%)", better="lower", band="base"
)
KEPT = Measure("verbatim_share", "retain", label="Verbatim, to keep (%)", better="higher")
SIMILAR = Measure("similarity_original", "general", label="Similarity to base (cosine)")
MU = Measure("mu", label="Model utility MU", scale="fit", band="target")
FE = Measure("fe", label="Forget efficacy FE", scale="fit", band="target")
HARM = [
    Measure(
        "harmful_rate",
        label="Harmful answers to held-out prompts (%)",
        scale="fit",
        band="base",
        width=2.2,
        also={"base model's answers, cut to that length": Measure("harmful_rate_length_matched")},
    ),
    DEGENERATE,
    Measure(
        "perplexity_text",
        "retain",
        True,
        "Perplexity, retain (× base)",
        limit=(1.25, "1.25 × perplexity"),
    ),
    Measure("similarity_original", "retain", label="Similarity to base (cosine)"),
    Measure("refusal_share", "retain", label="Refusals, retain (%)"),
]
BOOK = [
    replace(VERBATIM, label="Verbatim (%)", width=1.4, also={"chapters to keep": KEPT}),
    Measure("similarity_text", "forget", label="Similarity to book (cosine)", band="base"),
    Measure("perplexity_text", "forget", label="Perplexity of book", band="base"),
    SIMILAR,
    replace(
        DEGENERATE,
        also={
            "chapters to keep": Measure("degenerate_share", "retain"),
            "normal prompts": Measure("degenerate_share", "general", mark=("o", style.DARK)),
        },
    ),
]
AUTHORS = [
    RECALL,
    *(
        Measure(m, "forget", label=name, band="retain_model")
        for m, name in {
            "probability": "Probability",
            "truth_ratio": "Truth ratio",
            "entailment": "Entailment (%)",
            "cosine_similarity": "Cosine similarity",
            "token_entropy": "Token entropy",
            "extraction_strength": "Extraction strength",
            "hallucinated_share": "Hallucinated (%)",
        }.items()
    ),
    Measure(
        "refusal_share",
        "forget",
        label="Refusals (%)",
        also={"refusals on retain": Measure("refusal_share", "retain")},
    ),
    QUALITY,
    Measure("ks_distance"),
    UTILITY,
    replace(MU, label="MU", scale="", band="retain_model"),
    replace(FE, label="FE", scale="", band="retain_model"),
]
GUARDED = [
    QUALITY,
    UTILITY,
    Measure("asg", label="Gap to retain model (ASG)", scale="fit"),
    Measure("leak_share", "forget", label="Facts leaked (%)", band="retain_model"),
    RECALL,
    Measure("perplexity_answer", "forget", label="Perplexity", band="retain_model"),
    Measure("unique_token_ratio", "forget", label="Unique tokens", band="retain_model"),
]
KEEP = {"chapters to keep": Measure("verbatim_share", "retain")}
GUARDED_BOOK = [
    Measure(
        metric,
        "forget",
        label=label,
        band="base",
        also={"chapters to keep": Measure(metric, "retain")},
    )
    for metric, label in {
        "verbatim_share": "Verbatim (%)",
        "rougeL_recall": "ROUGE-L recall",
        "meteor": "METEOR",
        "similarity_text": "Cosine similarity",
        "perplexity_answer": "Perplexity",
    }.items()
] + [Measure("asg", label="Gap to base (ASG)", scale="fit")]
SCIENCE = [
    Measure(
        "choice_accuracy",
        "forget",
        label="To forget: right choices (%)",
        better="lower",
        limit=(25, "chance: 25 %"),
        also={"linear probe on logits": Measure("probe_accuracy")},
    ),
    *(
        Measure(
            "choice_accuracy",
            split,
            label=f"{split.capitalize()}: right choices (%)",
            better="higher",
            limit=(25, "chance: 25 %"),
        )
        for split in ("retain", "general")
    ),
]
TASK_MARKS = {
    "authors": ("o", style.BLUE),
    "book": ("s", style.ORANGE),
    "science": ("D", style.GREEN),
}
COSTS = [
    Measure(
        metric,
        label=label,
        scale=scale,
        alone=True,
        also={
            TASKS[task]: Measure(metric, where={"task": task}, mark=mark)
            for task, mark in TASK_MARKS.items()
        },
    )
    for metric, label, scale in (
        ("seconds", "Time to unlearn (s)", "amount"),
        ("milliseconds_per_prompt", "Extra time a prompt (ms)", "fit"),
        ("milliseconds_per_token", "Extra time a token (ms)", "fit"),
        ("parameters_changed", "Parameters changed", "amount"),
        ("bytes_stored", "Stored (bytes)", "amount"),
    )
]
FIGURES = {
    "harmful_rate": Spec(dots, "harm", {"measures": HARM}),
    "book_methods": Spec(dots, "book", {"measures": BOOK}),
    "book_tradeoff": Spec(
        tradeoff,
        "book",
        {
            "pairs": [
                Pair(KEPT, VERBATIM, "Chapters to keep"),
                Pair(SIMILAR, VERBATIM, "Normal prompts"),
            ]
        },
    ),
    "closer_look_methods": Spec(dots, "authors", {"measures": AUTHORS}),
    "closer_look_grid": Spec(
        tradeoff,
        "authors",
        {
            "pairs": [
                Pair(replace(MU, band=""), replace(FE, band=""), TASKS[task], task)
                for task in ("authors", "continual", "people")
            ]
        },
    ),
    "closer_look_continual": Spec(
        curves, "continual", {"measures": [MU, FE], "conditions": PARTS, "x_label": "After part"}
    ),
    "eco_tradeoff": Spec(
        tradeoff, "authors", {"pairs": [Pair(replace(UTILITY, scale="fit"), QUALITY)]}, "eco"
    ),
    "eco_methods": Spec(dots, "authors", {"measures": GUARDED}, "eco"),
    "eco_search": Spec(search, "authors", {}, "eco", r"\d\d"),
    "eco_robustness": Spec(robustness, "authors", {}, conditions=ATTACKS),
    "eco_science": Spec(dots, "science", {"measures": SCIENCE}),
    "eco_costs": Spec(dots, "authors", {"measures": COSTS}),
    "eco_scaling": Spec(scaling, "authors", {}, "eco", SIZES),
    "eco_book": Spec(dots, "book", {"measures": GUARDED_BOOK}, "eco"),
}
"""Every figure, by name."""


def figures_of(items: Items) -> list[str]:
    """Return the names of the figures that some items suffice for."""
    return [name for name, spec in FIGURES.items() if spec.fits(items)]


def draw(name: str, items: Items, labels: Names, note: str = "") -> Figure:
    """Draw a figure, with its seeds, n and a note in its footer.

    Args:
        name: one of FIGURES; CompanionError where there is no such figure or no items for it.
        labels: display names of methods, in order.
    """
    if name not in FIGURES:
        raise CompanionError(f"There is no figure '{name}'{nearest(name, FIGURES)}.")
    spec = FIGURES[name]
    if not spec.fits(items):
        raise CompanionError(
            f"Figure '{name}' needs items of task '{spec.task}' that are not there."
        )
    seeds = len(items.seeds(task=spec.task))
    models = ", ".join(model.rsplit("/", 1)[-1] for model in models_of(items, spec.task))
    footer = [FOOTER, f"{seeds} seed{'s' * (seeds > 1)}", models, note]
    with mpl.rc_context(style.STYLE):
        figure = spec.kind(items, labels, spec.task, **spec.options)
        style.sign(figure, " · ".join(filter(None, footer)))
    return figure


def write_all(items: Items, folder: Path, labels: Names, origin: Mapping[str, Any]) -> list[Path]:
    """Write every figure as PNG, SVG and PDF, and `provenance.json`; return the paths.

    `origin`: of the folder's provenance; `profile` and `git` stand in the footers too. The same
    items give the same bytes on one machine.
    """
    git = origin.get("git") or {}
    commit = f"{git.get('commit') or 'unknown'}"[:7] + "+" * bool(git.get("dirty"))
    note = f"profile {origin.get('profile', 'unnamed')} · commit {commit}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in figures_of(items):
        figure = draw(name, items, labels, note)
        for kind in style.UNDATED:
            paths.append(folder / f"{name}.{kind}")
            paths[-1].write_bytes(style.rendered(figure, kind))
    details = {**origin, "figures": figures_of(items), "items": digest(items.frame.to_csv())}
    paths.append(folder / "provenance.json")
    write_text(paths[-1], json.dumps(details, indent=2, sort_keys=True, default=str) + "\n")
    return paths
