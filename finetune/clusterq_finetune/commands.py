"""What `clusterq-finetune` does, once its flags are known."""

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clusterq_common.images import normalise
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.convert import convert
from clusterq_common.runtime.config import RuntimeConfig
from clusterq_common.runtime.device import place, prepare_device
from clusterq_common.runtime.distributed import Ranks, process_group
from clusterq_common.runtime.environment import device_name, versions, write_environment
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import atomic_write, sha256_file
from clusterq_common.runtime.progress import progress, say
from clusterq_common.runtime.run_folder import CONFIG, ENVIRONMENT, RESULT, STUDENT, open_run_folder
from clusterq_common.runtime.weights_file import save_weights
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.data import EpochBatches, ShardBatch, ShardDataset, batches
from clusterq_finetune.datasets import ValidationImages, open_validation
from clusterq_finetune.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.logits import choose_logits
from clusterq_finetune.preprocess import describe_preprocessing
from clusterq_finetune.recipes.distill import distill
from clusterq_finetune.recipes.recalibrate import recalibrate_batchnorm
from clusterq_finetune.recipes.reconstruct import reconstruct
from clusterq_finetune.student import load_student
from clusterq_finetune.teachers import find_teacher, load_checked_teacher

NAMES_SHOWN = 10
# GDFQ's line has one set of values for CIFAR and one for ImageNet.
LARGEST_SMALL_IMAGE = 64


