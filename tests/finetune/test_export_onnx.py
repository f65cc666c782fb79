"""Exported ONNX files: the integers of `to_int()`, the logits of the student, and graphs that integer kernels take."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from pytorchcv.model_provider import get_model
from safetensors.torch import load_file
from tools.bench.flips import first_flips
from tools.bench.rounded_biases import with_rounded_biases
from torch import Tensor, nn

from clusterq_common.errors import ClusterqError
from clusterq_common.export.config import OnnxConfig
from clusterq_common.export.onnx_file import onnx_model
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers
from tests.finetune.export_nets import SPEC, Everything, Plain, Residual, student_of

# Of a step: how far beside the boundary between two integers a value may lie that torch and ONNX Runtime round differently.
ROUNDING = 1e-3


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def run(model: onnx.ModelProto, images: Tensor, *, optimise: bool) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


@pytest.mark.parametrize(
    ("settings", "config", "types"),
    [
        ({"bits": "w8a8"}, {}, "INT8"),
        ({"bits": "w4a4"}, {}, "INT4"),
        ({"bits": "w4a4", "range": "minmax"}, {"batchnorm": "keep"}, "INT4"),
        ({"bits": "w2a2"}, {"batchnorm": "fold-all"}, "INT2"),
        ({"bits": "w3a5", "quantizer": "asymmetric"}, {}, "UINT4"),
        ({"bits": "w4a4", "weight_granularity": "tensor"}, {"integers": "int8"}, "INT8"),
        ({"bits": "w6a8", "quantizer": "asymmetric"}, {}, "UINT8"),
    ],
)
def test_integers_in_the_file(settings: dict[str, object], config: dict[str, object], types: str) -> None:
    """Weights are those of `to_int()`, turned around where a folded gamma is negative, and stand for the same real values."""
    student, _ = student_of(Plain, **settings)
    model, kept, _ = onnx_model(student, SPEC, OnnxConfig(**config))
    onnx.checker.check_model(model, full_check=True)
    arrays = initializers(model)
    scales = {node.input[0]: node.input[1:] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    # A symmetric grid's lowest integer has no negative in a type that the grid fills.
    full = types in {f"INT{settings['bits'][1]}", "INT8" if settings["bits"] == "w8a8" else ""}
    assert bool(kept) == (full and config.get("batchnorm") != "fold-all")
    for name, batchnorm in (("first", "first_bn"), ("second", "second_bn"), ("head", None)):
        layer = student.get_submodule(name)
        expected = layer.weight_quantizer.to_int(layer.weight)
        integers, real = expected.integers.numpy(), expected.dequantize().double().numpy()
        factor = np.ones(len(real))
        if batchnorm is not None and batchnorm not in kept:
            bn = student.get_submodule(batchnorm)
            factor = (bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()).detach().numpy()
        rows = (-1, *[1] * (real.ndim - 1))
        grid = layer.weight_quantizer.grid
        lowest = integers.reshape(len(integers), -1).min(1).reshape(rows)
        wide = int(types[-1]) > grid.bits  # room for the negative of the lowest integer
        mirror = np.where((grid.low == 0) | ((lowest == grid.low) & (not wide)), grid.low + grid.high, 0)
        # A linear layer that became a matrix product has its weights as (channels, classes).
        turned = name == "head" and any(node.op_type == "MatMul" for node in model.graph.node)
        stored = arrays[f"{name}.weight"].T if turned else arrays[f"{name}.weight"]
        widened = wide and grid.low < 0 and bool(((lowest == grid.low) & (factor.reshape(rows) < 0)).any())
        moved = 2 ** max(0, 8 - grid.bits - widened) if types.endswith("INT8") else 1
        assert np.array_equal(stored.astype(int), moved * np.where(factor.reshape(rows) < 0, mirror - integers, integers))
        scale, *points = (arrays[name_of_scale].astype(np.float64) for name_of_scale in scales[f"{name}.weight"])
        shape = rows if scale.ndim else ()
        point = points[0].reshape(shape) if points else 0
        assert np.allclose(
            (stored.astype(float) - point) * scale.reshape(shape), real * factor.reshape(rows), rtol=1e-6, atol=0
        )
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer if tensor.name in scales}
    assert kinds == {types}


@pytest.mark.parametrize(
    ("net", "settings", "config"),
    [
        (Everything, {"bits": "w8a8"}, {}),
        (Everything, {"bits": "w4a4"}, {}),
        (Everything, {"bits": "w3a2", "quantizer": "asymmetric"}, {"integers": "int8"}),
        (Everything, {"bits": "w2a4", "first_last_bits": 8, "layer_bits": ("depthwise=w5a6",)}, {"batchnorm": "keep"}),
        (Residual, {"bits": "w4a3", "activation_sites": "relu"}, {"opset": 23}),
        (Residual, {"bits": "w32a32"}, {}),
        (Residual, {"bits": "w32a8"}, {}),
    ],
)
def test_same_logits(net: type[nn.Module], settings: dict[str, object], config: dict[str, object]) -> None:
    """Equal up to float32's rounding, but for images in which a value on a boundary becomes the other integer."""
    student, images = student_of(net, **settings)
    model, *_ = onnx_model(student, SPEC, OnnxConfig(**config))
    flips, expected, actual = first_flips(student, model, images)
    close = 1e-5 * float(expected.abs().max())
    for flip, apart in zip(flips, (actual - expected).abs().amax(1), strict=True):
        if flip is None:
            assert float(apart) < close
        else:
            assert flip.steps == 1
            assert flip.distance < ROUNDING, flip
    assert sum(flip is None for flip in flips) > len(flips) / 2


