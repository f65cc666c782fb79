"""ClusterQ, Fig. 8 and 9: effect of a setting of the generator's training on the student's accuracy."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clusterq_finetune.figures.config import FileConfig
from clusterq_finetune.figures.draw import LINE_COLOURS, PAGE_WIDTH, QUIET, REAL_COLOUR, SMALL, Drawing, new_figure, style
from clusterq_finetune.figures.table import Curve, Row

PANEL_WIDTH, TOP_HEIGHT, BOTTOM_HEIGHT = 3.4, 2.3, 1.9
# Largest number of characters of all values on an axis, written horizontally; more would touch.
MOST_FIGURES = 18
# From this ratio of the largest to the smallest value on, the axis is logarithmic.
WIDE = 40.0
STUDENT_COLOUR, TEACHER_COLOUR = LINE_COLOURS[0], LINE_COLOURS[1]


def draw_sensitivity(curves: Sequence[Curve], files: FileConfig) -> Drawing:
    """Draw one column a curve. Above: top-1 with the teacher's as a line; below: points above the first setting, paired by image.

    Args:
        curves: curves of one or more tables; files: settings.
    """
    title = "What the setting changes in the student's accuracy"
    caption = _caption(curves)
    width = min(PAGE_WIDTH, max(3.5, PANEL_WIDTH * len(curves)))
    numbers: list[dict[str, Any]] = []
    with style():
        figure = new_figure(width, TOP_HEIGHT + BOTTOM_HEIGHT, title, caption, files)
        panels = figure.subplots(2, len(curves), squeeze=False, sharex="col", height_ratios=(TOP_HEIGHT, BOTTOM_HEIGHT))
        for column, curve in enumerate(curves):
            above, below = panels[:, column]
            places = _axis(below, curve)
            _accuracy(above, curve, places, gid=f"top1-{column + 1}")
            _gains(below, curve, places, gid=f"gain-{column + 1}")
            above.set_title(f"{curve.analysis}: {curve.kind}")
            numbers += [_number(curve, row) for row in curve.rows]
        panels[0, 0].set_ylabel("top-1, percent")
        panels[1, 0].set_ylabel("points above\nthe first setting")
    return Drawing(figure, title, caption, numbers)


def _axis(axes: Axes, curve: Curve) -> list[float]:
    """Set up the horizontal axis, and return each row's position: its value, or an index where settings are words."""
    values = [row.value for row in curve.rows]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        places = [float(number) for number in range(len(values))]
        axes.set_xticks(places, [row.name for row in curve.rows], rotation=30, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(values) - 0.5)
        return places
    if min(known) > 0 and max(known) / min(known) >= WIDE:
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"{curve.what}, log scale")
    else:
        axes.set_xlabel(curve.what)
    axes.xaxis.set_major_locator(FixedLocator(known))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    crowded = axes.get_xscale() == "log" or sum(len(f"{value:g}") for value in known) > MOST_FIGURES
    if crowded:
        axes.tick_params(axis="x", labelrotation=60)
    return known


def _accuracy(axes: Axes, curve: Curve, places: Sequence[float], gid: str) -> None:
    rows, joined = curve.rows, "-" if curve.what else ""
    # The faint line between values only guides the eye.
    axes.plot(places, [row.top1 for row in rows], linestyle=joined, color=STUDENT_COLOUR, alpha=0.4, linewidth=1)
    spread = [row.std or 0.0 for row in rows]
    bars = axes.errorbar(places, [row.top1 for row in rows], spread, fmt="o", markersize=4, color=STUDENT_COLOUR, capsize=2.5)
    bars.lines[0].set_gid(gid)
    singles = [(place, top1) for place, row in zip(places, rows, strict=True) for top1 in row.single]
    if singles:
        axes.plot(*zip(*singles, strict=True), linestyle="", marker="_", markersize=7, color=REAL_COLOUR, zorder=3)
    if curve.teacher is not None:
        axes.axhline(curve.teacher, color=TEACHER_COLOUR, linestyle="--", linewidth=1)
        axes.annotate(
            f"teacher {curve.teacher:.2f}",
            (1, curve.teacher),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            size=SMALL,
            color=TEACHER_COLOUR,
        )
    axes.margins(y=0.12)


def _gains(axes: Axes, curve: Curve, places: Sequence[float], gid: str) -> None:
    axes.axhline(0, color=QUIET, linewidth=0.8)
    drawn = [(place, row.gain) for place, row in zip(places, curve.rows, strict=True) if row.gain is not None]
    if drawn:
        middles = [gain[0] for _, gain in drawn]
        around = [[gain[0] - gain[1] for _, gain in drawn], [gain[2] - gain[0] for _, gain in drawn]]
        bars = axes.errorbar(
            [place for place, _ in drawn], middles, around, fmt="o", markersize=4, color=STUDENT_COLOUR, capsize=2.5
        )
        bars.lines[0].set_gid(gid)
    own = [place for place, row in zip(places, curve.rows, strict=True) if row.name == curve.first]
    axes.plot(own, [0] * len(own), linestyle="", marker="D", markersize=5, markerfacecolor="white", color=STUDENT_COLOUR)
    axes.margins(y=0.15)


def _number(curve: Curve, row: Row) -> dict[str, Any]:
    gain = row.gain or ("", "", "")
    return {
        "analysis": curve.analysis,
        "kind": curve.kind,
        "set": row.name,
        "value": "" if row.value is None else row.value,
        "seeds": row.seeds,
        "top-1": row.top1,
        "std": "" if row.std is None else row.std,
        "above the first": gain[0],
        "low": gain[1],
        "high": gain[2],
        "teacher": "" if curve.teacher is None else curve.teacher,
    }


def _caption(curves: Sequence[Curve]) -> str:
    rows = [row for curve in curves for row in curve.rows]
    seeds = sorted({row.seeds for row in rows})
    count = ", ".join(map(str, seeds))
    caption = f"Above: top-1 on real images, mean over {count} seed{'s' if seeds[-1] > 1 else ''} of generator and student"
    caption += "; bars: one standard deviation over seeds" if seeds[-1] > 1 else ""
    caption += "; dashes: single seeds" if any(row.single for row in rows) else ""
    caption += ". The axis does not start at 0. Below: points above the first setting (white diamond: "
    caption += ", ".join(dict.fromkeys(curve.first for curve in curves))
    caption += "), paired by image, with 95 % intervals over images: where one leaves out 0, other images would hardly have turned it round, but other "
    return caption + "seeds might. Nothing was measured between the points."
