"""Linear and logarithmic scales: mapping of values to positions, and readable ticks."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Larger ranges cannot be subtracted in floating point.
LARGEST = 1e300
# On a logarithmic axis ratios must be finite, too.
LARGEST_RATIO = 1e100
# Values whose relative difference is smaller are drawn as one.
CLOSEST = 1e-9
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
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


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten inside `[low, high]`, about `wanted` and at least two.

    >>> nice_ticks(0, 100)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
    """
    rough = (high - low) / wanted
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
