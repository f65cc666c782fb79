"""Quantization of residual sums: where it stands, what the student computes, and what is told."""

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import activation_sites, convert, quantizers
from clusterq_common.quant.integer import integer_arithmetic
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.quant.sums import sums_and_poolings

EXAMPLE = torch.zeros(1, 3, 16, 16)


def add_in_place(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


class Basic(nn.Module):
    """A residual block whose two ReLUs are one module, as in torchvision."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor] = operator.add) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.add = nn.ReLU(inplace=True), add

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.add(self.bn2(self.conv2(y)), x))


class Linear(nn.Module):
    """A residual block without an activation behind its sum, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(self.conv(x))


class Net(nn.Module):
    """A stem with a max pooling, two blocks with ReLU, one without, and a classifier."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor] = operator.add) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(Basic(add), Basic(add), Linear())
        self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


class Functional(nn.Module):
    """All in one forward: no module returns the sum, and the ReLU before the pooling is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.relu(x + self.second(x))
        return self.head(x.mean((2, 3)))


class Residual(nn.Sequential):
    """A container that adds its input: a quantizer registered in it would become one of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def made(model: nn.Module, **settings: object) -> tuple[nn.Module, Tensor]:
    """Return a calibrated student with quantized sums, and the images that it saw."""
    torch.manual_seed(0)
    images = torch.randn(8, 3, 16, 16)
    config = QuantConfig(**{"bits": "w8a8", "branch_outputs": True, "residual_sums": True, **settings})
    student = convert(model.eval(), config, EXAMPLE, print).eval()
    calibrate(student, [images])
    return student, images


@pytest.mark.parametrize("add", [operator.add, torch.add, Tensor.add, add_in_place, operator.iadd])
def test_sums_are_found_where_a_module_returns_them(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    model = Net(add).eval()
    sums = sums_and_poolings(model, quantizable_layers(model, EXAMPLE), EXAMPLE)
    # What the pooling reads; what the first block's shared ReLU gives last; and the branches, which have quantizers already.
    assert set(sums.outputs) == {
        *("stem.2", "blocks.0", "blocks.1", "blocks.2"),
        *("blocks.0.bn2", "blocks.1.bn2", "blocks.2.bn"),
    }
    assert not sums.left
    assert sums.inputs["blocks.0.conv1"][0] == "stem.2", "a maximum is one of the values"
    assert "blocks.0" in sums.inputs["blocks.1.conv1"]
    assert "blocks.0" not in sums.inputs["blocks.0.conv2"]


def test_every_layer_reads_one_quantizer(capsys: pytest.CaptureFixture[str]) -> None:
    student, images = made(Net())
    assert set(activation_sites(student)) == {
        *("stem.0.input_quantizer", "stem.2.output_quantizer", "head.input_quantizer"),
        *(
            f"blocks.{block}.{name}"
            for block in (0, 1)
            for name in ("conv2.input_quantizer", "bn2.output_quantizer", "output_quantizer")
        ),
        *("blocks.2.bn.output_quantizer", "blocks.2.output_quantizer"),
    }
    assert student.get_submodule("last").reads == "blocks.2.output_quantizer"
    printed = capsys.readouterr().out
    assert "residual sums and what they and max poolings read: 7 outputs at 8 bits, which 4 layers share" in printed
    seen: list[Tensor] = []
    sums = quantizers(student)["blocks.0.output_quantizer"]
    handle = student.get_submodule("blocks.1.conv1").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits = student(images)
    handle.remove()
    assert torch.equal(seen[0], sums.to_int(seen[0]).dequantize()), "the values are on the sum's grid"
    with integer_arithmetic(student):
        assert torch.allclose(student(images), logits, atol=1e-4)


def test_below_eight_bits_sums_keep_eight_and_layers_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    student, _ = made(Net(), bits="w4a4")
    bits = {name: quantizer.bits for name, quantizer in activation_sites(student).items()}
    assert {bits[f"{name}.output_quantizer"] for name in ("stem.2", "blocks.0", "blocks.1", "blocks.2")} == {8}
    assert {bits[f"{name}.input_quantizer"] for name in ("blocks.0.conv1", "blocks.1.conv1", "last")} == {4}
    assert bits["blocks.0.bn2.output_quantizer"] == 4, "of branch_outputs"
    assert "max poolings read: 4 outputs at 8 bits" in capsys.readouterr().out, "branches are not among them"


def test_float_by_a_pattern() -> None:
    student, _ = made(Net(), layer_bits="blocks.0=w32a32")
    assert "blocks.0.output_quantizer" not in quantizers(student)
    assert "blocks.1.conv1.input_quantizer" in quantizers(student), "nothing else quantizes it"


def test_sums_that_no_module_returns_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    student, _ = made(Functional())
    assert set(activation_sites(student)) == {
        "second.output_quantizer",
        *(f"{name}.input_quantizer" for name in ("first", "second", "head")),
    }
    assert (
        "left in float: 2 of these that no module returns which runs once, the first in the network itself"
        in capsys.readouterr().out
    )
    made(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 5)))
    assert "no residual sums: no addition of two activations" in capsys.readouterr().out


def test_a_container_is_no_place_for_a_quantizer() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), Residual(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), nn.Conv2d(8, 5, 16), nn.Flatten()
    )
    student, images = made(model)
    assert not [name for name in quantizers(student) if name.startswith("1.output")]
    assert torch.allclose(student(images), model(images), atol=0.1)


def test_what_an_activation_function_gives_an_addition() -> None:
    """A hard swish with quantizers around it gets one more where a sum reads it."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Hardswish(), Linear(), nn.Conv2d(8, 5, 16), nn.Flatten())
    student, images = made(model, around_activations=True)
    assert {"1.input_quantizer", "1.gate_quantizer", "1.output_quantizer"} < set(activation_sites(student))
    assert student.get_submodule("2.conv").reads == "1.output_quantizer"
    assert torch.allclose(student(images), model(images), atol=0.1)


def test_gradients_pass_and_students_load_again() -> None:
    student, images = made(Net())
    student.train()(images).square().sum().backward()
    assert student.get_parameter("blocks.0.output_quantizer.scale").grad is not None
    again = convert(Net().eval(), QuantConfig(bits="w8a8", branch_outputs=True, residual_sums=True), EXAMPLE)
    again.load_state_dict(student.state_dict())
    assert torch.equal(again.eval()(images), student.eval()(images))
    old = convert(Net().eval(), QuantConfig(bits="w8a8", branch_outputs=True), EXAMPLE)
    assert "blocks.0.output_quantizer.scale" not in old.state_dict(), "students made before open as they were"
