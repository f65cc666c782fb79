"""Factors of a learning rate over the steps of a training. They are functions of the step alone, so a resumed run needs no state."""

import math
from typing import Literal

Schedule = Literal["cosine", "step", "constant"]
# Of the schedule `step`, in epochs; ClusterQ's and GDFQ's.
MILESTONES = (100, 200, 300)


def factor(schedule: Schedule, step: int, epochs: int, *, steps_per_epoch: int = 1) -> float:
    """Return the factor of a learning rate at a step.

    >>> [factor("cosine", step, 2, steps_per_epoch=5) for step in (0, 5, 10)]
    [1.0, 0.5, 0.0]
    >>> [factor("step", step, 400, steps_per_epoch=5) for step in (0, 499, 500)]
    [1.0, 1.0, 0.1]
    >>> factor("constant", 7, 10)
    1.0
    """
    if schedule == "cosine":
        return cosine(step, epochs * steps_per_epoch)
    return tenths(step // steps_per_epoch) if schedule == "step" else 1.0


def cosine(step: int, steps: int) -> float:
    """Return half a cosine that falls from one to zero over the steps.

    >>> [round(cosine(step, 4), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def tenths(epoch: int) -> float:
    """Return the factor that falls to a tenth at each of the milestones.

    >>> [round(tenths(epoch), 4) for epoch in (99, 100, 200, 399)]
    [1.0, 0.1, 0.01, 0.001]
    """
    return float(0.1 ** sum(epoch >= milestone for milestone in MILESTONES))


def warmup(step: int, steps: int) -> float:
    """Return the factor that rises to one over the first steps; the first step's is above zero.

    >>> [warmup(step, 3) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (steps + 1))
