"""Files of networks with residual sums, max poolings and a convolution or linear layer last: all in integers, with the student's values."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn

from clusterq_common.export.classifier import multiply_last
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.float_convolutions import float_convolutions
from clusterq_common.export.for_target import file_for, quant_for
from clusterq_common.export.onnx_file import onnx_model
from clusterq_common.export.onnx_graph import Graph
from clusterq_common.export.pooling import repeat_quantizers
from tests.finetune.export_nets import SPEC, student_of
from tests.finetune.test_export_around import optimised

FILE = OnnxConfig.validated(file_for("ort-cpu", {}))


class Block(nn.Module):
    """A residual block, with a ReLU behind the sum or without."""

    def __init__(self, *, rectified: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.activation = nn.ReLU() if rectified else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x + self.norm(self.conv(x)))


class Summing(nn.Module):
    """A stem with max pooling, three residual blocks, and a convolution of one pixel as classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Block(rectified=True), Block(rectified=False), Block(rectified=False))
        self.final, self.pool = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU()), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Conv2d(32, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier(self.pool(self.final(self.blocks(self.stem(x)))))
        return x.view(x.size(0), -1)


class Linear(Summing):
    """The same with a linear layer as classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.final(self.blocks(self.stem(x)))).flatten(1))


@pytest.mark.parametrize("net", [Summing, Linear])
def test_sums_poolings_and_the_classifier_run_in_integers(net: type[nn.Module], tmp_path: Path) -> None:
    student, images = student_of(net, **quant_for("ort-cpu", {"bits": "w8a8"}))
    model = onnx_model(student, SPEC, FILE).model
    assert not float_convolutions(model.graph).names
    kernels = optimised(model, tmp_path)
    assert (kernels["QLinearConv"], kernels["QLinearAdd"], kernels["NhwcMaxPool"], kernels["MatMulIntegerToFloat"]) == (
        5,
        3,
        1,
        1,
    )
    assert (kernels["QuantizeLinear"], kernels["DequantizeLinear"], kernels["Add"]) == (1, 0, 0), "the image's alone"
    expected = student(images).detach()
    # Without optimisations the file computes what the student does, but for values in the middle of two integers.
    logits = plainly(model, images)
    apart = (logits - expected).abs().amax(1)
    assert float(apart.median()) < 1e-4 * float(expected.abs().max())
    assert float(apart.max()) < 0.1 * float(expected.abs().max())


def plainly(model: ModelProto, images: Tensor) -> Tensor:
    """Return the logits of a file without ONNX Runtime's optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def test_without_it_sums_and_the_stem_stay_in_float(tmp_path: Path) -> None:
    student, _ = student_of(Summing, **quant_for("ort-cpu", {"bits": "w8a8", "residual_sums": False}))
    model = onnx_model(student, SPEC, FILE).model
    assert len(float_convolutions(model.graph).names) == 1, "the stem: a max pooling reads its ReLU"
    assert optimised(model, tmp_path)["Add"] == 3


@pytest.mark.parametrize("net", [Summing, Linear])
@pytest.mark.parametrize("bits", ["w4a4", "w4a8"])
def test_other_bits_compute_what_the_student_does(net: type[nn.Module], bits: str) -> None:
    student, images = student_of(net, **quant_for("ort-cpu", {"bits": bits}))
    logits = plainly(onnx_model(student, SPEC, FILE).model, images)
    expected = student(images).detach()
    assert float((logits - expected).abs().amax(1).median()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("size", "bits", "has", "turned"),
    [
        (1, 8, ("bias", "quantized"), True),
        (1, 8, ("quantized",), True),
        (1, 8, ("bias",), False),
        (2, 8, ("bias", "quantized"), False),
        (1, 4, ("bias", "quantized"), False),
    ],
)
def test_only_a_convolution_of_one_quantized_pixel_becomes_a_product(
    size: int, bits: int, has: tuple[str, ...], turned: bool
) -> None:
    graph, x = last_convolution(size, bits, has)
    before = run(graph, x)
    classes = 4 * size * size
    multiply_last(graph, {"pixel": [0, 3, size, size], "logits": [0, classes]})
    repeat_quantizers(graph)
    operators = [node.op_type for node in graph.nodes]
    assert ("MatMul" in operators, "Conv" in operators) == (turned, not turned)
    assert ("Sub" in operators) == (turned and "bias" in has)
    assert np.allclose(run(graph, x), before, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "has", "attributes", "turned"),
    [
        (8, ("bias", "quantized"), {"transB": 1}, True),
        (8, ("quantized",), {"transB": 1}, True),
        (8, ("bias",), {"transB": 1}, False),
        (4, ("bias", "quantized"), {"transB": 1}, False),
        (8, ("bias", "quantized"), {"transB": 1, "alpha": 0.5}, False),
        (8, ("bias", "quantized"), {"transB": 1, "beta": 2.0}, False),
        (8, ("bias", "quantized"), {}, False),
    ],
)
def test_only_a_plain_quantized_linear_layer_becomes_a_product(
    bits: int, has: tuple[str, ...], attributes: dict[str, float], turned: bool
) -> None:
    graph, x = last_convolution(1, bits, has)
    weight = graph.array("weight")
    assert weight is not None
    rows = weight.reshape(4, 3)
    if "transB" not in attributes:  # (channels, classes), with a scale for each class all the same
        graph.nodes[-3].attribute[0].i, rows = 1, rows.T
    graph.put_integers("weight", rows, bits, signed=True)
    graph.nodes[-2:] = [helper.make_node("Gemm", [*graph.nodes[-2].input], ["logits"], **attributes)]
    x = x.reshape(2, 3)
    before = run(graph, x)
    multiply_last(graph, {"pixel": [0, 3], "logits": [0, 4]})
    operators = [node.op_type for node in graph.nodes]
    assert ("MatMul" in operators, "Gemm" in operators) == (turned, not turned)
    assert ("Sub" in operators) == (turned and "bias" in has)
    assert np.allclose(run(graph, x), before, atol=1e-5)


