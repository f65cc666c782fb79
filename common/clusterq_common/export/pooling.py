"""Poolings in an ONNX graph, in the form that runtimes have integer kernels for."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from clusterq_common.export.onnx_graph import Graph

# Operators whose results are among their inputs' values.
KEEPING = {"MaxPool", "Flatten"}
# (N, C, H, W)
IMAGE_RANK = 4


def name_global_pooling(graph: Graph, ranks: Mapping[str, int]) -> None:
    """Turn means over height and width that keep these axes into GlobalAveragePool, in place.

    The exporter writes adaptive pooling to one pixel as ReduceMean. Both compute the same, but ONNX Runtime has an integer kernel for
    GlobalAveragePool alone.

    Args:
        graph: the graph.
        ranks: number of dimensions by tensor; where it is unknown, the mean stays.
    """
    producers = graph.producers()
    for node in graph.nodes:
        if node.op_type != "ReduceMean" or len(node.input) != 2:
            continue
        keeps = all(helper.get_attribute_value(item) for item in node.attribute if item.name == "keepdims")
        axes = _axes(graph, producers, node.input[1])
        if keeps and ranks.get(node.input[0]) == IMAGE_RANK and {axis % IMAGE_RANK for axis in axes} == {2, 3}:
            node.op_type = "GlobalAveragePool"
            del node.input[1:]
            del node.attribute[:]


def repeat_quantizers(graph: Graph) -> None:
    """Repeat the quantizer before a max pooling or Flatten behind it, in place. No value changes, since the integers stay the same.

    A runtime computes an operator in integers where quantizers stand on both sides of it. Types of fewer than 8 bits have no such
    kernel and stay.
    """
    producers, nodes = graph.producers(), []
    for node in graph.nodes:
        nodes.append(node)
        before = producers.get(node.input[0]) if node.op_type in KEEPING and len(node.output) == 1 else None
        if before is None or before.op_type != "DequantizeLinear" or not has_byte_type(graph, before):
            continue
        output, step = node.output[0], list(before.input[1:])
        node.output[0], quantized = f"{output}.pooled", f"{output}.quantized"
        nodes.append(helper.make_node("QuantizeLinear", [node.output[0], *step], [quantized]))
        nodes.append(helper.make_node("DequantizeLinear", [quantized, *step], [output]))
    graph.nodes = nodes


def has_byte_type(graph: Graph, quantizer: NodeProto) -> bool:
    """Return whether the zero-point of a QuantizeLinear or DequantizeLinear is given, and of 8 bits."""
    point = graph.initializers.get(quantizer.input[2]) if len(quantizer.input) > 2 else None
    return point is not None and point.data_type in {TensorProto.UINT8, TensorProto.INT8}


def _axes(graph: Graph, producers: Mapping[str, NodeProto], name: str) -> list[int]:
    """Return the axes that a tensor holds; none where they are computed in a way that the exporter does not use."""
    values, node = graph.array(name), producers.get(name)
    if node is not None and node.op_type == "Reshape":
        values, node = graph.array(node.input[0]), producers.get(node.input[0])
    if values is None and node is not None and node.op_type == "Constant":
        held = helper.get_attribute_value(node.attribute[0])
        values = numpy_helper.to_array(held) if isinstance(held, TensorProto) else np.asarray(held)
    return [] if values is None else [int(axis) for axis in values.reshape(-1)]
