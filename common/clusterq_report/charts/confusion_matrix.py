"""A confusion matrix as a heat map."""

from collections.abc import Sequence

from markupsafe import Markup

from clusterq_report.charts.svg import LETTER, chart, note, shortened, tag

CELL = 30
LONGEST_LABEL = 16
# With more classes, numbers do not fit; the tooltip has them.
MOST_WITH_NUMBERS = 20
SMALL_CELL = 14


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str) -> Markup:
    """Return an SVG of a confusion matrix. Rows are the true classes, columns the predicted ones.

    A cell's colour shows its share of the row. Mistakes have a colour scale of their own, with full strength for the most frequent
    one, so that they stay visible beside a dominant diagonal.

    Args:
        counts: (K, K) numbers of images by true and by predicted class.
        names: names of the classes.
        title: title of the chart.
    """
    totals = [sum(row) for row in counts]
    if not any(totals):
        return note(f"{title}: no image to show.")
    shares = [[value / total if total else 0.0 for value in row] for row, total in zip(counts, totals, strict=True)]
    worst = max((share for n, row in enumerate(shares) for m, share in enumerate(row) if n != m), default=0.0)
    cell = CELL if len(names) <= MOST_WITH_NUMBERS else SMALL_CELL
    short = [shortened(name, LONGEST_LABEL) for name in names]
    left = 30 + LETTER * max(len(name) for name in short)
    top = left
    side = cell * len(names)
    marks = []
    for n, name in enumerate(short):
        middle = n * cell + cell / 2
        marks.append(tag("text", name, x=left - 5, y=top + middle + 4, class_="tick end"))
        x, y = left + middle + 4, top - 5
        marks.append(tag("text", name, x=x, y=y, transform=f"rotate(-90 {x:.1f} {y:.1f})", class_="tick"))
        for m, share in enumerate(shares[n]):
            count = counts[n][m]
            x, y = left + m * cell, top + n * cell
            tooltip = tag("title", f"{names[n]} named {names[m]}: {count} of {totals[n]} ({100 * share:.1f} %)")
            strength = share if n == m else share / worst if worst else 0.0
            kind = "right" if n == m else "wrong"
            place = {"x": float(x), "y": float(y), "width": cell - 1, "height": cell - 1}
            marks.append(tag("rect", tooltip, **place, class_="cell"))
            if strength:
                marks.append(tag("rect", tooltip, **place, fill_opacity=max(0.04, 0.85 * strength), class_=f"cell {kind}"))
            if count and len(names) <= MOST_WITH_NUMBERS:
                marks.append(tag("text", tooltip, count, x=x + cell / 2 - 0.5, y=y + cell / 2 + 3.5, class_="count middle"))
    marks.append(
        tag(
            "text",
            "true class",
            x=11,
            y=top + side / 2,
            transform=f"rotate(-90 11 {top + side / 2:.1f})",
            class_="label middle",
        )
    )
    marks.append(tag("text", "named class", x=left + side / 2, y=10, class_="label middle"))
    width = int(left + side + 4)
    # As large as its numbers need; where there is less room, it is moved sideways.
    held = tag("div", chart(width, int(top + side + 4), title, marks), style=f"width:{width}px")
    return tag("div", held, class_="wide")
