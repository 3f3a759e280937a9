"""The kinds of figure: `dots`, `tradeoff`, `curves` and `forest`, and the curves of a training.

The first three take items of one language model, display names of methods, a task and a small
spec. Every value stands with its 95 % interval, and models whose answers are broken are crosses.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unlearn_lib.figures import style
from unlearn_lib.figures.style import Mark
from unlearn_lib.results import Estimate, Items
from unlearn_lib.tables import NAMES, Column, Names, Table, conditions_of, methods_of
from unlearn_lib.util import CompanionError

SCALES = {"share": "unit", "score": "unit", "cosine": "unit", "none": "log", "p-value": "p"}
ARROWS = {"lower": "←\u00a0{}", "higher": "{}\u00a0→", "neither": "{}"}
"""Towards the better side; no line ends beside an arrow."""
Drawn = tuple[Figure, dict[str, Artist]]
"""A figure, and what its legend explains, by label."""


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
        where: what differs from the row, such as the method.
        also: columns of further points of each row, as in a `Table`; hollow.
    """

    label: str = ""
    better: str = ""
    scale: str = ""
    band: str = ""
    limit: tuple[float, str] | None = None
    width: float = 1
    where: Names = field(default_factory=dict)
    also: str = ""

    @property
    def others(self) -> dict[str, Column]:
        """The columns of further points, by their names in the legend."""
        columns = Table("", self.also).columns
        return {f"on {c.split}" if c.metric == self.metric else c.entry.label: c for c in columns}

    def axis_label(self, numbers: Sequence[Estimate], letters: int = 40) -> str:
        """Return the label in lines, with an arrow towards the better side, and n."""
        arrow = ARROWS[self.better or self.entry.better]
        label = self.label or self.heading.replace(", forget", "").replace(" (", "\u00a0(")
        lines = textwrap.fill(arrow.format(label), letters, break_long_words=False)
        known = sorted({number.n for number in numbers}) or [0]
        return f"{lines}\nn = " + "–".join(str(n) for n in dict.fromkeys([known[0], known[-1]]))

    def set_axis(self, axis: mpl.axis.Axis, numbers: Iterable[Estimate], most: int = 3) -> None:
        """Set the scale of an axis that shows some numbers."""
        plain = "percent" if self.percent else SCALES.get(self.entry.unit, "fit")
        style.set_scale(axis, self.scale or plain, numbers, most)

    def shade(self, items: Items, axes: Axes, where: Names, x_or_y: str) -> dict[str, Artist]:
        """Draw the band and the limit across an axis; return what the legend says of them."""
        across, handles = {"x": "v", "y": "h"}[x_or_y], dict[str, Artist]()
        span, line = (getattr(axes, f"ax{across}{what}") for what in ("span", "line"))
        number = self.read(items, **{**where, "method": self.band}) if self.band else None
        if number is not None:
            span(number.low, number.high, color=style.BAND, lw=0, zorder=0.5)
            line(number.value, color="#8c8c8c", lw=0.8, zorder=0.6)
            label = f"{NAMES[self.band]}, 95 % interval"
            handles[label] = Patch(color=style.BAND, lw=0)
        if self.limit:
            line(self.limit[0], **style.DASHED, zorder=0.7)
            handles[self.limit[1]] = Line2D([], [], **style.DASHED)
        return handles


def explained(marks: Iterable[Mark]) -> dict[str, Artist]:
    """Return what a legend says of the marks of unlearned and broken models, if they are there."""
    known = {"unlearned": style.UNLEARNED, style.BROKEN_LABEL: style.BROKEN}
    present = set(marks)
    return {label: style.key(mark) for label, mark in known.items() if mark in present}


