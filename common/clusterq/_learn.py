"""Training of students from shards without a run folder: the same steps as the command's, to the same bits."""

from typing import Any, Literal

from torch import nn

from clusterq._called import Log, device_of, need_calibrated
from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.setup import to_device
from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import OnProgress, send_messages_to
from clusterq_common.quant.choice_config import BitChoice
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.run.kept import Records
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.load import Teacher
from clusterq_finetune.config import FinetuneConfig, RecipeConfig
from clusterq_finetune.data.calibration import calibration_batches, first_pixels
from clusterq_finetune.data.logits import choose_logits
from clusterq_finetune.recipes.calibrated import calibrate_student
from clusterq_finetune.recipes.chosen_bits import choose_bits as choose_layer_bits
from clusterq_finetune.recipes.chosen_bits import need_choice
from clusterq_finetune.recipes.distill import distill as distill_student
from clusterq_finetune.recipes.heldout import need_heldout
from clusterq_finetune.recipes.reconstruct import reconstruct as reconstruct_student

Amp = Literal["auto", "off", "bf16"]


def finetune(
    teacher: Teacher,
    shards: ShardSet,
    quant: QuantConfig | None = None,
    recipe: RecipeConfig | None = None,
    *,
    seed: int = 0,
    amp: Amp = "auto",
    log: Log | None = None,
    progress: OnProgress | None = None,
) -> nn.Module:
    """A low-bit network from a teacher and shards, all steps of a recipe: what `clusterq-finetune` does, without its folder.

    The steps are `convert`, calibration with BatchNorm statistics as the recipe says, `reconstruct` where it is asked for, and `distill`.

    Args:
        teacher: stays as it is.
        shards: images made for it.
        quant: bits and conventions; W4A4 if left out.
        recipe: how it learns; `Recipe.fast()` if left out.
        seed: of every random draw.
        amp: bf16 around the training steps' convolutions; `auto`: on GPUs that have it.
        log: called with a sentence now and then.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        The student, on the teacher's device.

    Raises:
        ClusterqError: shards and teacher do not fit each other, or see `distill` and `reconstruct`.
    """
    with send_messages_to(log, progress):
        config = _config(teacher, shards, recipe or RecipeConfig.fast(), seed, amp, quant)
        device = device_of(teacher.model)
        student = convert(teacher.model, config.quant, teacher.spec.example(), log).eval()
        calibrate_student(student, teacher, shards, config, device)
        to_device(student, device)
        if config.recipe.reconstruct != "none":
            _reconstruct(student, teacher, shards, config)
        _distill(student, teacher, shards, config)
        return student


def choose_bits(
    teacher: Teacher,
    shards: ShardSet,
    quant: QuantConfig | None = None,
    *,
    average_bits: float | None = None,
    target_size: str | None = None,
    max_drop: float | None = None,
    average_input_bits: float | None = None,
    sensitivity_images: int = 256,
    recipe: RecipeConfig | None = None,
    seed: int = 0,
    log: Log | None = None,
    progress: OnProgress | None = None,
) -> QuantConfig:
    """Choose the bits of each layer from the effect that rounding it has on the teacher's answers to synthetic images.

    Args:
        teacher: the float network.
        shards: images made for it.
        quant: conventions, the inputs' bits, and `layer_bits` that stay as they are; W4A4 if left out.
        average_bits: largest mean bits of the weights.
        target_size: largest size of weights, scales and float parameters, such as `400kB`.
        max_drop: largest loss in points, estimated on held-out synthetic images before training.
        average_input_bits: largest mean bits of the layers' inputs.
        sensitivity_images: images that the effects are measured on.
        recipe: how students are calibrated for `max_drop`; `Recipe.fast()` if left out.
        seed: of every random draw.
        log: called with a sentence now and then.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        `quant` with the chosen bits in `layer_bits`.

    Raises:
        ClusterqError: nothing or too much was asked for, or it cannot be reached.
    """
    with send_messages_to(log, progress):
        aims = {"average_bits": average_bits, "target_size": target_size, "max_drop": max_drop}
        choice = BitChoice.validated(
            {**aims, "average_input_bits": average_input_bits, "sensitivity_images": sensitivity_images}
        )
        if not choice.active:
            raise ClusterqError("choose_bits: nothing is asked for, expected average_bits, target_size or max_drop; give one.")
        config = _config(teacher, shards, recipe or RecipeConfig.fast(), seed, "off", quant).model_copy(
            update={"choice": choice}
        )
        need_choice(config, shards)
        return choose_layer_bits(config, teacher, shards, device_of(teacher.model))[0].quant


