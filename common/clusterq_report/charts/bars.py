"""Charts of single values: bars from zero, differences with their intervals, and histograms of weights over their grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from clusterq_common.quantities import number
from clusterq_report.charts.svg import (
    LETTER,
    RIGHT,
    SMALL_HEIGHT,
    SMALL_WIDTH,
    TOP,
    WIDTH,
    Scale,
    chart,
    linear,
    note,
    shortened,
    tag,
    usable,
)

THICK, GAP = 12, 8
# Longer labels stand above their bars, where they have the whole width.
LONGEST_BESIDE, LONGEST_ABOVE = 14, 54
LABEL_LINE = 15
ROOM_FOR_VALUE = 46
# A histogram's margins; with more grid points, only the ends and zero are marked.
SIDE, LOW_MARGIN = 8, 16
MOST_MARKED = 20

Interval = tuple[float, float]


@dataclass(frozen=True)
class Bars:
    """A group of bars under one label, one bar for each series. Each interval belongs to the value with the same index."""

    label: str
    values: Sequence[float | None]
    intervals: Sequence[Interval | None] = ()


@dataclass(frozen=True)
class _Rows:
    """Places of a chart's rows: labels beside the marks where they are short, else above them."""

    labels: Sequence[str]
    height: int

    @property
    def above(self) -> bool:
        return max(len(label) for label in self.labels) > LONGEST_BESIDE

    @property
    def left(self) -> float:
        return 12.0 if self.above else 14 + LETTER * max(len(label) for label in self.labels)

    @property
    def bottom(self) -> float:
        return TOP + len(self.labels) * self._step

    @property
    def _step(self) -> int:
        return self.height + GAP + (LABEL_LINE if self.above else 0)

    def top(self, place: int) -> float:
        """Return the upper end of a row's marks."""
        return TOP + place * self._step + GAP / 2 + (LABEL_LINE if self.above else 0)

    def label(self, place: int) -> Markup:
        """Return a row's label; the whole one is its tooltip."""
        whole = self.labels[place]
        name, shown = tag("title", whole), shortened(whole, LONGEST_ABOVE if self.above else LONGEST_BESIDE)
        if self.above:
            return tag("text", name, shown, x=self.left, y=self.top(place) - 4, class_="tick")
        return tag("text", name, shown, x=self.left - 6, y=self.top(place) + self.height / 2 + 4, class_="tick end")

    def axis(self, scale: Scale, x_label: str) -> list[Markup]:
        """Return grid, ticks and label of the horizontal axis."""
        marks = []
        for tick in scale.ticks:
            marks.append(tag("line", x1=scale(tick), x2=scale(tick), y1=float(TOP), y2=self.bottom, class_="grid"))
            marks.append(tag("text", scale.label(tick), x=scale(tick), y=self.bottom + 16, class_="tick middle"))
        marks.append(tag("text", x_label, x=WIDTH / 2, y=self.bottom + 33, class_="label middle"))
        return marks


def bar_chart(
    groups: Sequence[Bars],
    names: Sequence[str],
    *,
    title: str,
    x_label: str,
    high: float | None = None,
    decimals: int | None = None,
) -> Markup:
    """Return an SVG with one row of bars for each group. The axis starts at zero, or below it where values are negative.

    Args:
        groups: rows, in this order. A value that is None or not finite has no bar.
        names: names of the series.
        title: title of the chart.
        x_label: label of the axis, with the unit.
        high: end of the axis, e.g. 100 for percent; chosen from the values if left out.
        decimals: decimals of the values beside the bars; three significant digits if left out.
    """
    values = [value for group in groups for value in group.values]
    if not usable(values):
        return note(f"{title}: no value to show.")
    ends = [end for group in groups for interval in group.intervals if interval for end in interval]
    rows = _Rows([group.label for group in groups], THICK * len(names))
    fixed = (0.0, high) if high is not None and min(usable(values)) >= 0 else None
    scale = linear(usable([*values, *ends]), rows.left, WIDTH - RIGHT - ROOM_FOR_VALUE, zero=True, fixed=fixed)
    marks = rows.axis(scale, x_label)
    for place, group in enumerate(groups):
        marks.append(rows.label(place))
        for index, value in enumerate(group.values):
            if value is None or not usable([value]):
                continue
            y = rows.top(place) + index * THICK
            zero, tip = sorted((scale(0), scale(value)))
            tooltip = tag("title", f"{group.label}, {names[index]}: {number(value, 4)}")
            marks.append(tag("rect", tooltip, x=zero, y=y, width=tip - zero, height=THICK - 2.0, class_=f"bar s{index % 6}"))
            interval = group.intervals[index] if index < len(group.intervals) else None
            if interval is not None and len(usable(interval)) == 2:
                marks.append(_whisker(scale, interval, y + THICK / 2 - 1))
                tip = max(tip, scale(interval[1]))
            written = number(value) if decimals is None else f"{value:.{decimals}f}"
            marks.append(tag("text", written, x=tip + 4, y=y + THICK - 2.5, class_="tick"))
    marks.append(tag("line", x1=scale(0), x2=scale(0), y1=float(TOP), y2=rows.bottom, class_="axis"))
    return chart(WIDTH, int(rows.bottom + 40), title, marks, names)


