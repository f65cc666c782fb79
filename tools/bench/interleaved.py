"""Timing on a noisy machine: what is compared takes turns, and only ratios within a turn count."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(actions: Mapping[str, Callable[[], object]], repeats: int, *, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each action in each of `repeats` turns, after `warm` turns that do not count. A GPU's work is waited for."""
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
    """Median of the ratios within a turn."""
    return median(one / two for one, two in zip(above, below, strict=True))


def table(seconds: Mapping[str, list[float]], reference: str) -> str:
    """A line for each action: its median time, and how many times that of the reference it takes."""
    lines = [
        f"{name:<28} {1e3 * median(values):10.2f} ms  {ratio(values, seconds[reference]):6.2f} x {reference}"
        for name, values in seconds.items()
    ]
    return "\n".join(lines)
