"""What notebook 04 displays: the data, what was taught, the three issues, the grid, a verdict."""

import html
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from unlearn_lib import figures, metrics, tables
from unlearn_lib.datasets.questions import Question
from unlearn_lib.display import facts, shorten, with_interval
from unlearn_lib.experiments.closer_look import TRAINED, CloserLook
from unlearn_lib.experiments.closer_look_measures import FORGET, NEIGHBOURS, RETAIN
from unlearn_lib.experiments.closer_look_stages import IMPLANTED, REFERENCE
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.methods import find_method
from unlearn_lib.metrics import Estimate
from unlearn_lib.profiles import load_profile
from unlearn_lib.results import CLAIMS, ORDERINGS
from unlearn_lib.runs import provenance
from unlearn_lib.settings import Scenario

KNOWN = ("rougeL_recall", "probability", "truth_ratio", "entailment")
OLD = ("rougeL_recall", "probability", "truth_ratio")
NEW = ("token_entropy", "cosine_similarity", "entailment", "degenerate_share")
WORDS = 24
RECIPE = {
    "steps": "steps",
    "batch": "batch_size",
    "learning rate": "learning_rate",
    "forget weight": "forget_weight",
    "β": "beta",
}
ABSENT = "This model and profile do not run it."


def settings(experiment: CloserLook) -> pd.DataFrame:
    """The model, how it is trained, and where the questions come from."""
    return facts([*experiment.described(), ("questions", experiment.settings.data.source)])


def data(experiment: CloserLook) -> pd.DataFrame:
    """How many questions each set has, and of how many authors or people."""
    found = experiment.data
    sets: dict[str, Sequence[Question]] = {
        f"to forget, task {i}": rows for i, rows in enumerate(found.tasks, 1)
    }
    sets |= {"to retain": found.retain, "retain, asked": found.retain_evaluation}
    sets |= {"real authors": found.real_authors, "world facts": found.world_facts}
    sets |= {"rehearsed: other authors and facts": found.rehearsal}
    sets["held out, never taught"] = found.holdout
    rows = [
        {"set": name, "questions": len(rows), "subjects": len({row.subject for row in rows} - {""})}
        for name, rows in sets.items()
    ]
    return pd.DataFrame(rows).set_index("set")


def sample(experiment: CloserLook, row: int = 0) -> pd.DataFrame:
    """One question to forget with all its answers."""
    chosen = experiment.data.tasks[0][row]
    wrong = [(f"wrong {i}", text) for i, text in enumerate(chosen.perturbed_answer, 1)]
    right = [("question", chosen.question), ("answer", chosen.answer)]
    return facts([*right, ("paraphrase", chosen.paraphrase), *wrong])


def labels(experiment: CloserLook) -> dict[str, str]:
    """Display names of everything that is measured."""
    before = {ORIGINAL: "base", IMPLANTED: "implanted", REFERENCE: "reference (retain only)"}
    return before | experiment.labels


def _models(experiment: CloserLook, scenario: Scenario = "fictitious") -> list[str]:
    return [who for who, _ in experiment.models_of(scenario)]


def _table(rows: Sequence[dict[str, Any]], *index: str) -> pd.DataFrame:
    """A table of rows, or a line where there is none: a profile need not run every scenario."""
    if not rows:
        return facts([("nothing here", ABSENT)])
    return pd.DataFrame(rows).set_index(list(index))


def knowledge(experiment: CloserLook) -> pd.DataFrame:
    """What the models know before anything is forgotten, per set."""
    rows = []
    for who in _models(experiment):
        if who in experiment.methods:
            continue
        found = experiment.estimates(who)
        for split in experiment.sets("fictitious"):
            if (split, "rougeL_recall") in found:
                cells = {metric: with_interval(found[split, metric]) for metric in KNOWN}
                rows.append({"model": labels(experiment)[who], "set": split, **cells})
    return _table(rows, "model", "set")


def judge(experiment: CloserLook) -> pd.DataFrame:
    """How well the judge of entailment does on held-out authors, kind by kind."""
    if experiment.settings.evaluation.entailment != TRAINED:
        return facts([("judge of entailment", experiment.settings.evaluation.entailment)])
    found = experiment.judge().result["held_out"]
    return facts([(name, with_interval(Estimate(**value))) for name, value in found.items()])


