"""Times of actions that take turns, and intervals of medians: a machine's other work then meets all of them alike."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

# Turns before those that count: memory is allocated in the first.
WARM = 2
# Turns that count, unless other numbers are asked for.
TURNS = 15
CONFIDENCE = 0.95
# Fewer turns have no interval of that confidence: with five all lie on one side of the median in 1 of 16 cases.
LEAST_TURNS = 6


class MedianOf(NamedTuple):
    """A median with its interval."""

    median: float
    low: float
    high: float


def take_turns(
    actions: Mapping[str, Callable[[], object]], turns: int, tick: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Return the seconds of each action in each of `turns` turns, after two that do not count; `tick` is called after each."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(WARM + turns):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if turn >= WARM:
                seconds[name].append(time.perf_counter() - begin)
        if turn >= WARM:
            tick()
    return seconds


def median_of(values: Sequence[float]) -> MedianOf:
    """Return the median of independent values with a 95 % interval that assumes no distribution.

    The ends are order statistics: the k-th value from below and from above, with the largest k for which fewer than k of n values
    lie below the median in at most 2.5 % of cases (binomial, p = 1/2; Conover, Practical Nonparametric Statistics, 3.2).

    Raises:
        ValueError: fewer values than have such an interval.
    """
    count = len(values)
    if count < LEAST_TURNS:
        raise ValueError(f"{count} values have no interval of {CONFIDENCE:.0%}, expected {LEAST_TURNS} or more")
    ordered, below, k = sorted(values), 0.0, 0
    while (below := below + math.comb(count, k) / 2**count) <= (1 - CONFIDENCE) / 2:
        k += 1
    return MedianOf(median(ordered), ordered[k - 1], ordered[count - k])


def ratio_of(above: Sequence[float], below: Sequence[float]) -> MedianOf:
    """Return the median of the ratios within a turn, with its interval."""
    return median_of([mine / other for mine, other in zip(above, below, strict=True)])
