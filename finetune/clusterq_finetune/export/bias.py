"""Biases of an ONNX graph, as runtimes leave them alone."""

from collections.abc import Collection

from onnx import NodeProto, helper

from clusterq_finetune.export.graph import Graph


def settle_biases(graph: Graph, narrow: Collection[str]) -> None:
    """Drop biases of zeros, and give those of layers with narrow weights an Add of their own; in place.

    ONNX Runtime's optimiser rounds the bias of a convolution between quantizers to multiples of scale(input) x scale(weight), as its
    8-bit kernels add it. At 4 bits and fewer these multiples are coarse enough to move most outputs, and there is no kernel to gain.

    Args:
        graph: before its quantizers are spelled out.
        narrow: tensors that are weights stored in fewer than 8 bits.
    """
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        nodes.append(node)
        bias = graph.array(node.input[2]) if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2 else None
        if bias is None:
            continue
        if not bias.any():
            del node.input[2]
        elif node.input[1] in narrow:
            # Conv has channels at axis 1 of four, Gemm at axis 1 of two.
            shape = (-1, 1, 1) if node.op_type == "Conv" else (-1,)
            name = graph.put(f"{node.input[2]}.added", bias.reshape(shape))
            product, total = f"{node.output[0]}.product", node.output[0]
            del node.input[2]
            node.output[0] = product
            nodes.append(helper.make_node("Add", [product, name], [total]))
    graph.nodes = nodes
