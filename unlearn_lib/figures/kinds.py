"""The kinds of figure: `dots`, `tradeoff`, `curves` and `forest`.

The first three take items, display names of methods and a small spec. Every value stands with its
95 % interval, and models whose answers are broken are orange crosses.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import matplotlib as mpl
from adjustText import adjust_text
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unlearn_lib.figures import style
from unlearn_lib.figures.style import Mark, Picture
from unlearn_lib.results import Estimate, Items
from unlearn_lib.tables import NAMES, Column, Names, conditions_of, methods_of, models_of

SCALES = {"share": "unit", "score": "unit", "cosine": "unit", "none": "log", "p-value": "p"}


@dataclass(frozen=True)
class Measure(Column):
    """One axis of a figure: an estimate and how it is drawn.

    Attributes:
        label: default: the catalogue's.
        better: `higher`, `lower` or `neither`, drawn as an arrow; default: the catalogue's.
        scale: as for `set_scale`; default: by the metric's unit.
        band: the model whose interval is shaded.
        limit: where a dashed line stands, and its name.
        width: of its panel, among its neighbours.
        where: what differs from the row, such as the method or the task.
        mark: of all its points; default: by the method.
        also: further points of each row, by their names in the legend; `alone`: only those.
    """

    label: str = ""
    better: str = ""
    scale: str = ""
    band: str = ""
    limit: tuple[float, str] | None = None
    width: float = 1
    where: Names = field(default_factory=dict)
    mark: Mark | None = None
    also: Mapping[str, "Measure"] = field(default_factory=dict)
    alone: bool = False

    def axis_label(self, numbers: Iterable[Estimate], letters: int = 40) -> str:
        """Return the label in lines, with an arrow towards the better side, and n."""
        arrow = {"lower": "← {}", "higher": "{} →"}.get(self.better or self.entry.better, "{}")
        lines = textwrap.fill(arrow.format(self.label or self.heading), letters)
        known = sorted({number.n for number in numbers}) or [0]
        return f"{lines}\nn = " + "–".join(str(n) for n in dict.fromkeys([known[0], known[-1]]))

    def set_axis(self, axis: mpl.axis.Axis, numbers: Iterable[Estimate]) -> None:
        """Set the scale of an axis that shows some numbers."""
        plain = "percent" if self.percent else SCALES.get(self.entry.unit, "fit")
        style.set_scale(axis, self.scale or plain, numbers)

    def explained(self, labels: Names) -> dict[str, Artist]:
        """Return what a legend says of it, by label."""
        handles: dict[str, Artist] = {
            label: Line2D([], [], ls="", **style.look(also.mark or style.HOLLOW, not self.alone))
            for label, also in self.also.items()
        }
        if self.band:
            name = {**NAMES, **labels}[self.band]
            handles[f"{name}, 95 % interval"] = Patch(color=style.BAND, lw=0)
        if self.limit:
            line = Line2D([], [], color=style.LINE, lw=0.9, ls=style.DASHED)
            handles[self.limit[1]] = line
        return handles


Reading = tuple[Estimate, float, Mark, bool]
"""A number, how far it stands above the middle of its row, its mark, whether it is hollow."""


def _readings(items: Items, measure: Measure, row: Names) -> list[Reading]:
    points = [*[measure] * (not measure.alone), *measure.also.values()]
    readings = []
    for place, point in enumerate(points):
        where, hollow = {**row, **point.where}, point is not measure and not measure.alone
        number = point.read(items, **where)
        if number is not None and not math.isnan(number.value):
            mark = style.HOLLOW if hollow else style.mark_of(items, **where)
            lift = 0.24 * ((len(points) - 1) / 2 - place)
            readings.append((number, lift, point.mark or mark, hollow))
    return readings


def dots(
    items: Items,
    labels: Names,
    task: str,
    measures: Sequence[Measure],
    conditions: str = "",
    columns: int = 7,
) -> Figure:
    """Draw a panel per measure and a row per language model and method.

    `conditions`: a pattern; then a row is a condition, and each measure's `where` names a method.
    """
    rows = [
        row
        for model in models_of(items, task)
        for row in _rows(items, labels, conditions, {"task": task, "model": model})
    ]
    table = [[_readings(items, measure, row) for _, row in rows] for measure in measures]
    shown = [row for row in range(len(rows)) if any(line[row] for line in table)]
    used = [m for m, line in enumerate(table) if any(line)]
    names = [textwrap.fill(rows[row][0], 26) for row in shown]
    tall = 0.2 + 0.08 * max(len(measures[m].also) for m in used)
    height = 0.6 + sum(max(tall, 0.16 * (1 + name.count("\n"))) for name in names)
    widths = [measures[m].width for m in used[:columns]]
    lines = math.ceil(len(used) / columns)
    figure = Picture(figsize=(style.WIDTH, lines * height + 0.8))
    shape = {"width_ratios": widths}
    grid = figure.subplots(lines, len(widths), squeeze=False, sharey=True, gridspec_kw=shape)
    for axes, m in zip(grid.flat, used, strict=False):
        readings = [table[m][row] for row in shown]
        numbers = [number for row in readings for number, *_ in row]
        measures[m].set_axis(axes.xaxis, numbers)
        _shade_rows(axes, items, measures[m], [rows[row][1] for row in shown])
        for y, row in enumerate(readings):
            for number, lift, mark, hollow in row:
                style.draw_point(axes, number, lift - y, mark, hollow)
        letters = int(85 * measures[m].width / sum(widths)) - 1
        axes.set_xlabel(measures[m].axis_label(numbers, letters))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(0.55 - len(names), 0.55)
        axes.set_yticks([-float(y) for y in range(len(names))], names)
    for axes in list(grid.flat)[len(used) :]:
        axes.remove()
    marks = [mark for line in table for row in line for _, _, mark, _ in row]
    style.explain(figure, marks, _explained([measures[m] for m in used], labels))
    return figure


def _rows(
    items: Items, labels: Names, conditions: str, place: dict[str, str]
) -> list[tuple[str, dict[str, str]]]:
    task, model = place["task"], place["model"]
    place = {**place, "condition": conditions_of(items, task)[0]}
    name = f" · {model.rsplit('/', 1)[-1]}" if len(models_of(items, task)) > 1 else ""
    if conditions:
        asked = conditions_of(items, task, conditions)
        return [(f"{each}{name}", {**place, "condition": each}) for each in asked]
    methods = methods_of(items, labels, model=model)
    return [(f"{methods[each]}{name}", {**place, "method": each}) for each in methods]


def _explained(measures: Iterable[Measure], labels: Names) -> dict[str, Artist]:
    return {k: v for measure in measures for k, v in measure.explained(labels).items()}


def _shade_rows(axes: Axes, items: Items, measure: Measure, rows: Sequence[Names]) -> None:
    """Shade the interval of a model behind the rows of its language model; draw the limit."""
    if measure.limit:
        axes.axvline(measure.limit[0], color=style.LINE, lw=0.9, ls=style.DASHED, zorder=0.7)
    for model in dict.fromkeys(row["model"] for row in rows):
        heights = [-float(y) for y, row in enumerate(rows) if row["model"] == model]
        where = {**rows[-int(heights[0])], **measure.where, "method": measure.band}
        number = measure.read(items, **where) if measure.band else None
        if number is not None:
            between = [heights[0] + 0.5, heights[-1] - 0.5]
            axes.fill_betweenx(between, number.low, number.high, color=style.BAND, lw=0, zorder=0.5)
            axes.plot([number.value] * 2, between, color="#8c8c8c", lw=0.8, zorder=0.6)


def _cross(axes: Axes, x: float | Estimate, y: Estimate, mark: Mark, hollow: bool = False) -> None:
    """Draw a point with its intervals across (where x has one) and up."""
    bars = {"color": mark[1], "lw": 0.9, "alpha": 0.6, "zorder": 2}
    if isinstance(x, Estimate):
        axes.plot([x.low, x.high], [y.value] * 2, **bars)
        x = x.value
    axes.plot([x, x], [y.low, y.high], **bars)
    axes.plot(x, y.value, **style.look(mark, hollow), clip_on=False, zorder=3)


@dataclass(frozen=True)
class Pair:
    """A panel of a trade-off: what is across and what is up, and of which task if another."""

    x: Measure
    y: Measure
    title: str = ""
    task: str = ""
    width: float = 1


def tradeoff(items: Items, labels: Names, task: str, pairs: Sequence[Pair]) -> Figure:
    """Draw one measure against another, a numbered point per model; language models below."""
    tasks = [pair.task or task for pair in pairs]
    models = list(dict.fromkeys(model for each in tasks for model in models_of(items, each)))
    figure = Picture(figsize=(style.WIDTH, 2.8 * len(models) + 1.2))
    shape = {"width_ratios": [pair.width for pair in pairs]}
    grid = figure.subplots(len(models), len(pairs), squeeze=False, gridspec_kw=shape)
    names, numbers, texts, marks = methods_of(items, labels), dict[str, str](), [], list[Mark]()
    for model, line in zip(models, grid, strict=True):
        for axes, pair, own in zip(line, pairs, tasks, strict=True):
            where = {"task": own, "model": model, "condition": conditions_of(items, own)[0]}
            read = {m: [e.read(items, method=m, **where) for e in (pair.x, pair.y)] for m in names}
            points = {m: (x, y) for m, (x, y) in read.items() if x is not None and y is not None}
            pair.x.set_axis(axes.xaxis, [x for x, _ in points.values()])
            pair.y.set_axis(axes.yaxis, [y for _, y in points.values()])
            _shade(axes, pair.y, pair.y.read(items, method=pair.y.band, **where))
            for method, (x, y) in points.items():
                marks.append(style.mark_of(items, method=method, **where))
                _cross(axes, x, y, marks[-1])
                number = numbers.setdefault(method, str(len(numbers) + 1))
                texts.append(axes.text(x.value, y.value, number))
            axes.set_title(title_of(pair.title, model, models))
            axes.set_xlabel(pair.x.axis_label([x for x, _ in points.values()]))
            axes.set_ylabel(pair.y.axis_label([y for _, y in points.values()]))
    key = {f"{numbers[m]}  {names[m]}": style.MARKS.get(m, style.UNLEARNED) for m in numbers}
    handles = [Line2D([], [], ls="", **style.look(mark)) for mark in key.values()]
    figure.legend(handles, list(key), loc="outside lower center", ncols=4, handletextpad=0.2)
    style.explain(figure, marks, _explained([pair.y for pair in pairs], labels))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in grid.flat:
        _place(axes, [text for text in texts if text.axes is axes])
    return figure


def title_of(title: str, model: str, models: Sequence[str]) -> str:
    """Return a panel's title, with the language model's name where there are several."""
    return f"{title} · {model.rsplit('/', 1)[-1]}".strip(" ·") if len(models) > 1 else title


def _shade(axes: Axes, measure: Measure, band: Estimate | None) -> None:
    """Shade an interval of the y axis, and draw the limit."""
    if measure.limit:
        axes.axhline(measure.limit[0], color=style.LINE, lw=0.9, ls=style.DASHED, zorder=0.7)
    if band is not None and math.isfinite(band.low):
        axes.axhspan(band.low, band.high, color=style.BAND, lw=0, zorder=0.5)
        axes.axhline(band.value, color="#8c8c8c", lw=0.8, zorder=0.6)


def _place(axes: Axes, texts: list[mpl.text.Text]) -> None:
    """Move numbers off each other and off all points; the same way every time."""
    x, y = ([text.get_position()[end] for text in texts] for end in (0, 1))
    arrows = {"arrowstyle": "-", "lw": 0.5, "color": style.LINE}
    adjust_text(
        texts,
        x,
        y,
        ax=axes,
        iter_lim=300,
        expand=(1.5, 1.5),
        force_text=(0.3, 0.4),
        min_arrow_len=9,
        arrowprops=arrows,
    )


def curves(
    items: Items,
    labels: Names,
    task: str,
    measures: Sequence[Measure],
    conditions: str,
    x_label: str,
    scale: str = "linear",
) -> Figure:
    """Draw measures along the number in a condition, a line per method; language models below."""
    models = models_of(items, task)
    figure = Picture(figsize=(style.WIDTH, 2.3 * len(models) + 0.8))
    grid = figure.subplots(len(models), len(measures), squeeze=False)
    steps = {int(re.sub(r"\D", "", each)): each for each in conditions_of(items, task, conditions)}
    steps = dict(sorted(steps.items()))
    names = {label: method for method, label in methods_of(items, labels, task=task).items()}
    marks: list[Mark] = []
    lines: dict[str, Artist] = {}
    for axes, (model, measure) in zip(grid.flat, product(models, measures), strict=True):
        where, numbers = {"task": task, "model": model, **measure.where}, []
        for label, method in names.items():
            read = {
                x: measure.read(items, **where, method=method, condition=steps[x]) for x in steps
            }
            points = {x: number for x, number in read.items() if number is not None}
            if not points:
                continue
            place = list(lines).index(label) if label in lines else len(lines)
            own = style.MARKS.get(method, ("o", style.SERIES[place % len(style.SERIES)]))
            drawn = [x if scale == "log" else x + 0.04 * (place - 1) for x in points]
            look = {"color": own[1], "ls": style.DASHES[place % len(style.DASHES)]}
            axes.plot(drawn, [number.value for number in points.values()], **look, zorder=1)
            for x, at in zip(points, drawn, strict=True):
                mark = style.mark_of(items, task, method, model, steps[x])
                marks += [mark] * (mark == style.BROKEN)
                _cross(axes, at, points[x], mark if mark == style.BROKEN else own)
            lines[label] = Line2D([], [], **look, **style.look(own))
            numbers += points.values()
        measure.set_axis(axes.yaxis, numbers)
        _shade(axes, measure, measure.read(items, **where, method=measure.band, condition=""))
        axes.set(title=title_of("", model, models), xlabel=x_label, xscale=scale)
        if scale == "linear":
            axes.set(xticks=list(steps), xlim=(min(steps) - 0.3, max(steps) + 0.3))
        axes.set_ylabel(measure.axis_label(numbers))
    style.explain(figure, marks, lines | _explained(measures, labels))
    return figure


@dataclass(frozen=True)
class Bar:
    """A line of a forest plot: a claim, what was measured, its margin and its outcome."""

    label: str
    number: Estimate | None
    margin: float | None
    outcome: str


OUTCOMES = {
    "supported": ("o", style.BLUE),
    "refuted": ("s", style.ORANGE),
    "undecided": ("D", style.LINE),
}


def forest(bars: Sequence[Bar], x_label: str) -> Figure:
    """Draw differences with their intervals, a line each; grey: what the margin calls equal."""
    labels = [textwrap.fill(bar.label, 48) for bar in bars]
    height = sum(0.16 * (1 + label.count("\n")) + 0.1 for label in labels)
    figure = Picture(figsize=(style.WIDTH, height + 1))
    axes = figure.subplots()
    known = [bar.number for bar in bars if bar.number is not None]
    style.set_scale(axes.xaxis, "fit", known)
    axes.axvline(0, color=style.LINE, lw=0.9, zorder=0.7)
    for y, bar in enumerate(bars):
        if bar.margin is not None:
            span = [-bar.margin, bar.margin]
            axes.fill_betweenx([-y - 0.35, 0.35 - y], *span, color=style.BAND, lw=0, zorder=0.5)
        n = bar.number
        if n is not None:
            style.draw_point(axes, n, -y, OUTCOMES[bar.outcome], False)
        text = bar.outcome if n is None else f"{n.value:.3g} [{n.low:.3g}, {n.high:.3g}]"
        axes.annotate(text, (1.02, -y), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks([-float(y) for y in range(len(bars))], labels)
    axes.set(ylim=(0.5 - len(bars), 0.5), xlabel=x_label)
    handles = {each: Line2D([], [], ls="", **style.look(mark)) for each, mark in OUTCOMES.items()}
    style.explain(figure, [], handles | {"within the margin": Patch(color=style.BAND, lw=0)})
    return figure
