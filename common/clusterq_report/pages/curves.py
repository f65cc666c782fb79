"""Series of a run's records as figures."""

from collections.abc import Mapping, Sequence

from clusterq_common.quantities import count
from clusterq_report.charts.lines import line_chart, needs_logarithm, thinned
from clusterq_report.charts.svg import linear, usable
from clusterq_report.html.blocks import Figure
from clusterq_report.run_data import Points


def series(columns: Mapping[str, Points], prefix: str) -> dict[str, Points]:
    """Return the columns whose name starts with `prefix`, by the rest of the name."""
    return {name.removeprefix(prefix): points for name, points in columns.items() if name.startswith(prefix)}


def curves(
    series: Mapping[str, Points],
    *,
    title: str,
    y_label: str,
    caption: str,
    x_label: str = "step",
    notes: Sequence[tuple[float, str]] = (),
) -> list[Figure]:
    """Return figures of series with a common axis, logarithmic where all values are above zero and far apart.

    Series with values of zero or below get a figure with a linear axis; both figures then name their series. The caption states the number of missing values.
    """
    above = {name: points for name, points in series.items() if min(usable(y for _, y in points), default=0.0) > 0}
    below = {name: points for name, points in series.items() if name not in above}
    figures = []
    parted = bool(above) and any(usable(y for _, y in points) for points in below.values())
    for group in (above, below):
        values = usable(y for points in group.values() for _, y in points)
        if not values:
            continue
        lines = [thinned(name, points) for name, points in group.items()]
        gaps = sum(y is None for points in group.values() for _, y in points)
        text = caption
        text += " Bands: least and largest value of neighbouring steps." if any(line.band for line in lines) else ""
        text += f" Gaps: {count(gaps, 'value that is', 'values that are')} not finite." if gaps else ""
        log = needs_logarithm(values)
        drawn = line_chart(lines, title=title, x_label=x_label, y_label=y_label, log=log, x_range=_extent(group), notes=notes)
        figures.append(Figure(f"{title}: {', '.join(group)}" if parted else title, drawn, text))
    return figures


def shares(
    series: Mapping[str, Points], *, title: str, caption: str, x_label: str = "step", notes: Sequence[tuple[float, str]] = ()
) -> list[Figure]:
    """Return a figure of series that are shares of one, in percent. The axis ends at 100 at most."""
    percent = {n: [(x, None if y is None else 100 * y) for x, y in points] for n, points in series.items()}
    if not any(usable(y for _, y in points) for points in percent.values()):
        return []
    drawn = line_chart(
        [thinned(name, points) for name, points in percent.items()],
        title=title,
        x_label=x_label,
        y_label="percent",
        x_range=_extent(percent),
        y_range=_percent_range(percent),
        notes=notes,
    )
    return [Figure(title, drawn, caption)]


def _extent(series: Mapping[str, Points]) -> tuple[float, float]:
    """Return the smallest and the largest x, before points are thinned."""
    xs = [x for points in series.values() for x, _ in points]
    return min(xs), max(xs)


def _percent_range(series: Mapping[str, Points]) -> tuple[float, float]:
    """Return the axis range of the values, which need not start at zero and is limited to 0 and 100."""
    scale = linear([y for points in series.values() for _, y in points], 0, 1)
    low, high = max(0.0, scale.low), min(100.0, scale.high)
    return (low, high) if low < high else (scale.low, scale.high)