def _whisker(scale: Scale, interval: Interval, y: float) -> Markup:
    return tag("line", x1=scale(interval[0]), x2=scale(interval[1]), y1=y, y2=y, class_="whisker")


def interval_chart(rows: Sequence[tuple[str, float, Interval | None]], *, title: str, x_label: str, zero_label: str) -> Markup:
    """Return an SVG of differences from zero, each a dot with its interval, on an axis that is as long as they need.

    Args:
        rows: label, value, and interval where there is one.
        title: title of the chart.
        x_label: label of the axis, with the unit.
        zero_label: name of the line at zero.
    """
    known = [row for row in rows if usable([row[1]])]
    if not known:
        return note(f"{title}: no value to show.")
    intervals = {place: found for place, row in enumerate(known) if (found := row[2]) is not None and len(usable(found)) == 2}
    places = _Rows(["", *(row[0] for row in known)], THICK)
    values = [row[1] for row in known] + [end for found in intervals.values() for end in found]
    scale = linear(values, places.left + 8, WIDTH - RIGHT - 8, zero=True)
    marks = places.axis(scale, x_label)
    marks.append(tag("line", x1=scale(0), x2=scale(0), y1=float(TOP), y2=places.bottom, class_="axis"))
    at_end = scale(0) > WIDTH / 2
    marks.append(
        tag(
            "text", zero_label, x=scale(0) + (-5 if at_end else 5), y=float(TOP + 11), class_="label end" if at_end else "label"
        )
    )
    for place, (label, value, _) in enumerate(known):
        y = places.top(place + 1) + THICK / 2
        marks.append(places.label(place + 1))
        written = f"{value:.2f}"
        if place in intervals:
            low, high = intervals[place]
            marks.append(_whisker(scale, (low, high), y))
            marks += [tag("line", x1=scale(end), x2=scale(end), y1=y - 5, y2=y + 5, class_="whisker") for end in (low, high)]
            written += f" ({low:.2f} to {high:.2f})"
        marks.append(tag("circle", tag("title", f"{label}: {written}"), cx=scale(value), cy=y, r=4.5, class_="dot s0"))
    return chart(WIDTH, int(places.bottom + 40), title, marks)


def grid_histogram(low: int, high: int, zero: int, student: Sequence[float], teacher: Sequence[float], title: str) -> Markup:
    """Return an SVG with shares of a layer's weights over [low - 1, high + 1] in grid steps: student filled, teacher as a line.

    Args:
        low, high: ends of the grid, integers.
        zero: the integer of the value 0.
        student, teacher: shares by bin, bins of equal width over that range; values beyond it are counted in the outermost bins.
        title: title of the chart.
    """
    if not student or high <= low:
        return note(f"{title}: no weights to show.")
    floor = SMALL_HEIGHT - LOW_MARGIN
    x = Scale(low - 1, high + 1, SIDE, SMALL_WIDTH - SIDE, ())
    y = Scale(0, max([*student, *teacher, 1e-9]), floor, TOP, ())
    points = range(low, high + 1) if high - low < MOST_MARKED else sorted({low, zero, high})
    marks = [tag("line", x1=x(at), x2=x(at), y1=float(TOP), y2=float(floor), class_="grid") for at in points]
    for kind, shares in (("bar s0", student), ("line s1", teacher)):
        if shares:
            marks.append(tag("path", d=_steps(shares, x, y, closed=kind.startswith("bar")), class_=kind))
    marks.append(tag("line", x1=float(SIDE), x2=float(SMALL_WIDTH - SIDE), y1=y(0), y2=y(0), class_="axis"))
    # The ends' numbers extend inwards, because a long centred one would be cut off.
    labels = {zero: "tick middle", low: "tick", high: "tick end"}
    marks += [tag("text", at, x=x(at), y=SMALL_HEIGHT - 3, class_=kind) for at, kind in labels.items()]
    return chart(SMALL_WIDTH, SMALL_HEIGHT, title, marks)


def _steps(shares: Sequence[float], x: Scale, y: Scale, *, closed: bool) -> Markup:
    """Return the outline of a histogram as an SVG path; runs of equal height are one stroke."""
    width = (x.high - x.low) / len(shares)
    path = [f"M{x.start:.1f},{y(0):.1f}"]
    before = None
    for place, share in enumerate(shares):
        if share != before:
            path.append(f"H{x(x.low + place * width):.1f}V{y(share):.1f}")
            before = share
    path.append(f"H{x.end:.1f}V{y(0):.1f}")
    return Markup("".join(path) + ("Z" if closed else ""))
