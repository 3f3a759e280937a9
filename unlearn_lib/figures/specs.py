"""Which figures there are: their kinds, tasks and measures; and how they are drawn and written."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from unlearn_lib.figures import style
from unlearn_lib.figures.kinds import Drawn, Measure, curves, dots, tradeoff
from unlearn_lib.results import Estimate, Items
from unlearn_lib.tables import ATTACKS, PARTS, SIZES, TASKS, Names, Table, methods_of, models_of
from unlearn_lib.util import CompanionError, digest, nearest, slug, write_text

FOOTER = "bars: 95 % intervals · n: questions, all seeds together · arrows point to the better side"


@dataclass(frozen=True)
class Spec:
    """A figure: the function that draws it, of which task, with which options.

    `method`, `conditions`: what the items must hold besides; a name, and a pattern.
    """

    kind: Callable[..., Drawn]
    task: str
    options: Sequence[Any] = ()
    method: str = ""
    conditions: str = r"\d?"

    def fits(self, items: Items) -> bool:
        """Whether the items hold what it needs."""
        keys = [key for key in items.keys() if key["task"] in self.task.split()]
        keys = [key for key in keys if self.method in ("", key["method"])]
        return any(re.fullmatch(self.conditions, key["condition"]) for key in keys)


def search(items: Items, labels: Names, _: str) -> Drawn:
    """Draw the search of the guard's strength: the objective at each step, a line per seed."""
    rows = items.frame[items.frame["split"] == "search"]
    steps = rows.pivot_table("value", ["task", "seed", "condition"], "metric")
    figure, every = style.panels(steps.index.unique("task").size, 2.0)
    handles = {"best step": style.key(("*", style.DARK))}
    for axes, (task, own) in zip(every, steps.groupby("task", sort=False), strict=True):
        best = []
        for place, (seed, path) in enumerate(own.groupby("seed")):
            x, y = path["search_strength"], path["search_objective"]
            look = {"color": style.SERIES[place % 6], "ls": style.DASHES[place % 6]}
            handles |= {f"seed {seed}": axes.plot(x, y, marker="o", ms=4, lw=0.9, **look)[0]}
            axes.plot(x[y.idxmin()], y.min(), "*", ms=11, color=style.DARK, mec="white", zorder=4)
            best.append(f"{x[y.idxmin()]:.3g}")
        strengths = [Estimate(x, x, x, 1, 1) for x in own["search_strength"]]
        style.set_scale(axes.xaxis, "log", strengths)
        calls = f"{own['model_calls'].max():.0f} calls of the objective"
        axes.set(title=TASKS[task], xlabel=f"Strength (best: {', '.join(best)})\n{calls}")
    every[0].set_ylabel("← Distance from the\nstate that is aimed at")
    return figure, handles


def robustness(items: Items, labels: Names, task: str) -> Drawn:
    """Draw what leaks for each way of asking, a panel per model, and what the guard misses."""
    panels = [
        Measure("leak_share", "forget", label=f"{name} leaks (%)", where={"method": method})
        for method, name in methods_of(items, labels, condition="as asked").items()
    ]
    missed = {"label": "ECO does not flag (%)", "where": {"method": "eco"}}
    panels.append(Measure("false_negative_rate", "forget", **missed))
    return dots(items, labels, task, panels, ATTACKS)


def measures(text: str, **settings: Any) -> list[Measure]:
    """Return measures of `metric`, `metric@split` or `metric@split/base`, with equal settings."""
    columns = Table("", text).columns
    return [Measure(each.metric, each.split, each.relative, **settings) for each in columns]


DEGENERATE = Measure("degenerate_share", "forget", limit=(10, "10 % degenerate"))
FORGET = Measure("verbatim_share", "forget", label="Verbatim, forget (%)", better="lower", band="base")
KEEP = Measure("verbatim_share", "retain", better="higher")
SIMILAR = Measure("similarity_original", "general")
QUALITY = Measure("forget_quality", limit=(0.05, "p = 0.05"))
MU, FE = Measure("mu", scale="near"), Measure("fe", scale="near")
CHANCE = (25, "chance: 25 %")
HARM = [
    *measures("harmful_rate", band="base", width=2.2, also="harmful_rate_length_matched"),
    DEGENERATE,
    *measures("perplexity_text@retain/base", limit=(1.25, "1.25 × perplexity")),
    *measures("similarity_original@retain refusal_share@retain"),
]
BOOK = [
    replace(FORGET, label="Verbatim (%)", width=1.4, also="verbatim_share@retain"),
    *measures("similarity_text@forget perplexity_text@forget", band="base"),
    SIMILAR,
    replace(DEGENERATE, also="degenerate_share@retain degenerate_share@general"),
]
SCORES = """rougeL_recall probability truth_ratio entailment cosine_similarity token_entropy
    extraction_strength hallucinated_share ks_distance model_utility mu fe"""
