"""Quantization around activation functions: what is found, what is computed, and that it is an option."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clusterq_common.quant.around import FoundActivation, QuantSmooth, activations_around
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert, quantizers


class Swish(nn.Module):
    """A SiLU under a name and with a formula of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class HSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3.0) / 6.0


class Times(nn.Module):
    """A product as a module; it takes two tensors, so nothing is asked of it alone."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


class Gated(nn.Module):
    """Convolution, activation, squeeze-and-excitation, convolution."""

    def __init__(self, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.activation = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), activation
        self.squeeze, self.between, self.excite = nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 1)
        self.gate, self.last, self.end = gate, nn.Conv2d(8, 8, 1), nn.Tanh()
        self.times, self.head, self.softmax = Times(), nn.Linear(8, 5), nn.Softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.first(x)))
        x = self.times(x, self.gate(self.excite(self.between(self.squeeze(F.adaptive_avg_pool2d(x, 1))))))
        return self.softmax(self.head(self.end(self.last(x)).mean((2, 3))))


def gated(activation: nn.Module | None = None, gate: nn.Module | None = None) -> Gated:
    torch.manual_seed(0)
    return Gated(activation or nn.SiLU(), gate or nn.Sigmoid()).eval()


@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        (nn.SiLU(), "silu"),
        (nn.SiLU(inplace=True), "silu"),
        (Swish(), "silu"),
        (nn.Hardswish(inplace=True), "hardswish"),
        (HSwish(), "hardswish"),
        (nn.ReLU(inplace=True), "relu"),
        (nn.ReLU6(), "relu"),
        (nn.GELU(), None),
        (nn.Identity(), None),
    ],
)
def test_activations_are_found_by_what_they_compute(activation: nn.Module, kind: str | None) -> None:
    around = activations_around(gated(activation, nn.Hardsigmoid()), torch.zeros(1, 3, 9, 9))
    expected = {"activation": FoundActivation(kind, read=True)} if kind else {}
    # Neither the ReLU that a convolution alone reads, nor tanh, nor softmax.
    assert around == {**expected, "gate": FoundActivation("hardsigmoid", read=True)}


def test_the_sum_of_it_is_what_the_quantizers_say() -> None:
    """A SiLU against the plain formula: integers of the input, of its sigmoid and of the product, one after the other."""
    model, images = gated(), torch.randn(16, 3, 9, 9)
    student = convert(model, QuantConfig(bits="w4a4", around_activations=True), images[:1])
    calibrate(student, [images])
    silu = student.get_submodule("activation")
    assert isinstance(silu, QuantSmooth)
    x = torch.linspace(-6, 6, 1001)
    sites = [silu.input_quantizer, silu.gate_quantizer, silu.output_quantizer]
    assert [site.bits for site in sites if site is not None] == [8, 8, 8], "whatever the bits of the layers"
    given = silu.input_quantizer.to_int(x).dequantize()
    gate = silu.gate_quantizer.to_int(1 / (1 + torch.exp(-given))).dequantize()
    expected = silu.output_quantizer.to_int(given * gate).dequantize()
    assert torch.allclose(silu(x), expected, atol=1.001 * silu.output_quantizer.step().item())
    assert (silu(x) == expected).float().mean() > 0.99
    assert torch.allclose(student.double()(images.double()).float(), model(images), atol=0.1)


def test_gradients_reach_the_input_and_the_steps() -> None:
    student = convert(gated(nn.Hardswish(inplace=True)), QuantConfig(around_activations=True), torch.zeros(1, 3, 9, 9))
    calibrate(student, [torch.randn(8, 3, 9, 9)])
    student.train()(torch.randn(4, 3, 9, 9)).square().sum().backward()
    assert student.get_parameter("first.weight").grad.abs().sum() > 0
    assert student.get_parameter("activation.input_quantizer.scale").grad is not None


def test_it_is_an_option_and_patterns_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    example = torch.zeros(1, 3, 9, 9)

    def around(**settings: object) -> set[str]:
        named = quantizers(convert(gated(), QuantConfig(**settings), example, print))
        return {name for name in named if name.split(".")[0] in {"activation", "gate", "between"}}

    assert not around()
    assert around(around_activations=True) == {
        f"{name}.{kind}_quantizer" for name, kind in
        [("activation", "input"), ("activation", "gate"), ("activation", "output"), ("gate", "input"), ("gate", "output")]
    }  # fmt: skip
    assert "around activations at 8 bits: 1 silu, 1 sigmoid" in capsys.readouterr().out
    assert around(around_activations=True, layer_bits="activation=w32a32") == {"gate.input_quantizer", "gate.output_quantizer"}
    assert around(around_activations=True, activation_sites="relu") >= {"between.output_quantizer", "gate.input_quantizer"}
    capsys.readouterr()
    assert not around(bits="w4a32", around_activations=True)
    assert "around activations at" not in capsys.readouterr().out


def test_nothing_to_quantize_around_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    convert(model, QuantConfig(around_activations=True), torch.zeros(1, 3, 9, 9), print)
    assert "around activations: no SiLU" in capsys.readouterr().out
