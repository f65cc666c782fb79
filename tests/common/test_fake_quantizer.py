"""The quantizers: properties over all bits and schemes, and formulas by hand."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from clusterq_common.quant import fake_quantize as straight_through
from clusterq_common.quant.config import Scheme
from clusterq_common.quant.fake_quantize import computed_again
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.grid import MIN_SCALE, Grid

BITS = st.integers(2, 8)
SCHEMES = st.sampled_from(["symmetric", "asymmetric"])
VALUES = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60)


def quantizer(x: Tensor, bits: int, scheme: Scheme, *, channels: int | None = None, learned: bool = False) -> FakeQuantizer:
    """A quantizer that covers all of `x`."""
    grid = Grid.choose(bits, scheme, minimum=float(x.min()))
    made = FakeQuantizer(grid, channels=channels, learned=learned)
    rows = x.reshape(channels or 1, -1)
    made.set_range(grid, rows.amin(1), rows.amax(1))
    return made


@given(BITS, SCHEMES, VALUES, VALUES)
def test_forward_equals_dequantized_integers_exactly(bits: int, scheme: Scheme, seen: list[float], later: list[float]) -> None:
    made = quantizer(torch.tensor(seen), bits, scheme)
    x = torch.tensor(later)
    integers = made.to_int(x)
    assert torch.equal(made(x), integers.dequantize())
    assert made.grid.low <= integers.integers.min()
    assert integers.integers.max() <= made.grid.high
    assert torch.equal(made(made(x)), made(x)), "what lies on the grid stays"
    assert made(torch.zeros(1)) == 0


@given(BITS, SCHEMES, st.integers(0, 10_000), st.booleans())
def test_the_values_of_torchs_own_kernels(bits: int, scheme: Scheme, seed: int, channels_last: bool) -> None:
    x = 3 * torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    whole, each = quantizer(x / 2, bits, scheme), quantizer(x / 2, bits, scheme, channels=4)
    low, high = whole.grid.low, whole.grid.high
    assert torch.equal(whole(x), torch.fake_quantize_per_tensor_affine(x, whole.scale, whole.zero_point, low, high))
    assert torch.equal(each(x), torch.fake_quantize_per_channel_affine(x, each.scale, each.zero_point, 0, low, high))
    assert whole(x).stride() == x.stride()


@given(st.integers(0, 1000))
def test_gradients_on_the_borders_of_the_grid(seed: int) -> None:
    """The borders belong to the inside, to the last bit; the fast path of a CPU compares without them."""
    made = quantizer(torch.rand(50, generator=torch.Generator().manual_seed(seed)) - 0.3, 4, "symmetric")
    low, high = (limit * made.scale for limit in (made.grid.low, made.grid.high))
    infinity = torch.tensor(torch.inf)
    x = torch.cat([low.nextafter(-infinity), low, high, high.nextafter(infinity)]).requires_grad_(True)
    made(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


@given(BITS, SCHEMES, st.integers(0, 10_000))
def test_per_channel_is_per_tensor_on_each_channel(bits: int, scheme: Scheme, seed: int) -> None:
    weight = (
        torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
        * torch.tensor([1e-3, 1.0, 50.0])[:, None, None, None]
    )
    made = quantizer(weight, bits, scheme, channels=3)
    assert torch.equal(made(weight), made.to_int(weight).dequantize())
    for channel in range(3):
        # One grid for all channels: the sign is the tensor's, not the channel's.
        alone = FakeQuantizer(made.grid)
        alone.set_range(made.grid, weight[channel].amin()[None], weight[channel].amax()[None])
        assert torch.equal(made(weight)[channel], alone(weight[channel]))


@given(BITS, SCHEMES, st.integers(0, 10_000))
def test_error_inside_the_range_is_at_most_half_a_step(bits: int, scheme: Scheme, seed: int) -> None:
    x = torch.randn(200, generator=torch.Generator().manual_seed(seed))
    made = quantizer(x, bits, scheme)
    error = (made(x) - x).abs()
    # Eq. 2-3 leave the top of a symmetric signed grid half a step short of a, the asymmetric zero-point is rounded.
    inside = (x <= (made.grid.high - made.zero_point) * made.scale) & (x >= (made.grid.low - made.zero_point) * made.scale)
    assert error[inside].max() <= made.scale.item() / 2 * 1.001
    assert inside.float().mean() > 0.5


def test_symmetric_formulas_by_hand() -> None:
    """Eq. 2-3 for N = 4: S = 2a / 15, integers -8..7."""
    x = torch.tensor([-3.0, -0.1, 0.0, 0.19, 0.21, 1.5, 3.0])
    made = quantizer(x, 4, "symmetric")
    assert made.scale.item() == pytest.approx(6 / 15)
    assert made.to_int(x).integers.tolist() == [-8, 0, 0, 0, 1, 4, 7]
    unsigned = quantizer(x.clamp_min(0), 4, "symmetric")
    assert (unsigned.grid.low, unsigned.grid.high) == (0, 15)
    assert unsigned.scale.item() == pytest.approx(3 / 15)


def test_asymmetric_formulas_by_hand() -> None:
    made = quantizer(torch.tensor([-1.0, 2.0]), 4, "asymmetric")
    assert made.scale.item() == pytest.approx(0.2)
    assert made.zero_point.item() == 5
    assert made.to_int(torch.tensor([-1.0, 0.0, 2.0, 9.0])).integers.tolist() == [0, 5, 15, 15]
    # A range that does not hold zero is widened to it: padding must stay exact.
    positive = quantizer(torch.tensor([1.0, 3.0]), 4, "asymmetric")
    assert positive(torch.zeros(1)).item() == 0


def test_literal_signed_grid_spends_a_bit_on_the_sign() -> None:
    assert Grid.choose(4, "symmetric", minimum=0.0, always_signed=True).low == -8


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_gradient_is_one_inside_and_zero_outside(scheme: Scheme, learned: bool) -> None:
    made = FakeQuantizer(Grid.choose(4, scheme, minimum=-1.0), learned=learned)
    made.set_range(Grid.choose(4, scheme, minimum=-1.0), torch.tensor([-1.0]), torch.tensor([1.0]))
    x = torch.tensor([-5.0, -0.9, 0.0, 0.3, 0.8, 5.0], requires_grad=True)
    made(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@given(st.integers(2, 8), st.booleans(), st.integers(0, 1000))
def test_learned_scale_gradient_equals_plain_lsq(bits: int, signed: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 30, generator=random)
    x = x if signed else x.abs()
    upstream = torch.randn(4, 30, generator=random)
    made = quantizer(x * 0.5, bits, "symmetric", learned=True)
    made(x).mul(upstream).sum().backward()

    scale = made.scale.detach().clone().requires_grad_(True)
    low, high = made.grid.low, made.grid.high
    scaled = (x / scale).clamp(low, high)
    plain = (scaled + (scaled.round() - scaled).detach()) * scale  # straight through the rounding, by autograd
    plain.mul(upstream).sum().backward()
    expected = scale.grad / (30 * high) ** 0.5
    torch.testing.assert_close(made.scale.grad, expected, rtol=2e-3, atol=2e-4)


@given(st.integers(2, 8), st.sampled_from(["symmetric", "asymmetric"]), st.integers(0, 1000))
def test_learned_scales_of_channels(bits: int, scheme: Scheme, seed: int) -> None:
    """Each channel's gradient is that of a quantizer of its own."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 2, 5, generator=random) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    upstream = torch.randn(3, 2, 5, generator=random)
    weight = x.clone().requires_grad_(True)
    made = quantizer(x * 0.5, bits, scheme, channels=3, learned=True)
    made(weight).mul(upstream).sum().backward()
    for channel in range(3):
        # One channel as a tensor of shape (1, 10): numel / shape[0] is then the channel's count.
        own = x[channel].reshape(1, -1).clone().requires_grad_(True)
        single = FakeQuantizer(made.grid, learned=True)
        single.set_range(made.grid, torch.zeros(1), torch.ones(1))
        with torch.no_grad():
            single.scale.copy_(made.scale[channel])
            single.zero_point.copy_(made.zero_point[channel])
        out = single(own)
        assert torch.equal(out.flatten(), made(weight)[channel].flatten())
        out.mul(upstream[channel].reshape(1, -1)).sum().backward()
        torch.testing.assert_close(made.scale.grad[channel], single.scale.grad[0], rtol=2e-3, atol=1e-4)
        assert torch.equal(weight.grad[channel].flatten(), own.grad.flatten())


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-42])
def test_dead_channels_give_no_nan(scheme: Scheme, value: float) -> None:
    weight = torch.stack([torch.full((4,), value), torch.tensor([-1.0, 0.5, 0.2, 1.0])]).requires_grad_(True)
    made = quantizer(weight.detach(), 4, scheme, channels=2)
    assert made.scale.min() >= MIN_SCALE
    made(weight).sum().backward()
    assert torch.isfinite(made(weight)).all()
    assert torch.isfinite(weight.grad).all()
    # A value that appears later where calibration saw none.
    assert torch.isfinite(made(torch.ones(2, 4))).all()


