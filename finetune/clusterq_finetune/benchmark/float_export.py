"""The float export of a student's teacher, made from the student's run, to compare the student's file with."""

from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.description import Description
from clusterq_common.export.onnx_file import onnx_bytes
from clusterq_common.files import sha256_file
from clusterq_common.run.extras import need_onnx
from clusterq_common.run.run_folder import CONFIG, STUDENT
from clusterq_common.settings import merged, read_yaml
from clusterq_common.teacher.load import load_teacher
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_common.teacher.trust import ARCH, WEIGHTS, refuse_foreign_code


def float_export(folder: Path, exported: Description, given: dict[str, str]) -> bytes:
    """Return the teacher of a student as the bytes of a float32 ONNX file that takes the same input as the student's file.

    Args:
        folder: of the student.
        exported: description of the student's file.
        given: fields of the teacher's settings that the command line gives.

    Raises:
        ClusterqError: the folder holds no student, or another one; code of a stranger; weights that cannot be had or are others.
    """
    need_onnx("--student")
    if not (folder / STUDENT).is_file():
        raise ClusterqError(
            f"--student: {folder} holds no {STUDENT}, expected the folder of the fine-tuning that the file is from."
        )
    digest = sha256_file(folder / STUDENT)
    if exported.student != digest:
        raise ClusterqError(
            f"--student: the file was exported from a student with SHA-256 {exported.student[:16]}, but that in {folder} has {digest[:16]}, "
            "expected the same; name its folder, or export again."
        )
    saved = read_yaml(folder / CONFIG)
    refuse_foreign_code(saved, {"teacher": given}, folder / CONFIG, looks_at=(ARCH, WEIGHTS))
    config = TeacherConfig.validated(merged(saved, {"teacher": given}).get("teacher", {}), source=str(folder / CONFIG))
    teacher = load_teacher(config)
    if exported.teacher and teacher.digest != exported.teacher:
        raise ClusterqError(
            f"--weights: the student's teacher has digest {exported.teacher[:19]}, these weights have {teacher.digest[:19]}, expected the "
            "same; pass the teacher's weights, or a float file with --float."
        )
    settings = OnnxConfig(with_preprocessing=exported.with_preprocessing, fixed_batch=exported.fixed_batch)
    plain: dict[str, Any] = {
        "bits": "w32a32",
        "first_last_bits": None,
        "layer_bits": (),
        "student": "",
        "target": "",
        "weights_clipped": {},
    }
    data, _ = onnx_bytes(teacher.model, teacher.spec, exported.model_copy(update=plain), settings)
    return data