def recipes(experiment: CloserLook) -> pd.DataFrame:
    """What each method runs with here, and in profile paper."""
    papers = {method.name: method for method in load_profile("paper").tofu.methods}
    rows = []
    for ours in experiment.settings.methods:
        row: dict[str, Any] = {"method": ours.label, "source": find_method(ours.uses).source}
        theirs = papers.get(ours.name)
        for title, key in RECIPE.items():
            value = f"{getattr(theirs, key):g}" if theirs else "none"
            row[title] = f"{getattr(ours, key):g} (paper: {value})"
        rows.append(row)
    return pd.DataFrame(rows).set_index("method")


def training(experiment: CloserLook, scenario: Scenario = "fictitious") -> pd.DataFrame:
    """Steps, seconds, peak memory and early stops of each method."""
    rows = []
    for name in experiment.settings.methods_of(scenario, experiment.model_id):
        run = experiment.unlearned(name, None, scenario)
        rows.append(
            {
                "method": experiment.labels[name],
                "steps": run.result["steps"],
                "seconds": round(run.result["seconds"], 1),
                "peak memory (GiB)": round(run.provenance["peak_memory_bytes"] / 2**30, 2),
                "stopped early": run.result["stopped"] or "no",
            }
        )
    return _table(rows, "method")


def untargeted(experiment: CloserLook) -> pd.DataFrame:
    """Issue 1: what the answers to forgotten questions are, method by method."""
    return _shares(
        experiment,
        {
            "right (entailed)": (FORGET, "entailment"),
            "hallucinated": (FORGET, "hallucinated_share"),
            "broken": (FORGET, "degenerate_share"),
            "refusals": (FORGET, "refusal_share"),
        },
    )


def targeted(experiment: CloserLook) -> pd.DataFrame:
    """Issue 2: refusals where they are wanted, and where they are not."""
    wanted = ("idk", "dpo")
    chosen = {m.name for m in experiment.settings.methods if m.uses.split("_")[0] in wanted}
    return _shares(
        experiment,
        {
            "refusals, forget": (FORGET, "refusal_share"),
            "refusals, retain": (RETAIN, "refusal_share"),
            "refusals, real authors": ("real_authors", "refusal_share"),
            "refusals, world facts": ("world_facts", "refusal_share"),
            "MU": ("all", "mu"),
        },
        chosen,
    )


def measures(experiment: CloserLook) -> pd.DataFrame:
    """Issue 3: the usual measures beside those that the paper adds, on retained questions."""
    return _shares(
        experiment,
        {name.replace("_", " "): (RETAIN, name) for name in (*OLD, *NEW)},
    )


def _shares(
    experiment: CloserLook, columns: dict[str, tuple[str, str]], only: set[str] | None = None
) -> pd.DataFrame:
    rows = []
    for who in _models(experiment):
        if who in experiment.methods and only is not None and who not in only:
            continue
        found = experiment.estimates(who)
        cells = {title: with_interval(found.get(place)) for title, place in columns.items()}
        rows.append({"model": labels(experiment)[who], **cells})
    return _table(rows, "model")


def answers(
    experiment: CloserLook, scenario: Scenario = "fictitious", row: int = 0, split: str = FORGET
) -> HTML:
    """What every model answers to one question, shortened."""
    models = experiment.models_of(scenario)
    if not models:
        return HTML(f"<p>{ABSENT}</p>")
    rows = []
    for who, task in models:
        part = experiment.record(who, scenario, task)[split]
        name = labels(experiment)[who]
        after = f", after task {task}" if scenario == "continual" else ""
        rows.append((f"{name}{after}", shorten(part["texts"][row], WORDS) or "(nothing)"))
    asked = experiment.sets(scenario)[split][row]
    head = f"<p><b>{html.escape(asked.question)}</b><br>true: {html.escape(asked.answer)}</p>"
    cells = "".join(
        f"<tr><td style='white-space:nowrap;vertical-align:top'><b>{html.escape(who)}</b></td>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for who, text in rows
    )
    return HTML(f"{head}<table>{cells}</table>")


def entropy(experiment: CloserLook) -> Figure | Markdown:
    """ME's entropy over training: the next token's, as a share of its limit."""
    curves: dict[str, pd.DataFrame] = {}
    for name in experiment.settings.methods_of("fictitious", experiment.model_id):
        history = experiment.history(name)
        if "entropy" in history:
            curves[experiment.labels[name]] = history
    return figures.entropy_curve_figure(curves) if curves else Markdown(ABSENT)