def test_a_scale_that_passes_zero_comes_back() -> None:
    """SGD may step over zero; below the bound only gradients that raise the scale pass, and a saved scale is the one in use."""
    made = quantizer(torch.tensor([[-1.0, 1.0]]), 4, "symmetric", learned=True)
    target = torch.tensor([[-1.0, 1.0]])
    with torch.no_grad():
        made.scale.fill_(-0.3)
    assert made.step().item() == pytest.approx(MIN_SCALE)
    descent = torch.optim.SGD(made.parameters(), lr=0.05)
    for _ in range(200):
        descent.zero_grad()
        (made(target) - target).square().sum().backward()
        descent.step()
    assert torch.allclose(made(target), target, atol=0.1)
    with torch.no_grad():
        made.scale.fill_(-0.3)
    before = made(target)
    assert made.settle() == 1
    assert made.scale.item() == pytest.approx(MIN_SCALE)
    assert torch.equal(made(target), before)
    assert made.settle() == 0


@pytest.mark.parametrize("learned", [False, True])
def test_range_survives_saving(learned: bool) -> None:
    x = torch.rand(50)
    made = quantizer(x, 3, "symmetric", learned=learned)
    loaded = FakeQuantizer(Grid.choose(3, "symmetric", minimum=-1.0), learned=learned)
    assert not loaded.calibrated
    with pytest.raises(RuntimeError, match="no range yet"):
        loaded(x)
    loaded.load_state_dict(load(save({k: v.contiguous() for k, v in made.state_dict().items()})))
    assert loaded.grid == made.grid
    assert loaded.grid.low == 0, "the unsigned choice is part of the range"
    assert torch.equal(loaded(x), made(x))


