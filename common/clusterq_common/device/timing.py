"""Timing of work on a device."""

import time
from collections.abc import Callable

import torch

from clusterq_common.device.distributed import Ranks

# A busy moment of the machine makes work slower, never faster. So the fastest of a few repeats counts, once a second one confirms it.
CONFIRMED, MOST_REPEATS = 1.25, 5
# Least share of a step's time that is taken to grow with its images.
LEAST_PROPORTIONAL = 0.5


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


def steady_seconds(action: Callable[[], object], device: torch.device, *, before: int = 0, times: int = 1) -> float:
    """Return the wall time of an action in seconds, the fastest of two to five repeats: until the two fastest are within a quarter.

    Several processes repeat it equally often, and have the slowest one's time.

    Args:
        action, device, before, times: see `seconds_of`; `times` are those of each repeat.
    """
    measured: list[float] = []
    while len(measured) < MOST_REPEATS and not (len(measured) > 1 and measured[1] <= CONFIRMED * measured[0]):
        seconds = seconds_of(action, device, before=0 if measured else before, times=times)
        measured = sorted([*measured, max(Ranks.current().gather(seconds))])
    return measured[0]


def steady_line(
    action: Callable[[int], object], few: int, more: int, device: torch.device, wanted: int
) -> tuple[float, float]:
    """Time work on two numbers of images. Returns its seconds for `few` images, and those expected for `wanted`.

    Time is taken to be a constant and a part in proportion to the images. At least half of the time of `more` images is taken to be
    in proportion, so that errors of measurement do not make many images cost next to nothing.

    Args:
        action: the work, called with the number of images.
        few, more: numbers of images that are timed, `few` below `more`.
        device: device of the work.
        wanted: number of images, no smaller than `more`.
    """
    seconds_few = steady_seconds(lambda: action(few), device)
    seconds_more = steady_seconds(lambda: action(more), device)
    share = seconds_more / more
    each = min(max((seconds_more - seconds_few) / (more - few), LEAST_PROPORTIONAL * share), share)
    return seconds_few, seconds_more + each * (wanted - more)
