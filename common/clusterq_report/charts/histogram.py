"""Histograms of a layer's weights over its quantization grid."""

from collections.abc import Sequence

from clusterq_report.charts.frame import chart, note
from clusterq_report.charts.scale import Scale
from clusterq_report.html.text import escaped, tag

WIDTH, HEIGHT = 220, 92
SIDE, TOP, BOTTOM = 8, 8, 16
# With more grid points, only the ends and zero are marked.
MOST_MARKED = 20


def grid_histogram(name: str, low: int, high: int, zero: int, student: Sequence[float], teacher: Sequence[float]) -> str:
    """Return an SVG with shares of a layer's weights over [low - 1, high + 1] in grid steps: student filled, teacher as a line.

    Args:
        name: name of the layer.
        low, high: ends of the grid, integers.
        zero: the integer of the value 0.
        student, teacher: shares by bin, bins of equal width over that range; values beyond it are counted in the outermost bins.
    """
    if not student or high <= low:
        return note(f"{name}: no weights to show.")
    x = Scale(low - 1, high + 1, SIDE, WIDTH - SIDE, ())
    tallest = max([*student, *teacher, 1e-9])
    y = Scale(0, tallest, HEIGHT - BOTTOM, TOP, ())
    points = range(low, high + 1) if high - low < MOST_MARKED else sorted({low, zero, high})
    marks = [tag("line", x1=x(at), x2=x(at), y1=float(TOP), y2=float(HEIGHT - BOTTOM), class_="grid") for at in points]
    for kind, shares in (("bar s0", student), ("line s1", teacher)):
        if shares:
            marks.append(tag("path", d=_steps(shares, x, y, closed=kind.startswith("bar")), class_=kind))
    marks.append(tag("line", x1=float(SIDE), x2=float(WIDTH - SIDE), y1=y(0), y2=y(0), class_="axis"))
    # The ends' numbers extend inwards, because a long centred one would be cut off.
    labels = {zero: "tick middle", low: "tick", high: "tick end"}
    marks += [tag("text", escaped(at), x=x(at), y=HEIGHT - 4, class_=kind) for at, kind in labels.items()]
    return tag(
        "div", tag("div", escaped(name), class_="tick"), chart(WIDTH, HEIGHT, f"weights of {name}", marks), class_="small"
    )


def _steps(shares: Sequence[float], x: Scale, y: Scale, *, closed: bool) -> str:
    """Return the outline of a histogram as an SVG path; runs of equal height are one stroke."""
    width = (x.high - x.low) / len(shares)
    path = [f"M{x.start:.1f},{y(0):.1f}"]
    before = None
    for number, share in enumerate(shares):
        if share != before:
            path.append(f"H{x(x.low + number * width):.1f}V{y(share):.1f}")
            before = share
    path.append(f"H{x.end:.1f}V{y(0):.1f}")
    return "".join(path) + ("Z" if closed else "")
