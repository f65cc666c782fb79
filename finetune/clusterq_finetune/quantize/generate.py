"""`clusterq-gen`, run as a program: the two never import each other. Free of torch."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from clusterq_common.errors import ClusterqError
from clusterq_common.run.child_process import run_program
from clusterq_common.setting_names import setting_name


class SetPlan(NamedTuple):
    """A dry run of a set of images.

    Attributes:
        lines: what it printed.
        seconds: estimated for the whole run.
        training, heldout: numbers of images.
        speed: measured times of its steps, for the run itself.
    """

    lines: list[str]
    seconds: float
    training: int
    heldout: int
    speed: dict[str, float]


def generate(arguments: Sequence[str], message: dict[str, Any]) -> None:
    """Run `clusterq-gen`.

    Args:
        arguments: of its command line.
        message: the `speed` that its plan was made for, and the estimated seconds of what follows `afterwards`.

    Raises:
        SystemExit: it failed, and said why.
        ClusterqError: a signal ended it, which said nothing.
    """
    _refuse_failure(run_program("clusterq_gen", arguments, message=message))


def plan_set(arguments: Sequence[str]) -> SetPlan:
    """Return what `clusterq-gen` would do. It measures a few steps, which takes seconds.

    Args:
        arguments: those of a dry run that ends with its result as JSON.

    Raises:
        SystemExit, ClusterqError: see `generate`.
    """
    lines: list[str] = []
    _refuse_failure(run_program("clusterq_gen", arguments, lines.append))
    *printed, result = lines
    plan = json.loads(result)
    images = plan["images"]
    return SetPlan(printed, sum(plan["phases"].values()), images["train"], images["heldout"], plan["speed"])


def _refuse_failure(code: int) -> None:
    if code < 0:
        raise ClusterqError(
            f"clusterq-gen was ended by signal {-code}, expected it to finish; where memory ran out, give it a smaller {setting_name('batch_size')} with "
            f"{setting_name('set_flags')}, otherwise run the same command again."
        )
    if code:
        raise SystemExit(code)
