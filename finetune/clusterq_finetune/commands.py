"""The command `clusterq-finetune`, once its flags are known."""

import copy
import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clusterq_common.device.compiled import need_compiler
from clusterq_common.device.cuda_graph import need_cuda_graphs
from clusterq_common.device.distributed import Ranks, process_group
from clusterq_common.device.setup import prepare_device, to_device
from clusterq_common.errors import ClusterqError
from clusterq_common.escape import shell_command
from clusterq_common.files import atomic_write, sha256_file
from clusterq_common.progress.console import info, print_result, progress, warn
from clusterq_common.progress.time_budget import timetable
from clusterq_common.quant.convert import convert
from clusterq_common.run.checkpoint import save_weights
from clusterq_common.run.environment import device_name, versions, write_environment
from clusterq_common.run.folder_lock import only_program
from clusterq_common.run.run_folder import CONFIG, ENVIRONMENT, PREDICTIONS, RESULT, STUDENT, open_run_folder
from clusterq_common.run.tensorboard import need_tensorboard
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.trust import remember_code
from clusterq_finetune.budget import fit_into, plan_of_run
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.data.calibration import calibration_batches, first_pixels
from clusterq_finetune.data.logits import choose_logits
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.data.real.labels import other_order_remark
from clusterq_finetune.data.shard_batches import EpochBatches
from clusterq_finetune.estimate import Timed, is_worth_measuring
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.evaluation.predictions import NOTHING_MORE, KeptPredictions
from clusterq_finetune.evaluation.summary import add_evaluation, top1_so_far
from clusterq_finetune.recipes.calibrated import calibrate_student
from clusterq_finetune.recipes.chosen_bits import bits_for_run, need_choice
from clusterq_finetune.recipes.distill import distill
from clusterq_finetune.recipes.heldout import need_heldout
from clusterq_finetune.recipes.kept import InFolder
from clusterq_finetune.recipes.reconstruct import reconstruct
from clusterq_finetune.teachers import find_teacher, load_checked_teacher, run_folder_of
from clusterq_report.command import report_at_end

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
    keep: KeptPredictions = NOTHING_MORE,
    time_budget: float | None = None,
) -> dict[str, Any]:
    """Shards and teacher in, quantized student out. Returns what result.json holds.

    Real images (`val`) are only looked at after the last step, and only to report. Under torchrun every process calls this; the
    first one writes, and has the result. `keep` says what is kept of each image beyond the usual. `time_budget` is in seconds: a new
    run's steps are planned to fit.

    Raises:
        ClusterqError: see `ShardSet.open`, `find_teacher`, `load_checked_teacher`, `open_validation`, `distill`.
    """
    with process_group() as ranks, ExitStack() as held:
        choice = {"resume": resume, "overwrite": overwrite, "dry_run": dry_run}
        result = _finetune(flags, shards_path, out, val, classes, keep, ranks, held, time_budget, **choice)
    return result if ranks.first else {}


