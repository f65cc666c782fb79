"""A last convolution or linear layer in an ONNX graph as a matrix product: runtimes have an integer kernel for one with float output."""

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from clusterq_common.export.float_convolutions import SHAPES
from clusterq_common.export.onnx_graph import Graph, readers_of
from clusterq_common.export.pooling import has_byte_type

LAYERS = {"Conv", "Gemm"}
# Attributes of Gemm where a node has none.
GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def multiply_last(graph: Graph, shapes: Mapping[str, Sequence[int]]) -> None:
    """Turn the layer that gives the logits into a matrix product, in place: a linear layer, or a 1x1 convolution of one pixel.

    Its input has to be quantized, and its weights have to be INT8. ONNX Runtime computes a convolution without a quantizer behind it in
    float, and unpacks its weights at each call. It does the same with Gemm, and with a MatMul and an Add, of which it makes a Gemm. So
    the bias is subtracted with its sign turned, which gives the same numbers. The weights become (channels, classes). The product's
    input needs a quantizer of 8 bits right before it, or ONNX Runtime would round the input to integers of its own, so
    `repeat_quantizers` has to follow.

    Args:
        graph: the graph, after `spell_out`.
        shapes: by tensor, as far as they are known; 0 where a size is open.
    """
    producers, reads, readers = graph.producers(), graph.reads(), readers_of(graph.nodes)
    for node in graph.nodes:
        x, scaled = (producers.get(name) for name in node.input[:2]) if node.op_type in LAYERS else (None, None)
        if x is None or scaled is None or {x.op_type, scaled.op_type} != {"DequantizeLinear"}:
            continue
        if not has_byte_type(graph, x) or reads[node.input[1]] > 1 or reads[scaled.input[0]] > 1:
            continue
        stored, end = graph.initializers.get(scaled.input[0]), _end(graph, node, readers)
        if stored is None or stored.data_type != TensorProto.INT8 or end is None:
            continue
        classes, channels, *kernel = stored.dims
        ends = [list(shapes.get(name, ()))[1:] for name in (node.input[0], end.output[0])]
        one_pixel = kernel == [1, 1] and ends == [[channels, 1, 1], [classes]]
        linear = not kernel and ends[1] == [classes] and _is_plain(node)
        if one_pixel or linear:
            _multiply(graph, node, scaled, end)
            return


def _is_plain(node: NodeProto) -> bool:
    """Return whether a Gemm multiplies with the transposed weights, as linear layers are exported, and scales nothing."""
    found = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return {**GEMM_DEFAULTS, **found} == {**GEMM_DEFAULTS, "transB": 1}


def _multiply(graph: Graph, node: NodeProto, scaled: NodeProto, end: NodeProto) -> None:
    """Replace a layer, and the operators up to `end` that shape its output, by a matrix product and the bias."""
    integers = graph.array(scaled.input[0])
    assert integers is not None
    graph.put_integers(scaled.input[0], integers.reshape(integers.shape[:2]).T, 8, signed=True)
    for axis in scaled.attribute:
        axis.i = 1
    product, logits = f"{node.output[0]}.product", end.output[0]
    bias = graph.array(node.input[2]) if len(node.input) > 2 else None
    made, flat = [], node.input[0]
    if node.op_type == "Conv":
        flat = f"{node.input[0]}.flat"
        made.append(helper.make_node("Flatten", [node.input[0]], [flat]))
    made.append(helper.make_node("MatMul", [flat, node.input[1]], [logits if bias is None else product]))
    if bias is not None:
        turned = graph.put(f"{node.input[2]}.turned", np.negative(bias))
        made.append(helper.make_node("Sub", [product, turned], [logits]))
    if end is not node:
        graph.nodes.remove(end)
    place = graph.nodes.index(node)
    graph.nodes[place : place + 1] = made


def _end(graph: Graph, node: NodeProto, readers: Mapping[str, list[NodeProto]]) -> NodeProto | None:
    """Return the last of the operators that only shape a node's output into the logits; None where there are others."""
    while node.output[0] not in {value.name for value in graph.outputs}:
        after = [reader for reader in readers.get(node.output[0], []) if reader.op_type != "Shape"]
        if len(after) != 1 or after[0].op_type not in SHAPES or after[0].input[0] != node.output[0]:
            return None
        node = after[0]
    return node
