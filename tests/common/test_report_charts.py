"""Charts of the report: honest axes, and marks where their values are."""

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clusterq_report.charts.bars import Bars, bar_chart, grid_histogram, interval_chart
from clusterq_report.charts.confusion_matrix import heat_map
from clusterq_report.charts.lines import Line, line_chart, thinned
from clusterq_report.charts.svg import linear, logarithmic, nice_ticks
from clusterq_report.pages.curves import curves, series, shares
from clusterq_report.run_data import columns

NAN, INF = float("nan"), float("inf")
values = st.floats(-1e30, 1e30, allow_nan=False)


def svg(markup: str) -> ET.Element:
    """The chart as XML; with it, that it is well-formed."""
    return next(element for element in ET.fromstring(f"<div>{markup}</div>").iter("svg") if element.get("role") == "img")


def chart_of(*lines: Line, log: bool = False) -> str:
    return line_chart(lines, title="t", x_label="x", y_label="y", log=log)


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+),(-?[\d.]+)", path)]


@given(values, values)
def test_ticks_are_round_inside_and_evenly_apart(a: float, b: float) -> None:
    low, high = sorted((a, b))
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-200):
        return
    ticks = nice_ticks(low, high)
    step = ticks[1] - ticks[0]
    assert 2 <= len(ticks) <= 12
    assert all(low - 1e-6 * step <= tick <= high + 1e-6 * step for tick in ticks)
    assert all(later - earlier == pytest.approx(step, rel=1e-4) for earlier, later in pairwise(ticks))
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(leading - nice) for nice in (1, 2, 2.5, 5, 10)) < 1e-3


@given(st.lists(values | st.sampled_from([NAN, INF, -INF]) | st.none(), max_size=8))
@example([5e-324])
@example([1e20, 1e20 + 16384])
@example([-9e299, 1e299])
def test_a_linear_scale_covers_what_it_is_given(series: list[float | None]) -> None:
    scale = linear(series, 100, 0)
    assert scale.low < scale.high
    for value in series:
        if value is not None and math.isfinite(value):
            assert -1e-6 <= scale(value) <= 100 + 1e-6
    zero = linear(series, 0, 1, zero=True)
    assert zero.low <= 0 <= zero.high


@given(st.lists(st.floats(1e-99, 1e99), min_size=1, max_size=5))
@example([1.0, 1.0 + 1e-15])
def test_a_logarithmic_scale_covers_what_it_is_given(series: list[float]) -> None:
    scale = logarithmic(series, 100, 0)
    assert scale.ticks
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in series)


def test_labels_have_the_decimals_that_tell_ticks_apart() -> None:
    for ends in ([0, 0.004], [0.985, 0.99], [1e6, 1.5e6], [-3, 5], [0, 2.5e-7]):
        scale = linear(ends, 0, 1)
        labels = [scale.label(tick) for tick in scale.ticks]
        assert len(set(labels)) == len(labels), labels
        assert [float(label.replace(",", "")) for label in labels] == pytest.approx(list(scale.ticks), rel=1e-6, abs=1e-12)


def test_a_logarithmic_scale_has_equal_ratios_and_decades() -> None:
    scale = logarithmic([0.001, 10.0], 0, 100)
    assert scale.ticks == pytest.approx((0.001, 0.01, 0.1, 1, 10))
    gaps = [scale(b) - scale(a) for a, b in pairwise(scale.ticks)]
    assert gaps == pytest.approx([gaps[0]] * 4)
    assert [scale.label(tick) for tick in scale.ticks] == ["0.001", "0.01", "0.1", "1", "10"]
    assert len(logarithmic([1e-30, 1e30], 0, 1).ticks) <= 10
    assert logarithmic([3.0, 3.0], 0, 1).ticks
    assert logarithmic([0.0, -1.0, NAN], 0, 1).low > 0


def test_a_line_is_where_its_values_are() -> None:
    chart = svg(chart_of(Line("a", [(0, 0.0), (5, 50.0), (10, 100.0)])))
    (path,) = [element for element in chart.iter("path") if element.get("class") == "line s0 d0"]
    (x0, y0), (x1, y1), (x2, y2) = coordinates(path.get("d", ""))
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y2, "up is more"
    labels = {
        element.text: float(element.get("y", "nan")) - 4 for element in chart.iter("text") if element.get("class") == "tick end"
    }
    assert labels["0"] == pytest.approx(y0, abs=0.2)
    assert labels["100"] == pytest.approx(y2, abs=0.2)


