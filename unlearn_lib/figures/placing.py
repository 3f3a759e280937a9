"""Numbers beside points, so that none covers another number or a point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

LETTER, HEIGHT = 5.2, 8.0
COINCIDE = 4.0
MARK = 3.5
FAR = 9.0
ANGLES = (45, 135, 90, 0, 180, 20, 70, 110, 160, -45, -135, -90, -20, -70, -110, -160)
RADII = (9, 12, 16, 21, 27, 34, 42, 52, 64)

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """A number for the point x, y with bars, in data coordinates; None only keeps it free."""

    x: float
    y: float
    number: int | None
    x_bar: Point
    y_bar: Point


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write each number near its point, with a thin line where it stands off.

    Points that coincide share one text, `2, 5` or `1–4`. The layout must be done: places are
    worked out in points of the page, from the axes as they are now.
    """
    if not labels:
        return
    pixels = axes.get_figure(root=True).dpi / 72
    page = Page(
        frame=tuple(float(end) / pixels for end in axes.bbox.extents),
        points=_on_page(axes, [(each.x, each.y) for each in labels], pixels),
        bars=_bars(axes, labels, pixels),
        taken=[],
    )
    for members in _coinciding(labels, page.points):
        text = listed([number for m in members if (number := labels[m].number) is not None])
        point = page.points[members[0]]
        shift = min(_shifts(text), key=lambda each: page.cost(text, point, each))
        page.taken.append(_box(text, point, shift))
        _write(axes, labels[members[0]], text, shift)


def listed(numbers: Sequence[int]) -> str:
    """Return `1–4, 7, 8`: runs of three or more are shortened."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return ", ".join(texts)


@dataclass
class Page:
    """What stands in a panel, in points of the page: its frame, points, bars, texts so far."""

    frame: tuple[float, ...]
    points: list[Point]
    bars: list[Box]
    taken: list[Box]

    def cost(self, text: str, point: Point, shift: Point) -> float:
        """Return how bad a place is: off the panel or on a text is worst, then on a point."""
        box = _box(text, point, shift)
        left, low, right, high = box
        inside = left > self.frame[0] and low > self.frame[1]
        inside = inside and right < self.frame[2] and high < self.frame[3]
        others = [other for other in self.points if math.dist(other, point) >= COINCIDE]
        own = _gap(box, point)
        return (
            1000 * (not inside)
            + 1000 * sum(_overlap(_widened(box), each) for each in self.taken)
            + 300 * sum(_gap(box, each) < MARK for each in [point, *others])
            + 30 * sum(_gap_to_line(each, point, shift) < MARK for each in others)
            + 12 * sum(_gap(box, each) < own + 2 for each in others)
            + 8 * sum(_overlap(box, each) for each in self.bars)
            + math.hypot(*shift)
        )


def _on_page(axes: Axes, points: Sequence[Point], pixels: float) -> list[Point]:
    return [(float(across), float(up)) for across, up in axes.transData.transform(points) / pixels]


def _bars(axes: Axes, labels: Sequence[Label], pixels: float) -> list[Box]:
    ends = [((*e.x_bar, e.y, e.y), (e.x, e.x, *e.y_bar)) for e in labels]
    known = [bar for pair in ends for bar in pair if not any(map(math.isnan, bar))]
    lows = _on_page(axes, [(bar[0], bar[2]) for bar in known] or [(0, 0)], pixels)
    highs = _on_page(axes, [(bar[1], bar[3]) for bar in known] or [(0, 0)], pixels)
    return [(*low, *high) for low, high in zip(lows, highs, strict=True)]


def _coinciding(labels: Sequence[Label], points: Sequence[Point]) -> list[list[int]]:
    groups: list[list[int]] = []
    for place, point in enumerate(points):
        if labels[place].number is None:
            continue
        near = (g for g in groups if math.dist(points[g[0]], point) < COINCIDE)
        group = next(near, None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return groups


def _shifts(text: str) -> list[Point]:
    half = LETTER * (len(text) - 1) / 2
    turns = [(radius, math.radians(angle)) for radius in RADII for angle in ANGLES]
    return [((radius + half) * math.cos(turn), radius * math.sin(turn)) for radius, turn in turns]


def _box(text: str, point: Point, shift: Point) -> Box:
    half = LETTER * len(text) / 2
    across, up = point[0] + shift[0], point[1] + shift[1]
    return across - half, up - HEIGHT / 2, across + half, up + HEIGHT / 2


def _widened(box: Box) -> Box:
    return box[0] - LETTER, box[1], box[2] + LETTER, box[3]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] <= other[2] and one[2] >= other[0] and one[1] <= other[3] and one[3] >= other[1]


def _gap(box: Box, point: Point) -> float:
    across = max(box[0] - point[0], 0.0, point[0] - box[2])
    up = max(box[1] - point[1], 0.0, point[1] - box[3])
    return math.hypot(across, up)


def _gap_to_line(other: Point, start: Point, shift: Point) -> float:
    away = (other[0] - start[0], other[1] - start[1])
    length = math.hypot(*shift)
    along = min(max((away[0] * shift[0] + away[1] * shift[1]) / length**2, 0.0), 1.0)
    return math.dist(away, (along * shift[0], along * shift[1]))


def _write(axes: Axes, label: Label, text: str, shift: Point) -> None:
    stands_off = _gap(_box(text, (0, 0), shift), (0, 0)) > FAR
    line = {"arrowstyle": "-", "color": "#555555", "lw": 0.6, "shrinkA": 0, "shrinkB": MARK}
    note = axes.annotate(
        text,
        (label.x, label.y),
        shift,
        textcoords="offset points",
        ha="center",
        va="center_baseline",
        color="#111111",
        arrowprops=line if stands_off else None,
        path_effects=[withStroke(linewidth=2, foreground="white")],
        zorder=5,
    )
    note.set_in_layout(False)
