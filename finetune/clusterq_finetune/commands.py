"""The command `clusterq-finetune`, once its flags are known."""

import copy
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clusterq_common.device.compiled import need_compiler
from clusterq_common.device.cuda_graph import need_cuda_graphs
from clusterq_common.device.distributed import process_group
from clusterq_common.device.setup import to_device
from clusterq_common.escape import shell_command
from clusterq_common.files import atomic_write, sha256_file
from clusterq_common.progress.console import expecting, info, print_result, progress, warn
from clusterq_common.progress.time_budget import timetable
from clusterq_common.quant.convert import convert, settle_scales
from clusterq_common.run.checkpoint import save_weights
from clusterq_common.run.environment import device_name, versions
from clusterq_common.run.kept import InFolder
from clusterq_common.run.run_folder import PREDICTIONS, RESULT, STUDENT
from clusterq_common.sharing.place import pinned
from clusterq_finetune.data.calibration import first_pixels
from clusterq_finetune.data.real import ValidationImages
from clusterq_finetune.dry_run import plan_lines
from clusterq_finetune.estimate import is_worth_measuring
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.evaluation.summary import add_evaluation, top1_so_far
from clusterq_finetune.prepare import Job, Request, prepare
from clusterq_finetune.recipes.calibrated import calibrate_student
from clusterq_finetune.recipes.chosen_bits import bits_for_run
from clusterq_finetune.recipes.distill import distill
from clusterq_finetune.recipes.reconstruct import reconstruct
from clusterq_finetune.resume import open_folder
from clusterq_report.command import report_at_end


def finetune(request: Request) -> dict[str, Any]:
    """Make a quantized student from shards and a teacher. Returns the content of result.json.

    Real images (`request.val`) are read after the last step, and only to report accuracy. Under torchrun every process calls this.
    The first one writes, and has the result; the others return nothing.

    Raises:
        ClusterqError: see `prepare`, `open_folder` and `distill`.
    """
    begin = time.monotonic()
    with process_group() as ranks, ExitStack() as held:
        job = prepare(request, ranks)
        if request.dry_run:
            for line in plan_lines(job):
                print_result(line)
            return {}
        return _run(job, held, begin)


def _run(job: Job, held: ExitStack, begin: float) -> dict[str, Any]:
    """Make, save and evaluate the student. Returns the content of result.json, or nothing in processes after the first.

    Args:
        job: the prepared fine-tuning.
        held: keeps the folder's lock.
        begin: `time.monotonic()` at the start of the command.
    """
    config, device = job.config, job.device
    if config.recipe.compile:
        need_compiler(device)
    if config.recipe.cuda_graphs:
        need_cuda_graphs(device)
    resuming = job.ranks.from_first(lambda: open_folder(job, held))
    if job.request.time_budget is not None or is_worth_measuring(config, job.teacher.spec, job.samples):
        if not job.timed.known:
            info("timing a few steps for the estimate")
        expected = job.timed.phases(config)
        held.enter_context(expecting(expected))
        whole = ", from its start" if job.going_on else ""
        info(f"fine-tuning on {device}{whole}: {timetable(expected)}")
    made = _make_student(job, resuming=resuming)
    seconds = time.monotonic() - begin

    models = {"teacher": job.teacher.model, "calibrated": made.calibrated, "student": job.student}
    evaluated = None if job.images is None else _evaluate(models, job.images, job)
    if not job.ranks.first:
        return {}
    result = _result(job, made, seconds)
    if job.images is not None and evaluated is not None:
        add_evaluation(result, evaluated, job.images, job.teacher.spec)
    atomic_write(job.folder / RESULT, json.dumps(result, indent=2) + "\n")
    print_result(f"student: {job.folder / STUDENT}")
    if config.output.report:
        report_at_end(job.folder, shell_command("clusterq-finetune", "report", job.folder, "--analyse"), job.teacher, device)
    return result


@dataclass(frozen=True)
class Made:
    """Outcome of a fine-tuning, for result.json. The student itself is the job's.

    Attributes:
        calibrated: the student as it was after calibration.
        bits: chosen bits and their reasons; empty where none were chosen.
        blocks: errors of the reconstructed blocks.
        training: figures of the epochs.
    """

    calibrated: nn.Module
    bits: dict[str, Any]
    blocks: list[dict[str, Any]]
    training: dict[str, Any]


def _make_student(job: Job, *, resuming: bool) -> Made:
    """Choose bits where asked to, calibrate, reconstruct and distill the job's student, and save it."""
    chosen: dict[str, Any] = {}
    if job.config.choice.active:
        job.config, chosen = bits_for_run(job.config, job.teacher, job.shards, job.folder, job.device)
        job.student = convert(job.teacher.model, job.config.quant, job.teacher.spec.example().to(job.device), info).eval()
    config, student, teacher, shards, device = job.config, job.student, job.teacher, job.shards, job.device
    calibrate_student(student, teacher, shards, config, device)
    to_device(student, device)
    calibrated = copy.deepcopy(student)
    blocks = []
    if config.recipe.reconstruct != "none":
        pixels = first_pixels(shards, config, config.recipe.reconstruct_images)
        blocks = reconstruct(student, teacher, pixels, config, job.folder, device, resume=resuming)
    seconds_apart = config.recipe.checkpoint_seconds
    kept = InFolder(job.folder, resume=resuming, tensorboard=config.output.tensorboard, checkpoint_seconds=seconds_apart)
    training = distill(student, teacher, shards, config, device, kept, stored_logits=job.logits.stored)
    settle_scales(student, warn)
    if job.ranks.first:
        save_weights(job.folder / STUDENT, student)
    return Made(calibrated, chosen, blocks, training)


def _result(job: Job, made: Made, seconds: float) -> dict[str, Any]:
    """Return what result.json holds before the evaluation is added."""
    config, manifest = job.config, job.shards.manifest
    return {
        "teacher": {"arch": config.teacher.arch, "digest": job.teacher.digest},
        "shards": {
            "digest": manifest.digest,
            "training_images": manifest.splits["train"].samples,
            "method": manifest.generation.method if manifest.generation else "derived",
            **pinned(job.place),
        },
        **({"bits": made.bits} if made.bits else {}),
        "calibrated": {},
        "reconstruction": made.blocks,
        "student": {"bits": config.quant.bits, "sha256": sha256_file(job.folder / STUDENT), **made.training},
        "teacher_logits": job.logits.as_result(),
        "settings": config.model_dump(mode="json"),
        "versions": versions(),
        "device": device_name(job.device),
        "threads": torch.get_num_threads(),
        "processes": job.ranks.world,
        "seconds": round(seconds, 1),
        "out": str(job.folder),
    }


def _evaluate(models: dict[str, nn.Module], images: ValidationImages, job: Job) -> dict[str, EvaluationResult]:
    predictions = job.request.keep.collector()
    with progress("evaluating", len(images), images=1, phase="evaluation") as ticker:
        accuracies = evaluate_models(
            models,
            images,
            device=job.device,
            workers=job.config.recipe.workers,
            progress=lambda done, _, top1: ticker.advance(done - ticker.done, top1_so_far(top1)),
            predictions=predictions,
        )
    job.request.keep.save(predictions, job.folder / PREDICTIONS)
    return accuracies
