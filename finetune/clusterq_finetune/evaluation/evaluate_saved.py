"""`clusterq-finetune evaluate`: a saved student, a file it was exported to, or both, on real images."""

from dataclasses import dataclass
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
from clusterq_common.teacher.spec import Geometry, InputSpec
from clusterq_finetune.config import EvaluationConfig
from clusterq_finetune.data.real import ValidationImages, open_validation
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.evaluation.parity import Compared, integer_student
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
    _refuse_flags(student_folder, onnx, runtime, arch, integer=integer, optimise=optimise)
    if student_folder is not None:
        made = _of_student(student_folder, prepare_device(runtime), evaluation, arch, integer=integer)
        if onnx is not None:
            _add_exported(made, onnx, OnnxModel(onnx, optimise=optimise, threads=runtime.threads), student_folder)
    else:
        assert onnx is not None
        made = _of_file(onnx, OnnxModel(onnx, optimise=optimise, threads=runtime.threads), evaluation)
    black_and_white = evaluation.black_and_white or made.pixel_range
    images = open_validation(val, made.spec, classes=classes, geometry=made.geometry, pixel_range=black_and_white, own=True)
    results = _evaluate(made, images, keep, batch_size=batch_size, workers=workers)
    add_evaluation(made.result, results, images, made.spec)
    return made.result


@dataclass
class _Evaluated:
    """Networks to evaluate by name, what is already known of each, and the images that they take.

    Attributes:
        geometry: how images are resized and cropped.
        pixel_range: black and white of deep images, as the student was tuned with.
    """

    models: dict[str, nn.Module]
    result: dict[str, Any]
    device: torch.device
    spec: InputSpec
    geometry: Geometry
    pixel_range: tuple[float, float] | None = None


def _evaluate(
    made: _Evaluated, images: ValidationImages, keep: KeptPredictions, *, batch_size: int, workers: int
) -> dict[str, EvaluationResult]:
    """Evaluate the networks, write the predictions, and add how far compared ones are apart to `made.result`."""
    with process_group(), progress("evaluating", len(images), images=1) as ticker:
        predictions = keep.collector() if keep.npz is not None or keep.csv is not None else None
        results = evaluate_models(
            made.models,
            images,
            device=made.device,
            batch_size=batch_size,
            workers=workers,
            predictions=predictions,
            progress=lambda done, _, top1: ticker.advance(done - ticker.done, top1_so_far(top1)),
        )
        if predictions is not None:
            keep.save(predictions, keep.npz)
        for name, model in made.models.items():
            if isinstance(model, Compared):
                made.result[name] = made.result.get(name, {}) | model.comparison()
    return results


def _of_student(
    folder: Path, device: torch.device, evaluation: EvaluationConfig, arch: str | None, *, integer: bool
) -> _Evaluated:
    """Load a saved student, and with `integer` also the same student in integer arithmetic."""
    student, spec, config = load_student(folder, device, arch)
    models: dict[str, nn.Module] = {"student": student}
    if integer:
        if not quantizers(student):
            raise ClusterqError(
                f"--integer: the student in {folder} is at {config.quant.bits}, expected quantized layers; leave --integer out."
            )
        models["integer"] = integer_student(student)
    result = {"student": {"bits": config.quant.bits, "sha256": sha256_file(folder / STUDENT)}}
    geometry = evaluation.override_with(config.evaluation.override_with(known_geometry(spec.size, config.teacher.arch)))
    return _Evaluated(models, result, device, spec, geometry, config.evaluation.black_and_white)


def _of_file(path: Path, exported: OnnxModel, evaluation: EvaluationConfig) -> _Evaluated:
    """Take an exported file alone, which runs on the CPU."""
    about = exported.description
    result = {"onnx": {"bits": about.bits, "sha256": sha256_file(path)}}
    geometry = evaluation.override_with(about.geometry)
    return _Evaluated({"onnx": exported}, result, torch.device("cpu"), about.input, geometry)


def _add_exported(made: _Evaluated, path: Path, exported: OnnxModel, folder: Path) -> None:
    """Add the exported file of the student that is evaluated, compared with it image by image."""
    about, own = exported.description, made.result["student"]["sha256"]
    if about.student != own:
        raise ClusterqError(
            f"--onnx: {path} was exported from a student with SHA-256 {about.student[:16]}, but that in {folder} has "
            f"{own[:16]}, expected the same; export again, or leave --student out."
        )
    made.models["onnx"] = Compared(made.models["student"], exported)
    made.result["onnx"] = {"bits": about.bits, "sha256": sha256_file(path)}


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
