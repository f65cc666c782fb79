"""Folding of BatchNorm into the convolution before it, in an ONNX graph."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, helper

from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.onnx_graph import Array, Graph
from clusterq_common.export.onnx_types import stored_bits
from clusterq_common.export.weights import IntegerWeight, Lowest, folded

# By `OnnxConfig.batchnorm`, for integers that fill their type.
LOWEST: dict[str, Lowest] = {"fold": "refuse", "fold-all": "zero-point", "fold-clip": "clip"}


def fold_batchnorm(
    graph: Graph, weights: dict[str, IntegerWeight], sites: Mapping[str, str], config: OnnxConfig
) -> dict[str, int]:
    """Fold each BatchNorm whose only input is a convolution that nothing else reads.

    With k = gamma / sqrt(var + eps), in float64: weight' = k weight, bias' = k (bias - mean) + beta. For integer weights only the
    scales change, and the signs where k is negative (`folded`). A BatchNorm is kept if there is no convolution before it, if
    something else reads the convolution's output, or if an integer would leave its type and `config` says `fold`.

    Args:
        graph: changed in place.
        weights: integer weights by site; the folded ones are replaced.
        sites: see `quantizer_sites`.
        config: `batchnorm`, not `keep`, and `integers`.

    Returns:
        The number of integers that `fold-clip` moved by one step, by the name of the weight; those without any are left out.
    """
    clipped: dict[str, int] = {}
    for node in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        _fold(graph, weights, sites, node, config, clipped)
    return clipped


def _fold(
    graph: Graph,
    weights: dict[str, IntegerWeight],
    sites: Mapping[str, str],
    node: NodeProto,
    config: OnnxConfig,
    clipped: dict[str, int],
) -> None:
    reads, convolution = graph.reads(), graph.producers().get(node.input[0])
    if convolution is None or convolution.op_type != "Conv" or reads[node.input[0]] > 1:
        return
    statistics = [graph.array(name) for name in node.input[1:]]
    weight_name = convolution.input[1]
    # Weights that are used more than once cannot be folded with one BatchNorm.
    uses = max(reads[weight_name], sum(site == sites.get(weight_name) for site in sites.values()))
    if any(values is None for values in statistics) or uses > 1:
        return
    gamma, beta, mean, variance = (np.asarray(values, np.float64) for values in statistics)
    factor = gamma / np.sqrt(variance + _epsilon(node))
    if not _scale_weight(graph, weights, sites, weight_name, factor, config, clipped):
        return
    bias = graph.array(convolution.input[2]) if len(convolution.input) > 2 else np.zeros_like(mean)
    assert bias is not None
    # Named after beta, which the folded bias replaces.
    folded_bias = graph.put(f"{node.input[2]}.folded", _float32((bias - mean) * factor + beta))
    convolution.input[:] = [*convolution.input[:2], folded_bias]
    convolution.output[0] = node.output[0]
    graph.nodes.remove(node)


def _scale_weight(
    graph: Graph,
    weights: dict[str, IntegerWeight],
    sites: Mapping[str, str],
    name: str,
    factor: Array,
    config: OnnxConfig,
    clipped: dict[str, int],
) -> bool:
    if name in sites:
        site = sites[name]
        # A type wider than the grid has room for the negative of the lowest integer.
        wider = stored_bits(weights[site].bits, config.integers) > weights[site].bits
        done = folded(weights[site], factor, "widen" if wider else LOWEST[config.batchnorm])
        if done is None:
            return False
        weights[site], moved = done
        if moved:
            clipped[site.removesuffix("_quantizer")] = moved
        return True
    values = graph.array(name)
    if values is None:
        return False
    graph.put(name, _float32(values * factor.reshape(-1, 1, 1, 1)))
    return True


def _float32(values: Array) -> Array:
    return np.asarray(values, np.float32)


def _epsilon(node: NodeProto) -> float:
    return float(next((helper.get_attribute_value(item) for item in node.attribute if item.name == "epsilon"), 1e-5))
