"""Timing of work on a device."""

import time
from collections.abc import Callable

import torch


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Run an action and return its wall time in seconds; on a GPU until everything queued there is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
