"""Dry run: the plan of a fine-tuning, as lines of text."""

from clusterq_common.progress.time_budget import timetable
from clusterq_common.quantities import count
from clusterq_finetune.data.shard_batches import EpochBatches
from clusterq_finetune.prepare import Job


def plan_lines(job: Job) -> list[str]:
    """Return the lines of a dry run: set, bits, steps, folder, evaluation, and the estimated time of each phase."""
    config, recipe, samples = job.config, job.config.recipe, job.samples
    lines = [f"shards: {job.shards.folder}, {samples} training images"]
    if config.choice.active:
        aims = ", ".join(f"{name} {value}" for name, value in config.choice.model_dump(exclude_none=True).items())
        lines.append(f"bits: chosen for each layer; {aims}")
    if recipe.reconstruct != "none":
        lines.append(
            f"reconstruction: each {recipe.reconstruct} in {recipe.reconstruct_steps} steps, batch {recipe.reconstruct_batch_size}, on "
            f"{recipe.reconstruct_images} images"
        )
    steps = len(EpochBatches(samples, recipe.batch_size, 0, steps=recipe.steps(samples)))
    lines += [
        f"steps: {count(recipe.epochs, 'epoch')} x {steps}, batch {recipe.batch_size}, {recipe.optimizer} at {recipe.lr:g} ({recipe.schedule}), "
        f"recipe {recipe.recipe}, seed {config.runtime.seed}",
        f"out: {job.folder} (student, checkpoint with optimizer state, metrics)",
    ]
    if job.images is not None:
        # A dataset that is read in order alone does not say how many images it has.
        images = count(len(job.images), "real image") if len(job.images) else f"the real images of {job.images.layout}"
        lines.append(f"evaluation: {images}")
    return [*lines, f"time: {timetable(job.timed.phases(config))}"]
