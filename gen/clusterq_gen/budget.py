"""Time budget: a generator run that fits into the time which the user allows."""

from collections.abc import Callable
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.time_budget import PLANNED_SHARE, plan_with_repeats, timetable, total_seconds
from clusterq_common.quantities import duration
from clusterq_gen.bank.config import is_bank
from clusterq_gen.config import GenConfig
from clusterq_gen.estimate import Speed, phases

# What a plan keeps, however small the budget. A generator with side-by-side conditioning names its classes after a hundred steps
# (docs/results.md); a few hundred images calibrate a student.
LEAST_STEPS, LEAST_IMAGES, LEAST_REFINEMENT, LEAST_BANK_STEPS = 100, 256, 10, 50
# Shares of the preset's steps and images that are tried, largest first.
SHARES = [share / 50 for share in range(50, 0, -1)]


def plan_within(config: GenConfig, seconds: float, num_classes: int, measure: Callable[[], Speed]) -> tuple[GenConfig, Speed]:
    """Return the largest plan that fits into the budget, and the speed that it is planned for.

    Args:
        config: the settings' own plan.
        seconds: the budget.
        num_classes: of the teacher.
        measure: times some steps. Where its times leave too little for the plan, it is called again: see `plan_with_repeats`.

    Raises:
        ClusterqError: see `fit_into`.
    """
    return plan_with_repeats(
        measure,
        Speed.fastest,
        lambda speed, times: fit_into(config, seconds, num_classes, speed, measured=times),
        whole=lambda plan: plan == config,
        step=lambda speed: speed.step or speed.image_step,
    )


def fit_into(config: GenConfig, seconds: float, num_classes: int, speed: Speed, *, measured: int = 1) -> GenConfig:
    """Return the largest plan that fits into the budget; `config` itself where it does.

    Generator steps and images shrink together, then the steps of refinement. A budget never makes a plan larger.

    Args:
        config: the settings' own plan.
        seconds: the budget.
        num_classes: of the teacher.
        speed: of this machine.
        measured: how often it was measured, for the message.

    Raises:
        ClusterqError: not even the smallest plan fits.
    """
    plan = config
    for candidate in (config, *(_shrunk(config, share, num_classes) for share in SHARES)):
        plan = candidate
        if total_seconds(phases(plan, num_classes, speed)) <= PLANNED_SHARE * seconds:
            return plan
    repeats = "" if measured == 1 else f" {measured} times, the fastest of each"
    smallest = timetable(phases(plan, num_classes, speed))
    raise ClusterqError(
        f"{duration(seconds)} is too short on this machine, where the smallest useful plan takes {smallest} (measured{repeats}: {speed}); allow "
        f"{duration(total_seconds(phases(plan, num_classes, speed)) / PLANNED_SHARE + 1)}, or use a GPU.",
        setting="time_budget",
    )


def _shrunk(config: GenConfig, share: float, num_classes: int) -> GenConfig:
    """Return the plan with this share of the steps and images, at least the smallest useful numbers, and at most those of `config`."""
    train, emit = config.train, config.emit
    images = emit.wanted(num_classes)["train"] * num_classes
    fewer = min(images, max(round(share * images), LEAST_IMAGES, num_classes))
    changes: dict[str, dict[str, Any]] = {"emit": {"images": fewer}}
    if is_bank(config.method.method):
        steps = config.bank.bank_steps
        changes["bank"] = {"bank_steps": min(steps, max(round(share * steps), LEAST_BANK_STEPS))}
        changes["emit"]["per_class"] = max(1, fewer // num_classes)
    else:
        least = -(-LEAST_STEPS // train.epochs)
        changes["train"] = {"steps_per_epoch": min(train.steps_per_epoch, max(round(share * train.steps_per_epoch), least))}
    if emit.refine_steps and share < 0.5:
        # Below half of the images, fewer steps for each of them as well.
        changes["emit"]["refine_steps"] = min(emit.refine_steps, max(round(2 * share * emit.refine_steps), LEAST_REFINEMENT))
    values = config.model_dump()
    return GenConfig.validated({**values, **{section: {**values[section], **fields} for section, fields in changes.items()}})
