"""An ONNX graph in the making: who makes a tensor, who reads it, and no more in it than is needed."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from clusterq_finetune.export.weights import pack

Array = NDArray[Any]

INTEGER_TYPES = {
    (bits, signed): getattr(TensorProto, f"{'' if signed else 'U'}INT{bits}", None) for bits in (2, 4, 8) for signed in (False, True)
}


class Graph:
    """Nodes in an order in which each comes after what it reads, and initializers by name.

    Attributes:
        nodes: replace an element, or the list, to change the graph.
        initializers: name -> tensor.
    """

    def __init__(self, proto: GraphProto) -> None:
        self.nodes: list[NodeProto] = list(proto.node)
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in proto.initializer}
        self.inputs, self.outputs = list(proto.input), list(proto.output)

    def producers(self) -> dict[str, NodeProto]:
        """Tensor name -> the node that makes it."""
        return {name: node for node in self.nodes for name in node.output}

    def reads(self) -> Counter[str]:
        """Tensor name -> how many inputs read it; being an output of the graph counts as one."""
        counts = Counter(name for node in self.nodes for name in node.input)
        counts.update(value.name for value in self.outputs)
        return counts

    def array(self, name: str) -> Array | None:
        """Values of an initializer, or None: the tensor is computed."""
        return numpy_helper.to_array(self.initializers[name]) if name in self.initializers else None

    def put(self, name: str, values: Array) -> str:
        """Add a float or int64 initializer; returns its name."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def put_integers(self, name: str, values: Array, bits: int, *, signed: bool) -> str:
        """Add an initializer of integers of 2, 4 or 8 bits, packed as ONNX packs them; returns its name.

        Raises:
            ValueError: the installed onnx has no such type.
        """
        kind = INTEGER_TYPES[bits, signed]
        if kind is None:
            raise ValueError(f"onnx {onnx.__version__} has no integer type of {bits} bits")
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

    def shorten_names(self) -> None:
        """Number what is computed along the way: such names are in the file three times and say little. Initializers keep theirs."""
        kept = {"", *self.initializers, *(value.name for value in [*self.inputs, *self.outputs])}
        names: dict[str, str] = defaultdict(lambda: f"t{len(names)}")
        for node in self.nodes:
            node.input[:] = [name if name in kept else names[name] for name in node.input]
            node.output[:] = [name if name in kept else names[name] for name in node.output]
            node.name = ""

    def proto(self, name: str) -> GraphProto:
        """As ONNX has it, without what the exporter noted about source files."""
        for item in [*self.nodes, *self.inputs, *self.outputs]:
            del item.metadata_props[:]
            item.doc_string = ""
        return helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))

    def batchnorm_layers(self) -> list[str]:
        """Names of the BatchNorm layers in it, as the names of their parameters have them."""
        return [node.input[1].rpartition(".")[0] or node.output[0] for node in self.nodes if node.op_type == "BatchNormalization"]
