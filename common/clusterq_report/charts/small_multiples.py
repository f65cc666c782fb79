"""Small multiples: a small chart for each of many series, all with the same axes for comparison."""

from collections.abc import Mapping, Sequence

from clusterq_report.charts.frame import chart, note
from clusterq_report.charts.lines import Line
from clusterq_report.charts.scale import Scale, linear, logarithmic, usable
from clusterq_report.charts.series import WIDE, thinned
from clusterq_report.html.text import escaped, number, tag
from clusterq_report.run_data import Points

WIDTH, HEIGHT = 220, 92
LEFT, RIGHT, TOP, BOTTOM = 34, 6, 8, 16
MOST_CHARTS, MOST_POINTS = 48, 100


def small_lines(found: Mapping[str, Points], *, title: str, notes: Sequence[float] = ()) -> tuple[str, str]:
    """Return a grid of charts as markup, and a sentence on its axes. Of more than 48 series, 48 are shown, evenly spread.

    The vertical axis starts at zero, or is logarithmic where values are far apart and all above zero. More than 100 points are
    thinned to means over neighbours.

    Args:
        found: series by name.
        title: title of the charts.
        notes: events marked by a vertical line.
    """
    names = list(found)
    if len(names) > MOST_CHARTS:
        names = [names[place * len(names) // MOST_CHARTS] for place in range(MOST_CHARTS)]
    lines = [thinned(name, found[name], MOST_POINTS) for name in names]
    values = usable(y for line in lines for _, y in line.points)
    if not values:
        return note(f"{title}: no value to show."), ""
    xs = [x for name in names for x, _ in found[name]]
    log = min(values) > 0 and max(values) / min(values) > WIDE
    bottom = HEIGHT - BOTTOM
    y_scale = logarithmic(values, bottom, TOP) if log else linear(values, bottom, TOP, zero=True)
    x_scale = Scale(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1, LEFT, WIDTH - RIGHT, ())
    drawn = [_small(line, x_scale, y_scale, [x for x in notes if x_scale.low <= x <= x_scale.high], title) for line in lines]
    axes_text = "One axis for all" + (", logarithmic." if log else ", from zero.")
    axes_text += f" {len(names)} of {len(found)}." if len(names) < len(found) else ""
    return tag("div", *drawn, class_="smalls"), axes_text


def _small(line: Line, x_scale: Scale, y_scale: Scale, notes: Sequence[float], title: str) -> str:
    marks = []
    ticks = y_scale.ticks if len(y_scale.ticks) <= 3 else (y_scale.ticks[0], y_scale.ticks[-1])
    for tick in ticks:
        marks.append(tag("line", x1=x_scale.start, x2=x_scale.end, y1=y_scale(tick), y2=y_scale(tick), class_="grid"))
        marks.append(tag("text", escaped(y_scale.label(tick)), x=LEFT - 4, y=y_scale(tick) + 3, class_="tick end"))
    marks += [tag("line", x1=x_scale(x), x2=x_scale(x), y1=float(TOP), y2=y_scale.start, class_="moment") for x in notes]
    marks.append(tag("line", x1=x_scale.start, x2=x_scale.end, y1=y_scale.start, y2=y_scale.start, class_="axis"))
    path, pen_down = [], False
    for x, y in line.points:
        if y is None or not usable([y]) or (y_scale.log and y <= 0):
            pen_down = False
            continue
        path.append(f"{'L' if pen_down else 'M'}{x_scale(x):.1f},{y_scale(y):.1f}")
        pen_down = True
    shown = usable(y for _, y in line.points)
    tooltip = f"{line.name}: {number(shown[0])} at first, {number(shown[-1])} at last" if shown else line.name
    marks.append(tag("path", tag("title", escaped(tooltip)), d="".join(path), class_="line s0"))
    for x, kind in ((x_scale.low, "tick"), (x_scale.high, "tick end")):
        marks.append(tag("text", escaped(number(x)), x=x_scale(x), y=HEIGHT - 4, class_=kind))
    caption = tag("div", escaped(line.name), class_="tick")
    return tag("div", caption, chart(WIDTH, HEIGHT, f"{title}: {line.name}", marks), class_="small")
