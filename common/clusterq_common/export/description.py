"""Description in an exported file: everything needed to feed it images, and its origin."""

from pathlib import Path

from pydantic import Field

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
        target: runtime that the file was made for, and with which version of it this was tried; empty for none.
        colour: meaning of the channels: `RGB` in this order, or `grey`; empty where there is another number of them.
        pixels: range of pixels before the normalisation.
        preprocessing: how a photograph becomes an input, in words.
        class_names: by class index; empty where they are unknown.
        with_preprocessing: the input is uint8 pixels (N, H, W, channels), and the graph normalises them.
        fixed_batch: number of images that the file takes at once; None: any.
        weights_clipped: integers that folding moved by one step, by the name of the weight.
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
    target: str = ""
    colour: str = ""
    pixels: str = ""
    preprocessing: str = ""
    class_names: tuple[str, ...] = ()
    with_preprocessing: bool = False
    fixed_batch: int | None = None
    weights_clipped: dict[str, int] = Field({})


# By number of channels.
COLOURS = {1: "grey", 3: "RGB"}


def describe(
    arch: str,
    quant: QuantConfig,
    geometry: Geometry,
    spec: InputSpec,
    *,
    clusterq: str,
    teacher: str,
    student: str,
    preprocessing: str = "",
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
        colour=COLOURS.get(spec.channels, ""),
        pixels="0 (black) to 255, divided by 255",
        preprocessing=preprocessing,
    )