def _finetune(
    flags: dict[str, dict[str, Any]],
    shards_path: Path,
    out: Path | None,
    val: Path | None,
    classes: Path | None,
    keep: KeptPredictions,
    ranks: Ranks,
    held: ExitStack,
    time_budget: float | None,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    begin = time.monotonic()
    keep.need(val)
    if flags.get("output", {}).get("tensorboard"):
        need_tensorboard()
    shards = ShardSet.open(shards_path)
    run = run_folder_of(shards)
    teacher_config = find_teacher(flags.get("teacher", {}), run, shards.manifest)
    large = shards.manifest.teacher.spec.longer_side > LARGEST_SMALL_IMAGE
    where = str(shards.folder.resolve())
    config = resolve(flags, where, teacher_config, digest=shards.manifest.digest, imagenet_sized=large)
    need_heldout(config.recipe, shards)
    need_choice(config, shards)
    device = prepare_device(config.runtime)
    teacher = load_checked_teacher(config.teacher, shards.manifest, device)
    config = config.model_copy(update={"teacher": teacher.config})
    folder = out or _default_folder(run, config)
    geometry = config.evaluation.override_with(known_geometry(teacher.spec.size, teacher.config.arch))
    black_and_white = config.evaluation.black_and_white
    images = (
        None
        if val is None
        else open_validation(val, teacher.spec, classes=classes, geometry=geometry, pixel_range=black_and_white, own=True)
    )
    if images is not None and (order := other_order_remark(images.class_names, shards.manifest.class_names)) is not None:
        warn(order.line())
        images.remarks.append(order)

    spec = teacher.spec
    example = torch.zeros(1, *spec.shape, device=device)
    # The first look at the given bits; chosen ones are said once they are known.
    said = info if dry_run or not config.choice.active else None
    student = convert(teacher.model, config.quant, example, said).eval()
    logits = choose_logits(config.recipe, next(iter(calibration_batches(shards, config))), teacher, device)
    going_on = resume and (folder / CONFIG).is_file()
    timed = Timed(student, teacher, shards, device, images, stored_logits=logits.stored)
    if time_budget is not None and going_on:
        info(f"--time-budget: the run in {folder} keeps the plan that it was started with")
        config = plan_of_run(folder, config)
    elif time_budget is not None:
        fitting = fit_into(config, time_budget, len(shards.split("train")), timed.phases)
        config = ranks.from_first(lambda: fitting)  # the processes have measured different speeds
    if dry_run:
        for line in [*_plan(config, shards, folder, images), f"time: {timetable(timed.phases(config))}"]:
            print_result(line)
        return {}

    if config.recipe.compile:
        need_compiler(device)
    if config.recipe.cuda_graphs:
        need_cuda_graphs(device)

    def open_folder() -> bool:
        held.enter_context(only_program(folder))
        resuming = open_run_folder(folder, resume=resume, overwrite=overwrite)
        if resuming:
            _refuse_other_settings(folder, config)
        else:
            config.to_yaml(folder / CONFIG)
            remember_code(folder, config.teacher)
        write_environment(folder / ENVIRONMENT, device)
        return resuming

    resuming = ranks.from_first(open_folder)
    if not going_on and (time_budget is not None or is_worth_measuring(config, len(shards.split("train")))):
        info(f"fine-tuning on {device}: {timetable(timed.phases(config))}")
    chosen: dict[str, Any] = {}
    if config.choice.active:
        config, chosen = bits_for_run(config, teacher, shards, folder, device)
        student = convert(teacher.model, config.quant, example, info).eval()
    calibrate_student(student, teacher, shards, config, device)
    to_device(student, device)
    calibrated = copy.deepcopy(student)
    blocks = []
    if config.recipe.reconstruct != "none":
        pixels = first_pixels(shards, config, config.recipe.reconstruct_images)
        blocks = reconstruct(student, teacher, pixels, config, folder, device, resume=resuming)
    kept = InFolder(folder, resume=resuming, tensorboard=config.output.tensorboard)
    found = distill(student, teacher, shards, config, device, kept, stored_logits=logits.stored)
    if ranks.first:
        save_weights(folder / STUDENT, student)
    seconds = time.monotonic() - begin

    models = {"teacher": teacher.model, "calibrated": calibrated, "student": student}
    evaluated = None if images is None else _evaluate(models, images, config, device, folder, keep)
    if not ranks.first:
        return {}
    result: dict[str, Any] = {
        "teacher": {"arch": config.teacher.arch, "digest": teacher.digest},
        "shards": {
            "digest": shards.manifest.digest,
            "training_images": shards.manifest.splits["train"].samples,
            "method": shards.manifest.generation.method if shards.manifest.generation else "derived",
        },
        **({"bits": chosen} if chosen else {}),
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
        add_evaluation(result, evaluated, images, spec)
    atomic_write(folder / RESULT, json.dumps(result, indent=2) + "\n")
    print_result(f"student: {folder / STUDENT}")
    if config.output.report:
        report_at_end(folder, shell_command("clusterq-finetune", "report", folder, "--analyse"), teacher, device)
    return result


def _default_folder(run: Path | None, config: FinetuneConfig) -> Path:
    """`finetune-w4a4` in the run folder, or in the current directory for shards from elsewhere or a folder that is read-only."""
    name = "-".join(filter(None, ("finetune", config.quant.bits, config.choice.label)))
    return run / name if run is not None and os.access(run, os.W_OK) else Path(name)


def _evaluate(
    models: dict[str, nn.Module],
    images: ValidationImages,
    config: FinetuneConfig,
    device: torch.device,
    folder: Path,
    keep: KeptPredictions,
) -> dict[str, EvaluationResult]:
    predictions = keep.collector()
    with progress("evaluating", len(images), images=1) as ticker:
        found = evaluate_models(
            models,
            images,
            device=device,
            workers=config.recipe.workers,
            progress=lambda done, _, top1: ticker.advance(done - ticker.done, top1_so_far(top1)),
            predictions=predictions,
        )
    keep.save(predictions, folder / PREDICTIONS)
    return found


def _refuse_other_settings(folder: Path, config: FinetuneConfig) -> None:
    """A resumed run goes on with what it was started with; device, threads, workers and where files lie may differ.

    The teacher's file and weights are no names to compare: the set's digest stands for the teacher too, whose digest it holds.
    """
    saved = FinetuneConfig.from_yaml(folder / CONFIG).model_dump(mode="json")
    wanted = config.model_dump(mode="json")
    if saved["shards_digest"] not in {None, wanted["shards_digest"]}:
        raise ClusterqError(
            f"--shards: {config.shards} has digest {wanted['shards_digest'][:19]}, but the run in {folder} was started with "
            f"{saved['shards_digest'][:19]}, expected the same set; name it, or start anew with --overwrite."
        )
    moved = {"arch", "weights"} if saved["shards_digest"] is not None else set()
    if config.choice.active:
        # Chosen bits stand before the given ones.
        given = wanted["quant"]["layer_bits"]
        saved["quant"]["layer_bits"] = saved["quant"]["layer_bits"][-len(given) :] if given else given
    for section in ("teacher", "quant", "choice", "recipe", "runtime"):
        for name, value in wanted[section].items():
            if name not in {"device", "threads", "workers", "checkpoint_seconds", *moved} and saved[section][name] != value:
                raise ClusterqError(
                    f"--resume: {name} is {value}, but the run in {folder} was started with {saved[section][name]}; give the same "
                    "flags, or start anew with --overwrite."
                )


def _plan(config: FinetuneConfig, shards: ShardSet, folder: Path, images: ValidationImages | None) -> list[str]:
    samples = len(shards.split("train"))
    recipe = config.recipe
    steps = len(EpochBatches(samples, recipe.batch_size, 0, steps=recipe.steps(samples)))
    lines = [
        f"shards: {shards.folder}, {samples} training images",
        f"steps: {recipe.epochs} epochs x {steps}, batch {recipe.batch_size}, {recipe.optimizer} at {recipe.lr:g} ({recipe.schedule}), "
        f"recipe {recipe.recipe}, seed {config.runtime.seed}",
        f"out: {folder} (student, checkpoint with optimizer state, metrics)",
    ]
    if config.choice.active:
        aims = ", ".join(f"{name} {value}" for name, value in config.choice.model_dump(exclude_none=True).items())
        lines.insert(1, f"bits: chosen for each layer; {aims}")
    if recipe.reconstruct != "none":
        lines.insert(
            1,
            f"reconstruction: each {recipe.reconstruct} in {recipe.reconstruct_steps} steps, batch {recipe.reconstruct_batch_size}, on "
            f"{recipe.reconstruct_images} images",
        )
    if images is None:
        return lines
    # A dataset that is read in order alone does not say how many images it has.
    count = f"{len(images)} real images" if len(images) else f"the real images of {images.layout}"
    return [*lines, f"evaluation: {count}"]
