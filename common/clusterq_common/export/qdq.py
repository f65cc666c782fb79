"""Quantizers in ONNX: QuantizeLinear and DequantizeLinear for activations, integers and DequantizeLinear for weights."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, helper
from torch import nn

from clusterq_common.export.config import Integers, OnnxConfig
from clusterq_common.export.onnx_graph import Graph
from clusterq_common.export.onnx_types import activation_bits, shift_of, stored_bits
from clusterq_common.export.trace import DOMAIN, SITE
from clusterq_common.export.weights import IntegerWeight
from clusterq_common.quant.convert import quantizers
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.modules import QuantConv2d, QuantLinear

WEIGHT_SUFFIX = ".weight_quantizer"


def integer_weights(student: nn.Module) -> dict[str, IntegerWeight]:
    """Return the integer weights (`to_int()`) of each weight quantizer, by its name."""
    weights = {}
    for name, quantizer in quantizers(student).items():
        layer = student.get_submodule(name.rpartition(".")[0])
        if name.endswith(WEIGHT_SUFFIX) and isinstance(layer, QuantConv2d | QuantLinear):
            integers, scale, zero_point, _ = quantizer.to_int(layer.weight)
            grid = quantizer.grid
            weights[name] = IntegerWeight(
                integers.cpu().numpy(), scale.cpu().numpy(), zero_point.cpu().numpy(), grid.low, grid.high, grid.bits
            )
    return weights


def quantizer_sites(graph: Graph) -> dict[str, str]:
    """Return the quantizer site of each quantized tensor in a traced graph, by tensor name."""
    return {node.output[0]: site for node in graph.nodes if (site := _site(node)) is not None}


def spell_out(
    graph: Graph,
    weights: Mapping[str, IntegerWeight],
    activations: Mapping[str, FakeQuantizer],
    config: OnnxConfig,
    opset: int,
) -> None:
    """Replace the traced quantizers by ONNX operators, in place.

    Weights become an initializer of the narrowest type that `integers` allows (shifted up in it by `shift_of`), a scale (scalar or
    per channel at axis 0), and a zero-point where one is not 0. Activations get QuantizeLinear to their own type, or to an 8-bit
    type with a Clip of the integers after it, and then DequantizeLinear.

    Args:
        graph: the traced graph; after `fold_batchnorm`, if that is used.
        weights: integer weights by site.
        activations: the other quantizers by site.
        config: `integers` and `activation_types`.
        opset: opset of the graph.
    """
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        site = _site(node)
        if site is None:
            nodes.append(node)
        elif site in weights:
            nodes += _weight(graph, node.output[0], site.removesuffix("_quantizer"), weights[site], config.integers)
        else:
            nodes += _activation(graph, node.input[0], node.output[0], site, activations[site], config, opset)
    graph.nodes = nodes


def _site(node: NodeProto) -> str | None:
    """Return the site of a traced quantizer; None for any other node."""
    if node.domain != DOMAIN:
        return None
    return next(helper.get_attribute_value(item).decode() for item in node.attribute if item.name == SITE)


def _weight(graph: Graph, output: str, name: str, weight: IntegerWeight, integers: Integers) -> list[NodeProto]:
    bits, signed = stored_bits(weight.bits, integers), weight.low < 0
    factor = 2 ** shift_of(weight.bits, integers, widened=weight.widened)
    axis = 0 if weight.scale.size > 1 else None
    graph.put_integers(name, weight.integers * factor, bits, signed=signed)
    scale = weight.scale / np.float32(factor)
    inputs = [name, graph.put(f"{name}.scale", scale if axis == 0 else scale[0])]
    if weight.zero_point.any():
        points = (weight.zero_point if axis == 0 else weight.zero_point[0]) * factor
        inputs.append(graph.put_integers(f"{name}.zero_point", points, bits, signed=signed))
    node = helper.make_node("DequantizeLinear", inputs, [output])
    if axis is not None:
        node.attribute.append(helper.make_attribute("axis", axis))
    return [node]


def _activation(
    graph: Graph, source: str, output: str, site: str, quantizer: FakeQuantizer, config: OnnxConfig, opset: int
) -> list[NodeProto]:
    grid = quantizer.grid
    bits = activation_bits(grid.bits, config.integers, opset)
    name, signed, offset = site.removesuffix("_quantizer"), grid.low < 0, 0
    if signed and (bits != grid.bits or config.activation_types == "unsigned"):
        # Unsigned around 128: ONNX Runtime's integer kernels need input and output of one type, and convert it themselves only
        # where no Clip is between them.
        signed, offset = False, 2 ** (bits - 1)
    scale = graph.put(f"{name}.scale", quantizer.step().detach().cpu().numpy()[0])

    def constant(value: int) -> str:
        """Return the name of an integer constant, shared by all activations of a type."""
        number = value + offset
        return graph.put_integers(f"{'' if signed else 'u'}int{bits}_{number}", np.array(number), bits, signed=signed)

    point = constant(int(quantizer.zero_point))
    quantized = clipped = f"{output}.quantized"
    nodes = [helper.make_node("QuantizeLinear", [source, scale, point], [quantized])]
    if bits != grid.bits:
        clipped = f"{output}.clipped"
        nodes.append(helper.make_node("Clip", [quantized, constant(grid.low), constant(grid.high)], [clipped]))
    return [*nodes, helper.make_node("DequantizeLinear", [clipped, scale, point], [output])]


def size_of(student: nn.Module) -> dict[str, int]:
    """Count the bytes of the quantized weights.

    Returns:
        `integers` at their true bits, their `scales` (float32, with zero-points as integers where not 0), and the same weights as
        `float32`.
    """
    weights = integer_weights(student).values()
    points = sum(weight.zero_point.size * weight.bits for weight in weights if weight.zero_point.any())
    return {
        "integers": sum(weight.integers.size * weight.bits for weight in weights) // 8,
        "scales": sum(4 * weight.scale.size for weight in weights) + points // 8,
        "float32": sum(4 * weight.integers.size for weight in weights),
    }