def dots(
    items: Items, labels: Names, task: str, measures: Sequence[Measure], conditions: str = ""
) -> Drawn:
    """Draw a panel per measure, at most seven in a line, and a row per method.

    `task`: names of one or several. `conditions`: a pattern; then a row is a condition, and each
    measure's `where` names a method.
    """
    names, rows, several = methods_of(items, labels), dict[str, Names](), " " in task
    for own in task.split():
        for method, name in names.items():
            label = f"{own}: {name}" if several else name
            place = {"task": own, "condition": conditions_of(items, own)[0]}
            rows[label] = place | {"method": method}
    if conditions:
        rows = {c: place | {"condition": c} for c in conditions_of(items, task, conditions)}
    table = [{name: _readings(items, m, row) for name, row in rows.items()} for m in measures]
    shown = [name for name in rows if any(readings[name] for readings in table)]
    used = [pair for pair in zip(measures, table, strict=True) if any(pair[1].values())]
    widths, wrapped = [m.width for m, _ in used[:7]], [textwrap.fill(name, 30) for name in shown]
    lines = max(1 + name.count("\n") for name in wrapped)
    tall = max(0.2 + 0.09 * max(len(m.others) for m, _ in used), 0.14 * lines)
    figure, every = style.panels(len(used), 0.65 + tall * len(shown), 7, True, widths)
    more, marks = dict[str, Artist](), set[Mark]()
    for axes, (measure, readings) in zip(every, used, strict=True):
        numbers = [number for name in shown for number, *_ in readings[name]]
        measure.set_axis(axes.xaxis, numbers)
        more |= measure.shade(items, axes, place, "x")
        for y, name in enumerate(shown):
            for number, lift, mark, hollow in readings[name]:
                style.draw_point(axes, number, lift - y, mark, hollow)
                marks |= {mark}
        more |= {k: style.key(m, True) for k, m in zip(measure.others, style.HOLLOW, strict=False)}
        axes.set_xlabel(measure.axis_label(numbers, int(88 * measure.width / sum(widths)) - 1))
        axes.set_yticks([-float(y) for y in range(len(shown))], wrapped)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(0.5 - len(shown), 0.5)
    return figure, explained(marks) | more


def _readings(
    items: Items, measure: Measure, row: Names
) -> list[tuple[Estimate, float, Mark, bool]]:
    """Return a row's numbers: how far above its middle each stands, its mark, whether hollow."""
    where, others = {**row, **measure.where}, measure.others.values()
    marks = [style.mark_of(items, **where), *style.HOLLOW]
    readings = []
    for place, (column, mark) in enumerate(zip([measure, *others], marks, strict=False)):
        number = column.read(items, **where)
        if number is not None and not math.isnan(number.value):
            readings.append((number, 0.24 * (len(others) / 2 - place), mark, place > 0))
    return readings


Pair = tuple[Measure, Measure, str, str]
"""A panel of a trade-off: what is across, what is up, a title, and of which task."""


def tradeoff(items: Items, labels: Names, task: str, pairs: Sequence[Pair]) -> Drawn:
    """Draw one measure against another, a numbered point per model."""
    figure, every = style.panels(len(pairs), 3.0, widths=[x.width for x, *_ in pairs])
    names, numbers = methods_of(items, labels), dict[str, int]()
    more, marks = dict[str, Artist](), set[Mark]()
    for axes, (across, up, title, own) in zip(every, pairs, strict=True):
        where = {"task": own, "condition": conditions_of(items, own)[0]}
        read = {m: [e.read(items, method=m, **where) for e in (across, up)] for m in names}
        points = {m: (x, y) for m, (x, y) in read.items() if x is not None and y is not None}
        xs, ys = ([point[end] for point in points.values()] for end in (0, 1))
        across.set_axis(axes.xaxis, xs, 5)
        up.set_axis(axes.yaxis, ys, 5)
        more |= up.shade(items, axes, where, "y")
        for method, (x, y) in points.items():
            mark = style.mark_of(items, method=method, **where)
            style.draw_cross(axes, x.value, y, mark, across=x)
            number = numbers.setdefault(method, len(numbers) + 1)
            axes.text(x.value, y.value, str(number), gid="number")
            marks.add(mark)
        axes.set(title=title, xlabel=across.axis_label(xs), ylabel=up.axis_label(ys))
    key = {f"{n}  {names[m]}": style.MARKS.get(m, style.UNLEARNED) for m, n in numbers.items()}
    broken = explained(marks - {style.UNLEARNED})
    return figure, {label: style.key(mark) for label, mark in key.items()} | broken | more


