"""Files of networks with SiLU, hard swish and squeeze-and-excitation: in integers, with the student's values, and a remark where not."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.float_convolutions import FloatConvolutions, float_convolutions, remark_on
from clusterq_common.export.for_target import counts_float_convolutions, file_for, quant_for
from clusterq_common.export.hard_gates import saturate_hard_sigmoids
from clusterq_common.export.onnx_file import onnx_model
from clusterq_common.export.onnx_graph import Graph
from clusterq_common.export.pooling import name_global_pooling
from clusterq_common.quant.config import QuantConfig
from tests.finetune.export_nets import SPEC, student_of

FILE = OnnxConfig.validated(file_for("ort-cpu", {}))


class Mobile(nn.Module):
    """A stem, a depthwise convolution, squeeze-and-excitation, a projection, and pooling before the last layer."""

    activation: type[nn.Module] = nn.SiLU
    gate: type[nn.Module] = nn.Sigmoid

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), self.activation())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), self.activation())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 1), self.gate())
        self.project = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.final = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), self.activation())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        x = self.project(x * self.squeeze(x))
        return self.head(self.pool(self.final(x)).flatten(1))


class Hard(Mobile):
    activation, gate = nn.Hardswish, nn.Hardsigmoid


class Rectified(Mobile):
    activation, gate = nn.ReLU, nn.Hardsigmoid


def optimised(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize("net", [Mobile, Hard, Rectified])
def test_all_convolutions_run_in_integers(net: type[Mobile], tmp_path: Path) -> None:
    student, images = student_of(net, **quant_for("ort-cpu", {"bits": "w8a8"}))
    model = onnx_model(student, SPEC, FILE).model
    counted = float_convolutions(model.graph)
    assert (counted.names, counted.hard_swishes) == ([], 0)
    assert not remark_on(counted, QuantConfig(branch_outputs=True, around_activations=True, residual_sums=True))
    kernels = optimised(model, tmp_path)
    assert kernels["QLinearConv"] == 6
    assert not [name for name in kernels if "Conv" in name and name != "QLinearConv"]
    assert kernels["QLinearGlobalAveragePool"] == 2
    assert kernels["QLinearMul"] == (1 if net is Rectified else 4)
    assert kernels["QLinearSigmoid"] == (4 if net is Mobile else 0)
    assert kernels["QLinearAdd"] == {Mobile: 0, Hard: 4, Rectified: 1}[net], "hard sigmoids"
    assert not kernels["HardSigmoid"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"image": images.numpy()})[0]
    expected = student(images).detach().numpy()
    assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()
    assert (logits.argmax(1) == expected.argmax(1)).mean() > 0.8


def test_hard_swishes_in_float_are_told() -> None:
    counted = FloatConvolutions([], 6, 3)
    (remark,) = remark_on(counted, QuantConfig(branch_outputs=True, around_activations=True, residual_sums=True))
    assert remark.startswith("3 hard swish functions will run in float between integer convolutions")


def test_a_gate_in_integers_is_the_functions_own() -> None:
    """The whole range of a byte, in a graph of one hard swish: the sum that saturates against torch's hard sigmoid."""
    x = torch.arange(-128, 128) * 0.0625
    for scale, saturates in ((1 / 255, True), (1 / 300, True), (1.01 / 255, False)):
        graph = hard_gate(scale)
        saturate_hard_sigmoids(graph)
        assert ([node.op_type for node in graph.nodes].count("Add") == 1) == saturates
        expected = (nn.functional.hardsigmoid(x) / np.float32(scale)).round().clamp(0, 255) * np.float32(scale)
        output = torch.from_numpy(run(graph, x))
        assert (output - expected).abs().max() < 1.001 * scale
        assert (output == expected).float().mean() > 0.95


@pytest.mark.parametrize("change", ["point", "type", "slope", "readers"])
def test_other_hard_sigmoids_stay(change: str) -> None:
    graph = hard_gate(1 / 255, change)
    saturate_hard_sigmoids(graph)
    assert "HardSigmoid" in [node.op_type for node in graph.nodes]
    assert "Add" not in [node.op_type for node in graph.nodes]


