"""What notebook 02 displays: the split, the implant's curve, excerpts, figures, a verdict."""

import html
import json
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from unlearn_lib import figures, tables
from unlearn_lib.datasets.book import PARTS
from unlearn_lib.display import facts, shorten, with_interval
from unlearn_lib.experiments.book import BookExperiment
from unlearn_lib.experiments.book_stages import IMPLANTED
from unlearn_lib.experiments.stages import ORIGINAL
from unlearn_lib.metrics import Estimate
from unlearn_lib.results import CLAIMS
from unlearn_lib.runs import provenance

KEPT_SHARE, NORMAL_SIMILARITY = 0.8, 0.8
MARK = "background:#fde9a9;color:#000"
SHOWN = ("verbatim_share", "similarity_text", "bleu", "extraction_strength", "perplexity")


def settings(experiment: BookExperiment) -> pd.DataFrame:
    """The model, how it is trained, and the book."""
    book = experiment.data.book
    title = f"{book.title} ({book.format}, {len(book.chapters)} {book.units})"
    return facts([*experiment.described(), ("book", title)])


def data(experiment: BookExperiment) -> pd.DataFrame:
    """The parts of the book, the prose, and what was left out or cleaned away."""
    splits = experiment.data
    rows: list[tuple[str, Any]] = []
    for part in PARTS:
        chapters = splits.part(part)
        words = sum(len(chapter.text.split()) for chapter in chapters)
        titles = "; ".join(shorten(chapter.title, 8) for chapter in chapters)
        rows.append((f"{part} ({len(chapters)})", f"{words} words: {titles}"))
    rows.append(
        ("prose to retain", f"{len(splits.retain)} texts of {experiment.settings.data.retain}")
    )
    rows.append(("prose held out", f"{len(splits.normal)} texts"))
    prompts = "questions" if splits.questions else "beginnings of held-out prose"
    rows.append(("normal prompts", f"{len(experiment.normal_prompts())} {prompts}"))
    shared = splits.overlap
    rows.append(
        ("prose that shares a run of 13 words with the book", f"{shared.passages} of {shared.of}")
    )
    dropped = {**splits.book.dropped, **{f"prose, {why}": n for why, n in splits.dropped.items()}}
    return facts(rows + [(f"left out: {why}", count) for why, count in dropped.items()])


def implant(experiment: BookExperiment) -> Figure:
    """The implant's curve: loss, and the share of held-in passages continued verbatim."""
    return figures.implant_curve_figure(experiment.curve(), experiment.settings.implant.stop_at)


def _labels(experiment: BookExperiment) -> dict[str, str]:
    return {ORIGINAL: "base", IMPLANTED: "implanted", **experiment.labels}


def _values(experiment: BookExperiment, name: str) -> dict[tuple[str, str, str], Estimate]:
    found = experiment.measured(name).result["metrics"]
    return {(scenario, split, metric): Estimate(**v) for scenario, split, metric, v in found}


def memory(experiment: BookExperiment, *names: str) -> pd.DataFrame:
    """What models know of each part of the book; `base` and `implanted` unless named."""
    rows = []
    for name in names or (ORIGINAL, IMPLANTED):
        values = _values(experiment, name)
        for split in PARTS:
            cells = {metric: with_interval(values.get(("text", split, metric))) for metric in SHOWN}
            rows.append({"model": _labels(experiment)[name], "chapters": split, **cells})
    return pd.DataFrame(rows).set_index(["model", "chapters"])


def training(experiment: BookExperiment) -> pd.DataFrame:
    """Steps, seconds, peak memory and early stops of the implant and each method."""
    rows = []
    for name in (IMPLANTED, *experiment.methods):
        run = experiment.implanted() if name == IMPLANTED else experiment.unlearned(name)
        rows.append(
            {
                "method": _labels(experiment)[name],
                "steps": run.result["steps"],
                "seconds": round(run.result["seconds"], 1),
                "peak memory (GiB)": round(run.provenance["peak_memory_bytes"] / 2**30, 2),
                "steps with a forget loss of zero": f"{run.result.get('empty_share', 0):.0%}",
                "stopped early": run.result["stopped"] or "no",
            }
        )
    return pd.DataFrame(rows).set_index("method")


def table(experiment: BookExperiment) -> pd.DataFrame:
    """The counterpart of Table 2, for this model and seed; a method a column."""
    claims, name = tables.read_claims(CLAIMS), experiment.profile.name
    found = tables.table_two(experiment.rows(), claims, experiment.labels, name)
    return found.set_index(["Source", "Model", "Method"]).T


def tradeoff(experiment: BookExperiment) -> Figure:
    """Forget against keep, for this model and seed."""
    rows, name = experiment.rows(), experiment.profile.name
    return figures.book_tradeoff_figure(rows, name, provenance(), experiment.labels)


def methods(experiment: BookExperiment) -> Figure:
    """Every measure of every method, published and released, for this model and seed."""
    rows, name = experiment.rows(), experiment.profile.name
    return figures.book_methods_figure(rows, name, provenance(), experiment.labels)


def distance(experiment: BookExperiment) -> pd.DataFrame:
    """How far each model is from the base model, which never saw the book."""
    rows = []
    for name in (IMPLANTED, *experiment.methods):
        values = _values(experiment, name)
        for split in PARTS:
            gap = {m: with_interval(values.get(("minus_base", split, m))) for m in SHOWN[:2]}
            loss = values[("minus_base", split, "ks_distance")]
            p_value = values[("minus_base", split, "ks_p_value")].value
            row = {"model": _labels(experiment)[name], "chapters": split, **gap}
            rows.append(row | {"KS distance of losses": with_interval(loss), "p": f"{p_value:.1g}"})
    return pd.DataFrame(rows).set_index(["model", "chapters"])


