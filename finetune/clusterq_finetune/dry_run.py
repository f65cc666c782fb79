"""Dry run: the plan of a fine-tuning, as lines of text."""

from collections.abc import Iterator

from clusterq_common.progress.console import info
from clusterq_common.progress.time_budget import timetable
from clusterq_common.quantities import count, size
from clusterq_finetune.data.shard_batches import EpochBatches
from clusterq_finetune.evaluation.predictions import TOP
from clusterq_finetune.prepare import Job


def plan_lines(job: Job) -> Iterator[str]:
    """Yield the lines of a dry run: set, bits, steps, folder, evaluation, and the estimated disk and time of each phase."""
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
    disk = disk_of_phases(job)
    parts = ", ".join(f"{name} {size(stored)}" for name, stored in disk.items())
    lines.append(f"disk: at most about {size(sum(disk.values()))} ({parts})")
    yield from lines
    if not job.timed.known:  # takes seconds, so everything else is said before
        info("timing a few steps for the estimate")
    yield f"time: {timetable(job.timed.phases(config))}"


def disk_of_phases(job: Job) -> dict[str, int]:
    """Return the bytes that each phase leaves in the run's folder, at most; the report and records of steps are small beside them."""
    recipe, student = job.config.recipe, job.student
    state = sum(value.numel() * value.element_size() for value in student.state_dict().values())
    trained = sum(value.numel() * value.element_size() for value in student.parameters())
    stored = {"student": state}
    if recipe.reconstruct != "none":
        stored["reconstruction's checkpoint"] = state
    if recipe.epochs:
        moments = 1 if recipe.optimizer == "sgd" else 2
        average, best = trained * (recipe.weight_ema > 0), state * (recipe.select != "last")
        stored["fine-tuning's checkpoint"] = state + moments * trained + average + best
    if job.images is not None and len(job.images):
        # By image the label; by network (the teacher, the calibrated student, the trained one) the class, the most probable ones with
        # their probabilities, and those of all where they are wanted.
        known = 1 + 2 * TOP + job.request.keep.probabilities * job.teacher.spec.num_classes
        stored["predictions"] = 4 * len(job.images) * (1 + 3 * known)
    return stored
