"""Timing on a noisy machine: the compared actions take turns, and only ratios within a turn are used."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(actions: Mapping[str, Callable[[], object]], repeats: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each action in each of `repeats` turns, after `warm` turns that do not count. It synchronises a GPU."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(warm + repeats):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the ratios within a turn."""
    return median(one / two for one, two in zip(above, below, strict=True))


def table(seconds: Mapping[str, list[float]], reference: str) -> str:
    """Return a line for each action: its median time, and its ratio to that of the reference."""
    lines = [
        f"{name:<28} {1e3 * median(values):10.2f} ms  {ratio(values, seconds[reference]):6.2f} x {reference}"
        for name, values in seconds.items()
    ]
    return "\n".join(lines)
