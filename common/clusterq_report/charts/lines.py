"""Line charts as SVG: one or several series over a common axis."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from clusterq_report.charts.frame import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes, chart, note
from clusterq_report.charts.scale import CLOSEST, Scale, linear, logarithmic, usable
from clusterq_report.html.text import escaped, number, tag

# Largest number of points with a mark of their own, which has the value as a tooltip.
MOST_MARKED = 64


@dataclass(frozen=True)
class Line:
    """A series of a line chart.

    Attributes:
        name: name in the legend.
        points: (x, y) in the order of x; a y that is None or not finite is a gap.
        band: (x, low, high): ranges of the values whose means are the points.
        joined: whether points are joined by a line; else there are marks only.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float, float]] = field(default_factory=list)
    joined: bool = True


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    notes: Sequence[tuple[float, str]] = (),
) -> str:
    """Return an SVG of the series, with a legend where there are several.

    Args:
        lines: the series. Non-finite values are left out, and on a logarithmic axis those not above zero.
        title: title of the chart, for readers who cannot see it.
        x_label, y_label: labels of the axes, with the unit; a logarithmic axis is labelled as such.
        log: whether the y axis is logarithmic.
        x_range, y_range: ends of the x axis and of a linear y axis; chosen from the values if left out.
        notes: (x, text): events marked by a vertical line.
    """
    xs = [x for line in lines for x, y in line.points if usable([y])]
    ys = [y for line in lines for _, y in line.points] + [end for line in lines for _, *ends in line.band for end in ends]
    if not usable(ys) or (log and max(usable(ys)) <= 0):
        return note(f"{title}: no value to show.")
    x_scale = _tight(x_range or xs)
    low, high = HEIGHT - BOTTOM, TOP
    y_scale = logarithmic(ys, low, high) if log else linear(ys, low, high, fixed=y_range)
    marks = [axes(x_scale, y_scale, x_label, y_label + (" (log scale)" if log else ""))]
    for x, text in notes:
        if x_scale.low <= x <= x_scale.high:
            place = x_scale(x)
            marks.append(tag("line", x1=place, x2=place, y1=float(TOP), y2=float(HEIGHT - BOTTOM), class_="moment"))
            marks.append(tag("text", escaped(text), x=place + 4, y=TOP + 10, class_="tick"))
    for index, line in enumerate(lines):
        marks.append(_draw(line, index, x_scale, y_scale))
    return chart(WIDTH, HEIGHT, title, marks, [line.name for line in lines])


def _tight(xs: Sequence[float]) -> Scale:
    """Return a horizontal scale that ends exactly at the data; only the ticks are round."""
    low, high = min(xs), max(xs)
    scale = linear([low, high], 0, 1)
    if high - low <= CLOSEST * max(abs(low), abs(high)):
        low, high = scale.low, scale.high
    ticks = scale.ticks
    return Scale(low, high, LEFT, WIDTH - RIGHT, tuple(tick for tick in ticks if low <= tick <= high) or (low, high))


def _draw(line: Line, index: int, x_scale: Scale, y_scale: Scale) -> str:
    def shown(y: float | None) -> bool:
        return bool(usable([y])) and (not y_scale.log or (y or 0) > 0)

    colour = f"s{index % 6}"
    marks = []
    band = [(x, low, high) for x, low, high in line.band if shown(low) and shown(high)]
    if band:
        there = [f"{x_scale(x):.1f},{y_scale(high):.1f}" for x, _, high in band]
        back = [f"{x_scale(x):.1f},{y_scale(low):.1f}" for x, low, _ in reversed(band)]
        marks.append(tag("path", d=f"M{'L'.join(there)}L{'L'.join(back)}Z", class_=f"band {colour}"))
    if line.joined:
        path, pen_down = [], False
        for x, y in line.points:
            if not shown(y):
                pen_down = False
                continue
            path.append(f"{'L' if pen_down else 'M'}{x_scale(x):.1f},{y_scale(float(y or 0)):.1f}")
            pen_down = True
        marks.append(tag("path", d="".join(path), class_=f"line {colour} d{index // 6}"))
    points = [(x, float(y or 0)) for x, y in line.points if shown(y)]
    if len(points) <= MOST_MARKED or not line.joined:
        for x, y in points:
            tooltip = tag("title", escaped(f"{line.name}: {number(y, 4)} at {number(x, 6)}"))
            marks.append(tag("circle", tooltip, cx=x_scale(x), cy=y_scale(y), r=2.5, class_=f"dot {colour}"))
    return "".join(marks)
