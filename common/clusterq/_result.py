"""Evaluation of a network, and its export as a file."""

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from clusterq._called import device_of, need_calibrated
from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import Integers, OnnxConfig
from clusterq_common.export.description import Description
from clusterq_common.files import atomic_write
from clusterq_common.progress.console import send_messages_to
from clusterq_common.quant.convert import quantized_as
from clusterq_common.run.environment import versions
from clusterq_common.run.extras import need_onnx
from clusterq_common.teacher.families import known_geometry
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.data.preprocess import describe_preprocessing
from clusterq_finetune.data.real import ValidationImages
from clusterq_finetune.evaluation.evaluate import TEACHER, EvaluationResult, evaluate_models

EVALUATED = "model"


def evaluate(
    model: nn.Module,
    images: ValidationImages,
    *,
    teacher: Teacher | None = None,
    batch_size: int = 256,
    workers: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> EvaluationResult:
    """Evaluate a classifier on real images, in float32: `.top1` with `.top1_interval`, `.top5`, `.per_class` and more.

    Args:
        model: a student or a teacher's model; on any device. Its training mode is restored.
        images: from `open_images`.
        teacher: then `.agreement` says how often both name the same class; on the model's device.
        batch_size: images in a batch.
        workers: decoding processes.
        progress: called with what is being done, how many images are done, and how many there are.

    Raises:
        ClusterqError: the model is not calibrated, or not one image can be read.
    """
    with send_messages_to():
        need_calibrated(model)
        models = {EVALUATED: model} if teacher is None else {TEACHER: teacher.model, EVALUATED: model}
        so_far = None if progress is None else lambda done, total, _: progress("evaluating", done, total)
        results = evaluate_models(
            models, images, device=device_of(model), batch_size=batch_size, workers=workers, progress=so_far
        )
        return results[EVALUATED]


def export_onnx(
    student: nn.Module,
    spec: InputSpec,
    path: Path | str,
    *,
    arch: str = "",
    batchnorm: str = "fold",
    integers: Integers = "packed",
    opset: int | None = None,
) -> None:
    """Write a student as an ONNX file with its integers in it; a file that is there is replaced. Needs the extra `onnx`.

    Args:
        student: calibrated.
        spec: the images it takes.
        path: of the file.
        arch: what the file says it is; the name of the student's class if left out.
        batchnorm: `fold` into convolutions wherever integers stay what they are, `fold-clip`, `fold-all`, or `keep` as layers.
        integers: `packed`, `int4` or `int8`: types that hold the weights.
        opset: version of ONNX's operators; as old as the types allow if left out.

    Raises:
        ClusterqError: a package of the extra is missing, the student is not calibrated or cannot be traced, or the file cannot be written.
    """
    with send_messages_to():
        need_onnx("export_onnx")
        from clusterq_common.export.onnx_file import onnx_bytes

        need_calibrated(student)
        config = OnnxConfig.validated({"batchnorm": batchnorm, "integers": integers, "opset": opset})
        quant = quantized_as(student)
        description = Description(
            clusterq=versions()["clusterq"],
            arch=arch or type(student).__name__,
            teacher="",
            student="",
            bits=quant.bits,
            first_last_bits=quant.first_last_bits,
            layer_bits=quant.layer_bits,
            input=spec,
            geometry=known_geometry(spec.size, arch),
            preprocessing=describe_preprocessing(spec, known_geometry(spec.size, arch)),
        )
        data, _ = onnx_bytes(copy.deepcopy(student).cpu().eval(), spec, description, config)
        try:
            atomic_write(Path(path), data)
        except OSError as error:
            raise ClusterqError(
                f"path: {path} cannot be written ({error.strerror}), expected a file in a folder of yours."
            ) from error
