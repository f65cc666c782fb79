"""Input of an ONNX graph: its named batch axis, or pixels that the graph normalises itself."""

import numpy as np
from onnx import TensorProto, helper

from clusterq_common.export.onnx_graph import Graph
from clusterq_common.export.trace import INPUT
from clusterq_common.teacher.spec import InputSpec

BATCH = "batch"


def name_batch(graph: Graph, fixed: int | None) -> None:
    """Name the first axis of input and output `batch`, or fix it at a number of images; in place."""
    for value in [*graph.inputs, *graph.outputs]:
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        if fixed is None:
            axis.dim_param = BATCH
        else:
            axis.dim_value = fixed


def take_pixels(graph: Graph, spec: InputSpec) -> None:
    """Make the input uint8 pixels (N, H, W, C), and normalise them in float32 as `images.normalise` does, bit by bit; in place."""
    (value,) = graph.inputs
    _, *sides = (axis.dim_value for axis in value.type.tensor_type.shape.dim)
    normalised = f"{INPUT}.normalised"
    for node in graph.nodes:
        node.input[:] = [normalised if name == INPUT else name for name in node.input]
    shape = (1, spec.channels, 1, 1)
    steps = [("Div", np.full((1, 1, 1, 1), 255)), ("Sub", np.reshape(spec.mean, shape)), ("Div", np.reshape(spec.std, shape))]
    before = [
        helper.make_node("Transpose", [INPUT], [f"{INPUT}.planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", [f"{INPUT}.planes"], [f"{INPUT}.0"], to=TensorProto.FLOAT),
    ]
    for number, (operator, values) in enumerate(steps):
        constant = graph.put(f"{INPUT}.constant{number}", values.astype(np.float32))
        result = normalised if number == len(steps) - 1 else f"{INPUT}.{number + 1}"
        before.append(helper.make_node(operator, [f"{INPUT}.{number}", constant], [result]))
    graph.nodes = [*before, *graph.nodes]
    graph.inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [BATCH, *sides[1:], sides[0]])]