def finetune(
    flags: dict[str, dict[str, Any]],
    shards_path: Path,
    out: Path | None,
    val: Path | None,
    classes: Path | None,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Shards and teacher in, quantized student out. Returns what result.json holds.

    Real images (`val`) are only looked at after the last step, and only to report. Under torchrun every process calls this; the
    first one writes, and has the result.

    Raises:
        ClusterqError: see `ShardSet.open`, `find_teacher`, `load_checked_teacher`, `open_validation`, `distill`.
    """
    with process_group() as ranks:
        result = _finetune(flags, shards_path, out, val, classes, ranks, resume=resume, overwrite=overwrite, dry_run=dry_run)
    return result if ranks.first else {}


def _finetune(
    flags: dict[str, dict[str, Any]],
    shards_path: Path,
    out: Path | None,
    val: Path | None,
    classes: Path | None,
    ranks: Ranks,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    begin = time.monotonic()
    shards = ShardSet.open(shards_path)
    run = _run_folder_of(shards)
    teacher_config = find_teacher(flags.get("teacher", {}), run, shards.manifest)
    large = shards.manifest.teacher.spec.size > LARGEST_SMALL_IMAGE
    config = resolve(flags, str(shards.folder.resolve()), teacher_config, imagenet_sized=large)
    _refuse_selection_without_heldout(config, shards)
    device = prepare_device(config.runtime)
    teacher = load_checked_teacher(config.teacher, shards.manifest, device)
    config = config.model_copy(update={"teacher": teacher.config})
    folder = out or _default_folder(run, config)
    images = None if val is None else open_validation(val, teacher.spec, classes=classes)

    spec = teacher.spec
    example = torch.zeros(1, spec.channels, spec.size, spec.size, device=device)
    student = convert(teacher.model, config.quant, example, say).eval()
    if dry_run:
        for line in _plan(config, shards, folder, images):
            say(line)
        return {}

    def open_folder() -> bool:
        resuming = open_run_folder(folder, resume=resume, overwrite=overwrite)
        if resuming:
            _refuse_other_settings(folder, config)
        else:
            config.to_yaml(folder / CONFIG)
        write_environment(folder / ENVIRONMENT, device)
        return resuming

    resuming = ranks.from_first(open_folder)
    logits = choose_logits(config.recipe, next(iter(_calibration_batches(shards, config))), teacher, device)
    calibrate(student, _calibration_images(shards, config, spec), config.quant, seed=config.runtime.seed)
    if config.recipe.batchnorm == "recalibrated":
        recalibrate_batchnorm(student, _calibration_images(shards, config, spec), device)
    place(student, device)
    calibrated = copy.deepcopy(student)
    blocks = []
    if config.recipe.reconstruct != "none":
        pixels = _first_pixels(shards, config, config.recipe.reconstruct_images)
        blocks = reconstruct(student, teacher, pixels, config, folder, device, resume=resuming)
    found = distill(student, teacher, shards, config, folder, device, stored_logits=logits.stored, resume=resuming)
    if ranks.first:
        save_weights(folder / STUDENT, student)
    seconds = time.monotonic() - begin

    models = {"teacher": teacher.model, "calibrated": calibrated, "student": student}
    evaluated = None if images is None else _evaluate(models, images, config, device)
    if not ranks.first:
        return {}
    result: dict[str, Any] = {
        "teacher": {"arch": config.teacher.arch, "digest": teacher.digest},
        "shards": {
            "digest": shards.manifest.digest,
            "training_images": shards.manifest.splits["train"].samples,
            "method": shards.manifest.generation.method if shards.manifest.generation else "derived",
        },
        "calibrated": {},
        "reconstruction": blocks,
        "student": {"bits": config.quant.bits, "sha256": sha256_file(folder / STUDENT), **found},
        "teacher_logits": logits.as_result(),
        "settings": config.model_dump(mode="json"),
        "versions": versions(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": ranks.world,
        "seconds": round(seconds, 1),
        "out": str(folder),
    }
    if images is not None and evaluated is not None:
        _add_evaluation(result, evaluated, images, spec)
    atomic_write(folder / RESULT, json.dumps(result, indent=2) + "\n")
    say(f"student: {folder / STUDENT}")
    return result


def evaluate_saved(
    student_folder: Path, val: Path, classes: Path | None, runtime: RuntimeConfig, *, batch_size: int, workers: int
) -> dict[str, Any]:
    """Top-1 and top-5 of a saved student on real images.

    Raises:
        ClusterqError: see `load_student`, `open_validation`.
    """
    device = prepare_device(runtime)
    student, spec, config = load_student(student_folder, device)
    images = open_validation(val, spec, classes=classes)
    with process_group(), progress("evaluating", len(images)) as ticker:
        found = evaluate_models(
            {"student": student},
            images,
            device=device,
            batch_size=batch_size,
            workers=workers,
            progress=lambda done, _: ticker.advance(done - ticker.done),
        )
    result: dict[str, Any] = {"student": {"bits": config.quant.bits, "sha256": sha256_file(student_folder / STUDENT)}}
    _add_evaluation(result, found, images, spec)
    return result


def summary(result: dict[str, Any]) -> list[str]:
    """The accuracies of a result as lines for a person, and the images that could not be read."""
    measured = {name: part for name, part in result.items() if isinstance(part, dict) and "top1" in part}
    lines = [
        f"{name:>10}: top-1 {part['top1']:.2f} % ({part['top1_interval'][0]:.2f} to {part['top1_interval'][1]:.2f}), "
        f"top-5 {part['top5']:.2f} % on {part['images']} images"
        + ("" if part["agreement"] is None else f", agrees with the teacher on {part['agreement']:.2f} %")
        + f" ({part['images_per_second']:.0f} images/s)"
        for name, part in measured.items()
    ]
    unreadable = next(iter(measured.values()))["unreadable"] if measured else []
    if unreadable:
        shown = ", ".join(unreadable[:NAMES_SHOWN]) + (" ..." if len(unreadable) > NAMES_SHOWN else "")
        lines.append(f"{len(unreadable)} unreadable image{'s' if len(unreadable) > 1 else ''}: {shown}")
    return lines


def _run_folder_of(shards: ShardSet) -> Path | None:
    """The run folder that the shards lie in, when they lie in one."""
    parent = shards.folder.resolve().parent
    return parent if (parent / CONFIG).is_file() else None


def _default_folder(run: Path | None, config: FinetuneConfig) -> Path:
    """`finetune-w4a4` in the run folder, or in the current directory for shards from elsewhere or a folder that is read-only."""
    name = f"finetune-{config.quant.bits}"
    return run / name if run is not None and os.access(run, os.W_OK) else Path(name)


def _calibration_batches(shards: ShardSet, config: FinetuneConfig) -> Iterator[ShardBatch]:
    """A shuffled pass that training never makes."""
    dataset = ShardDataset(shards, "train")
    order = EpochBatches(len(dataset), config.recipe.batch_size, config.runtime.seed)
    order.epoch = -1
    yield from batches(dataset, order)


def _calibration_images(shards: ShardSet, config: FinetuneConfig, spec: InputSpec) -> Iterator[Tensor]:
    """Its first images."""
    for pixels in _first_pixels(shards, config, config.recipe.calibration_images).split(config.recipe.batch_size):
        yield normalise(pixels, spec).contiguous(memory_format=torch.channels_last)


def _first_pixels(shards: ShardSet, config: FinetuneConfig, count: int) -> Tensor:
    """Its first images, (count, C, S, S) uint8, or all where there are fewer."""
    parts: list[Tensor] = []
    for batch in _calibration_batches(shards, config):
        parts.append(batch.pixels[: count - sum(len(part) for part in parts)])
        if sum(len(part) for part in parts) >= count:
            break
    return torch.cat(parts)


def _refuse_selection_without_heldout(config: FinetuneConfig, shards: ShardSet) -> None:
    if config.recipe.select == "heldout" and "heldout" not in shards.manifest.splits:
        raise ClusterqError(
            f"--select: heldout, but {shards.folder} has no held-out images, expected a split `heldout`; use --select last, or emit "
            "shards with --heldout-per-class."
        )


def _evaluate(
    models: dict[str, nn.Module], images: ValidationImages, config: FinetuneConfig, device: torch.device
) -> dict[str, EvaluationResult]:
    with progress("evaluating", len(images)) as ticker:
        return evaluate_models(
            models,
            images,
            device=device,
            workers=config.recipe.workers,
            progress=lambda done, _: ticker.advance(done - ticker.done),
        )


def _add_evaluation(
    result: dict[str, Any], found: dict[str, EvaluationResult], images: ValidationImages, spec: InputSpec
) -> None:
    for name, evaluation in found.items():
        result[name] |= evaluation.model_dump()
    result["evaluated_on"] = {"layout": images.layout, "images": len(images)}
    result["preprocessing"] = describe_preprocessing(spec)


def _refuse_other_settings(folder: Path, config: FinetuneConfig) -> None:
    """A resumed run goes on with what it was started with; device, threads and workers may differ."""
    saved = FinetuneConfig.from_yaml(folder / CONFIG).model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    for section in ("teacher", "quant", "recipe", "runtime"):
        for name, value in wanted[section].items():
            if name not in {"device", "threads", "workers", "checkpoint_seconds"} and saved[section][name] != value:
                raise ClusterqError(
                    f"--resume: {name} is {value}, but the run in {folder} was started with {saved[section][name]}; give the same "
                    "flags, or start anew with --overwrite."
                )


def _plan(config: FinetuneConfig, shards: ShardSet, folder: Path, images: ValidationImages | None) -> list[str]:
    samples = len(shards.split("train"))
    recipe = config.recipe
    steps = len(EpochBatches(samples, recipe.batch_size, 0, steps=recipe.steps_per_epoch))
    lines = [
        f"shards: {shards.folder}, {samples} training images",
        f"steps: {recipe.epochs} epochs x {steps}, batch {recipe.batch_size}, {recipe.optimizer} at {recipe.lr:g} ({recipe.schedule}), "
        f"recipe {recipe.recipe}, seed {config.runtime.seed}",
        f"out: {folder} (student, checkpoint with optimizer state, metrics)",
    ]
    if recipe.reconstruct != "none":
        lines.insert(
            1,
            f"reconstruction: each {recipe.reconstruct} in {recipe.reconstruct_steps} steps, batch {recipe.reconstruct_batch_size}, on "
            f"{recipe.reconstruct_images} images",
        )
    return lines if images is None else [*lines, f"evaluation: {len(images)} real images"]
