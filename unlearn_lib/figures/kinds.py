"""The kinds of figure: `dots`, `tradeoff` and `curves`, and the curves of a training.

The first three take a source (items of one language model, display names of methods, tasks) and a
small spec. Every value stands with its 95 % interval; models whose answers are broken are crosses.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from unlearn_lib.figures import style
from unlearn_lib.results import Estimate, Items
from unlearn_lib.tables import NAMES, TASKS, Column, Names, conditions_of, methods_of
from unlearn_lib.util import CompanionError

SCALES = {"share": "unit", "score": "unit", "cosine": "unit", "none": "log", "p-value": "p"}
ARROWS = {"lower": "←\u00a0{}", "higher": "{}\u00a0→", "neither": "{}"}
"""Towards the better side; no line ends beside an arrow."""
Source = tuple[Items, Names, Sequence[str]]
"""Items of one language model, display names of methods, and names of tasks."""
Handles = dict[str, mpl.artist.Artist]
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
        columns = Column.parsed(self.also)
        return {f"on {c.split}" if c.metric == self.metric else c.entry.label: c for c in columns}

    def set_axis(
        self, axis: Axis, numbers: list[Estimate], ticks: int = 5, letters: int = 40
    ) -> None:
        """Set scale and label of an axis that shows some numbers.

        The label stands in lines of so many letters, with an arrow towards the better side, and n.
        """
        plain = "percent" if self.percent else SCALES.get(self.entry.unit, "fit")
        style.set_scale(axis, self.scale or plain, numbers, ticks)
        text = self.label or self.heading.replace(", forget", "")
        label = ARROWS[self.better or self.entry.better].format(text)
        known = sorted({number.n for number in numbers}) or [0]
        counts = "–".join(str(n) for n in dict.fromkeys([known[0], known[-1]]))
        lines = textwrap.fill(label, letters, break_long_words=False)
        axis.set_label_text(f"{lines}\nn = {counts}")

    def shade(self, axis: Axis, items: Items, where: Names) -> Handles:
        """Draw the band and the limit across an axis; return what the legend says of them."""
        across, handles = {"x": "v", "y": "h"}[axis.axis_name], Handles()
        span, line = (getattr(axis.axes, f"ax{across}{what}") for what in ("span", "line"))
        number = self.read(items, **{**where, "method": self.band}) if self.band else None
        if number is not None:
            span(number.low, number.high, color=style.BAND, lw=0, zorder=0.5)
            line(number.value, color="#8c8c8c", lw=0.8, zorder=0.6)
            label = f"{NAMES[self.band]}, 95 % interval"
            handles[label] = mpl.patches.Patch(color=style.BAND, lw=0)
        if self.limit:
            line(self.limit[0], **style.DASHED, zorder=0.7)
            handles[self.limit[1]] = mpl.lines.Line2D([], [], **style.DASHED)
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
    height = 0.8 + tall * len(shown)
    figure, every = style.panels(len(used), height, 7, sharey=True, width_ratios=widths)
    handles = Handles()
    for axes, (measure, readings) in zip(every, used, strict=True):
        numbers = [number for name in shown for number, *_ in readings[name]]
        letters = int(88 * measure.width / sum(widths)) - 1
        measure.set_axis(axes.xaxis, numbers, 3, letters)
        handles |= measure.shade(axes.xaxis, items, place)
        for y, name in enumerate(shown):
            for number, lift, mark, hollow in readings[name]:
                style.draw_point(axes, number, lift - y, mark, hollow)
                handles |= style.explained(mark)
        others = zip(measure.others, style.HOLLOW, strict=False)
        handles |= {label: style.key(mark, True) for label, mark in others}
        axes.set_yticks([-float(y) for y in range(len(shown))], wrapped)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(0.5 - len(shown), 0.5)
    return figure, handles


Reading = tuple[Estimate, float, style.Mark, bool]
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
        points: dict[str, list[Any]] = {m: pair for m, pair in read.items() if all(pair)}
        across.set_axis(axes.xaxis, [x for x, _ in points.values()])
        up.set_axis(axes.yaxis, [y for _, y in points.values()])
        more |= up.shade(axes.yaxis, items, where)
        for method, (x, y) in points.items():
            mark = style.mark_of(items, method=method, **where)
            style.draw_cross(axes, x, y, mark)
            more |= style.explained(mark) if mark == style.BROKEN else {}
            number = numbers.setdefault(method, len(numbers) + 1)
            axes.text(x.value, y.value, str(number), gid="number")
        axes.set_title(TASKS.get(task, task) if len(tasks) > 1 else "")
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
            known = {step: number for step, number in read.items() if number}
            if not known:
                continue
            line = style.LINES[place % 6]
            usual = ("o", line["color"])
            handles[name] = mpl.lines.Line2D([], [], **style.look(usual) | line)
            xs = [style.exactly(int(step) + 0.05 * (place - 1)) for step in known]
            values = [number.value for number in known.values()]
            axes.plot([x.value for x in xs], values, **line)
            for x, (step, number) in zip(xs, known.items(), strict=True):
                broken = style.mark_of(items, **where[step]) == style.BROKEN
                more |= style.explained(style.BROKEN) if broken else {}
                style.draw_cross(axes, x, number, style.BROKEN if broken else usual)
            drawn += known.values()
        measure.set_axis(axes.yaxis, drawn)
        more |= measure.shade(axes.yaxis, items, {"task": task, "condition": ""})
        axes.set(xlabel=x_label, xticks=[int(s) for s in steps])
    return figure, handles | more


TERMS = {"forget": "Forget", "mismatch": "Mismatch", "keep": "Keep", "retain": "Retain"}
TERMS |= {"total": "Weighted sum", "loss": "Loss", "verbatim_share": "Verbatim share"}


@mpl.rc_context(style.STYLE)
def curves_of_training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw each loss term of a training against the step or the epoch, a line per method.

    Args:
        histories: by display name, with a column `step` or `epoch` and any of TERMS.
    """
    terms = [term for term in TERMS if any(term in each for each in histories.values())]
    if not terms:
        raise CompanionError(f"No history of a training has one of the columns {', '.join(TERMS)}.")
    figure, every = style.panels(len(terms), 1.6, columns=5)
    handles = Handles()
    for axes, term in zip(every, terms, strict=True):
        for place, (label, history) in enumerate(histories.items()):
            x = "step" if "step" in history else "epoch"
            line = style.LINES[place % 6]
            known = history.dropna(subset=[term]) if term in history else history[:0]
            marker = "o" if len(known) < len(history) else ""
            axes.plot(known[x], known.get(term, []), marker=marker, ms=3, **line)
            handles[label] = mpl.lines.Line2D([], [], **line)
        axes.set(title=TERMS[term], xlabel=x.capitalize())
    return style.finish(figure, handles)
