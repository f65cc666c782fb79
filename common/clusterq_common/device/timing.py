"""Timing of work on a device."""

import time
from collections.abc import Callable

import torch


def seconds_of(action: Callable[[], object], device: torch.device, *, before: int = 0, times: int = 1) -> float:
    """Run an action and return its wall time in seconds; on a GPU until everything queued there is done.

    Args:
        action: the work.
        device: device of the work.
        before: calls that are not timed. A GPU's first call of a kind also loads kernels and tries algorithms, for seconds.
        times: timed calls, of which the mean is returned.
    """
    for _ in range(before):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(times):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / times
