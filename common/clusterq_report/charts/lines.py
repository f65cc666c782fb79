"""Line charts: several series over common axes, or a small chart for each of many series."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from clusterq_common.quantities import number
from clusterq_report.charts.svg import (
    BOTTOM,
    CLOSEST,
    HEIGHT,
    LEFT,
    RIGHT,
    SMALL_HEIGHT,
    SMALL_WIDTH,
    TOP,
    WIDTH,
    Scale,
    axes,
    chart,
    linear,
    logarithmic,
    note,
    tag,
    usable,
)

Points = Sequence[tuple[float, float | None]]
# Largest number of points with a mark of their own, which has the value as a tooltip.
MOST_MARKED = 64
MOST_POINTS = 200
# From this ratio of the largest to the smallest value on, a linear axis would hide the small ones.
WIDE = 20.0
SMALL_LEFT, SMALL_RIGHT, SMALL_BOTTOM = 38, 6, 16
MOST_SMALL, MOST_SMALL_POINTS = 48, 100


@dataclass(frozen=True)
class Line:
    """A series of a line chart.

    Attributes:
        name: name in the legend.
        points: (x, y) in the order of x; a y that is None or not finite is a gap.
        band: (x, low, high): ranges of the values whose means are the points.
    """

    name: str
    points: Points
    band: Sequence[tuple[float, float, float]] = field(default_factory=list)


def thinned(name: str, points: Points, most: int = MOST_POINTS) -> Line:
    """Return a line of at most `most` points: means over stretches of neighbours, with their range as a band.

    >>> thinned("a", [(0, 1.0), (1, 3.0), (2, 5.0), (3, None)], most=2)
    Line(name='a', points=[(0.5, 2.0), (2.0, 5.0)], band=[(0.5, 1.0, 3.0), (2.0, 5.0, 5.0)])
    """
    if len(points) <= most:
        return Line(name, points)
    stretch = -(-len(points) // most)
    means: list[tuple[float, float | None]] = []
    band = []
    for start in range(0, len(points), stretch):
        part = [(x, y) for x, y in points[start : start + stretch] if usable([y])]
        if not part:
            means.append((points[start][0], None))
            continue
        x, ys = sum(x for x, _ in part) / len(part), usable(y for _, y in part)
        means.append((x, sum(ys) / len(ys)))
        band.append((x, min(ys), max(ys)))
    return Line(name, means, band)


def needs_logarithm(values: Sequence[float]) -> bool:
    """Return whether values are all above zero and so far apart that a linear axis would hide the small ones."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > WIDE


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
    places: Mapping[float, str] | None = None,
) -> Markup:
    """Return an SVG of the series, with a legend where there are several. Series with the same points are named as such.

    Args:
        lines: the series. Non-finite values are left out, and on a logarithmic axis those not above zero.
        title: title of the chart, for readers who cannot see it.
        x_label, y_label: labels of the axes, with the unit; a logarithmic axis is labelled as such.
        log: whether the y axis is logarithmic.
        x_range, y_range: ends of the x axis and of a linear y axis; chosen from the values if left out.
        notes: (x, text): events marked by a vertical line.
        places: names of the places on the x axis, such as layers, for tooltips; the ticks are then whole numbers.
    """
    xs = [x for line in lines for x, y in line.points if usable([y])]
    ys = [y for line in lines for _, y in line.points] + [end for line in lines for _, *ends in line.band for end in ends]
    if not usable(ys) or (log and max(usable(ys)) <= 0):
        return note(f"{title}: no value to show.")
    whole = places is not None or (x_range is None and all(float(x).is_integer() for x in xs))
    x_scale = _tight(x_range or xs, whole=whole)
    low, high = HEIGHT - BOTTOM, TOP
    y_scale = logarithmic(ys, low, high) if log else linear(ys, low, high, fixed=y_range)
    marks = [axes(x_scale, y_scale, x_label, y_label + (" (log scale)" if log else ""))]
    for x, text in notes:
        if x_scale.low <= x <= x_scale.high:
            place = x_scale(x)
            marks.append(tag("line", x1=place, x2=place, y1=float(TOP), y2=float(HEIGHT - BOTTOM), class_="moment"))
            marks.append(tag("text", text, x=place + 4, y=TOP + 10, class_="tick"))
    names = []
    for index, line in enumerate(lines):
        twin = next((other.name for other in lines[:index] if list(other.points) == list(line.points)), None)
        names.append(line.name if twin is None else f"{line.name} (the same line as {twin})")
        marks += _drawn(line, index, x_scale, y_scale, places or {})
    return chart(WIDTH, HEIGHT, title, marks, names)


def _tight(xs: Sequence[float], *, whole: bool) -> Scale:
    """Return a horizontal scale that ends exactly at the data; only the ticks are round, and integers if `whole`, as epochs are."""
    low, high = min(xs), max(xs)
    scale = linear([low, high], 0, 1)
    if high - low <= CLOSEST * max(abs(low), abs(high)):
        low, high = (low - 0.5, high + 0.5) if whole else (scale.low, scale.high)
    ticks = scale.ticks if not whole else tuple(sorted({float(math.ceil(tick)) for tick in scale.ticks} | {math.ceil(low)}))
    return Scale(low, high, LEFT, WIDTH - RIGHT, tuple(tick for tick in ticks if low <= tick <= high) or (low, high))


