"""`clusterq-finetune evaluate`: a saved student, a file it was exported to, or both, on real images."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from clusterq_common.device.config import RuntimeConfig
from clusterq_common.device.distributed import process_group
from clusterq_common.device.setup import prepare_device
from clusterq_common.errors import ClusterqError
from clusterq_common.export.runtime import OnnxModel
from clusterq_common.files import sha256_file
from clusterq_common.progress.console import progress
from clusterq_common.quant.convert import quantizers
from clusterq_common.run.run_folder import STUDENT
from clusterq_common.teacher.families import known_geometry
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import open_validation
from clusterq_finetune.evaluation.evaluate import evaluate_models
from clusterq_finetune.evaluation.parity import Twin, integer_twin
from clusterq_finetune.evaluation.predictions import NOTHING_MORE, KeptPredictions
from clusterq_finetune.evaluation.summary import add_evaluation, top1_so_far
from clusterq_finetune.student import load_student


def evaluate_saved(
    student_folder: Path | None,
    onnx: Path | None,
    val: Path,
    classes: Path | None,
    evaluation: EvaluationConfig,
    runtime: RuntimeConfig,
    *,
    arch: str | None = None,
    batch_size: int,
    workers: int,
    integer: bool = False,
    optimise: bool = True,
    keep: KeptPredictions = NOTHING_MORE,
) -> dict[str, Any]:
    """Top-1 and top-5 on real images, resized and cropped as `evaluation` says, else as when the student was tuned.

    Args:
        student_folder: a saved student.
        onnx: an exported file, for ONNX Runtime on the CPU; with a student also how far the two are apart.
        val, classes: see `open_validation`.
        evaluation, runtime: settings.
        arch: the student's architecture, as the command line names it.
        batch_size: images in a batch.
        workers: decoding processes.
        integer: also the student in integer arithmetic, and how far the two are apart.
        optimise: let ONNX Runtime rewrite the graph.
        keep: what is written of each image.

    Raises:
        ClusterqError: see `load_student`, `OnnxModel`, `open_validation`; or flags that do not belong together.
    """
    keep.need(val)
    if keep.probabilities and keep.npz is None:
        raise ClusterqError(
            "--probabilities: there is no --predictions, expected a file that they go to; pass --predictions FILE."
        )
    wanted = keep.npz is not None or keep.csv is not None
    _refuse_flags(student_folder, onnx, runtime, arch, integer=integer, optimise=optimise)
    device = prepare_device(runtime)
    models: dict[str, nn.Module] = {}
    result: dict[str, Any] = {}
    saved_range = None
    if student_folder is not None:
        student, spec, config = load_student(student_folder, device, arch)
        geometry = config.evaluation.override_with(known_geometry(spec.size, config.teacher.arch))
        saved_range = config.evaluation.black_and_white
        models["student"] = student
        result["student"] = {"bits": config.quant.bits, "sha256": sha256_file(student_folder / STUDENT)}
        if integer:
            if not quantizers(student):
                raise ClusterqError(
                    f"--integer: the student in {student_folder} is at {config.quant.bits}, expected quantized layers; leave --integer out."
                )
            models["integer"] = integer_twin(student)
    if onnx is not None:
        exported = OnnxModel(onnx, optimise=optimise, threads=runtime.threads)
        about = exported.description
        result["onnx"] = {"bits": about.bits, "sha256": sha256_file(onnx)}
        if student_folder is None:
            device = torch.device("cpu")
            spec, geometry = about.input, about.geometry
            models["onnx"] = exported
        else:
            if about.student != result["student"]["sha256"]:
                raise ClusterqError(
                    f"--onnx: {onnx} was exported from a student with SHA-256 {about.student[:16]}, but that in {student_folder} has "
                    f"{result['student']['sha256'][:16]}, expected the same; export again, or leave --student out."
                )
            models["onnx"] = Twin(student, exported)
    geometry = evaluation.override_with(geometry)
    images = open_validation(
        val, spec, classes=classes, geometry=geometry, pixel_range=evaluation.black_and_white or saved_range, own=True
    )
    with process_group(), progress("evaluating", len(images), images=1) as ticker:
        predictions = keep.collector() if wanted else None
        found = evaluate_models(
            models,
            images,
            device=device,
            batch_size=batch_size,
            workers=workers,
            predictions=predictions,
            progress=lambda done, _, top1: ticker.advance(done - ticker.done, top1_so_far(top1)),
        )
        if predictions is not None:
            keep.save(predictions, keep.npz)
        for name, model in models.items():
            if isinstance(model, Twin):
                result[name] = result.get(name, {}) | model.comparison()
    add_evaluation(result, found, images, spec)
    return result


def _refuse_flags(
    student: Path | None, onnx: Path | None, runtime: RuntimeConfig, arch: str | None, *, integer: bool, optimise: bool
) -> None:
    if student is None and onnx is None:
        raise ClusterqError(
            "--student is missing, expected a student's folder, or an exported file with --onnx; pass either or both."
        )
    if arch is not None and student is None:
        raise ClusterqError(
            "--arch: there is no --student, expected one of that architecture; pass --student, or leave it out."
        )
    if integer and student is None:
        raise ClusterqError(
            "--integer: there is no --student, expected one whose integers can be computed with; pass --student."
        )
    if onnx is None and not optimise:
        raise ClusterqError("--no-optimise: there is no --onnx, expected one whose graph could be rewritten; leave it out.")
    if student is None and runtime.device == "cuda":
        raise ClusterqError("--device: cuda, but --onnx runs on the CPU, expected auto or cpu; leave it out.")
