"""Hard sigmoids in an ONNX graph, as sums that saturate: runtimes have integer kernels for sums, and none for hard sigmoids."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper

from clusterq_common.export.onnx_graph import Graph, readers_of

# hard_sigmoid(x) = clip((x + OFFSET) / WIDTH, 0, 1)
OFFSET, WIDTH = 3.0, 6.0
LARGEST = 255


def saturate_hard_sigmoids(graph: Graph) -> None:
    """Replace hard sigmoids between UINT8 quantizers by `x + 3`, in place.

    `(x + 3) / 6` is cut to [0, 1] by the quantizer itself where 0 is its lowest integer and 1 is not below its highest. So the quantizer
    gets `x + 3` with six times its scale, and gives the same integers, up to a rounding of values in the middle of two.
    Others stay as they are.
    """
    producers, readers, nodes = graph.producers(), readers_of(graph.nodes), []
    ends = {value.name for value in graph.outputs}
    for node in graph.nodes:
        quantizer = _quantizer(graph, node, producers, readers, ends)
        if quantizer is None:
            nodes.append(node)
            continue
        scale = graph.array(quantizer.input[1])
        quantizer.input[1] = graph.put(f"{quantizer.input[1]}.{WIDTH:g}", np.float32(WIDTH) * np.asarray(scale))
        one = graph.put_integers("uint8_1", np.array(1), 8, signed=False)
        zero = graph.put_integers("uint8_0", np.array(0), 8, signed=False)
        offset = f"{node.output[0]}.offset"
        number = graph.put(f"{offset}.scale", np.array(OFFSET, dtype=np.float32))
        nodes.append(helper.make_node("DequantizeLinear", [one, number, zero], [offset]))
        nodes.append(helper.make_node("Add", [node.input[0], offset], [node.output[0]]))
    graph.nodes = nodes


def _quantizer(
    graph: Graph,
    node: NodeProto,
    producers: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    ends: set[str],
) -> NodeProto | None:
    """Return the quantizer that reads a hard sigmoid; None for other nodes, and where the quantizer does not saturate as it does."""
    if node.op_type != "HardSigmoid" or not _is_torchs(node) or node.output[0] in ends:
        return None
    before, after = producers.get(node.input[0]), readers.get(node.output[0], [])
    if before is None or before.op_type != "DequantizeLinear" or [one.op_type for one in after] != ["QuantizeLinear"]:
        return None
    (quantizer,) = after
    scale = graph.array(quantizer.input[1])
    if not all(_is_byte(graph, one.input[2]) for one in (before, quantizer)) or graph.array(quantizer.input[2]) != 0:
        return None
    saturates = scale is not None and scale.ndim == 0 and np.rint(np.float32(1) / scale) >= LARGEST
    return quantizer if saturates else None


def _is_torchs(node: NodeProto) -> bool:
    values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return bool(np.isclose(values.get("alpha", 0.2), 1 / WIDTH) and np.isclose(values.get("beta", 0.5), OFFSET / WIDTH))


def _is_byte(graph: Graph, name: str) -> bool:
    return name in graph.initializers and graph.initializers[name].data_type == TensorProto.UINT8
