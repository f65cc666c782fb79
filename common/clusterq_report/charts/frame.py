"""Common parts of all charts: SVG element, axes, legend, and a sentence in place of an empty chart."""

from collections.abc import Sequence

from clusterq_report.charts.scale import Scale
from clusterq_report.html.text import escaped, tag

WIDTH, HEIGHT = 760, 240
LEFT, RIGHT, TOP, BOTTOM = 76, 14, 12, 40


def chart(width: int, height: int, title: str, marks: Sequence[str], names: Sequence[str] = ()) -> str:
    """Return an SVG scaled to the page's width, with a legend above it where it has several series."""
    svg = tag("svg", tag("title", escaped(title)), *marks, viewBox=f"0 0 {width} {height}", role="img", aria_label=title)
    return (legend(names) if len(names) > 1 else "") + svg


def legend(names: Sequence[str]) -> str:
    """Return a legend of the series' colours (and, from the seventh series on, dashes)."""
    return tag(
        "ul",
        *(
            tag(
                "li",
                tag("svg", tag("path", d="M0,5L18,5", class_=f"line s{n % 6} d{n // 6}"), viewBox="0 0 18 10", class_="swatch"),
                escaped(name),
            )
            for n, name in enumerate(names)
        ),
        class_="legend",
    )


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    """Return grid lines, ticks and labels of a chart whose frame is the range of its scales."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    marks = []
    for tick in y.ticks:
        place = y(tick)
        marks.append(tag("line", x1=left, x2=right, y1=place, y2=place, class_="grid"))
        marks.append(tag("text", escaped(y.label(tick)), x=left - 6, y=place + 4, class_="tick end"))
    for tick in x.ticks:
        place = x(tick)
        marks.append(tag("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="axis"))
        marks.append(tag("text", escaped(x.label(tick)), x=place, y=bottom + 16, class_="tick middle"))
    marks.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    marks.append(tag("text", escaped(x_label), x=(left + right) / 2, y=bottom + 34, class_="label middle"))
    turned = f"rotate(-90 12 {(bottom + top) / 2:.1f})"
    marks.append(tag("text", escaped(y_label), x=12, y=(bottom + top) / 2, transform=turned, class_="label middle"))
    return "".join(marks)


def note(sentence: str) -> str:
    """Return a sentence that replaces a chart."""
    return tag("p", escaped(sentence), class_="quiet")
