"""Learned rounding against slow references; what is settled is exactly what the quantizer gives; dropped quantization."""

import copy
import math

import pytest
import torch
from torch import nn

from clusterq_common.quant.adaround import LearnedRounding, learned_rounding
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.grid import MIN_SCALE, Grid
from clusterq_common.quant.modules import QuantConv2d
from clusterq_common.quant.qdrop import RandomMask, dropped

QUANTS = [
    {"bits": "w3a4"},
    {"bits": "w2a2", "weight_granularity": "tensor"},
    {"bits": "w4a4", "quantizer": "asymmetric"},
    {"bits": "w2a4", "quantizer": "asymmetric", "weight_granularity": "tensor", "range": "minmax"},
]


def layer(groups: int, **settings: object) -> QuantConv2d:
    """A calibrated quantized convolution, 4 -> 8 channels."""
    torch.manual_seed(0)
    config = QuantConfig(**settings)
    # A first and a last layer around it, so that nothing about it is special.
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=groups), nn.Conv2d(8, 2, 1)).eval()
    student = convert(net, config, torch.zeros(1, 3, 6, 6), lambda _: None)
    calibrate(student, [torch.randn(8, 3, 6, 6)], config)
    quantized = student[1]
    assert isinstance(quantized, QuantConv2d)
    return quantized


def rounding_of(conv: QuantConv2d) -> LearnedRounding:
    assert conv.weight_quantizer is not None
    return LearnedRounding(conv.weight, conv.weight_quantizer)


def test_h_and_regulariser_against_a_slow_reference() -> None:
    rounding = rounding_of(layer(1, bits="w3a3"))
    nn.init.normal_(rounding.variable, std=3, generator=torch.Generator().manual_seed(1))
    ups = [min(1.0, max(0.0, 1.2 / (1 + math.exp(-v)) - 0.1)) for v in rounding.variable.double().flatten().tolist()]
    torch.testing.assert_close(rounding.up().flatten().double(), torch.tensor(ups).double(), rtol=1e-5, atol=1e-6)
    assert {0.0, 1.0} <= set(rounding.up().flatten().tolist())
    for beta in (20.0, 7.5, 2.0):
        slow = sum(1 - abs(2 * up - 1) ** beta for up in ups)
        assert float(rounding.regulariser(beta).detach()) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("settings", QUANTS)
def test_it_starts_from_the_float_weight(settings: dict[str, object], groups: int) -> None:
    conv = layer(groups, **settings)
    rounding, quantizer = rounding_of(conv), conv.weight_quantizer
    assert quantizer is not None
    scale = quantizer.scale.view(rounding.shape)
    zero = quantizer.zero_point.view(rounding.shape)
    low, high = ((limit - zero) * scale for limit in (quantizer.grid.low, quantizer.grid.high))
    expected = torch.minimum(torch.maximum(conv.weight, low), high)
    torch.testing.assert_close(rounding(conv.weight), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("settings", QUANTS)
def test_what_is_settled_is_what_the_quantizer_gives(settings: dict[str, object], groups: int) -> None:
    conv = layer(groups, **settings)
    quantizer, weight = conv.weight_quantizer, conv.weight.detach().clone()
    assert quantizer is not None
    first = quantizer.scale.clone()
    random = torch.Generator().manual_seed(2)
    images = torch.randn(2, 4, 6, 6, generator=random)
    with learned_rounding({"conv": conv}) as roundings, torch.no_grad():
        rounding = roundings["conv"]
        choice = torch.rand(weight.shape, generator=random) < 0.5
        rounding.variable.copy_(torch.where(choice, 4.0, -4.0))  # h is 1 or 0
        rounding.log_growth.normal_(std=0.3, generator=random)
        soft = conv(images)
        step = rounding.step()
    assert conv.weight_quantizer is quantizer
    assert torch.equal(conv(images), soft), "the soft forward with every weight decided is the plain forward afterwards"
    assert torch.equal(quantizer.scale, step)
    assert not torch.equal(step, first)
    shape = rounding.shape
    floor = torch.floor(weight / first.view(shape)).int() + quantizer.zero_point.view(shape)
    expected = (floor + choice.int()).clamp(quantizer.grid.low, quantizer.grid.high)
    assert torch.equal(quantizer.to_int(conv.weight).integers, expected), "floor or ceiling of the first step's grid, as chosen"
    assert torch.equal(quantizer(conv.weight), conv.weight), "the weights lie on the grid"


def test_undecided_weights_go_where_they_are_nearer_and_no_rounding_is_learned_by_halves() -> None:
    conv = layer(1, bits="w4a4")
    assert conv.weight_quantizer is not None
    nearest = conv.weight_quantizer.to_int(conv.weight).integers
    before = copy.deepcopy(conv.state_dict())
    with pytest.raises(KeyboardInterrupt), learned_rounding({"conv": conv}) as roundings:
        nn.init.constant_(roundings["conv"].variable, 5.0)
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], value) for name, value in conv.state_dict().items()), (
        "an interruption leaves it as it was"
    )
    with learned_rounding({"conv": conv}):
        pass
    assert torch.equal(conv.weight_quantizer.to_int(conv.weight).integers, nearest), "untrained, it is rounding to nearest"


def test_dead_channels_stay_dead() -> None:
    grid = Grid.choose(3, "symmetric", minimum=-1.0)
    weight = torch.stack([torch.zeros(5), torch.randn(5, generator=torch.Generator().manual_seed(0))])
    quantizer = FakeQuantizer(grid, channels=2)
    quantizer.set_range(grid, weight.amin(1), weight.amax(1))
    rounding = LearnedRounding(weight, quantizer)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        rounding(weight).sum().backward()
        optimizer.step()
    assert rounding(weight)[0].abs().max() < 100 * MIN_SCALE
    assert torch.isfinite(rounding.hard()).all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_quantization_is_dropped_with_the_probability_given(probability: float) -> None:
    grid = Grid.choose(2, "symmetric", minimum=-1.0)
    quantizer = FakeQuantizer(grid, learned=True)
    quantizer.set_range(grid, torch.tensor([-1.0]), torch.tensor([1.0]))
    x = torch.rand(4, 8, 30, 30, generator=torch.Generator().manual_seed(0)) - 0.5
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    plain = quantizer(x).detach()
    mask = RandomMask(probability)
    mask.begin(torch.Generator().manual_seed(3))
    with dropped([quantizer], mask):
        mixed = quantizer(x)
    kept = mixed == x
    assert float(kept.float().mean()) == pytest.approx(probability, abs=0.02)
    assert torch.equal(mixed[~kept], plain[~kept])
    mask.begin(torch.Generator().manual_seed(3))
    with dropped([quantizer], mask):
        assert torch.equal(quantizer(x), mixed), "the same draws again"
    mixed.sum().backward()
    assert quantizer.scale.grad is not None
    assert torch.equal(quantizer(x), plain), "no hook is left behind"


def test_masks_do_not_depend_on_a_tensor_being_dense() -> None:
    mask = RandomMask(0.5)
    share = mask.like(torch.zeros(10, 40, 40).expand(10, 40, 40)[:, ::2, ::2])
    assert share.shape == (10, 20, 20)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.05)
    assert mask.like(torch.zeros(3)).shape == (3,)
