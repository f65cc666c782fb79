"""Parts of an ONNX file that ONNX Runtime's CPU kernels compute in float: some convolutions, and hard swish."""

from typing import NamedTuple

from onnx import GraphProto

from clusterq_common.export.onnx_graph import readers_of
from clusterq_common.quant.config import QuantConfig
from clusterq_common.setting_names import setting_name

# Between a convolution and a quantizer, integer kernels take these along; between it and the logits, they change nothing.
FUSED = {"Relu", "Clip"}
SHAPES = {"Reshape", "Flatten", "Squeeze", "Identity"}
# From this share of the convolutions on, those in float may cost more than the others gain.
MANY = 0.25


class FloatConvolutions(NamedTuple):
    """Convolutions between quantizers whose output no quantizer reads.

    Attributes:
        names: of their weights.
        convolutions: how many the file has in all.
        hard_swishes: functions between quantizers for which ONNX Runtime has no integer kernel.
    """

    names: list[str]
    convolutions: int
    hard_swishes: int = 0


def float_convolutions(graph: GraphProto) -> FloatConvolutions:
    """Find the convolutions with a quantized weight whose output something reads in float; those that give the logits do not count."""
    readers = readers_of(graph.node)
    weights = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    logits = {value.name for value in graph.output}

    def in_integers(name: str) -> bool:
        reading = readers.get(name, [])
        if len(reading) == 1 and reading[0].op_type in FUSED | SHAPES:
            return in_integers(reading[0].output[0])
        return name in logits or all(node.op_type == "QuantizeLinear" for node in reading)

    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    found = [weights[node.input[1]] for node in convolutions if node.input[1] in weights and not in_integers(node.output[0])]
    hard_swishes = sum(node.op_type == "HardSwish" for node in graph.node)
    return FloatConvolutions(found, len(convolutions), hard_swishes)


def remark_on(found: FloatConvolutions, quant: QuantConfig) -> list[str]:
    """Return a sentence on convolutions in float, and one on hard swish; none where there are few and nothing can be done.

    Args:
        found: what the file has.
        quant: settings of the student.
    """
    remarks = []
    left_off = [setting_name(name) for name in ("around_activations", "branch_outputs") if not getattr(quant, name)]
    many = len(found.names) > MANY * found.convolutions
    if found.names and (left_off or many):
        advice = f"fine-tune with {' and '.join(left_off)}" if left_off else "activation functions have to be modules"
        slow = ", so the file may be slower than float" if many else ""
        remarks.append(
            f"{len(found.names)} of {found.convolutions} convolutions will run in float, the first one {found.names[0]}: something reads "
            f"their output unquantized{slow}; {advice}."
        )
    if found.hard_swishes:
        remarks.append(
            f"{found.hard_swishes} hard swish functions will run in float between integer convolutions, since ONNX Runtime has no integer kernel for "
            f"them, so the file is smaller but may be slower than float; measure it with `benchmark`, or use OpenVINO ({setting_name('target', 'openvino')})."
        )
    return remarks