def _drawn(line: Line, index: int, x_scale: Scale, y_scale: Scale, places: Mapping[float, str]) -> list[Markup]:
    colour = f"s{index % 6}"
    marks = []
    band = [(x, low, high) for x, low, high in line.band if _shown(low, y_scale) and _shown(high, y_scale)]
    if band:
        there = [f"{x_scale(x):.1f},{y_scale(high):.1f}" for x, _, high in band]
        back = [f"{x_scale(x):.1f},{y_scale(low):.1f}" for x, low, _ in reversed(band)]
        outline = Markup(f"M{'L'.join(there)}L{'L'.join(back)}Z")
        marks.append(tag("path", d=outline, class_=f"band {colour}"))
    marks.append(tag("path", d=_path(line.points, x_scale, y_scale), class_=f"line {colour} d{index // 6}"))
    points = [(x, float(y or 0)) for x, y in line.points if _shown(y, y_scale)]
    if len(points) <= MOST_MARKED:
        for x, y in points:
            tooltip = tag("title", f"{line.name}: {number(y, 4)} at {places.get(x) or number(x, 6)}")
            marks.append(tag("circle", tooltip, cx=x_scale(x), cy=y_scale(y), r=2.5, class_=f"dot {colour}"))
    return marks


def _shown(y: float | None, scale: Scale) -> bool:
    return bool(usable([y])) and (not scale.log or (y or 0) > 0)


def _path(points: Points, x_scale: Scale, y_scale: Scale) -> Markup:
    """Return the points as an SVG path, with a gap at each value that cannot be drawn."""
    path, pen_down = [], False
    for x, y in points:
        if y is None or not _shown(y, y_scale):
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{x_scale(x):.1f},{y_scale(y):.1f}")
        pen_down = True
    return Markup("".join(path))


def small_multiples_of_lines(series: Mapping[str, Points], *, title: str, notes: Sequence[float] = ()) -> tuple[Markup, str]:
    """Return a grid of charts, and a sentence on its axes. Of more than 48 series, 48 are shown, evenly spread.

    All charts have the same axes, for comparison. The vertical one starts at zero, or is logarithmic where values are far apart and
    all above zero. More than 100 points are thinned to means over neighbours.

    Args:
        series: series by name.
        title: title of the charts.
        notes: events marked by a vertical line.
    """
    names = list(series)
    if len(names) > MOST_SMALL:
        names = [names[place * len(names) // MOST_SMALL] for place in range(MOST_SMALL)]
    lines = [thinned(name, series[name], MOST_SMALL_POINTS) for name in names]
    values = usable(y for line in lines for _, y in line.points)
    if not values:
        return note(f"{title}: no value to show."), ""
    xs = [x for name in names for x, _ in series[name]]
    log, bottom = needs_logarithm(values), SMALL_HEIGHT - SMALL_BOTTOM
    y_scale = logarithmic(values, bottom, TOP) if log else linear(values, bottom, TOP, zero=True)
    x_scale = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, SMALL_LEFT, SMALL_WIDTH - SMALL_RIGHT, ())
    inside = [x for x in notes if x_scale.low <= x <= x_scale.high]
    drawn = [(line.name, _small(line, x_scale, y_scale, inside, title)) for line in lines]
    axes_text = "One axis for all" + (", logarithmic." if log else ", from zero.")
    axes_text += f" {len(names)} of {len(series)}." if len(names) < len(series) else ""
    return small_multiples(drawn), axes_text


def small_multiples(drawn: Sequence[tuple[str, Markup]]) -> Markup:
    """Return small charts side by side, each below its name."""
    return tag(
        "div",
        *(tag("div", tag("div", name, class_="tick"), svg, class_="small") for name, svg in drawn),
        class_="small-multiples",
    )


def _small(line: Line, x_scale: Scale, y_scale: Scale, notes: Sequence[float], title: str) -> Markup:
    marks = []
    ticks = y_scale.ticks if len(y_scale.ticks) <= 3 else (y_scale.ticks[0], y_scale.ticks[-1])
    for tick in ticks:
        marks.append(tag("line", x1=x_scale.start, x2=x_scale.end, y1=y_scale(tick), y2=y_scale(tick), class_="grid"))
        marks.append(tag("text", y_scale.label(tick), x=SMALL_LEFT - 4, y=y_scale(tick) + 4, class_="tick end"))
    marks += [tag("line", x1=x_scale(x), x2=x_scale(x), y1=float(TOP), y2=y_scale.start, class_="moment") for x in notes]
    marks.append(tag("line", x1=x_scale.start, x2=x_scale.end, y1=y_scale.start, y2=y_scale.start, class_="axis"))
    shown = usable(y for _, y in line.points)
    tooltip = f"{line.name}: {number(shown[0])} at first, {number(shown[-1])} at last" if shown else line.name
    marks.append(tag("path", tag("title", tooltip), d=_path(line.points, x_scale, y_scale), class_="line s0"))
    for x, kind in ((x_scale.low, "tick"), (x_scale.high, "tick end")):
        marks.append(tag("text", number(x), x=x_scale(x), y=SMALL_HEIGHT - 3, class_=kind))
    return chart(SMALL_WIDTH, SMALL_HEIGHT, f"{title}: {line.name}", marks)
