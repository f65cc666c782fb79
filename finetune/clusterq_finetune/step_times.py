"""Times of a training's steps, and of its other work."""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from clusterq_common.device.timing import slowest
from clusterq_common.progress.console import send_messages_to


class StepTimes(NamedTuple):
    """Seconds of a short training.

    Attributes:
        typical: one step; where the training goes through several parts, such as blocks, one step of each.
        besides: everything else.
    """

    typical: float
    besides: float

    @classmethod
    def of(cls, training: Callable[[], object], device: torch.device, *, steps: int) -> "StepTimes":
        """Run a training whose steps advance a progress display, and time them.

        Args:
            training: the work; nothing of it is shown.
            device: device of the work.
            steps: steps of each part, at least two: the first one of a part is not timed, since other work may come before it.
        """
        ends: list[float] = []

        def ended(*_: object) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ends.append(time.perf_counter())

        begin = time.perf_counter()
        with send_messages_to(None, ended):
            training()
        ended()
        *stepped, end = ends
        typical = slowest(one_of_each(stepped, steps))
        return cls(typical, max(0.0, slowest(end - begin) - steps * typical))


def one_of_each(ends: Sequence[float], steps: int) -> float:
    """Return the seconds of one step of each part: the fastest, since a busy moment only makes steps slower.

    Args:
        ends: moments at which steps ended, part by part.
        steps: steps of each part.
    """
    parts = [ends[start : start + steps] for start in range(0, len(ends), steps)]
    return sum(min(after - before for before, after in itertools.pairwise(part)) for part in parts if len(part) > 1)
