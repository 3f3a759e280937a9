"""Which figures there are: their kinds, tasks and measures; and how they are drawn and written."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from unlearn_lib import tables
from unlearn_lib.figures import style
from unlearn_lib.figures.kinds import Drawn, Measure, Source, curves, dots, tradeoff
from unlearn_lib.results import Items
from unlearn_lib.tables import ATTACKS, PARTS, SIZES, TASKS, Names, commit_of, methods_of
from unlearn_lib.util import CompanionError, digest, entry_of, slug, write_text

FOOTER = "bars: 95 % intervals · n: questions, all seeds together · arrows point to the better side"
STEPS = "a line joins the steps of a search in their order"


@dataclass(frozen=True)
class Spec:
    """A figure: the function that draws it, of which tasks, with which options.

    `method`, `conditions`: what the items must hold besides; a name, and a pattern.
    """

    kind: Callable[..., Drawn]
    tasks: str
    options: Sequence[Any] = ()
    method: str = ""
    conditions: str = r"\d?"
    footer: str = FOOTER

    def tasks_in(self, items: Items) -> list[str]:
        """Return those of its tasks for which the items hold what it needs."""
        keys = items.keys(**({"method": self.method} if self.method else {}))
        present = {k["task"] for k in keys if re.fullmatch(self.conditions, k["condition"])}
        return [task for task in self.tasks.split() if task in present]


def search(source: Source) -> Drawn:
    """Draw the search of the guard's strength: the objective at each step, a line per seed."""
    items, _, tasks = source
    figure, every = style.panels(len(tasks), 2.0)
    handles: dict[str, Any] = {"best step": style.key(("*", style.DARK))}
    for axes, task in zip(every, tasks, strict=True):
        rows = items.frame[(items.frame["split"] == "search") & (items.frame["task"] == task)]
        steps, best = rows.pivot_table("value", ["seed", "condition"], "metric"), []
        for place, (seed, path) in enumerate(steps.groupby("seed")):
            x, y = path["search_strength"], path["search_objective"]
            line = {"marker": "o", "ms": 4, "lw": 0.9} | style.LINES[place % 6]
            handles |= {f"seed {seed}": axes.plot(x, y, **line)[0]}
            axes.plot(x[y.idxmin()], y.min(), "*", ms=11, color=style.DARK, mec="white", zorder=4)
            best.append(f"{x[y.idxmin()]:.3g}")
        style.set_scale(axes.xaxis, "log", map(style.exactly, steps["search_strength"]))
        calls = f"{steps['model_calls'].max():.0f} calls of the objective"
        axes.set(title=TASKS[task], xlabel=f"Strength (best: {', '.join(best)})\n{calls}")
    every[0].set_ylabel("← Distance from the\nstate that is aimed at")
    return figure, handles


def robustness(source: Source) -> Drawn:
    """Draw what leaks for each way of asking, a panel per model, and what the guard misses."""
    names = methods_of(*source[:2], condition="as asked")
    missed = Measure("false_negative_rate", "forget", label="Guard does not flag (%)")
    panels = [
        Measure("leak_share", "forget", label=f"{name} leaks (%)", where={"method": method})
        for method, name in names.items()
    ]
    missing = [replace(missed, where={"method": method}) for method in names]
    return dots(source, panels + missing, ATTACKS)


measures = Measure.parsed
DEGENERATE = Measure("degenerate_share", "forget", limit=(10, "10 % degenerate"))
FORGET = Measure("verbatim_share", label="Verbatim, forget (%)", better="lower", band="base")
KEEP = Measure("verbatim_share", "retain", better="higher")
SIMILAR = Measure("similarity_original", "general")
QUALITY = Measure("forget_quality", limit=(0.05, "p = 0.05"))
MU, FE, UTILITY = measures("mu fe model_utility", scale="near")
HARM = [
    *measures("harmful_rate", band="base", width=2.2, also="harmful_rate_length_matched"),
    DEGENERATE,
    *measures("perplexity_text@retain/base", limit=(1.25, "1.25 × perplexity")),
    *measures("similarity_original@retain refusal_share@retain"),
]
BOOK = [
    replace(FORGET, label="", width=1.4, also="verbatim_share@retain"),
    *measures("similarity_text perplexity_text", band="base"),
    SIMILAR,
    replace(DEGENERATE, also="degenerate_share@retain degenerate_share@general"),
]
SCORES = """rougeL_recall probability truth_ratio entailment cosine_similarity token_entropy
    extraction_strength hallucinated_share ks_distance model_utility mu fe"""