def _drawn(
    experiment: CloserLook, figure_of: Any, scenario: Scenario | None = None
) -> Figure | Markdown:
    """A figure of the tidy rows; where it is of one scenario, only if that was run."""
    if scenario is not None and not experiment.models_of(scenario):
        return Markdown(ABSENT)
    rows, name = experiment.rows(), experiment.profile.name
    return figure_of(rows, name, provenance(), experiment.labels)


def grid(experiment: CloserLook) -> Figure | Markdown:
    """MU against FE, method by method, in each scenario."""
    return _drawn(experiment, figures.closer_look_grid_figure)


def methods(experiment: CloserLook) -> Figure | Markdown:
    """Every measure of every method in the fictitious scenario."""
    return _drawn(experiment, figures.closer_look_methods_figure, "fictitious")


def continual(experiment: CloserLook) -> Figure | Markdown:
    """MU and FE after each forget task."""
    return _drawn(experiment, figures.closer_look_continual_figure, "continual")


def table(experiment: CloserLook) -> pd.DataFrame:
    """Ours beside what the papers and others report."""
    claims, name = tables.read_claims(CLAIMS), experiment.profile.name
    return tables.table_three(experiment.rows(), claims, experiment.labels, name)


def people(experiment: CloserLook) -> pd.DataFrame:
    """What the unmodified model knows of people, whom it is to forget, and who are neighbours."""
    if not experiment.models_of("real_world"):
        return facts([("nothing here", ABSENT)])
    asked = experiment.known().result
    found = experiment.people
    right = f"{asked['right']} of {asked['asked']}"
    rows: list[tuple[str, Any]] = [("questions answered right", right)]
    for title, part in (
        ("to forget", found.forget),
        ("neighbours to keep", found.neighbours),
        ("other neighbours, asked", found.evaluation),
    ):
        names = ", ".join(dict.fromkeys(row.subject for row in part))
        rows.append((f"{title} ({len(part)} questions)", names))
    return facts(rows)


def real_world(experiment: CloserLook) -> pd.DataFrame:
    """MU and FE in the real world, and what happens to neighbours."""
    rows = []
    for who in _models(experiment, "real_world"):
        found = experiment.estimates(who, "real_world")
        rows.append(
            {
                "model": labels(experiment)[who],
                "MU": with_interval(found["all", "mu"]),
                "FE": with_interval(found[FORGET, "fe"]),
                "ROUGE, forget": with_interval(found[FORGET, "rougeL_recall"]),
                "ROUGE, neighbours": with_interval(found[NEIGHBOURS, "rougeL_recall"]),
                "refusals, neighbours": with_interval(found[NEIGHBOURS, "refusal_share"]),
            }
        )
    return _table(rows, "model")


def orderings(experiment: CloserLook) -> pd.DataFrame:
    """The orderings that the paper claims, with a verdict on this model and seed."""
    claimed = tables.read_orderings(ORDERINGS)
    return tables.orderings_table(experiment.rows(), claimed, experiment.labels)


def official() -> pd.DataFrame:
    """The TOFU authors' own evaluation logs, scored as ours are, where a mirror has them.

    They lie in `evals/` of the mirror; a log of a model taught everything has `full` in its name.
    """
    mirror = os.environ.get("UNLEARN_MIRROR")
    paths = sorted((Path(mirror).expanduser() / "evals").glob("*.json")) if mirror else []
    if not paths:
        return facts([("official logs", "none here; put them into evals/ below UNLEARN_MIRROR")])
    logs = {path.stem: metrics.official_log(path) for path in paths}
    rows = []
    for name, log in logs.items():
        row = {"log": name, "model utility": with_interval(metrics.model_utility(log), 4)}
        for other, reference in logs.items() if "full" in name else ():
            if "retain" in other:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)
                    found = metrics.forget_quality(log, reference)
                row[f"forget quality against {other}"] = f"{found.value:.4e}"
        rows.append(row)
    return pd.DataFrame(rows).set_index("log").fillna("")


def verdict(experiment: CloserLook) -> Markdown:
    """Were the two bars met: taught well, and a reference that is its own equal?"""
    if not experiment.models_of("fictitious"):
        return Markdown(ABSENT)
    taught = experiment.estimates(IMPLANTED)[FORGET, "rougeL_recall"]
    lines = [
        f"- Implanted: ROUGE on the forget set is {with_interval(taught)}; asked for: at least 0.8."
    ]
    if experiment.has_reference:
        itself = experiment.estimates(REFERENCE)[FORGET, "forget_quality"].value
        lines.append(f"- The exact reference against itself: forget quality {itself:g}.")
    return Markdown("\n".join(lines))
