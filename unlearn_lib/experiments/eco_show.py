"""What notebook 03 displays: prompts, guards, a prompt before and after, figures, tables."""

import functools
import html
from typing import Any

import pandas as pd
import torch
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from unlearn_lib import figures, tables
from unlearn_lib.display import facts, shorten, with_interval
from unlearn_lib.eco import tokens
from unlearn_lib.experiments.closer_look_measures import FORGET
from unlearn_lib.experiments.closer_look_stages import IMPLANTED, REFERENCE
from unlearn_lib.experiments.eco import Eco
from unlearn_lib.experiments.eco_tasks import ECO, PROMPTING
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.metrics import Estimate
from unlearn_lib.results import CLAIMS
from unlearn_lib.runs import provenance

HIDDEN = "(hazardous, not shown)"
ABSENT = "This model does not run that task."
MARK = "background:#fde9a9;color:#000"
WORDS = 30


def names(experiment: Eco) -> dict[str, str]:
    """Display names of all models, by name."""
    return {ORIGINAL: "base", IMPLANTED: "implanted", REFERENCE: "reference", **experiment.labels}


def settings(experiment: Eco) -> pd.DataFrame:
    """The model, the tasks, and the encoder that the guards are made from."""
    chosen = experiment.settings.classifier
    rows = [row for row in experiment.described() if row[0] != "methods"]
    rows.append(("tasks", ", ".join(experiment.task_names)))
    rows.append(("prompt classifier", f"{chosen.base}, {chosen.epochs:g} epochs"))
    return facts(rows)


def prompts(experiment: Eco) -> pd.DataFrame:
    """What each guard is trained, calibrated and scored on: how many prompts, and one of them."""
    rows = []
    for name, task in experiment.tasks.items():
        found = task.prompts
        for title, part in (
            ("to forget, trained on", found.forget),
            ("to keep, trained on", found.retain),
            ("to keep, for the threshold", found.calibration),
            ("to forget, held out", found.held_out_forget),
            ("to keep, held out", found.held_out_retain),
        ):
            hidden = "forget" in title and _hazardous(experiment, name)
            example = HIDDEN if hidden else shorten(part[0], 14)
            rows.append({"task": name, "prompts": title, "n": len(part), "one of them": example})
    return pd.DataFrame(rows).set_index(["task", "prompts"])


def _hazardous(experiment: Eco, task: str) -> bool:
    """Whether a task's questions to forget are such that their text is not shown."""
    chosen = experiment.settings.science
    return task == "science" and chosen is not None and chosen.source == "wmdp"


def guards(experiment: Eco) -> pd.DataFrame:
    """Each guard's threshold and its errors on held-out prompts."""
    rows = []
    for name in experiment.task_names:
        found = experiment.guard(name).result
        errors = {metric: Estimate(**value) for metric, value in found["rates"].items()}
        rows.append(
            {
                "task": name,
                "threshold": f"{found['threshold']:.4f}",
                **{
                    title: f"{with_interval(errors[metric], 3)} (n {errors[metric].n})"
                    for title, metric in (
                        ("false positives", "false_positive_rate"),
                        ("false negatives", "false_negative_rate"),
                    )
                },
                "seconds": round(found["seconds"], 1),
            }
        )
    return pd.DataFrame(rows).set_index("task")


def found_names(experiment: Eco) -> pd.DataFrame | Markdown:
    """How well names are found by their capitals, on the questions of the entities."""
    if "entities" not in experiment.tasks:
        return Markdown(ABSENT)
    rows = [*experiment.tofu.forgotten("fictitious"), *experiment.tofu.data.retain]
    pairs = [(row.question, row.subject) for row in rows if row.subject]
    if not pairs:
        return Markdown("The names in these questions are not known, so nothing can be counted.")
    covered, right = tokens.accuracy(pairs)
    return facts(
        [
            ("names that are found whole", with_interval(covered)),
            ("finds that belong to a name or a title", with_interval(right)),
        ]
    )