AUTHORS = [
    *measures(SCORES, band="retain_model"),
    *measures("refusal_share", band="retain_model", also="refusal_share@retain"),
    QUALITY,
]
GUARDED = "model_utility asg leak_share rougeL_recall perplexity_answer unique_token_ratio"
ECO = [QUALITY, *measures(GUARDED, band="retain_model")]
RECITED = ("verbatim_share", "rougeL_recall", "meteor", "similarity_text", "perplexity_answer")
GUARDED_BOOK = [Measure(m, "forget", band="base", also=f"{m}@retain") for m in RECITED]
CHANCE = (25, "chance: 25 %")
SCIENCE = [
    *measures("choice_accuracy", better="lower", limit=CHANCE, also="probe_accuracy"),
    *measures("choice_accuracy@retain choice_accuracy@general", better="higher", limit=CHANCE),
]
COSTS = [
    *measures("seconds", scale="amount"),
    *measures("milliseconds_per_prompt milliseconds_per_token"),
    *measures("parameters_changed bytes_stored", scale="amount"),
]
GUARD = {"where": {"method": "eco"}, "also": "model_milliseconds_per_prompt", "scale": "log"}
TIME = measures("milliseconds_per_prompt", label="Milliseconds a prompt; filled: ECO's", **GUARD)
GRID = [(replace(MU, width=1.7), FE, "authors"), (MU, FE, "continual"), (MU, FE, "people")]
FIGURES = {
    "harmful_rate": Spec(dots, "harm", [HARM]),
    "book_methods": Spec(dots, "book", [BOOK]),
    "book_tradeoff": Spec(tradeoff, "book", [[(KEEP, FORGET, "book"), (SIMILAR, FORGET, "book")]]),
    "closer_look_methods": Spec(dots, "authors", [AUTHORS]),
    "closer_look_grid": Spec(tradeoff, "authors continual people", [GRID]),
    "closer_look_continual": Spec(curves, "continual", [[MU, FE], PARTS, "After part"], "", PARTS),
    "eco_tradeoff": Spec(tradeoff, "authors", [[(UTILITY, QUALITY, "authors")]], "eco"),
    "eco_methods": Spec(dots, "authors", [ECO], "eco"),
    "eco_book": Spec(dots, "book", [[*GUARDED_BOOK, Measure("asg")]], "eco"),
    "eco_search": Spec(search, "authors book science", [], "eco", r"\d\d", STEPS),
    "eco_robustness": Spec(robustness, "authors", [], "", ATTACKS),
    "eco_science": Spec(dots, "science subjects", [SCIENCE]),
    "eco_costs": Spec(dots, "authors book science", [COSTS]),
    "eco_scaling": Spec(dots, "authors", [TIME, SIZES], "eco", SIZES),
}
"""Every figure, by name."""


def figures_of(items: Items) -> list[str]:
    """Return the names of the figures that some items suffice for."""
    return [name for name, spec in FIGURES.items() if spec.tasks_in(items)]


def draw(name: str, items: Items, labels: Names, note: str = "", model: str = "") -> Figure:
    """Draw a figure of one language model, with seeds, model and a note in its footer.

    Args:
        name: one of FIGURES; CompanionError where there is none, or no items for it.
        labels: display names of methods, in order.
        model: the language model; default: the items' only one.
    """
    spec, rows = entry_of(FIGURES, name, "There is no figure"), items.frame
    items = Items(rows[rows["model"] == model]) if model else items
    tasks = spec.tasks_in(items)
    if not tasks:
        raise CompanionError(f"Figure '{name}' needs items of tasks '{spec.tasks}'.")
    seeds = len(items.seeds(task=tasks[0]))
    notes = [slug(items.model(tasks[0])), f"{seeds} seed{'s' * (seeds > 1)}", note]
    with mpl.rc_context(style.STYLE):
        figure, handles = spec.kind((items, labels, tasks), *spec.options)
        return style.finish(figure, handles, f"{spec.footer}\n{' · '.join(filter(None, notes))}")


def write_all(items: Items, folder: Path, labels: Names, origin: Mapping[str, Any]) -> None:
    """Write every figure as PNG, SVG and PDF, and `provenance.json`, which names the files.

    Of several language models the first has figures `<name>`, the others `<name>_<model>`. The same
    items give the same bytes on one machine.

    Args:
        origin: goes into the provenance; `profile`, `git` and `weights` stand in the footers too.
    """
    note = f"profile {origin.get('profile', 'unnamed')} · commit {commit_of(origin, 7)}"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name in figures_of(items):
        models = items.models(FIGURES[name].tasks_in(items)[0])
        for place, model in enumerate(models):
            notes = " · ".join(filter(None, [tables.weights_of(origin).get(model), note]))
            figure = draw(name, items, labels, notes, model if len(models) > 1 else "")
            for kind in style.UNDATED:
                path = folder / f"{name}{f'_{slug(model)}' * (place > 0)}.{kind}"
                path.write_bytes(style.rendered(figure, kind))
                pictures.append(path.name)
    details = {**origin, "figures": figures_of(items), "items": digest(items.frame.to_csv())}
    details["pictures"] = sorted(pictures)
    write_text(folder / "provenance.json", json.dumps(details, indent=1, sort_keys=True) + "\n")