def curves(
    items: Items,
    labels: Names,
    task: str,
    measures: Sequence[Measure],
    conditions: str,
    x_label: str,
    logarithmic: bool = False,
) -> Drawn:
    """Draw measures along the number in a condition, a line per method or per `also`."""
    figure, every = style.panels(len(measures), 2.3)
    steps = {int(re.sub(r"\D", "", each)): each for each in conditions_of(items, task, conditions)}
    names, handles, marks = methods_of(items, labels, task=task), dict[str, Artist](), set[Mark]()
    for axes, measure in zip(every, measures, strict=True):
        lines = {name: (measure, {"task": task, "method": m}) for m, name in names.items()}
        if measure.where:
            columns = {measure.entry.label: measure, **measure.others}
            lines = {name: (c, {"task": task, **measure.where}) for name, c in columns.items()}
        drawn, shaded = [], measure.shade(items, axes, {"task": task, "condition": ""}, "y")
        for label, (column, where) in lines.items():
            read = {x: column.read(items, **where, condition=steps[x]) for x in sorted(steps)}
            known = {x: number for x, number in read.items() if number is not None}
            if not known:
                continue
            place = list(handles).index(label) if label in handles else len(handles)
            own, dashes = ("o", style.SERIES[place % 6]), style.DASHES[place % 6]
            shift = 0 if logarithmic else 0.05 * (place - 1)
            xs, values = [x + shift for x in known], [number.value for number in known.values()]
            axes.plot(xs, values, color=own[1], ls=dashes)
            for x, number in known.items():
                mark = style.mark_of(items, **where, condition=steps[x])
                marks.add(mark)
                mark = mark if mark == style.BROKEN else own
                style.draw_cross(axes, x + shift, number, mark)
            handles[label] = Line2D([], [], **style.look(own) | {"ls": dashes})
            drawn += known.values()
        measure.set_axis(axes.yaxis, drawn, 5)
        axes.set(xlabel=x_label, ylabel=measure.axis_label(drawn), xticks=sorted(steps))
        if logarithmic:
            style.set_scale(axes.xaxis, "log", [Estimate(x, x, x, 1, 1) for x in steps], 5)
        handles |= shaded
    return figure, handles | explained(marks - {style.UNLEARNED})


OUTCOMES = {"supported": ("o", style.BLUE), "refuted": ("s", style.ORANGE)}
OUTCOMES |= {"undecided": ("D", style.LINE)}


def forest(rows: pd.DataFrame, x_label: str) -> Drawn:
    """Draw differences with their intervals, a line each; grey: what a margin calls equal.

    `rows`: label, value, low, high, margin (nan: none) and outcome, one of OUTCOMES.
    """
    labels = [textwrap.fill(label, 48) for label in rows["label"]]
    tall = 0.1 + 0.15 * max(1 + label.count("\n") for label in labels)
    figure, (axes,) = style.panels(1, tall * len(rows) + 0.3)
    numbers = [Estimate(row.value, row.low, row.high, 1, 1) for row in rows.itertuples()]
    style.set_scale(axes.xaxis, "fit", numbers, 5)
    axes.axvline(0, color=style.LINE, lw=0.9, zorder=0.7)
    for y, (row, n) in enumerate(zip(rows.itertuples(), numbers, strict=True)):
        span = [-y - 0.35, 0.35 - y]
        axes.fill_betweenx(span, -row.margin, row.margin, color=style.BAND, lw=0, zorder=0.5)
        style.draw_point(axes, n, -y, OUTCOMES[row.outcome])
        text = f"{n.value:.2f} [{n.low:.2f}, {n.high:.2f}]"
        axes.annotate(text, (1.02, -y), xycoords=("axes fraction", "data"), va="center")
    axes.set_yticks([-float(y) for y in range(len(rows))], labels)
    axes.set(ylim=(0.5 - len(rows), 0.5), xlabel=x_label)
    return figure, {outcome: style.key(mark) for outcome, mark in OUTCOMES.items()}


TERMS = {"forget": "Forget", "mismatch": "Mismatch", "keep": "Keep", "retain": "Retain"}
TERMS |= {"total": "Weighted sum", "loss": "Loss", "verbatim_share": "Verbatim share"}


def curves_of_training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each loss term of a training against the step or the epoch, a line per method.

    Args:
        histories: by display name, with a column `step` or `epoch` and any of TERMS.
    """
    terms = [term for term in TERMS if any(term in each for each in histories.values())]
    if not terms:
        raise CompanionError(f"No history of a training has one of the columns {', '.join(TERMS)}.")
    with mpl.rc_context(style.STYLE):
        figure, every = style.panels(len(terms), 1.6, columns=5)
        handles = {}
        for axes, term in zip(every, terms, strict=True):
            for place, (label, history) in enumerate(histories.items()):
                x = "step" if "step" in history else "epoch"
                line = {"color": style.SERIES[place % 6], "ls": style.DASHES[place % 6]}
                known = history.dropna(subset=[term]) if term in history else history[:0]
                marker = "o" if len(known) < len(history) else ""
                axes.plot(known[x], known.get(term, []), marker=marker, ms=3, **line)
                handles[label] = Line2D([], [], **line)
            axes.set(title=TERMS[term], xlabel=x.capitalize())
        return style.finish(figure, handles)
