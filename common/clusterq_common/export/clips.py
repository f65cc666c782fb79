"""Clips in an ONNX graph, such as ReLU6: removal of redundant ones, and constant limits for the others."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from clusterq_common.export.onnx_graph import Graph
from clusterq_common.quant.fake_quantizer import FakeQuantizer


def drop_needless_clips(graph: Graph, activations: Mapping[str, FakeQuantizer], sites: Mapping[str, str]) -> None:
    """Let quantizers read the input of a Clip before them, where no integer changes; in place.

    This holds if both limits become integers at the ends of the grid or beyond. Integer kernels fuse a convolution with the
    quantizer after it, but not through a Clip. ONNX Runtime drops such a Clip itself only if the two ends are equal in float32.

    Args:
        graph: the graph, before `spell_out`.
        activations: quantizers of activations by site.
        sites: see `quantizer_sites`.
    """
    producers, reads = graph.producers(), graph.reads()
    for node in graph.nodes:
        quantizer = activations.get(sites.get(node.output[0], ""))
        clip = producers.get(node.input[0]) if quantizer is not None else None
        if quantizer is None or clip is None or clip.op_type != "Clip" or reads[clip.output[0]] > 1:
            continue
        limits = [_constant(graph, producers, name) for name in clip.input[1:]]
        if len(limits) == 2 and _ends(quantizer, *limits):
            node.input[0] = clip.input[0]


def settle_limits(graph: Graph) -> None:
    """Make constants of the limits of Clips, which the exporter casts to the type of the clipped tensor; in place.

    ONNX Runtime fuses a convolution with a Clip only where the limits are constants.
    """
    producers = graph.producers()
    for number, node in enumerate(node for node in graph.nodes if node.op_type == "Clip"):
        for place, name in enumerate(node.input[1:], start=1):
            limit = _constant(graph, producers, name)
            if limit is not None:
                node.input[place] = graph.put(f"clip{number}.limit{place}", np.array(limit, np.float32))


def _ends(quantizer: FakeQuantizer, low: float | None, high: float | None) -> bool:
    """Return whether the grid ends at the limits or inside them."""
    if low is None or high is None:
        return False
    step, zero_point, grid = float(quantizer.step().detach()), int(quantizer.zero_point), quantizer.grid
    return round(low / step) + zero_point <= grid.low and round(high / step) + zero_point >= grid.high


def _constant(graph: Graph, producers: Mapping[str, NodeProto], name: str) -> float | None:
    """Return a constant scalar of the graph, or None."""
    values, node = graph.array(name), producers.get(name)
    while node is not None and node.op_type == "CastLike":  # the exporter casts a number to the type of the other operand
        values, node = graph.array(node.input[0]), producers.get(node.input[0])
    if values is None and node is not None and node.op_type == "Constant":
        held = helper.get_attribute_value(node.attribute[0])
        values = numpy_helper.to_array(held) if isinstance(held, TensorProto) else np.asarray(held)
    return None if values is None or values.size != 1 else float(values.reshape(-1)[0])
