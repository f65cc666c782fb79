"""Common parts of all charts: SVG elements, scales with readable ticks, axes, legends, and a sentence in place of an empty chart."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from clusterq_report.html.text import clean

# Charts are as wide as a phone shows them, where their text has 11 pixels at least. On a wider screen two stand side by side.
WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 14, 38
# Width of a letter of a chart's text, in the chart's units.
LETTER = 6.6
SMALL_WIDTH, SMALL_HEIGHT = 160, 92
# Larger ranges cannot be subtracted in floating point.
LARGEST = 1e300
# On a logarithmic axis ratios must be finite, too.
LARGEST_RATIO = 1e100
# Values whose relative difference is smaller are drawn as one.
CLOSEST = 1e-9
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
# Ticks of an axis, about.
TICKS = 5
FEW_DECADES = 2
MOST_DECADE_TICKS = 8


@dataclass(frozen=True)
class Scale:
    """Mapping of `[low, high]` to pixels `[start, end]`; values outside the range map outside.

    Attributes:
        low, high: range of values; low < high, and both above zero where `log`.
        start, end: positions of its ends; start > end on an axis that points up.
        log: whether equal distances are equal ratios.
        ticks: values to label, inside the range.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def label(self, tick: float) -> str:
        """Return a tick's text, with as many decimals as its neighbours need.

        >>> scale = linear([0, 0.4], 0, 100)
        >>> [scale.label(tick) for tick in scale.ticks]
        ['0', '0.1', '0.2', '0.3', '0.4']
        """
        if tick == 0:
            return "0"
        if not 1e-4 <= abs(tick) < 1e6:
            return f"{tick:.0e}" if self.log else f"{tick:g}"
        if self.log:
            return f"{tick:,.{max(0, -math.floor(math.log10(abs(tick))))}f}"
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else abs(tick)
        decimals = next((d for d in range(12) if abs(round(step, d) - step) < step * 1e-6), 12)
        return f"{tick:,.{decimals}f}"


def usable(values: Iterable[float | None]) -> list[float]:
    """Return the values that can be placed on an axis."""
    return [value for value in values if value is not None and math.isfinite(value) and abs(value) < LARGEST]


def linear(
    values: Iterable[float | None], start: float, end: float, *, zero: bool = False, fixed: tuple[float, float] | None = None
) -> Scale:
    """Return a scale over the finite `values`, widened to whole ticks; 0 to 1 where there are none.

    Args:
        values: values to draw.
        start, end: positions in pixels.
        zero: include zero, as bars need.
        fixed: range to use instead.
    """
    if fixed is not None:
        low, high = fixed
    else:
        finite = usable(values) + ([0.0] if zero else [])
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        size = max(abs(low), abs(high))
        if high - low <= max(size * CLOSEST, 1 / LARGEST):  # one value, or as good as the same one over and over
            half = size / 10 if size > 1 / LARGEST else 0.5
            low, high = (low - half, high + half) if not zero else (min(low, 0.0), max(high, 0.0) + 2 * half)
    ticks = nice_ticks(low, high)
    if fixed is None:
        step = ticks[1] - ticks[0]
        if ticks[0] - low > step * 1e-9:
            ticks = [ticks[0] - step, *ticks]
        if high - ticks[-1] > step * 1e-9:
            ticks = [*ticks, ticks[-1] + step]
        low, high = ticks[0], ticks[-1]
    return Scale(low, high, start, end, tuple(ticks))


def nice_ticks(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten inside `[low, high]`, about five and at least two.

    >>> nice_ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in sorted(STEPS, key=lambda one: abs(math.log(one * power / rough))):
        step = factor * power
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            return [round(number * step, 12) if abs(step) > 1e-9 else number * step for number in range(first, last + 1)]
    return [low, high]


def logarithmic(values: Iterable[float | None], start: float, end: float) -> Scale:
    """Return a slightly widened scale over the values above zero.

    Its ticks are powers of ten, and over few decades also 2 and 5 times them.
    """
    positive = [value for value in usable(values) if 1 / LARGEST_RATIO < value < LARGEST_RATIO]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    if high / low <= 1 + CLOSEST:
        low, high = low / 2, high * 2
    margin = (high / low) ** 0.03
    low, high = low / margin, high * margin
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) <= FEW_DECADES else (1,)
    every = -(-(last - first + 1) // MOST_DECADE_TICKS)
    ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    inside = tuple(tick for tick in ticks if low <= tick <= high)
    return Scale(low, high, start, end, inside or (low, high), log=True)


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return an SVG element. What is no markup is text, which is escaped and kept short, in attributes as in children.

    Trailing underscores of an attribute's name are dropped, inner ones become hyphens.

    >>> tag("line", x1=2, stroke_width=1.50, class_="axis")
    Markup('<line x1="2" stroke-width="1.5" class="axis"/>')
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(clean(_short(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(clean(child)) for child in children)
    return Markup(f"<{name}{given}>{inside}</{name}>" if children else f"<{name}{given}/>")


def _short(value: object) -> object:
    """Coordinates with two decimals at most: a hundredth of a pixel cannot be seen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def chart(width: int, height: int, title: str, marks: Sequence[Markup], names: Sequence[str] = ()) -> Markup:
    """Return an SVG scaled to the width that the page gives it, with a legend above it where it has several series."""
    svg = tag("svg", tag("title", title), *marks, viewBox=f"0 0 {width} {height}", role="img", aria_label=title)
    return (legend(names) if len(names) > 1 else Markup()) + svg


def legend(names: Sequence[str]) -> Markup:
    """Return a legend of the series' colours (and, from the seventh series on, dashes)."""
    entries = []
    for n, name in enumerate(names):
        stroke = tag("path", d="M0,5L18,5", class_=f"line s{n % 6} d{n // 6}")
        entries.append(tag("li", tag("svg", stroke, viewBox="0 0 18 10", class_="swatch"), name))
    return tag("ul", *entries, class_="legend")


def axes(x: Scale, y: Scale, x_label: str, y_label: str) -> Markup:
    """Return grid lines, ticks and labels of a chart whose frame is the range of its scales."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    marks = []
    for tick in y.ticks:
        place = y(tick)
        marks.append(tag("line", x1=left, x2=right, y1=place, y2=place, class_="grid"))
        marks.append(tag("text", y.label(tick), x=left - 6, y=place + 4, class_="tick end"))
    for tick in x.ticks:
        place = x(tick)
        marks.append(tag("line", x1=place, x2=place, y1=bottom, y2=bottom + 4, class_="axis"))
        # The last number must not leave the chart.
        end = place + LETTER * len(x.label(tick)) / 2 > right + RIGHT
        marks.append(
            tag("text", x.label(tick), x=right if end else place, y=bottom + 16, class_=f"tick {'end' if end else 'middle'}")
        )
    marks.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    marks.append(tag("text", x_label, x=(left + right) / 2, y=bottom + 33, class_="label middle"))
    turned = f"rotate(-90 11 {(bottom + top) / 2:.1f})"
    marks.append(tag("text", y_label, x=11, y=(bottom + top) / 2, transform=turned, class_="label middle"))
    return Markup("").join(marks)


def note(sentence: str) -> Markup:
    """Return a sentence that replaces a chart."""
    return tag("p", sentence, class_="quiet")


def shortened(text: str, letters: int) -> str:
    """Return a text of at most so many letters, with an ellipsis where it was cut."""
    return text if len(text) <= letters else text[: letters - 1] + "…"