def test_missing_values_are_gaps_not_zeros() -> None:
    chart = svg(chart_of(Line("a", [(0, 1.0), (1, 2.0), (2, None), (3, NAN), (4, INF), (5, 3.0), (6, 4.0)])))
    (path,) = [element for element in chart.iter("path") if element.get("class") == "line s0 d0"]
    assert path.get("d", "").count("M") == 2
    assert len(coordinates(path.get("d", ""))) == 4
    assert "nan" not in ET.tostring(chart, encoding="unicode").lower().replace("named", "")


def test_a_logarithm_is_labelled_and_leaves_out_what_it_does_not_know() -> None:
    drawn = chart_of(Line("a", [(0, 1.0), (1, 0.0), (2, -5.0), (3, 100.0)]), log=True)
    assert "y (log scale)" in drawn
    (path,) = [element for element in svg(drawn).iter("path") if element.get("class") == "line s0 d0"]
    assert len(coordinates(path.get("d", ""))) == 2
    assert "log scale" not in chart_of(Line("a", [(0, 1.0), (1, 2.0)]))


@pytest.mark.parametrize("points", [[], [(0.0, None)], [(0.0, NAN), (1.0, INF)]])
def test_nothing_to_draw_is_said(points: list[tuple[float, float | None]]) -> None:
    assert chart_of(Line("a", points)) == '<p class="quiet">t: no value to show.</p>'
    assert "no value to show" in bar_chart([Bars("a", [y for _, y in points])], ["s"], title="t", x_label="x")
    assert not shares({"a": points}, title="t", x_label="x", caption="c")


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, 1e-12, 1e200, 5e-324])
def test_one_point_and_equal_points_are_drawn(value: float) -> None:
    for points in ([(3.0, value)], [(0.0, value), (1.0, value)]):
        chart = svg(chart_of(Line("a", points)))
        places = [(float(c.get("cx", "nan")), float(c.get("cy", "nan"))) for c in chart.iter("circle")]
        assert len(places) == len(points)
        assert all(0 <= x <= 380 and 0 <= y <= 220 for x, y in places)


def test_bars_start_at_zero_and_are_as_long_as_their_values() -> None:
    groups = [Bars("a", [50.0, 25.0], [(40.0, 60.0)]), Bars("b", [None, NAN])]
    chart = svg(bar_chart(groups, ["one", "two"], title="t", x_label="x", high=100.0))
    first, second = list(chart.iter("rect"))
    assert first.get("x") == second.get("x")
    assert float(first.get("width", "0")) == pytest.approx(2 * float(second.get("width", "0")), rel=0.01)
    (whisker,) = [element for element in chart.iter("line") if element.get("class") == "whisker"]
    tip = float(first.get("x", "0")) + float(first.get("width", "0"))
    assert float(whisker.get("x1", "0")) < tip < float(whisker.get("x2", "0"))
    negative = svg(bar_chart([Bars("a", [-1.0]), Bars("b", [3.0])], ["s"], title="t", x_label="x"))
    left, right = [(float(element.get("x", "0")), float(element.get("width", "0"))) for element in negative.iter("rect")]
    assert left[0] + left[1] == pytest.approx(right[0], abs=0.02), "both start at zero"


def test_a_heat_map_shows_shares_of_rows() -> None:
    chart = svg(heat_map([[8, 2, 0], [0, 5, 5], [0, 0, 0]], ["a", "b", "c"], title="t"))
    wrong = {
        element[0].text: float(element.get("fill-opacity", "0"))
        for element in chart.iter("rect")
        if element.get("class") == "cell wrong"
    }
    assert wrong == pytest.approx({"a named b: 2 of 10 (20.0 %)": 0.85 * 0.4, "b named c: 5 of 10 (50.0 %)": 0.85})
    assert "no image to show" in heat_map([[0, 0], [0, 0]], ["a", "b"], title="t")
    assert svg(heat_map([[3, 0], [0, 3]], ["a", "b"], title="no mistake")) is not None


def test_a_histogram_stands_on_its_grid() -> None:
    chart = svg(grid_histogram(-4, 3, 0, [0.0, 0.5, 0.5, 0.0], [0.25] * 4, "conv"))
    grid = [float(element.get("x1", "nan")) for element in chart.iter("line") if element.get("class") == "grid"]
    assert len(grid) == 8, "a line for each of the eight integers"
    assert len(list(chart.iter("path"))) == 2
    assert "no weights" in grid_histogram(0, 0, 0, [], [], "conv")


