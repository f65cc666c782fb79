"""Rough times of the stages after the set, in passes of one image through the classifier, forward and back. Free of torch."""

from collections.abc import Sequence

from clusterq_common.quant.choice_config import BitChoice
from clusterq_finetune.config import RecipeConfig

# An image of a training step; one of a step of reconstruction, which is of one block at a time and adds up to one network.
STEP, BLOCK_STEP = 2.5, 3.0
# An image that is calibrated on: the search for ranges, and the correction of statistics.
CALIBRATION = 2.0
# Forward alone, in two networks or files.
TWO_FORWARD = 0.8
# Seconds of the export with its checks, and of starting the sessions of a benchmark.
EXPORT_SECONDS = 10.0


def fine_tuning(recipe: RecipeConfig, samples: int) -> float:
    """Return the passes of a fine-tuning on so many images."""
    steps = recipe.epochs * recipe.steps_of_epoch(samples)
    rebuilt = 0 if recipe.reconstruct == "none" else recipe.reconstruct_steps * recipe.reconstruct_batch_size
    return steps * recipe.batch_size * STEP + rebuilt * BLOCK_STEP + CALIBRATION * recipe.calibration_images


def choice_of_bits(choice: BitChoice, recipe: RecipeConfig, samples: int, *, measured: int, tried: int) -> float:
    """Return the passes of choosing the bits by layer.

    Args:
        measured: changes of one layer that are measured, each on all sensitivity images.
        tried: students that are calibrated to keep a bound on the drop, at most.
    """
    passes = TWO_FORWARD / 2 * measured * min(choice.sensitivity_images, samples)
    return passes if choice.max_drop is None else passes + tried * CALIBRATION * min(recipe.calibration_images, samples)


def evaluation(images: int) -> float:
    """Return the passes of evaluating two networks, or two files."""
    return TWO_FORWARD * images


def timing(batches: Sequence[int], turns: int) -> float:
    """Return the passes of timing two files in turns."""
    return TWO_FORWARD * turns * sum(batches)
