"""An editable ONNX graph: producers and readers of tensors, and removal of everything unneeded."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from clusterq_common.export.weights import pack

Array = NDArray[Any]

INTEGER_TYPES = {
    (bits, signed): int(TensorProto.DataType.Value(f"{'' if signed else 'U'}INT{bits}"))
    for bits in (2, 4, 8)
    for signed in (False, True)
}

# Operators whose attributes named in `_is_default` have the defaults given there.
OPS_WITH_DEFAULTS = {"Conv", "MaxPool", "AveragePool", "Gemm", "Reshape"}


class Graph:
    """Nodes in topological order, and initializers by name.

    Attributes:
        nodes: replace an element, or the list, to change the graph.
        initializers: name -> tensor.
    """

    def __init__(self, proto: GraphProto) -> None:
        self.nodes: list[NodeProto] = list(proto.node)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in proto.initializer}
        self.inputs, self.outputs = list(proto.input), list(proto.output)

    def producers(self) -> dict[str, NodeProto]:
        """Return the node that produces each tensor, by tensor name."""
        return {name: node for node in self.nodes for name in node.output}

    def reads(self) -> Counter[str]:
        """Return the number of inputs that read each tensor, by tensor name; an output of the graph counts as one."""
        counts = Counter(name for node in self.nodes for name in node.input)
        counts.update(value.name for value in self.outputs)
        return counts

    def array(self, name: str) -> Array | None:
        """Return the values of an initializer, or None for a computed tensor."""
        return numpy_helper.to_array(self.initializers[name]) if name in self.initializers else None

    def put(self, name: str, values: Array) -> str:
        """Add a float or int64 initializer of the shape of `values`, a number's being (). Returns its name."""
        whole = np.ascontiguousarray(values).reshape(np.shape(values))  # the function makes numbers one-dimensional
        self.initializers[name] = numpy_helper.from_array(whole, name)
        return name

    def put_integers(self, name: str, values: Array, bits: int, *, signed: bool) -> str:
        """Add an initializer of integers of 2, 4 or 8 bits, in ONNX's packing. Returns its name."""
        kind = INTEGER_TYPES[bits, signed]
        self.initializers[name] = helper.make_tensor(name, kind, values.shape, pack(values, bits), raw=True)
        return name

    def prune(self) -> None:
        """Drop nodes and initializers that no output needs."""
        needed = {value.name for value in self.outputs}
        kept = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]
        self.initializers = {name: tensor for name, tensor in self.initializers.items() if name in needed}

    def shorten(self) -> None:
        """Replace names by numbers except for inputs, outputs and weight matrices, and leave out attributes with default values.

        Each name is in the file up to three times. In a 4-bit model for small images names would be a tenth of the file.
        """
        kept = {"", *(name for name, tensor in self.initializers.items() if len(tensor.dims) in {2, 4})}
        kept |= {value.name for value in [*self.inputs, *self.outputs]}
        names: dict[str, str] = defaultdict(lambda: f"t{len(names)}")
        for node in self.nodes:
            node.input[:] = [name if name in kept else names[name] for name in node.input]
            node.output[:] = [name if name in kept else names[name] for name in node.output]
            node.name = ""
            attributes = [item for item in node.attribute if not _is_default(node, item)]
            del node.attribute[:]
            node.attribute.extend(attributes)
        for name, tensor in self.initializers.items():
            tensor.name = name if name in kept else names[name]
        self.initializers = {tensor.name: tensor for tensor in self.initializers.values()}

    def proto(self, name: str) -> GraphProto:
        """Return the graph as an ONNX message, without the exporter's notes about source files."""
        for item in [*self.nodes, *self.inputs, *self.outputs]:
            del item.metadata_props[:]
            item.doc_string = ""
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))

    def batchnorm_layers(self) -> list[str]:
        """Return the names of the graph's BatchNorm layers, taken from the names of their parameters."""
        return [
            node.input[1].rpartition(".")[0] or node.output[0] for node in self.nodes if node.op_type == "BatchNormalization"
        ]


def readers_of(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """Return the nodes that read each tensor, by tensor name."""
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _is_default(node: NodeProto, attribute: AttributeProto) -> bool:
    value = helper.get_attribute_value(attribute)
    if attribute.name == "kernel_shape":  # of a convolution: the weight's
        return node.op_type == "Conv"
    if attribute.name in {"pads", "strides", "dilations"}:
        return node.op_type in OPS_WITH_DEFAULTS and set(value) == ({0} if attribute.name == "pads" else {1})
    defaults = {"auto_pad": b"NOTSET", "ceil_mode": 0, "group": 1, "alpha": 1.0, "beta": 1.0, "transA": 0, "allowzero": 0}
    return attribute.name in defaults and value == defaults[attribute.name] and node.op_type in OPS_WITH_DEFAULTS
