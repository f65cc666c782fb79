"""Upsampling and convolution in one, against the two in turn."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from clusterq_gen.networks.upsampled_conv import UpsampledConv2d


def in_turn(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(layer, interpolate(x, scale_factor=2))


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (1, 3, 1, 1), (2, 3, 2, 7)])
def test_values_and_gradients(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = UpsampledConv2d(3, 4).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    wanted = in_turn(layer, x)
    assert wanted.shape == (shape[0], 4, 2 * shape[2], 2 * shape[3])
    output = layer(x)
    torch.testing.assert_close(output, wanted)
    direction = torch.randn_like(wanted)
    inputs = [x, *layer.parameters()]
    for gradient, other in zip(
        torch.autograd.grad(output, inputs, direction), torch.autograd.grad(wanted, inputs, direction), strict=True
    ):
        torch.testing.assert_close(gradient, other)


def test_in_bf16_it_is_as_near_as_the_two_in_turn() -> None:
    torch.manual_seed(0)
    layer, x = UpsampledConv2d(16, 8), torch.randn(4, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    exact = in_turn(layer, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, turns = layer(x), in_turn(layer, x)
    assert output.dtype == torch.bfloat16
    error, usual = ((result.float() - exact).abs().mean() for result in (output, turns))
    assert error < 2 * usual


def test_its_parameters_are_those_of_a_convolution() -> None:
    torch.manual_seed(0)
    own = UpsampledConv2d(3, 4).state_dict()
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=1).state_dict()
    assert list(own) == list(plain)
    assert all(torch.equal(own[name], plain[name]) for name in plain), "same draws, too"
