"""Description in an exported file: everything needed to feed it images, and its origin."""

from pathlib import Path

from clusterq_common.quant.config import QuantConfig
from clusterq_common.settings import Settings
from clusterq_common.teacher.spec import Geometry, InputSpec, is_factory


class Description(Settings):
    """Description of a student, stored in the file's metadata as one JSON value a field.

    Attributes:
        clusterq: version that wrote the file.
        arch: architecture of teacher and student; for a factory only the names of file and function.
        teacher: `sha256:<hex>` of the teacher's weights; empty where the student's folder does not state it.
        student: SHA-256 of the student's file; empty where there was no file.
        bits, first_last_bits, layer_bits: bit-widths of the student.
        input: image size, channels, number of classes, normalisation of pixels in [0, 1].
        geometry: resizing and cropping of photographs.
        integers: storage of weights: `packed`, `int4` or `int8`; empty where the format has one way.
        opset: version of ONNX's operators; None in other formats.
        batchnorm_kept: BatchNorm layers that are still separate layers.
    """

    clusterq: str
    arch: str
    teacher: str
    student: str
    bits: str
    first_last_bits: int | None
    layer_bits: tuple[str, ...]
    input: InputSpec
    geometry: Geometry
    integers: str = ""
    opset: int | None = None
    batchnorm_kept: tuple[str, ...] = ()


def describe(
    arch: str, quant: QuantConfig, geometry: Geometry, spec: InputSpec, *, clusterq: str, teacher: str, student: str
) -> Description:
    """Describe a student, before the format adds its own fields. For a factory no folder is named."""
    return Description(
        clusterq=clusterq,
        arch=Path(arch).name if is_factory(arch) else arch,
        teacher=teacher,
        student=student,
        bits=quant.bits,
        first_last_bits=quant.first_last_bits,
        layer_bits=quant.layer_bits,
        input=spec,
        geometry=geometry,
    )