def hard_gate(scale: float, change: str = "") -> Graph:
    """x in a byte, a hard sigmoid, and its value in a byte of this scale; `change` makes it another function or other types."""
    signed = change == "type"
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "middle"], ["given"]),
        helper.make_node("DequantizeLinear", ["given", "step", "middle"], ["z"]),
        helper.make_node("HardSigmoid", ["z"], ["gate"], alpha=0.2 if change == "slope" else 1 / 6, beta=0.5),
        helper.make_node("QuantizeLinear", ["gate", "scale", "point"], ["made"]),
        helper.make_node("DequantizeLinear", ["made", "scale", "point"], ["y"]),
    ]
    if change == "readers":
        nodes[-1:] = [
            helper.make_node("DequantizeLinear", ["made", "scale", "point"], ["w"]),
            helper.make_node("Mul", ["w", "gate"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [256]) for name in ("x", "y")]
    graph = Graph(helper.make_graph(nodes, "gate", ends[:1], ends[1:]))
    graph.put("step", np.array(0.0625, dtype=np.float32))
    graph.put("scale", np.array(scale, dtype=np.float32))
    graph.put_integers("middle", np.array(0 if signed else 128), 8, signed=signed)
    graph.put_integers("point", np.array(1 if change == "point" else 0), 8, signed=False)
    return graph


@pytest.mark.parametrize(("net", "count"), [(Mobile, 4), (Rectified, 3)])
def test_what_stays_in_float_is_counted(net: type[Mobile], count: int, tmp_path: Path) -> None:
    student, _ = student_of(net, **quant_for("ort-cpu", {"bits": "w8a8", "around_activations": False}))
    model = onnx_model(student, SPEC, FILE).model
    counted = float_convolutions(model.graph)
    assert (len(counted.names), counted.convolutions) == (count, 6)
    kernels = optimised(model, tmp_path)
    assert kernels["Conv"] + kernels["FusedConv"] == count
    (remark,) = remark_on(counted, QuantConfig(branch_outputs=True, residual_sums=True))
    assert remark.startswith(f"{count} of 6 convolutions will run in float, the first one ")
    assert remark.endswith("unquantized, so the file may be slower than float; fine-tune with around_activations.")
    assert counts_float_convolutions("ort-cpu")
    assert not counts_float_convolutions("tensorrt")


def test_few_convolutions_in_float_are_no_remark_where_nothing_can_be_done() -> None:
    made_for_it = QuantConfig(branch_outputs=True, around_activations=True, residual_sums=True)
    assert not remark_on(FloatConvolutions(["stem"], 21), made_for_it)
    (remark,) = remark_on(FloatConvolutions(["stem"], 21), QuantConfig())
    assert remark.endswith("unquantized; fine-tune with around_activations and branch_outputs and residual_sums.")
    (remark,) = remark_on(FloatConvolutions(["a", "b"], 4), made_for_it)
    assert remark.endswith("so the file may be slower than float; activation functions have to be modules.")


@pytest.mark.parametrize(
    ("axes", "keepdims", "rank", "turned"),
    [
        ([2, 3], 1, 4, True),
        ([-1, -2], 1, 4, True),
        ([2, 3], 0, 4, False),
        ([2, 3], 1, 5, False),
        ([1, 2], 1, 4, False),
        ([3], 1, 4, False),
    ],
)
def test_only_means_over_images_become_pooling(axes: list[int], keepdims: int, rank: int, turned: bool) -> None:
    shape = [2, 3, 4, 5, 6][:rank]
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=axes),
        helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=keepdims),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape if name == "x" else None) for name in ("x", "y")]
    graph = Graph(helper.make_graph(nodes, "means", ends[:1], ends[1:]))
    expected = torch.randn(shape)
    before = run(graph, expected)
    name_global_pooling(graph, {"x": rank})
    assert (graph.nodes[1].op_type == "GlobalAveragePool") == turned
    assert np.allclose(run(graph, expected), before, atol=1e-6)


def run(graph: Graph, x: Tensor) -> np.ndarray:
    model = helper.make_model(graph.proto("means"), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy()})[0]