GUARDED = "model_utility asg leak_share rougeL_recall perplexity_answer unique_token_ratio"
RECITED = "verbatim_share rougeL_recall meteor similarity_text perplexity_answer"
SCIENCE = [
    *measures("choice_accuracy", better="lower", limit=CHANCE, also="probe_accuracy"),
    *measures("choice_accuracy@retain choice_accuracy@general", better="higher", limit=CHANCE),
]
COSTS = [
    *measures("seconds", scale="amount"),
    *measures("milliseconds_per_prompt milliseconds_per_token"),
    *measures("parameters_changed bytes_stored", scale="amount"),
]
TIME = measures(
    "milliseconds_per_prompt",
    label="Time a prompt (ms)",
    scale="log",
    where={"method": "eco"},
    also="model_milliseconds_per_prompt",
)
GRID = [(MU, FE, TASKS[task], task) for task in ("authors", "continual", "people")]
GRID[0] = (replace(MU, width=1.7), *GRID[0][1:])
BOOK_PAIRS = [(KEEP, FORGET, "Chapters to keep", "book"), (SIMILAR, FORGET, "Normal prompts", "book")]
ECO_PAIR = (Measure("model_utility", scale="near"), QUALITY, "", "authors")
FIGURES = {
    "harmful_rate": Spec(dots, "harm", [HARM]),
    "book_methods": Spec(dots, "book", [BOOK]),
    "book_tradeoff": Spec(tradeoff, "book", [BOOK_PAIRS]),
    "closer_look_methods": Spec(
        dots, "authors", [[*measures(SCORES, band="retain_model"), QUALITY]]
    ),
    "closer_look_grid": Spec(tradeoff, "authors", [GRID]),
    "closer_look_continual": Spec(curves, "continual", [[MU, FE], PARTS, "After part"], "", PARTS),
    "eco_tradeoff": Spec(
        tradeoff, "authors", [[ECO_PAIR]], "eco"
    ),
    "eco_methods": Spec(
        dots, "authors", [[QUALITY, *measures(GUARDED, band="retain_model")]], "eco"
    ),
    "eco_book": Spec(dots, "book", [[*measures(RECITED, band="base"), *measures("asg")]], "eco"),
    "eco_search": Spec(search, "authors book science", [], "eco", r"\d\d"),
    "eco_robustness": Spec(robustness, "authors", [], "", ATTACKS),
    "eco_science": Spec(dots, "science", [SCIENCE]),
    "eco_costs": Spec(dots, "authors book science", [COSTS]),
    "eco_scaling": Spec(
        curves, "authors", [TIME, SIZES, "Parameters of the model", True], "eco", SIZES
    ),
}
"""Every figure, by name."""


def figures_of(items: Items) -> list[str]:
    """Return the names of the figures that some items suffice for."""
    return [name for name, spec in FIGURES.items() if spec.fits(items)]


def draw(name: str, items: Items, labels: Names, note: str = "", model: str = "") -> Figure:
    """Draw a figure of one language model, with seeds, model and a note in its footer.

    Args:
        name: one of FIGURES; CompanionError where there is none, or no items for it.
        labels: display names of methods, in order.
        model: the language model; default: the items' only one.
    """
    if name not in FIGURES:
        raise CompanionError(f"There is no figure '{name}'{nearest(name, FIGURES)}.")
    spec, frame = FIGURES[name], items.frame
    own = Items(frame[frame["model"] == model]) if model else items
    if not spec.fits(own):
        raise CompanionError(f"Figure '{name}' needs items of task '{spec.task}'.")
    task = next(task for task in spec.task.split() if items.keys(task=task))
    seeds = len(own.seeds(task=task))
    language_model = own.model(task).rsplit("/", 1)[-1]
    notes = [language_model, f"{seeds} seed{'s' * (seeds > 1)}", note]
    with mpl.rc_context(style.STYLE):
        figure, handles = spec.kind(own, labels, spec.task, *spec.options)
        return style.finish(figure, handles, f"{FOOTER}\n{' · '.join(filter(None, notes))}")


def write_all(items: Items, folder: Path, labels: Names, origin: Mapping[str, Any]) -> list[Path]:
    """Write every figure as PNG, SVG and PDF, and `provenance.json`; return the paths.

    With several language models a figure's name ends with the model's. The same items give the
    same bytes on one machine.

    Args:
        origin: goes into the provenance; `profile` and `git` stand in the footers too.
    """
    git = origin.get("git") or {}
    commit = str(git.get("commit") or "unknown")[:7] + "+" * bool(git.get("dirty"))
    note = f"profile {origin.get('profile', 'unnamed')} · commit {commit}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in figures_of(items):
        models = models_of(items, FIGURES[name].task.split()[0])
        for model in models:
            figure = draw(name, items, labels, note, model)
            stem = f"{name}_{slug(model)}" if len(models) > 1 else name
            for kind in style.UNDATED:
                paths.append(folder / f"{stem}.{kind}")
                paths[-1].write_bytes(style.rendered(figure, kind))
    details = {**origin, "figures": figures_of(items), "items": digest(items.frame.to_csv())}
    write_text(folder / "provenance.json", json.dumps(details, indent=1, sort_keys=True) + "\n")
    return [*paths, folder / "provenance.json"]
