"""Runtimes that a file can be made for, and what each of them wants from quantizers and file: one table. Free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clusterq_common.export.config import Format

TargetName = Literal["ort-cpu", "ort-cuda", "openvino", "tensorrt", "qnn", "executorch"]
# Packages that files are timed in, by the names that texts have for them.
RuntimeName = Literal["onnxruntime", "openvino"]
RUNTIMES: dict[str, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Choice:
    """The value of a setting for a target.

    Attributes:
        value: used where the user gives none.
        why: reason, one sentence.
        source: where the reason is from.
        only: the values that the target runs, where it does not run all of them; empty: any value runs.
        counted: the export counts in the file what another value costs, and says so only where it costs something.
    """

    value: Any
    why: str
    source: str
    only: tuple[Any, ...] = ()
    counted: bool = False


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        runtime: its name.
        checked: version and hardware on which the tests or a documented run tried it; empty: untested.
        quant: choices of `QuantConfig`, for fine-tuning.
        file: choices of `OnnxConfig`, for the export.
        formats: formats of files that it reads; the first one is the default.
        weight_types: bits of the integer types that it takes for weights.
        activation_types: bits of those that it takes for activations; others would need a Clip among integers.
        speed: what to expect, one sentence.
        package: the package that times its files where it is meant to run them; None: there is none.
    """

    runtime: str
    checked: str
    speed: str
    quant: Mapping[str, Choice] = field(default_factory=dict)
    file: Mapping[str, Choice] = field(default_factory=dict)
    formats: tuple[Format, ...] = ("onnx",)
    weight_types: tuple[int, ...] = (8,)
    activation_types: tuple[int, ...] | None = None
    package: RuntimeName | None = None

    @property
    def status(self) -> str:
        """Result of trying the target, in words for help, printed results and the file's description."""
        return f"checked with {self.checked}" if self.checked else "untested"


MEASURED = "measured: docs/performance.md, Exported files"
ORT_KERNELS = "github.com/microsoft/onnxruntime, docs/OperatorKernels.md"
ORT_QNN = "onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html"
TENSORRT = "docs.nvidia.com/deeplearning/tensorrt, Working with Quantized Types"
OPENVINO = "docs.openvino.ai, Low Precision Transformations"

_BRANCHES = Choice(
    True,
    "A convolution whose output stays in float is computed in float, so what feeds a residual addition is quantized too.",
    MEASURED,
)
_AROUND = Choice(
    True,
    "A convolution before a SiLU, hard swish or sigmoid, or before a ReLU that squeeze-and-excitation reads, is computed in float unless "
    "that is quantized, too.",
    MEASURED,
    counted=True,
)
_SUMS = Choice(
    True,
    "An addition or a max pooling is computed in float, between conversions, unless all that it reads and what comes of it is quantized.",
    MEASURED,
)
_NARROW = Choice(
    True,
    "Weights from -127 to 127 let BatchNorm with a negative gamma be folded without a zero-point among the weights, which slows "
    "depthwise kernels down.",
    MEASURED,
)
_FOLD = Choice(
    "fold-clip",
    "A BatchNorm left as a layer, or a zero-point among the weights, keeps a convolution from its integer kernel.",
    MEASURED,
)
_INT8 = Choice("int8", "Integer kernels take 8 bits; narrower types are unpacked to float at each call.", MEASURED)

