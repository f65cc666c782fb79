"""Bar charts: horizontal bars from zero, with optional intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from clusterq_report.charts.frame import RIGHT, TOP, WIDTH, chart, note
from clusterq_report.charts.scale import linear, usable
from clusterq_report.html.text import escaped, number, tag

THICK, GAP = 11, 8
LETTER = 6.3
LONGEST_LABEL = 34
ROOM_FOR_VALUE = 46


@dataclass(frozen=True)
class Bars:
    """A group of bars under one label, one bar for each series. Each interval belongs to the value with the same index."""

    label: str
    values: Sequence[float | None]
    intervals: Sequence[tuple[float, float] | None] = ()


def bar_chart(
    groups: Sequence[Bars],
    names: Sequence[str],
    *,
    title: str,
    x_label: str,
    high: float | None = None,
    decimals: int | None = None,
) -> str:
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
    left = 14 + LETTER * min(LONGEST_LABEL, max(len(group.label) for group in groups))
    row = THICK * len(names) + GAP
    bottom = TOP + row * len(groups)
    fixed = (0.0, high) if high is not None and min(usable(values)) >= 0 else None
    scale = linear(usable([*values, *ends]), left, WIDTH - RIGHT - ROOM_FOR_VALUE, zero=True, fixed=fixed)
    marks = []
    for tick in scale.ticks:
        marks.append(tag("line", x1=scale(tick), x2=scale(tick), y1=float(TOP), y2=float(bottom), class_="grid"))
        marks.append(tag("text", escaped(scale.label(tick)), x=scale(tick), y=bottom + 16, class_="tick middle"))
    for place, group in enumerate(groups):
        top = TOP + place * row + GAP / 2
        shown = group.label if len(group.label) <= LONGEST_LABEL else group.label[: LONGEST_LABEL - 1] + "…"
        name = tag("title", escaped(group.label))
        marks.append(tag("text", name, escaped(shown), x=left - 6, y=top + THICK * len(names) / 2 + 4, class_="tick end"))
        for index, value in enumerate(group.values):
            if value is None or not usable([value]):
                continue
            y = top + index * THICK
            zero, tip = sorted((scale(0), scale(value)))
            tooltip = tag("title", escaped(f"{group.label}, {names[index]}: {number(value, 4)}"))
            marks.append(tag("rect", tooltip, x=zero, y=y, width=tip - zero, height=THICK - 2.0, class_=f"bar s{index % 6}"))
            interval = group.intervals[index] if index < len(group.intervals) else None
            after = tip
            if interval is not None and len(usable(interval)) == 2:
                first, last = scale(interval[0]), scale(interval[1])
                middle = y + THICK / 2 - 1
                marks.append(tag("line", x1=first, x2=last, y1=middle, y2=middle, class_="whisker"))
                after = max(after, last)
            marks.append(
                tag(
                    "text",
                    escaped(number(value) if decimals is None else f"{value:.{decimals}f}"),
                    x=after + 4,
                    y=y + THICK - 3,
                    class_="tick",
                )
            )
    marks.append(tag("line", x1=scale(0), x2=scale(0), y1=float(TOP), y2=float(bottom), class_="axis"))
    marks.append(tag("text", escaped(x_label), x=(left + WIDTH - RIGHT) / 2, y=bottom + 34, class_="label middle"))
    return chart(WIDTH, int(bottom + 40), title, marks, names)