def test_series_of_records() -> None:
    records = [{"step": 0, "loss/a": 1.0, "lr": 3}, {"step": 1, "loss/a": None, "loss/b": "x"}, {"loss/a": 5.0}, {"step": True}]
    assert series(columns(records, "step"), "loss/") == {"a": [(0.0, 1.0), (1.0, None)]}
    line = thinned("a", [(float(n), float(n % 7)) for n in range(1000)], most=50)
    assert len(line.points) == len(line.band) == 50
    assert all(low <= (mean or 0) <= high for (_, mean), (_, low, high) in zip(line.points, line.band, strict=True))
    words = {"title": "t", "x_label": "x", "y_label": "y", "caption": "c"}
    first, second = curves({"a": [(0, 1.0), (1, None)], "b": [(0, -1.0), (1, 2.0)]}, **words)
    assert first.caption == "c Gaps: 1 value that is not finite."
    assert (first.title, second.title) == ("t: a", "t: b")
    assert second.caption == "c", "what goes below zero has an axis of its own"
    assert "log scale" in curves({"a": [(0, 1.0), (1, 1000.0)]}, **words)[0].drawing
    (above,) = shares({"a": [(0, 0.91), (1, 0.99)]}, title="t", x_label="x", caption="c")
    assert ">100<" in above.drawing
    assert ">0<" not in re.sub(r'class="tick middle">0<', "", above.drawing)
    assert shares({"a": [(0, 5.0), (1, 9.0)]}, title="t", x_label="x", caption="c"), "a share above one is drawn as it is"


def test_a_long_path_is_whole() -> None:
    chart = svg(chart_of(Line("a", [(n, float(n % 7)) for n in range(600)])))
    (path,) = [element for element in chart.iter("path") if element.get("class") == "line s0 d0"]
    assert len(coordinates(path.get("d", ""))) == 600


def test_equal_lines_are_said_to_be_equal() -> None:
    points: list[tuple[float, float | None]] = [(0, 1.0), (1, 2.0)]
    markup = ET.fromstring(f"<div>{chart_of(Line('a', points), Line('b', points), Line('c', [(0, 1.0), (1, 3.0)]))}</div>")
    assert ["".join(element.itertext()) for element in markup.iter("li")] == ["a", "b (the same line as a)", "c"]


def test_a_drop_is_drawn_with_its_interval() -> None:
    rows = [
        ("calibrated", 3.0, (2.0, 4.0)),
        ("fine-tuned", -0.5, (-1.0, 0.0)),
        ("no interval", 1.0, None),
        ("unknown", NAN, None),
    ]
    chart = svg(interval_chart(rows, title="t", x_label="x", zero_label="teacher"))
    dots = [float(element.get("cx", "nan")) for element in chart.iter("circle")]
    zero = next(float(element.get("x1", "nan")) for element in chart.iter("line") if element.get("class") == "axis")
    assert len(dots) == 3, "a value that is no number has no dot"
    assert dots[0] - zero == pytest.approx(-6 * (dots[1] - zero), abs=0.1), "in proportion, and on both sides of zero"
    spans = [
        (float(element.get("x1", "nan")), float(element.get("x2", "nan")))
        for element in chart.iter("line")
        if element.get("class") == "whisker"
    ]
    wide = [(a, b) for a, b in spans if b > a]
    assert [(a + b) / 2 for a, b in wide] == pytest.approx(dots[:2], abs=0.02)
    assert wide[0][1] - wide[0][0] == pytest.approx(2 * (wide[1][1] - wide[1][0]), abs=0.05)
    assert "no value to show" in interval_chart([], title="t", x_label="x", zero_label="z")


def test_steps_and_epochs_are_whole_numbers() -> None:
    def ticks(*xs: float, **settings: Any) -> list[str]:
        drawn = line_chart([Line("a", [(x, x) for x in xs])], title="t", x_label="x", y_label="y", **settings)
        return re.findall(r'class="tick middle"[^>]*>([^<]*)<', str(drawn))

    assert ticks(0, 1, 2, 3) == ["0", "1", "2", "3"]
    assert ticks(0, 10, 39) == ["0", "10", "20", "30"]
    assert ticks(0, 0.5, 2) == ["0", "0.5", "1.0", "1.5", "2.0"]
    assert len(ticks(0, 1, x_range=(0, 1))) > 2