def test_narrow_weights_survive_optimisation() -> None:
    """ONNX Runtime rounds biases between 8-bit quantizers; those of 4-bit layers it must leave alone."""
    student, images = student_of(Residual, bits="w4a4")
    model, *_ = onnx_model(student, SPEC, OnnxConfig())
    with torch.no_grad():
        expected = student(images)
    apart = (run(model, images, optimise=True) - run(model, images, optimise=False)).abs().max()
    assert float(apart) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("bits", "config"), [("w8a8", {"batchnorm": "fold-all"}), ("w4a4", {"integers": "int8", "batchnorm": "fold-all"})]
)
def test_integer_kernels(bits: str, config: dict[str, object], tmp_path: Path) -> None:
    """With quantized branches every convolution but the stem, whose output an addition reads in float, runs in integers."""
    student, _ = student_of(Residual, bits=bits, branch_outputs=True)
    model, kept, _ = onnx_model(student, SPEC, OnnxConfig(**config))
    assert not kept
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert kinds["QLinearConv"] == 4
    assert sum(number for name, number in kinds.items() if name.endswith("Conv")) == 5


@pytest.mark.parametrize("dead", ["weights", "gamma"])
def test_biases_beside_dead_channels(dead: str) -> None:
    """A channel that counts for nothing has so small a scale that ONNX Runtime could not hold its bias in multiples of it."""

    class Dead(Residual):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                convolution, batchnorm = self.branches[0][:2]
                (convolution.weight if dead == "weights" else batchnorm.weight)[4] = 0
                batchnorm.bias[4] = 1.5

    student, images = student_of(Dead, randomise=False, bits="w8a8", branch_outputs=True)
    model, *_ = onnx_model(student, SPEC, OnnxConfig())
    with torch.no_grad():
        expected = student(images)
    assert float((run(model, images, optimise=True) - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_four_bits_on_integer_kernels() -> None:
    """Weights of 4 bits moved to the top of 8 leave room for biases; that these are rounded is all that integer kernels change."""
    student, images = student_of(Residual, bits="w4a8", branch_outputs=True)
    model, *_ = onnx_model(student, SPEC, OnnxConfig(integers="int8", batchnorm="fold-all"))
    with torch.no_grad():
        expected = student(images)
    actual = run(model, images, optimise=True)
    assert float((actual - expected).abs().max()) < 0.02 * float(expected.abs().max())
    rounded = run(with_rounded_biases(model), images, optimise=False)
    same = (rounded - actual).abs().amax(1) < 1e-5 * float(expected.abs().max())
    assert float(same.float().mean()) > 0.7, "but for values on a boundary"


@pytest.mark.parametrize(("limit", "dropped"), [(6.0, True), (0.9, False)])
def test_clips_that_quantizers_make_needless(limit: float, dropped: bool) -> None:
    """ReLU6 before a quantizer that ends at 6 or below goes; one that cuts integers off stays."""

    class Clipped(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.hardtanh(self.first_bn(self.first(x)), 0.0, 6.0)
            return self.head(torch.relu(self.second_bn(self.second(x))).mean((2, 3)))

    student, images = student_of(Clipped, bits="w8a8")
    quantizer = quantizers(student)["second.input_quantizer"]
    with torch.no_grad():
        quantizer.scale.copy_(torch.tensor([6 / 255 * 0.999 if dropped else 6 / 255 * (1 + limit)]))
    model, *_ = onnx_model(student, SPEC, OnnxConfig())
    assert ("Clip" in {node.op_type for node in model.graph.node}) != dropped
    flips, expected, actual = first_flips(student, model, 4 * images)
    assert all(flip is None or flip.distance < ROUNDING for flip in flips)
    assert float((actual - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_nothing_but_the_model_is_in_the_file() -> None:
    """No path of the machine, and no node that nothing needs."""
    student, _ = student_of(Plain, bits="w4a4")
    model, *_ = onnx_model(student, SPEC, OnnxConfig())
    assert str(Path.cwd().anchor + "home").encode() not in (data := model.SerializeToString())
    assert b".py" not in data
    read = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    assert all(read.intersection(node.output) for node in model.graph.node)
    assert set(initializers(model)) <= read
    dimension = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert dimension.dim_param
    assert not dimension.dim_value


def test_a_layer_that_runs_twice() -> None:
    class Twice(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.second_bn = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first_bn(self.first(x)))
            for _ in range(2):
                x = torch.relu(self.second_bn(self.second(x)))
            return self.head(x.mean((2, 3)))

    student, images = student_of(Twice, bits="w8a8")
    model, *_ = onnx_model(student, SPEC, OnnxConfig())
    with torch.no_grad():
        expected = student(images)
    step = float(quantizers(student)["head.input_quantizer"].scale.detach())
    assert float((run(model, images, optimise=False) - expected).abs().max()) < 10 * step


def test_unsupported_layer() -> None:
    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.odd = OddLayer()

        def forward(self, x: Tensor) -> Tensor:
            return self.odd(super().forward(x))

    class OddLayer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    class Branching(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else super().forward(-x)

    student, _ = student_of(Odd, bits="w4a4")
    with pytest.raises(ClusterqError, match=r"layer odd \(OddLayer\) uses .*bessel_j0.*format=pt2"):
        onnx_model(student, SPEC, OnnxConfig())
    student, _ = student_of(Branching, bits="w4a4")
    with pytest.raises(ClusterqError, match="cannot be traced"):
        onnx_model(student, SPEC, OnnxConfig())


@pytest.mark.real
@pytest.mark.parametrize(
    ("bits", "config", "optimise"),
    [("w8a8", {}, False), ("w4a4", {"batchnorm": "keep"}, True)],
)
def test_a_trained_model(
    bits: str, config: dict[str, object], optimise: bool, real_data: Path, cifar_subset: Callable[[int], tuple[Tensor, Tensor]]
) -> None:
    """Measured on all 10,000 images: the same class on 99.94 % and more (docs/results.md)."""
    net = get_model("resnet20_cifar10").eval()
    net.load_state_dict(load_file(real_data / "models" / "resnet20_cifar10.safetensors"))
    images, _ = cifar_subset(20)
    quant = QuantConfig(bits=bits)
    student = convert(net, quant, images[:1], lambda _: None).eval()
    calibrate(student, images[::4].split(50), quant)
    model, kept, _ = onnx_model(student, SPEC.model_copy(update={"size": 32}), OnnxConfig(**config))
    assert bool(kept) == (config == {"batchnorm": "keep"})
    flips, expected, actual = first_flips(student, model, images[1::2])
    known = [flip for flip in flips if flip is not None]
    assert all(flip.steps == 1 and flip.distance < ROUNDING for flip in known)
    assert len(known) < 0.8 * len(flips)
    assert int((actual.argmax(1) == expected.argmax(1)).sum()) >= len(actual) - 1
    same = run(model, images[1::2], optimise=optimise).argmax(1) == expected.argmax(1)
    assert int(same.sum()) >= len(actual) - 1
