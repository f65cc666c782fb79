"""Range estimation."""

import pytest
import torch

from clusterq_common.quant.config import QuantConfig, Scheme
from clusterq_common.quant.fake_quantizer import FakeQuantizer
from clusterq_common.quant.grid import Grid
from clusterq_common.quant.ranges import SHARES, ActivationObserver, Range, least_squares_range, weight_range


def error(x: torch.Tensor, searched: Range) -> float:
    made = FakeQuantizer(searched.grid)
    made.set_range(*searched)
    return float((made(x) - x).square().mean())


def test_ema_of_a_constant_is_the_constant_at_every_step() -> None:
    """A corrected value fed back into the running one would climb far above."""
    observer = ActivationObserver()
    config = QuantConfig(range="minmax")
    for observer.batch in range(40):
        observer.update(torch.tensor([0.0, 1.0]))
        assert observer.range(4, config).high.item() == pytest.approx(1.0, rel=1e-5)


def test_ema_weighs_recent_batches_most() -> None:
    observer = ActivationObserver()
    highs = [1.0, 2.0, 4.0]
    for observer.batch, high in enumerate(highs):
        observer.update(torch.tensor([-high / 2, high]))
    weights = [0.1 * 0.9**age for age in (2, 1, 0)]
    expected = sum(w * h for w, h in zip(weights, highs, strict=True)) / sum(weights)
    observed = observer.range(4, QuantConfig(range="minmax"))
    assert observed.high.item() == pytest.approx(expected, rel=1e-5)
    assert observed.low.item() == pytest.approx(-expected / 2, rel=1e-5)


def test_percentile_leaves_the_tail_outside() -> None:
    observer = ActivationObserver()
    x = torch.cat([torch.linspace(-1, 1, 9990), torch.full((10,), 100.0)])
    observer.update(x)
    observed = observer.range(8, QuantConfig(range="percentile", percentile=99.0))
    assert 0.9 < observed.high.item() <= 1.0
    assert -1.0 <= observed.low.item() < -0.9


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_squares_beats_minmax_and_is_near_the_best(scheme: str, bits: int) -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(1)) + 0.3
    grid = Grid.choose(bits, scheme, minimum=-1.0)
    low, high = least_squares_range(x[None], grid)
    least = error(x, Range(grid, low, high))
    assert least <= error(x, Range(grid, x.amin()[None], x.amax()[None]))
    shares = torch.linspace(0.05, 1, 60).tolist()
    if scheme == "symmetric":
        best = min(error(x, Range(grid, x.amin()[None] * s, x.amax()[None] * s)) for s in shares)
    else:
        coarse = shares[::3]
        best = min(error(x, Range(grid, x.amin()[None] * a, x.amax()[None] * b)) for a in coarse for b in coarse)
    assert least <= 1.06 * best


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("shape", [(5, 40), (3, 50_000), (1, 140_000), (2, 1)])
def test_the_search_finds_what_trying_share_by_share_finds(scheme: Scheme, shape: tuple[int, int]) -> None:
    """Small tensors are tried with many shares at once, larger ones with few or one."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    rows[-1] = 0  # every share is as good there, and the largest one counts
    grid = Grid.choose(3, scheme, minimum=-1.0)
    searched = least_squares_range(rows, grid)
    for row, low, high in zip(rows, *searched, strict=True):
        slow = (row.amin()[None], row.amax()[None])
        for ends in ((0, 1),) if scheme == "symmetric" else ((0, 1), (1,), (0,)):
            slow = min(
                (tuple(end * share if place in ends else end for place, end in enumerate(slow)) for share in reversed(SHARES)),
                key=lambda tried: error(row, Range(grid, *tried)),
            )
        assert (low, high) == slow


def test_sign_is_decided_by_every_value_seen() -> None:
    config = QuantConfig()
    observer = ActivationObserver()
    observer.update(torch.rand(1000))
    assert not observer.range(4, config).grid.signed
    assert observer.range(4, QuantConfig(signed=True)).grid.signed
    rare = torch.rand(200_000)
    rare[123_456] = -0.5  # one value among many, which the random sample is likely to miss
    observer.batch = 1
    observer.update(rare)
    assert observer.range(4, config).grid.signed


def test_sample_is_bounded_and_nothing_seen_is_an_error() -> None:
    observer = ActivationObserver()
    with pytest.raises(RuntimeError, match="no activation was observed"):
        observer.range(4, QuantConfig())
    for observer.batch in range(20):
        observer.update(torch.randn(100_000))
    assert observer._sample().numel() <= (1 << 18) + 2


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "lsq"])
def test_weight_ranges(granularity: str, method: str) -> None:
    weight = torch.randn(4, 3, 3, 3) * torch.tensor([0.1, 1, 10, 0])[:, None, None, None]
    searched = weight_range(weight, 4, QuantConfig(weight_granularity=granularity, range=method))
    assert searched.grid.signed
    assert searched.low.shape == searched.high.shape == ((4,) if granularity == "channel" else (1,))
    if method == "minmax" and granularity == "channel":
        assert torch.equal(searched.high, weight.flatten(1).amax(1))
