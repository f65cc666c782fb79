"""`clusterq-finetune evaluate`: a saved student, a file it was exported to, or both, on real images."""

from dataclasses import dataclass
from functools import partial
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
from clusterq_finetune.data.real import ValidationImages
from clusterq_finetune.evaluation.evaluate import EvaluationResult, evaluate_models
from clusterq_finetune.evaluation.parity import Compared, integer_student
from clusterq_finetune.evaluation.predictions import NOTHING_MORE, KeptPredictions
from clusterq_finetune.evaluation.real_images import RealImages
from clusterq_finetune.evaluation.summary import add_evaluation, top1_so_far
from clusterq_finetune.student import load_student


@dataclass(frozen=True)
class Saved:
    """Networks to evaluate: a saved student, a file it was exported to, or both.

    Attributes:
        student: the student's folder.
        arch: the student's architecture, as the command line names it.
        integer: also the student in integer arithmetic, and how far the two are apart.
        onnx: an exported file, for ONNX Runtime on the CPU; with a student also how far the two are apart.
        optimise: let ONNX Runtime rewrite the graph.
    """

    student: Path | None = None
    arch: str | None = None
    integer: bool = False
    onnx: Path | None = None
    optimise: bool = True


def evaluate_saved(
    saved: Saved,
    real: RealImages,
    runtime: RuntimeConfig,
    *,
    batch_size: int,
    workers: int,
    keep: KeptPredictions = NOTHING_MORE,
) -> dict[str, Any]:
    """Return top-1 and top-5 on real images, resized and cropped as `real` says, else as when the student was tuned.

    Args:
        saved: the student, its exported file, or both.
        real: the images.
        runtime: settings.
        batch_size: images in a batch.
        workers: decoding processes.
        keep: what is written of each image.

    Raises:
        ClusterqError: see `load_student`, `OnnxModel`, `open_validation`; or flags that do not belong together.
    """
    keep.need(real.place)
    if keep.probabilities and keep.npz is None:
        raise ClusterqError(
            "--probabilities: there is no --predictions, expected a file that they go to; pass --predictions FILE."
        )
    _refuse_flags(saved, runtime)
    exported = partial(OnnxModel, optimise=saved.optimise, threads=runtime.threads)
    if saved.student is not None:
        made = _of_student(saved.student, prepare_device(runtime), saved.arch, integer=saved.integer)
        if saved.onnx is not None:
            _add_exported(made, saved.onnx, exported(saved.onnx), saved.student)
    else:
        assert saved.onnx is not None
        made = _of_file(saved.onnx, exported(saved.onnx))
    images = real.open(made.spec, made.geometry, made.pixel_range)
    results = _evaluate(made, images, keep, batch_size=batch_size, workers=workers)
    add_evaluation(made.result, results, images, made.spec)
    return made.result


@dataclass
class _Evaluated:
    """Networks to evaluate by name, what is already known of each, and the images that they take.

    Attributes:
        geometry: how images were resized and cropped when the student was tuned.
        pixel_range: black and white of deep images then.
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


def _of_student(folder: Path, device: torch.device, arch: str | None, *, integer: bool) -> _Evaluated:
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
    geometry = config.evaluation.override_with(known_geometry(spec.size, config.teacher.arch))
    return _Evaluated(models, result, device, spec, geometry, config.evaluation.black_and_white)


def _of_file(path: Path, exported: OnnxModel) -> _Evaluated:
    """Take an exported file alone, which runs on the CPU."""
    about = exported.description
    result = {"onnx": {"bits": about.bits, "sha256": sha256_file(path)}}
    return _Evaluated({"onnx": exported}, result, torch.device("cpu"), about.input, about.geometry)


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


def _refuse_flags(saved: Saved, runtime: RuntimeConfig) -> None:
    if saved.student is None and saved.onnx is None:
        raise ClusterqError(
            "--student is missing, expected a student's folder, or an exported file with --onnx; pass either or both."
        )
    if saved.arch is not None and saved.student is None:
        raise ClusterqError(
            "--arch: there is no --student, expected one of that architecture; pass --student, or leave it out."
        )
    if saved.integer and saved.student is None:
        raise ClusterqError(
            "--integer: there is no --student, expected one whose integers can be computed with; pass --student."
        )
    if saved.onnx is None and not saved.optimise:
        raise ClusterqError("--no-optimise: there is no --onnx, expected one whose graph could be rewritten; leave it out.")
    if saved.student is None and runtime.device == "cuda":
        raise ClusterqError("--device: cuda, but --onnx runs on the CPU, expected auto or cpu; leave it out.")