def embeddings(experiment: Eco, row: int = 0) -> Figure:
    """A flagged prompt's embeddings, before and after."""
    task = experiment.task_names[0]
    found, prompt = experiment.guarded(task), _prompt(experiment, row)
    before = found.model.embeddings(torch.tensor([prompt])).detach()
    flags, _ = _chosen(experiment, found, prompt)
    parts = found.model.parts_of([prompt])
    after = found.model.corrupted(before, parts)
    pieces = [found.tokenizer.decode([token]) for token in prompt]
    if _hazardous(experiment, task):
        pieces = [str(place) for place in range(len(prompt))]
    start, end = found.model.frame.question(prompt)
    shown = slice(start, end)
    return figures.embedding_figure(
        before[0, shown].float().numpy(), after[0, shown].float().numpy(),
        pieces[shown], flags[shown],
    )  # fmt: skip


def _prompt(experiment: Eco, row: int) -> list[int]:
    task = experiment.task_names[0]
    if task == "entities":
        question = experiment.tofu.forgotten("fictitious")[row].question
        return list(experiment.tofu.encoder.prompt(question))
    if task == "book":
        return list(experiment.book.passages(FORGET)[row].prompt)
    return list(experiment.encoder.prompt(experiment.science.forget[row].question))


def _chosen(experiment: Eco, found: Any, prompt: list[int]) -> tuple[list[bool], str]:
    model = found.model
    return tokens.chosen_tokens(model.tokenizer, prompt, model.frame, model.guard.selector)


def before_after(experiment: Eco, row: int = 0) -> HTML | Markdown:
    """One question, the tokens that are corrupted, and what every model answers."""
    if "entities" not in experiment.tasks:
        return Markdown(ABSENT)
    question = experiment.tofu.forgotten("fictitious")[row]
    found, prompt = experiment.guarded("entities"), _prompt(experiment, row)
    flags, _ = _chosen(experiment, found, prompt)
    start, end = found.model.frame.question(prompt)
    marked = "".join(
        f"<span style='{MARK}'>{piece}</span>" if flag else piece
        for piece, flag in (
            (html.escape(found.tokenizer.decode([prompt[i]])), flags[i]) for i in range(start, end)
        )
    )
    rows = []
    for who in experiment.tasks["entities"].models():
        text = experiment.record(who)[FORGET]["texts"][row]
        rows.append((names(experiment)[who], shorten(text, WORDS) or "(nothing)"))
    cells = "".join(
        f"<tr><td style='white-space:nowrap;vertical-align:top'><b>{html.escape(who)}</b></td>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for who, text in rows
    )
    head = f"<p><b>{marked}</b><br>true: {html.escape(question.answer)}</p>"
    return HTML(f"{head}<table>{cells}</table>")


@functools.lru_cache(maxsize=1)
def _rows(experiment: Eco) -> pd.DataFrame:
    return experiment.rows()


def _drawn(experiment: Eco, figure_of: Any, scenario: str) -> Figure | Markdown:
    rows = _rows(experiment)
    if not rows["scenario"].eq(scenario).any():
        return Markdown(ABSENT)
    return figure_of(rows, experiment.profile.name, provenance(), experiment.labels)


def search(experiment: Eco) -> Figure | Markdown:
    """The search's curve: strength against objective, with the model calls that it took."""
    return _drawn(experiment, figures.eco_search_figure, "search")


def strengths(experiment: Eco) -> pd.DataFrame:
    """What the search found, and what it cost."""
    rows = []
    for name in experiment.task_names:
        found = experiment.searched(name)
        steps = found.result["steps"]
        best = min(steps, key=lambda step: step["objective"]) if steps else None
        chosen = experiment.settings.guards[name]
        strength = best["strength"] if best else chosen.strength
        rows.append(
            {
                "task": name,
                "corruption": chosen.corruption.name,
                "tokens": chosen.corruption.tokens,
                "strength": f"{strength:.3g}",
                "gap to the aim": f"{best['objective']:.3f}" if best else "not searched",
                "model calls": found.result["calls"],
                "seconds": round(found.result["seconds"], 1),
            }
        )
    return pd.DataFrame(rows).set_index("task")