def last_convolution(size: int, bits: int, has: tuple[str, ...]) -> tuple[Graph, np.ndarray]:
    """A convolution with quantized weights whose output is flattened to the logits, and an input."""
    random = np.random.default_rng(0)
    quantizers = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "step", "middle"], ["pixel"]),
    ]
    nodes = [
        *(quantizers if "quantized" in has else [helper.make_node("Identity", ["x"], ["pixel"])]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"], axis=0),
        helper.make_node("Conv", ["pixel", "w", *(["bias"] if "bias" in has else [])], ["y"]),
        helper.make_node("Flatten", ["y"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "logits")]
    graph = Graph(helper.make_graph(nodes, "last", ends[:1], ends[1:]))
    graph.put("step", np.array(0.02, np.float32))
    graph.put_integers("middle", np.array(128), 8, signed=False)
    graph.put_integers("weight", random.integers(-7, 8, (4, 3, 1, 1)), bits, signed=True)
    graph.put("scale", random.random(4, np.float32))
    graph.put("bias", random.standard_normal(4, np.float32))
    return graph, random.standard_normal((2, 3, size, size), np.float32)


@pytest.mark.parametrize(("operator", "bits"), [("MaxPool", 8), ("Flatten", 8), ("Relu", 8), ("Flatten", 4)])
def test_quantizers_are_repeated_where_no_value_changes(operator: str, bits: int) -> None:
    attributes = {"kernel_shape": [2, 2]} if operator == "MaxPool" else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "point"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "point"], ["values"]),
        helper.make_node(operator, ["values"], ["logits"], **attributes),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "logits")]
    graph = Graph(helper.make_graph(nodes, "kept", ends[:1], ends[1:]))
    graph.put("scale", np.array(0.07, np.float32))
    graph.put_integers("point", np.array(5), bits, signed=False)
    x = torch.randn(2, 3, 4, 4).numpy()
    before = run(graph, x)
    repeat_quantizers(graph)
    assert len(graph.nodes) == (5 if bits == 8 and operator != "Relu" else 3)
    assert np.array_equal(run(graph, x), before)


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    model = helper.make_model(graph.proto("graph"), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]