def test_float32_under_autocast() -> None:
    x = torch.randn(100)
    made = quantizer(x, 8, "symmetric")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, made(x))
    assert "8 bits symmetric" in repr(made)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_computed_again_is_the_same_and_nothing_else_is(learned: bool, channels_last: bool) -> None:
    each = quantizer(torch.tensor([0.0, 1.0]), 4, "symmetric", learned=learned)
    each.recompute = True
    weight = torch.randn(3, 2, 3, 3, requires_grad=True)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(4, 2, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
    tensors = [x, weight, *([each.scale] if learned else [])]
    grad = torch.randn(4, 3, 4, 4)

    def gradients(*, again: bool) -> list[torch.Tensor]:
        y = each(x.relu())
        with computed_again(y) if again else nullcontext():
            loss = (F.conv2d(y, weight) * grad).sum()
        # Twice: what was computed for one backward pass is not left over for the next.
        torch.autograd.grad(loss, tensors, retain_graph=True)
        return list(torch.autograd.grad(loss, tensors))

    again, kept = gradients(again=True), gradients(again=False)
    each.recompute = False
    for ours, recompute, plain in zip(again, kept, gradients(again=False), strict=True):
        assert torch.equal(ours, plain)
        assert torch.equal(recompute, plain)
    each.recompute = True

    inside: list[object] = []
    y = each(x.relu())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: inside.append(t.data_ptr()) or t), computed_again(y):
        F.conv2d(y, weight).sum().backward()
    assert y.data_ptr() not in inside
    assert isinstance(computed_again(x.relu()), nullcontext), "nothing to compute it from"
    assert isinstance(computed_again(y.detach()), nullcontext)
    each.recompute = False
    assert isinstance(computed_again(each(x.relu())), nullcontext), "kept, as ever"


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("order", ["contiguous", "channels_last", "gaps"])
def test_long_tensors_are_walked_piece_by_piece_to_the_same_values(
    scheme: Scheme, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(5, 3, 7, 6)
    each = quantizer(x, 4, scheme)
    if order == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    if order == "gaps":
        x = x[..., ::2]
    walks = []
    plain, by_piece = each(x), straight_through._piece_by_piece
    monkeypatch.setattr(straight_through, "LONG", 1)
    monkeypatch.setattr(straight_through, "PIECE", 50)
    monkeypatch.setattr(straight_through, "_piece_by_piece", lambda *given: walks.append(given) or by_piece(*given))
    pieces = each(x)
    assert torch.equal(pieces, plain)
    assert pieces.stride() == plain.stride()
    assert len(walks) == (order != "gaps")
