"""Time budget: a fine-tuning that fits into the time which the user allows."""

from collections.abc import Callable
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import warn
from clusterq_common.progress.time_budget import PLANNED_SHARE, Phase, plan_with_repeats, timetable, total_seconds
from clusterq_common.quantities import duration
from clusterq_common.run.run_folder import CONFIG
from clusterq_common.setting_names import setting_name
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.estimate import Timed
from clusterq_finetune.speed import Speed

# What a plan keeps where there is any: below this, reconstruction and training do more harm than good.
LEAST_BLOCK_STEPS, LEAST_STEPS = 25, 20
# Most reconstruction steps of a plan: the largest number whose gain was measured (docs/results.md).
MOST_BLOCK_STEPS = 1000
# Shares of the recipe's steps that are tried, largest first.
SHARES = [share / 50 for share in range(50, 0, -1)]
# Settings that a plan changes.
PLANNED = ("reconstruct_steps", "epochs", "steps_per_epoch")


def plan_within(
    config: FinetuneConfig, seconds: float, timed: Timed, *, grow: bool = False, accepted: bool = False
) -> FinetuneConfig:
    """Return the largest plan that fits into the budget by the times of some steps.

    Args:
        config: the recipe's own plan.
        seconds: the budget.
        timed: measures the steps. Where its times leave too little for the plan, it measures again: see `plan_with_repeats`.
        grow: allow more reconstruction steps than `config` has.
        accepted: whether the command has promised a student within a larger budget. Then the smallest plan is taken where none fits,
            with a warning.

    Raises:
        ClusterqError: see `fit_into`.
    """
    samples = timed.sizes.samples

    def fit(speed: Speed, times: int) -> FinetuneConfig:
        measured = (f" {times} times, the fastest of each" if times > 1 else "") + f": {speed}"
        return fit_into(config, seconds, samples, timed.phases, grow=grow, measured=measured)

    try:
        plan, _ = plan_with_repeats(
            lambda: timed.measure(config),
            Speed.fastest,
            fit,
            whole=lambda plan: plan == config,
            step=lambda speed: speed.step or speed.block_step or speed.calibrated,
        )
    except ClusterqError as error:
        if not accepted:
            raise
        warn(f"{setting_name('time_budget')}: {error}")
        plan = smallest_plan(config, samples)
    return plan


def smallest_plan(config: FinetuneConfig, samples: int) -> FinetuneConfig:
    """Return the plan with the fewest steps that are of use."""
    return _shrunk(config, SHARES[-1], samples)


def fit_into(
    config: FinetuneConfig,
    seconds: float,
    samples: int,
    estimate: Callable[[FinetuneConfig], list[Phase]],
    *,
    grow: bool = False,
    measured: str = "",
) -> FinetuneConfig:
    """Return the largest plan that fits into the budget.

    Where there is more time than the recipe takes, the reconstruction gets more steps, up to MOST_BLOCK_STEPS: they gain some accuracy, which
    more epochs do not. Where there is less, the steps of both phases shrink together.

    Args:
        config: the recipe's own plan.
        seconds: the budget.
        samples: training images in the set.
        estimate: the phases of a plan, with their seconds.
        grow: allow more reconstruction steps than `config` has.
        measured: what the estimate was made from, for the message.

    Raises:
        ClusterqError: not even the smallest plan fits.
    """
    plan = config
    larger = _grown(config) if grow else []
    for candidate in (*larger, config, *(_shrunk(config, share, samples) for share in SHARES)):
        plan = candidate
        if total_seconds(estimate(plan)) <= PLANNED_SHARE * seconds:
            return plan
    trains = config.recipe.epochs > 0 or config.recipe.reconstruct != "none"
    less = (
        f"leave training out with {setting_name('reconstruct', 'none')} {setting_name('epochs', 0)}"
        if trains
        else "use a faster machine"
    )
    by = f" (measured{measured})" if measured else ""
    raise ClusterqError(
        f"{duration(seconds)} is too short on this machine, where the smallest useful plan takes "
        f"{timetable(estimate(plan))}{by}; allow {duration(total_seconds(estimate(plan)) / PLANNED_SHARE + 1)}, or {less}.",
        setting="time_budget",
    )


def plan_of_run(folder: Path, config: FinetuneConfig) -> FinetuneConfig:
    """Return `config` with the plan that the run in `folder` was started with.

    Raises:
        ClusterqError: its configuration is missing or not readable.
    """
    saved = FinetuneConfig.from_yaml(folder / CONFIG).recipe
    return config.model_copy(
        update={"recipe": config.recipe.model_copy(update={name: getattr(saved, name) for name in PLANNED})}
    )


def _grown(config: FinetuneConfig) -> list[FinetuneConfig]:
    """Return plans with more reconstruction steps, largest first; none where nothing is reconstructed."""
    recipe = config.recipe
    if recipe.reconstruct == "none":
        return []
    numbers = (round(MOST_BLOCK_STEPS * share) for share in SHARES)
    return [
        config.model_copy(update={"recipe": recipe.model_copy(update={"reconstruct_steps": number})})
        for number in numbers
        if number > recipe.reconstruct_steps
    ]


def _shrunk(config: FinetuneConfig, share: float, samples: int) -> FinetuneConfig:
    recipe = config.recipe
    changes = {
        "reconstruct_steps": min(recipe.reconstruct_steps, max(round(share * recipe.reconstruct_steps), LEAST_BLOCK_STEPS))
    }
    if recipe.epochs:
        each = recipe.steps_of_epoch(samples)
        epochs = max(1, round(share * recipe.epochs))
        wanted = share * recipe.epochs * each / epochs
        changes |= {"epochs": epochs, "steps_per_epoch": min(each, max(round(wanted), LEAST_STEPS))}
    return config.model_copy(update={"recipe": recipe.model_copy(update=changes)})
