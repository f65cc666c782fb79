"""Time budgets: what a user allows, and the plan's phases that have to fit into it. Free of torch."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self, TypeVar

from clusterq_common.errors import ClusterqError
from clusterq_common.quantities import duration

SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
BUDGET = re.compile(r"(?:\d+(?:\.\d+)?\s*(?:min|[smhd])\s*)+", re.IGNORECASE)
PART = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhd])", re.IGNORECASE)
# Share of a budget that a plan may take: steps are timed once, and machines slow down.
PLANNED_SHARE = 0.9
# A measurement is repeated up to so many times before a budget is refused.
MOST_MEASURED = 3
# Steps of fewer seconds can lie within one busy moment, all repeats of them. They are measured twice before a plan becomes smaller.
BRIEF_STEP = 0.3

Speed = TypeVar("Speed")
Plan = TypeVar("Plan")


class Phase(NamedTuple):
    """A phase of a run and its estimated seconds."""

    name: str
    seconds: float


@dataclass(frozen=True)
class MeasuredTimes:
    """Base class of measured seconds, a field for each kind of work."""

    def fastest(self, other: Self) -> Self:
        """Return the smaller time of each, since a busy moment only makes steps slower."""
        return replace(self, **{one.name: min(getattr(self, one.name), getattr(other, one.name)) for one in fields(self)})


def parse_time_budget(text: str) -> float:
    """Return the seconds of a time such as `30m`, `1h30m` or `90s`.

    Raises:
        ClusterqError: it is no such time, or none at all.

    Examples:
        >>> parse_time_budget("30m"), parse_time_budget("1h 30min"), parse_time_budget("1.5h")
        (1800.0, 5400.0, 5400.0)
    """
    if BUDGET.fullmatch(text.strip()):
        seconds = sum(float(count) * SECONDS[unit.lower()] for count, unit in PART.findall(text))
        if seconds > 0:
            return seconds
    raise ClusterqError(f"{text!r} is no time, expected numbers with units; try 45s, 30m, 1h30m or 2d.", setting="time_budget")


def total_seconds(phases: Sequence[Phase]) -> float:
    """Return the sum of the phases' seconds."""
    return sum(phase.seconds for phase in phases)


def timetable(phases: Sequence[Phase]) -> str:
    """Return the estimate of all phases as text.

    Examples:
        >>> timetable([Phase("generator", 372), Phase("shards", 20)])
        'about 6 min 32 s (generator 6 min 12 s, shards 20 s)'
    """
    parts = ", ".join(f"{phase.name} {duration(phase.seconds)}" for phase in phases)
    return f"about {duration(total_seconds(phases))} ({parts})"


def plan_with_repeats(
    measure: Callable[[], Speed],
    fastest: Callable[[Speed, Speed], Speed],
    fit: Callable[[Speed, int], Plan],
    *,
    whole: Callable[[Plan], bool],
    step: Callable[[Speed], float],
) -> tuple[Plan, Speed]:
    """Plan for a measured speed, and measure again before a busy moment makes a plan small or a budget too small.

    Several processes that have measured the same speed measure equally often.

    Args:
        measure: times some steps.
        fastest: the smaller times of two measurements.
        fit: the plan for a speed that was measured so many times; it raises ClusterqError where nothing fits.
        whole: whether a plan is all that the settings ask for.
        step: seconds of a measured step.

    Returns:
        The plan, and the speed that it is for.

    Raises:
        ClusterqError: nothing fits the fastest of MOST_MEASURED measurements.
    """
    speed, times = measure(), 1
    while True:
        try:
            plan = fit(speed, times)
        except ClusterqError:
            if times == MOST_MEASURED:
                raise
        else:
            if whole(plan) or times > 1 or step(speed) >= BRIEF_STEP:
                return plan, speed
        speed, times = fastest(speed, measure()), times + 1
