"""Series of a run's records as chart lines: selection by name, and thinning of many points."""

from collections.abc import Mapping, Sequence

from clusterq_report.charts.lines import Line, line_chart
from clusterq_report.charts.scale import linear, usable
from clusterq_report.html.page import figure
from clusterq_report.run_data import Points

MOST_POINTS = 200
# From this ratio of the largest to the smallest value on, a linear axis would hide the small ones.
WIDE = 20.0


def series(columns: Mapping[str, Points], prefix: str) -> dict[str, Points]:
    """Return the columns whose name starts with `prefix`, by the rest of the name."""
    return {name.removeprefix(prefix): points for name, points in columns.items() if name.startswith(prefix)}


def thinned(name: str, points: Points, most: int = MOST_POINTS) -> Line:
    """Return a line of at most `most` points: means over stretches of neighbours, with their range as a band.

    >>> thinned("a", [(0, 1.0), (1, 3.0), (2, 5.0), (3, None)], most=2)
    Line(name='a', points=[(0.5, 2.0), (2.0, 5.0)], band=[(0.5, 1.0, 3.0), (2.0, 5.0, 5.0)], joined=True)
    """
    if len(points) <= most:
        return Line(name, points)
    size = -(-len(points) // most)
    means: Points = []
    band = []
    for start in range(0, len(points), size):
        part = [(x, y) for x, y in points[start : start + size] if usable([y])]
        if not part:
            means.append((points[start][0], None))
            continue
        x, ys = sum(x for x, _ in part) / len(part), usable(y for _, y in part)
        means.append((x, sum(ys) / len(ys)))
        band.append((x, min(ys), max(ys)))
    return Line(name, means, band)


def curves(
    found: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    y_label: str,
    caption: str,
    notes: Sequence[tuple[float, str]] = (),
) -> str:
    """Return figures of series with a common axis, logarithmic where all values are above zero and far apart.

    Series with values of zero or below get a figure with a linear axis. The caption states the number of missing values.
    """
    above = {name: points for name, points in found.items() if min(usable(y for _, y in points), default=0.0) > 0}
    below = {name: points for name, points in found.items() if name not in above}
    drawings = []
    for group in (above, below):
        values = usable(y for points in group.values() for _, y in points)
        if not values:
            continue
        log = min(values) > 0 and max(values) / min(values) > WIDE
        lines = [thinned(name, points) for name, points in group.items()]
        gaps = sum(y is None for points in group.values() for _, y in points)
        full_caption = caption + (
            " Bands: least and largest value of neighbouring steps." if any(line.band for line in lines) else ""
        )
        full_caption += f" {gaps} values were not finite: gaps." if gaps else ""
        drawn = line_chart(lines, title=title, x_label=x_label, y_label=y_label, log=log, x_range=_extent(group), notes=notes)
        drawings.append(figure(title, drawn, full_caption))
    return "".join(drawings)


def shares(
    found: Mapping[str, Points], *, title: str, x_label: str, caption: str, notes: Sequence[tuple[float, str]] = ()
) -> str:
    """Return a figure of series that are shares of one, in percent. The axis ends at 100 at most."""
    percent = {n: [(x, None if y is None else 100 * y) for x, y in points] for n, points in found.items()}
    if not any(usable(y for _, y in points) for points in percent.values()):
        return ""
    lines = [thinned(name, points) for name, points in percent.items()]
    drawn = line_chart(
        lines,
        title=title,
        x_label=x_label,
        y_label="percent",
        x_range=_extent(percent),
        y_range=_percent_range(percent),
        notes=notes,
    )
    return figure(title, drawn, caption)


def _extent(found: Mapping[str, Points]) -> tuple[float, float]:
    """Return the smallest and the largest x, before points are thinned."""
    xs = [x for points in found.values() for x, _ in points]
    return min(xs), max(xs)


def _percent_range(found: Mapping[str, Points]) -> tuple[float, float]:
    """Return the axis range of the values, which need not start at zero and is limited to 0 and 100."""
    scale = linear([y for points in found.values() for _, y in points], 0, 1)
    low, high = max(0.0, scale.low), min(100.0, scale.high)
    return (low, high) if low < high else (scale.low, scale.high)