def reconstruct(
    student: nn.Module,
    teacher: Teacher,
    shards: ShardSet,
    recipe: RecipeConfig | None = None,
    *,
    seed: int = 0,
    log: Log | None = None,
    progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Learn the rounding of a student's weights in place, block by block, so that each gives what the teacher's gives.

    Args:
        student: calibrated; on the teacher's device.
        teacher: the float network.
        shards: images made for it.
        recipe: its `reconstruct...` and `batchnorm` settings count; `Recipe.fast()` if left out.
        seed: of every random draw.
        log: called with a sentence now and then.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        For each block its name and the relative error of its output, before and after.

    Raises:
        ClusterqError: the recipe reconstructs nothing, the student is not calibrated, or a block's error is no longer finite.
    """
    with send_messages_to(log, progress):
        config = _config(teacher, shards, recipe or RecipeConfig.fast(), seed, "off")
        if config.recipe.reconstruct == "none":
            raise ClusterqError("recipe: reconstruct is none, expected layer or block; use Recipe.fast(), or set it.")
        _fit(student, teacher)
        return _reconstruct(student, teacher, shards, config)


def distill(
    student: nn.Module,
    teacher: Teacher,
    shards: ShardSet,
    recipe: RecipeConfig | None = None,
    *,
    seed: int = 0,
    amp: Amp = "auto",
    log: Log | None = None,
    progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Train a calibrated student in place: labels and the teacher's logits, for the recipe's epochs.

    Nothing else of the recipe is done: what comes before the epochs is `calibrate`'s and `reconstruct`'s part.

    Args:
        student: calibrated; on the teacher's device.
        teacher: whose answers it learns.
        shards: images made for it.
        recipe: steps, rates, weights of the terms; `Recipe()` if left out.
        seed: of every random draw.
        amp: bf16 around the training steps' convolutions; `auto`: on GPUs that have it.
        log: called with a sentence now and then.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        One record for each step (`step`, `loss/ce`, `loss/kl`, `student/agreement`, ...) and, where the set has held-out images, one for each
        epoch (`heldout/kl`, `heldout/agreement`, ...): the lines of the command's metrics.jsonl.

    Raises:
        ClusterqError: the student is not calibrated, the stored logits are not this teacher's, there are no images that the recipe asks for, or
            a loss is no longer finite.
    """
    with send_messages_to(log, progress):
        config = _config(teacher, shards, recipe or RecipeConfig(), seed, amp)
        _fit(student, teacher)
        return _distill(student, teacher, shards, config)


def _config(
    teacher: Teacher, shards: ShardSet, recipe: RecipeConfig, seed: int, amp: Amp, quant: QuantConfig | None = None
) -> FinetuneConfig:
    """The command's settings for the same. Refuses shards for other images than the teacher takes."""
    made_for, spec = shards.manifest.teacher.spec, teacher.spec
    if made_for != spec:
        raise ClusterqError(
            f"shards: their images are for a classifier of {made_for!r}, the teacher takes {spec!r}; give the teacher they were made for."
        )
    need_heldout(recipe, shards)
    runtime = RuntimeConfig.validated({"seed": seed, "amp": amp})
    return FinetuneConfig(
        shards=str(shards.folder), teacher=teacher.config, quant=quant or QuantConfig(), recipe=recipe, runtime=runtime
    )


def _fit(student: nn.Module, teacher: Teacher) -> None:
    """Refuse a student that cannot be trained beside this teacher; put its weights into the order that convolutions want."""
    need_calibrated(student)
    device, wanted = device_of(student), device_of(teacher.model)
    if device != wanted:
        raise ClusterqError(
            f"student: it is on {device}, the teacher on {wanted}, expected both on one device; move one of them."
        )
    to_device(student, device)


def _reconstruct(student: nn.Module, teacher: Teacher, shards: ShardSet, config: FinetuneConfig) -> list[dict[str, Any]]:
    pixels = first_pixels(shards, config, config.recipe.reconstruct_images)
    return reconstruct_student(student, teacher, pixels, config, None, device_of(student))


def _distill(student: nn.Module, teacher: Teacher, shards: ShardSet, config: FinetuneConfig) -> list[dict[str, Any]]:
    device, kept = device_of(student), Records()
    logits = choose_logits(config.recipe, next(iter(calibration_batches(shards, config))), teacher, device)
    distill_student(student, teacher, shards, config, device, kept, stored_logits=logits.stored)
    # What the last step left behind is of no use to anyone else.
    student.zero_grad(set_to_none=True)
    return kept.records
