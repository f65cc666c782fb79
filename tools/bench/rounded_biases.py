"""Rounding of biases in a file, as ONNX Runtime's optimiser does it, to separate its effect from the optimiser's other changes."""

import numpy as np
import onnx
from onnx import numpy_helper


def with_rounded_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose biases of layers between quantizers are multiples of scale(input) x scale(weight), halves to even."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in rounded.graph.initializer}
    producers = {name: node for node in rounded.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in rounded.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in rounded.graph.node:
        sources = [producers.get(name) for name in node.input[:2]]
        if node.op_type != "Conv" or len(node.input) < 3 or any(s is None or s.op_type != "DequantizeLinear" for s in sources):
            continue
        if not _quantized_next(node.output[0], readers):
            continue
        step, scales = (numpy_helper.to_array(tensors[s.input[1]]) for s in sources if s is not None)
        unit = step * scales
        bias = numpy_helper.to_array(tensors[node.input[2]])
        tensors[node.input[2]].CopyFrom(
            numpy_helper.from_array((np.round(bias / unit) * unit).astype(np.float32), node.input[2])
        )
    return rounded


def _quantized_next(name: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Return whether a tensor is read by one quantizer only, directly or through one ReLU."""
    after = readers.get(name, [])
    if len(after) == 1 and after[0].op_type == "Relu":
        after = readers.get(after[0].output[0], [])
    return len(after) == 1 and after[0].op_type == "QuantizeLinear"
