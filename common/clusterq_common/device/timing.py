"""Timing of work on a device."""

import time
from collections.abc import Callable
from functools import partial

import torch

from clusterq_common.device.distributed import Ranks

# A busy moment of the machine makes work slower, never faster. So the fastest of a few repeats counts, once a second one confirms it.
CONFIRMED, MOST_REPEATS = 1.25, 5
# Work that is worth the time of a repeat only where its time is doubtful.
LONG_SECONDS = 1.0
# Least share of a step's time that is taken to grow with its images.
LEAST_PROPORTIONAL = 0.25


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


def slowest(seconds: float) -> float:
    """Return the largest of the processes' times, which is when all of them are done."""
    return max(Ranks.current().gather(seconds))


def steady_seconds(action: Callable[[], object], device: torch.device, *, before: int = 0, times: int = 1) -> float:
    """Return the wall time of an action in seconds, the fastest of two to five repeats: until the two fastest are within a quarter.

    Several processes repeat it equally often, and have the slowest one's time.

    Args:
        action, device, before, times: see `seconds_of`; `times` are those of each repeat.
    """
    measured: list[float] = []
    while len(measured) < MOST_REPEATS and not (len(measured) > 1 and measured[1] <= CONFIRMED * measured[0]):
        seconds = slowest(seconds_of(action, device, before=0 if measured else before, times=times))
        measured = sorted([*measured, seconds])
    return measured[0]


def steady_line(action: Callable[[int], object], few: int, more: int, device: torch.device, wanted: int) -> float:
    """Time work on two numbers of images. Returns its expected seconds for more.

    Args:
        action: the work, called with the number of images.
        few, more: numbers that are timed, see `each_image`.
        device: device of the work.
        wanted: number of images, no smaller than `more`.
    """
    seconds_few = steady_seconds(partial(action, few), device)
    seconds_more = slowest(seconds_of(partial(action, more), device))
    # Long work is not repeated where it takes no longer than in proportion: that was no busy moment.
    if seconds_more < LONG_SECONDS or seconds_more > seconds_few * more / few:
        seconds_more = min(seconds_more, steady_seconds(partial(action, more), device))
    return seconds_more + each_image(few, seconds_few, more, seconds_more) * (wanted - more)


def each_image(few: int, seconds_few: float, more: int, seconds_more: float) -> float:
    """Return the seconds that one more image takes, where work on two numbers of images takes a constant and a part in proportion.

    That is at least a quarter of the mean of `more` images, and at most all of it, so that an error of measurement does not make
    images cost next to nothing.

    Args:
        few, more: numbers of images, `few` below `more`; where they are equal, all is in proportion.
        seconds_few, seconds_more: measured times.

    >>> each_image(1, 3.0, 2, 5.0), each_image(2, 5.0, 2, 5.0), each_image(1, 6.0, 2, 5.0)
    (2.0, 2.5, 0.625)
    """
    mean = seconds_more / more
    each = mean if few == more else (seconds_more - seconds_few) / (more - few)
    return min(max(each, LEAST_PROPORTIONAL * mean), mean)