TARGETS: dict[TargetName, Target] = {
    "ort-cpu": Target(
        runtime="ONNX Runtime on a CPU",
        checked="onnxruntime 1.31.1 on AVX512-VNNI",
        speed="8-bit files run in integers; narrower types make files smaller and slower.",
        quant={"branch_outputs": _BRANCHES, "around_activations": _AROUND, "residual_sums": _SUMS, "narrow_weights": _NARROW},
        file={
            "batchnorm": _FOLD,
            "integers": _INT8,
            "activation_types": Choice(
                "unsigned",
                "A convolution from UINT8 to INT8 whose output is read twice, as before a residual addition, stays in float; from UINT8 to "
                "UINT8 it does not.",
                MEASURED,
            ),
        },
        weight_types=(2, 4, 8),
        package="onnxruntime",
    ),
    "ort-cuda": Target(
        runtime="ONNX Runtime on an NVIDIA GPU (CUDA)",
        checked="",
        speed="Its convolutions run in float between the quantizers, so the file is smaller, not faster; for speed use tensorrt.",
        quant={"narrow_weights": _NARROW},
        file={
            "batchnorm": Choice(
                "fold-clip", "A BatchNorm layer is one more pass over memory.", ORT_KERNELS, only=("fold", "fold-clip", "keep")
            ),
            "integers": Choice(
                "int8", "DequantizeLinear takes 8-bit integers on this provider in all opsets.", ORT_KERNELS, only=("int8",)
            ),
        },
    ),
    "openvino": Target(
        runtime="OpenVINO on a CPU",
        checked="openvino 2026.4.1 on AVX512-VNNI",
        speed="8-bit files run in integers; INT4 weights run in float; it has no 2-bit types in ONNX files.",
        quant={"branch_outputs": _BRANCHES, "narrow_weights": _NARROW},
        file={"batchnorm": _FOLD, "integers": Choice("int8", _INT8.why, OPENVINO, only=("int8", "int4", "packed"))},
        weight_types=(4, 8),
        package="openvino",
    ),
    "tensorrt": Target(
        runtime="NVIDIA TensorRT",
        checked="",
        speed="Convolutions between 8-bit quantizers are meant to run on INT8 tensor cores.",
        quant={
            "quantizer": Choice("symmetric", "It takes zero-points of 0 alone.", TENSORRT, only=("symmetric",)),
            "signed": Choice(True, "Its only 8-bit integer type is signed.", TENSORRT, only=(True,)),
            "narrow_weights": Choice(True, "It takes weights from -127 to 127.", TENSORRT, only=(True,)),
            "branch_outputs": Choice(True, "Additions are fused where both sides are quantized.", TENSORRT),
        },
        file={
            "batchnorm": Choice("fold-clip", "Zero-points of weights must be 0.", TENSORRT, only=("fold", "fold-clip", "keep")),
            "integers": Choice(
                "int8", "INT4 is for weights of matrix products alone, not for convolutions.", TENSORRT, only=("int8",)
            ),
            "activation_types": Choice("own", "It has no unsigned 8-bit type.", TENSORRT, only=("own",)),
        },
        activation_types=(8,),
    ),
    "qnn": Target(
        runtime="Qualcomm QNN (HTP) through ONNX Runtime",
        checked="",
        speed="Layers between 8-bit quantizers are meant to run on the NPU.",
        quant={
            "quantizer": Choice("symmetric", "Weights per channel need zero-points of 0.", ORT_QNN, only=("symmetric",)),
            "narrow_weights": _NARROW,
            "branch_outputs": Choice(True, "Every operator must stand between quantizers to stay on the NPU.", ORT_QNN),
        },
        file={
            "batchnorm": Choice(
                "fold-clip", "Zero-points of weights per channel must be 0.", ORT_QNN, only=("fold", "fold-clip", "keep")
            ),
            "integers": Choice("int8", "Weights are INT8; INT4 depends on the chip.", ORT_QNN, only=("int8", "int4")),
            "activation_types": Choice("unsigned", "Activations are UINT8.", ORT_QNN, only=("unsigned",)),
            "fixed_batch": Choice(1, "Shapes must be fixed.", ORT_QNN),
        },
        weight_types=(4, 8),
        activation_types=(8,),
    ),
    "executorch": Target(
        runtime="ExecuTorch (XNNPACK)",
        checked="executorch 1.5.1 on a CPU: lowered to XNNPACK, same logits",
        speed="The program computes in float32, with weights and activations on their grids: its integer kernels want operators of its "
        "own quantizers.",
        formats=("pt2",),
        weight_types=(2, 4, 8),
    ),
}