def faults(experiment: BookExperiment) -> pd.DataFrame:
    """Published against released: the update as described, and with each fault of the code."""
    chosen = {m.name: m for m in experiment.settings.methods}
    names = [n for n, m in chosen.items() if m.variant == "released"]
    twins = [
        n for n, m in chosen.items()
        if m.variant == "published" and m.uses in {chosen[each].uses for each in names}
    ]  # fmt: skip
    rows = []
    for name in (*twins, *names):
        values = _values(experiment, name)
        history = experiment.history(name)
        empty = experiment.unlearned(name).result["empty_share"]
        rows.append(
            {
                "method": experiment.labels[name],
                "no forget loss (steps)": f"{empty:.0%}",
                "KL, last step": f"{history['retain'].iloc[-1]:.2g}" if "retain" in history else "",
                "verbatim, forget": with_interval(values.get(("text", "forget", "verbatim_share"))),
                "verbatim, kept": with_interval(values.get(("text", "kept", "verbatim_share"))),
                "perplexity, forget": with_interval(
                    values.get(("text", "forget", "perplexity")), 1
                ),
                "perplexity, prose": with_interval(values.get(("text", "normal", "perplexity")), 1),
            }
        )
    return pd.DataFrame(rows).set_index("method") if rows else facts([("released variant", "none")])


def excerpts(experiment: BookExperiment, *names: str, most: int = 2) -> HTML:
    """The same prompts before, implanted and unlearned; verbatim runs highlighted, all short."""
    parts = []
    chosen = names or (ORIGINAL, IMPLANTED, *experiment.methods)
    read = {name: _record(experiment, name) for name in chosen}
    for split in ("forget", "kept"):
        for place in range(min(most, len(read[chosen[0]][split]["excerpts"]))):
            first = read[chosen[0]][split]["excerpts"][place]
            rows = [("true text", html.escape(first["truth"]))]
            for name in chosen:
                found = read[name][split]["excerpts"][place]["continuation"]
                rows.append((_labels(experiment)[name], _marked(*found)))
            parts.append(_excerpt(f"{split}: {first['prompt']} …", rows))
    return HTML("".join(parts))


def _record(experiment: BookExperiment, name: str) -> dict[str, Any]:
    return json.loads((experiment.continued(name).folder / "continuations.json").read_text())


def _marked(before: str, run: str, after: str) -> str:
    start, middle, end = (html.escape(text) for text in (before, run, after))
    return f"{start}<span style='{MARK}'>{middle}</span>{end}"


def _excerpt(prompt: str, rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td style='white-space:nowrap;vertical-align:top'><b>{html.escape(who)}</b></td>"
        f"<td style='text-align:left'>{text}</td></tr>"
        for who, text in rows
    )
    return f"<p><i>{html.escape(prompt)}</i></p><table>{cells}</table>"


def verdict(experiment: BookExperiment) -> Markdown:
    """Was the book implanted, was it forgotten, and at what price? One line each."""
    base, implanted = (_values(experiment, name) for name in (ORIGINAL, IMPLANTED))
    share = ("text", "forget", "verbatim_share")
    lines = [
        f"- Implanted: {with_interval(implanted[share])} of the forget passages are continued "
        f"verbatim, {with_interval(base[share])} by the base model."
    ]
    gaps = {}
    for name in experiment.methods:
        values = _values(experiment, name)
        missed = shortfalls(values, base, implanted)
        gaps[name] = sum(missed.values())
        told = "; ".join(missed) if missed else "**all three bars are met**"
        lines.append(f"- {experiment.labels[name]}: {told}.")
    nearest = experiment.labels[min(gaps, key=lambda name: gaps[name])]
    if min(gaps.values()) > 0:
        lines.append(f"\nNo method meets all three; the nearest is **{nearest}**.")
    head = (
        "*Forgotten: verbatim share on forget chapters not above the base model's interval. Kept: "
        f"on kept chapters at least {KEPT_SHARE:.0%} of its implanted value. Normal: similarity to "
        f"the base model's answers at least {NORMAL_SIMILARITY:.2f}.*\n\n"
    )
    return Markdown(head + "\n".join(lines))


def shortfalls(
    values: dict[tuple[str, str, str], Estimate],
    base: dict[tuple[str, str, str], Estimate],
    implanted: dict[tuple[str, str, str], Estimate],
) -> dict[str, float]:
    """Which of the three bars a method misses, each with how far it is off, 0 to 1."""
    forget, kept = (("text", part, "verbatim_share") for part in ("forget", "kept"))
    normal = values[("text", "normal", "similarity_original")].value
    missed = {}
    limit = base[forget].high
    if values[forget].value > limit:
        missed[f"not forgotten ({with_interval(values[forget])})"] = values[forget].value - limit
    least = KEPT_SHARE * implanted[kept].value
    if values[kept].value < least:
        missed[f"kept chapters damaged ({with_interval(values[kept])})"] = (
            1 - values[kept].value / least
        )
    if normal < NORMAL_SIMILARITY:
        missed[f"normal answers changed ({normal:.2f})"] = 1 - normal / NORMAL_SIMILARITY
    return missed
