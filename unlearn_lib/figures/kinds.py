"""The kinds of figure: `dots`, `tradeoff`, `curves` and `forest`, and the curves of a training.

The first three take a source (items of one language model, display names of methods, tasks) and a
small spec. Every value stands with its 95 % interval; models whose answers are broken are crosses.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

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
from unlearn_lib.tables import NAMES, TASKS, Column, Names, Table, conditions_of, methods_of
from unlearn_lib.util import CompanionError

SCALES = {"share": "unit", "score": "unit", "cosine": "unit", "none": "log", "p-value": "p"}
ARROWS = {"lower": "←\u00a0{}", "higher": "{}\u00a0→", "neither": "{}"}
"""Towards the better side; no line ends beside an arrow."""
Source = tuple[Items, Names, Sequence[str]]
"""Items of one language model, display names of methods, and names of tasks."""
Handles = dict[str, Artist]
Drawn = tuple[Figure, Handles]
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
        label = self.label or self.heading.replace(", forget", "")
        lines = textwrap.fill(arrow.format(label), letters, break_long_words=False)
        known = sorted({number.n for number in numbers}) or [0]
        return f"{lines}\nn = " + "–".join(str(n) for n in dict.fromkeys([known[0], known[-1]]))

    def set_axis(self, axis: mpl.axis.Axis, numbers: Iterable[Estimate], most: int = 3) -> None:
        """Set the scale of an axis that shows some numbers."""
        plain = "percent" if self.percent else SCALES.get(self.entry.unit, "fit")
        style.set_scale(axis, self.scale or plain, numbers, most)

    def shade(self, items: Items, axes: Axes, where: Names, x_or_y: str) -> Handles:
        """Draw the band and the limit across an axis; return what the legend says of them."""
        across, handles = {"x": "v", "y": "h"}[x_or_y], Handles()
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


def dots(source: Source, measures: Sequence[Measure], conditions: str = "") -> Drawn:
    """Draw a panel per measure, at most seven in a line, and a row per method and task.

    `conditions`: a pattern; then a row is a condition, and each measure's `where` names a method.
    """
    items, labels, tasks = source
    names, rows = methods_of(items, labels), dict[str, Names]()
    for task in tasks:
        place = {"task": task, "condition": conditions_of(items, task)[0]}
        prefix = f"{task}: " if len(tasks) > 1 else ""
        rows |= {f"{prefix}{name}": {**place, "method": m} for m, name in names.items()}
    if conditions:
        rows = {c: {**place, "condition": c} for c in conditions_of(items, task, conditions)}
    table = [{name: _readings(items, m, row) for name, row in rows.items()} for m in measures]
    shown = [name for name in rows if any(readings[name] for readings in table)]
    used = [pair for pair in zip(measures, table, strict=True) if any(pair[1].values())]
    widths, wrapped = [m.width for m, _ in used[:7]], [textwrap.fill(name, 34) for name in shown]
    lines = [1 + name.count("\n") for name in [*wrapped, ""]]
    room = 0.2 + 0.09 * max(len(measure.others) for measure, _ in used)
    tall = max(room, 0.075 * max(map(sum, pairwise(lines))))
    figure, every = style.panels(
        len(used), 0.8 + tall * len(shown), 7, sharey=True, width_ratios=widths
    )
    handles = Handles()
    for axes, (measure, readings) in zip(every, used, strict=True):
        numbers = [number for name in shown for number, *_ in readings[name]]
        measure.set_axis(axes.xaxis, numbers)
        handles |= measure.shade(items, axes, place, "x")
        for y, name in enumerate(shown):
            for number, lift, mark, hollow in readings[name]:
                style.draw_point(axes, number, lift - y, mark, hollow)
                handles |= style.explained(mark)
        others = zip(measure.others, style.HOLLOW, strict=False)
        handles |= {label: style.key(mark, True) for label, mark in others}
        axes.set_xlabel(measure.axis_label(numbers, int(88 * measure.width / sum(widths)) - 1))
        axes.set_yticks([-float(y) for y in range(len(shown))], wrapped)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(0.5 - len(shown), 0.5)
    return figure, handles


Reading = tuple[Estimate, float, Mark, bool]
"""A number, how far above the middle of its row it stands, its mark, whether it is hollow."""


def _readings(items: Items, measure: Measure, row: Names) -> list[Reading]:
    where, others = {**row, **measure.where}, measure.others.values()
    marks = [style.mark_of(items, **where), *style.HOLLOW]
    readings = []
    for place, (column, mark) in enumerate(zip([measure, *others], marks, strict=False)):
        number = column.read(items, **where)
        if number is not None:
            readings.append((number, 0.24 * (len(others) / 2 - place), mark, place > 0))
    return readings


Pair = tuple[Measure, Measure, str]
"""A panel of a trade-off: what is across, what is up, and of which task."""


def tradeoff(source: Source, pairs: Sequence[Pair]) -> Drawn:
    """Draw one measure against another, a numbered point per model; a panel per pair."""
    items, labels, tasks = source
    pairs = [pair for pair in pairs if pair[2] in tasks]
    figure, every = style.panels(len(pairs), 2.7, width_ratios=[x.width for x, *_ in pairs])
    names, numbers, more = methods_of(items, labels), dict[str, int](), Handles()
    for axes, (across, up, task) in zip(every, pairs, strict=True):
        where = {"task": task, "condition": conditions_of(items, task)[0]}
        read = {m: [e.read(items, method=m, **where) for e in (across, up)] for m in names}
        points = {m: (x, y) for m, (x, y) in read.items() if x is not None and y is not None}
        xs, ys = ([point[end] for point in points.values()] for end in (0, 1))
        across.set_axis(axes.xaxis, xs, 5)
        up.set_axis(axes.yaxis, ys, 5)
        more |= up.shade(items, axes, where, "y")
        for method, (x, y) in points.items():
            mark = style.mark_of(items, method=method, **where)
            style.draw_cross(axes, x, y, mark)
            more |= style.explained(mark) if mark == style.BROKEN else {}
            number = numbers.setdefault(method, len(numbers) + 1)
            axes.text(x.value, y.value, str(number), gid="number")
        title = TASKS.get(task, task) if len(tasks) > 1 else ""
        axes.set(title=title, xlabel=across.axis_label(xs), ylabel=up.axis_label(ys))
    key = {f"{n}  {names[m]}": style.MARKS.get(m, style.UNLEARNED) for m, n in numbers.items()}
    return figure, {label: style.key(mark) for label, mark in key.items()} | more


def curves(source: Source, measures: Sequence[Measure], conditions: str, x_label: str) -> Drawn:
    """Draw measures along conditions that are numbers, of one task; a line per method."""
    items, labels, (task,) = source
    figure, every = style.panels(len(measures), 2.2)
    steps = sorted(conditions_of(items, task, conditions), key=int)
    names, handles, more = methods_of(items, labels, task=task), Handles(), Handles()
    for axes, measure in zip(every, measures, strict=True):
        drawn: list[Estimate] = []
        for place, (method, name) in enumerate(names.items()):
            where = {step: {"task": task, "method": method, "condition": step} for step in steps}
            read = {step: measure.read(items, **where[step]) for step in steps}
            known = {step: number for step, number in read.items() if number is not None}
            if not known:
                continue
            usual, dashes = ("o", style.SERIES[place % 6]), {"ls": style.DASHES[place % 6]}
            handles[name] = Line2D([], [], **style.look(usual) | dashes)
            xs = [style.exactly(int(step) + 0.05 * (place - 1)) for step in known]
            values = [number.value for number in known.values()]
            axes.plot([x.value for x in xs], values, color=usual[1], **dashes)
            for x, (step, number) in zip(xs, known.items(), strict=True):
                broken = style.mark_of(items, **where[step]) == style.BROKEN
                more |= style.explained(style.BROKEN) if broken else {}
                style.draw_cross(axes, x, number, style.BROKEN if broken else usual)
            drawn += known.values()
        measure.set_axis(axes.yaxis, drawn, 5)
        more |= measure.shade(items, axes, {"task": task, "condition": ""}, "y")
        axes.set(xlabel=x_label, ylabel=measure.axis_label(drawn), xticks=[int(s) for s in steps])
    return figure, handles | more


OUTCOMES = {"supported": ("o", style.BLUE), "refuted": ("s", style.ORANGE)}
OUTCOMES |= {"undecided": ("D", style.LINE)}


def forest(rows: pd.DataFrame, x_label: str, note: str = "") -> Figure:
    """Draw differences with their intervals, a line each; grey: what a margin calls equal.

    Args:
        rows: label, value, low, high, margin (nan: none) and outcome, one of OUTCOMES.
        note: the footer.
    """
    labels = [textwrap.fill(label, 48) for label in rows["label"]]
    tall = 0.1 + 0.15 * max(1 + label.count("\n") for label in labels)
    numbers = [Estimate(row.value, row.low, row.high, 1, 1) for row in rows.itertuples()]
    with mpl.rc_context(style.STYLE):
        figure, (axes,) = style.panels(1, tall * len(rows) + 0.5)
        style.set_scale(axes.xaxis, "fit", numbers, 5)
        axes.axvline(0, color=style.LINE, lw=0.9, zorder=0.7)
        for y, (row, n) in enumerate(zip(rows.itertuples(), numbers, strict=True)):
            equal = {"color": style.BAND, "lw": 0, "zorder": 0.5}
            axes.fill_betweenx([-y - 0.35, 0.35 - y], -row.margin, row.margin, **equal)
            style.draw_point(axes, n, -y, OUTCOMES[row.outcome])
            text = f"{n.value:.2f} [{n.low:.2f}, {n.high:.2f}]"
            axes.annotate(text, (1.02, -y), xycoords=("axes fraction", "data"), va="center")
        axes.set_yticks([-float(y) for y in range(len(rows))], labels)
        axes.set(ylim=(0.5 - len(rows), 0.5), xlabel=x_label)
        handles = {outcome: style.key(mark) for outcome, mark in OUTCOMES.items()}
        return style.finish(figure, handles, note)


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
        handles = Handles()
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
