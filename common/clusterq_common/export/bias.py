"""Preparation of an ONNX graph's biases, so that runtimes do not round them."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import NodeProto, helper

from clusterq_common.export.config import Integers
from clusterq_common.export.onnx_graph import Array, Graph
from clusterq_common.export.onnx_types import shift_of, stored_bits
from clusterq_common.export.weights import IntegerWeight

# Integer kernels store a bias in 32 bits, in units of scale(input) x scale(weight), as they store the sum that it is added to.
LARGEST_BIAS = 2**30
# These operators between a quantizer and a layer do not change values; ONNX Runtime looks through them.
KEEP_VALUES = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}


def settle_biases(
    graph: Graph, weights: dict[str, IntegerWeight], sites: Mapping[str, str], steps: Mapping[str, float], integers: Integers
) -> None:
    """Drop biases of zeros, and move those that integer kernels would distort into a separate Add; in place.

    ONNX Runtime's optimiser rounds the bias of a layer between quantizers to 32-bit multiples of scale(input) x scale(weight). Its
    8-bit kernels need that, but it is done even without a kernel for the layer's types. Below 8 bits these multiples are so coarse
    that most outputs change. In channels with very small scales they are so fine that a bias does not fit.

    Args:
        graph: the graph, before `spell_out`.
        weights: integer weights by site; channels with only zero weights get a larger scale, which changes no value.
        sites: see `quantizer_sites`.
        steps: scale of each activation by site.
        integers: see `OnnxConfig`.
    """
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        nodes.append(node)
        bias = graph.array(node.input[2]) if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2 else None
        if bias is None:
            continue
        site = sites.get(node.input[1])
        if not bias.any():
            del node.input[2]
        elif site is not None and not _fits(weights, site, bias, _input_step(graph, node, sites, steps), integers):
            # Conv has channels at axis 1 of four, Gemm at axis 1 of two.
            shape = (-1, 1, 1) if node.op_type == "Conv" else (-1,)
            name = graph.put(f"{node.input[2]}.added", bias.reshape(shape))
            product, total = f"{node.output[0]}.product", node.output[0]
            del node.input[2]
            node.output[0] = product
            nodes.append(helper.make_node("Add", [product, name], [total]))
    graph.nodes = nodes


def _fits(weights: dict[str, IntegerWeight], site: str, bias: Array, step: float | None, integers: Integers) -> bool:
    """Return whether an integer kernel can add this bias without distorting it."""
    weight = weights[site]
    if stored_bits(weight.bits, integers) < 8:
        return False
    if step is None:
        return True
    if weight.scale.size > 1:
        rows = weight.integers.reshape(len(weight.integers), -1)
        dead = (rows == weight.zero_point[:, None]).all(axis=1)
        weight = weights[site] = replace(weight, scale=np.where(dead, weight.scale.max(), weight.scale))
    units = step * weight.scale.astype(np.float64) / 2 ** shift_of(weight.bits, integers, widened=weight.widened)
    return bool((np.abs(bias) < LARGEST_BIAS * units).all())


def _input_step(graph: Graph, node: NodeProto, sites: Mapping[str, str], steps: Mapping[str, float]) -> float | None:
    """Return the scale of a layer's input; None where no quantizer is before it."""
    producers, name = graph.producers(), node.input[0]
    while name not in sites and name in producers and producers[name].op_type in KEEP_VALUES:
        name = producers[name].input[0]
    return steps.get(sites[name]) if name in sites else None