def tradeoff(experiment: Eco) -> Figure | Markdown:
    """Forget quality against model utility, every method."""
    return _drawn(experiment, figures.eco_tradeoff_figure, "entities")


def methods(experiment: Eco) -> Figure | Markdown:
    """Every measure of every method on the entities."""
    return _drawn(experiment, figures.eco_methods_figure, "entities")


def book(experiment: Eco) -> Figure | Markdown:
    """The book: every measure of every method."""
    return _drawn(experiment, figures.eco_book_figure, "book")


def science(experiment: Eco) -> Figure | Markdown:
    """Multiple choice: accuracy on each set, and what a probe reads."""
    return _drawn(experiment, figures.eco_science_figure, "science")


def robustness(experiment: Eco) -> Figure | Markdown:
    """What leaks when the question is asked in another way, from guard and weights alike."""
    return _drawn(experiment, figures.eco_robustness_figure, "robustness")


def scaling(experiment: Eco) -> Figure | Markdown:
    """The guard's cost against the model's size."""
    return _drawn(experiment, figures.eco_scaling_figure, "scaling")


def table(experiment: Eco, name: str = "comparison") -> pd.DataFrame | Markdown:
    """Ours beside what papers report: `comparison`, `book`, `science`, `costs`, ..."""
    claims, table_of = tables.read_claims(CLAIMS), tables.TABLES["eco"][f"eco_{name}"]
    found = table_of(_rows(experiment), claims, experiment.labels, experiment.profile.name)
    return found if len(found) else Markdown(ABSENT)


def side_effects(experiment: Eco) -> pd.DataFrame | Markdown:
    """Answers to unrelated prompts: how many are the same as without the method."""
    if "entities" not in experiment.tasks:
        return Markdown(ABSENT)
    rows = []
    for who in experiment.tasks["entities"].models():
        if who in (ORIGINAL, IMPLANTED):
            continue
        found = experiment.side_effects(who)
        flags = found.get("flagged", [False] * len(found["same"]))
        same = [each for each, flag in zip(found["same"], flags, strict=True) if not flag]
        plain = found["seconds"]
        timed = who in (ECO, PROMPTING)
        rows.append(
            {
                "model": names(experiment)[who],
                "prompts": len(flags),
                "flagged": sum(flags) if who == ECO else "",
                "others' answers unchanged, token for token": f"{sum(same)} of {len(same)}",
                "time over the plain model's": f"{plain[1] / plain[0]:.2f}" if timed else "",
            }
        )
    return pd.DataFrame(rows).set_index("model")


def leaks(experiment: Eco, way: str = "buried", row: int = 0) -> pd.DataFrame | Markdown:
    """One way of asking: what was asked and what the models said, shortened."""
    if not experiment.attacked_models():
        return Markdown(ABSENT)
    rows: list[tuple[str, Any]] = []
    for who in experiment.attacked_models():
        part = experiment.attacks(who)[way]
        rows = rows or [("asked", shorten(part["asked"][row], WORDS))]
        rows.append((names(experiment)[who], shorten(part["said"][row], WORDS) or "(nothing)"))
    return facts(rows)


def removed(experiment: Eco) -> pd.DataFrame | Markdown:
    """What anyone who holds the weights gets: the guarded model with its guard taken away."""
    if "entities" not in experiment.tasks:
        return Markdown(ABSENT)
    rows = [
        ("behind the guard", experiment.estimates("entities", ECO)),
        ("the same weights, guard removed", experiment.estimates("entities", IMPLANTED)),
    ]
    wanted = {"ROUGE-L": "rougeL_recall", "answers that hold the fact": "leak_share"}
    return pd.DataFrame(
        [
            {"": title}
            | {name: with_interval(found.get((FORGET, metric))) for name, metric in wanted.items()}
            for title, found in rows
        ]
    ).set_index("")
