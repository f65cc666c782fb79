"""BatchNorm taps against slow references."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.taps import ClassGroups, batchnorm_taps, stored_statistics


def network() -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.BatchNorm2d(7))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(7), nn.Linear(7, 4)).eval()


def bn_inputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Inputs of the BatchNorm layers, found the plain way: run the layers one by one."""
    inputs, x = [], images
    layers = [*model[0], *list(model)[1:]]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            inputs.append(x)
        x = layer(x)
    return inputs


def slow_statistics(x: Tensor, keep: list[int]) -> tuple[Tensor, Tensor]:
    """Biased mean and variance per channel over the samples in `keep` and all positions, in float64."""
    values = [x[n].double().reshape(x.shape[1], -1) for n in keep]
    joined = torch.cat(values, dim=1)
    mean = joined.mean(1)
    return mean, ((joined - mean[:, None]) ** 2).mean(1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_batch_and_class_statistics_equal_the_slow_ones(memory_format: torch.memory_format) -> None:
    model = network()
    images = torch.randn(9, 3, 10, 10).contiguous(memory_format=memory_format)
    labels = torch.tensor([3, 0, 3, 3, 0, 7, 3, 0, 7])
    keep = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0]).bool()
    with batchnorm_taps(model) as taps:
        model(images)
    inputs = bn_inputs(model, images)
    assert [m.name for m in taps] == ["0.1", "0.4", "3"]
    groups = ClassGroups.of(labels)
    assert groups.classes.tolist() == [0, 3, 7]
    for moments, x in zip(taps, inputs, strict=True):
        mean, var = slow_statistics(x, list(range(9)))
        torch.testing.assert_close(moments.batch().mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(moments.batch().var.double(), var, rtol=1e-5, atol=1e-6)
        statistics = moments.by_class(groups, keep)
        assert statistics.count.tolist() == [3, 3, 0]
        for row, members in enumerate([[1, 4, 7], [0, 3, 6]]):
            mean, var = slow_statistics(x, members)
            torch.testing.assert_close(statistics.mean[row].double(), mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(statistics.var[row].double(), var, rtol=1e-5, atol=1e-5)
        assert not statistics.mean[2].any(), "a class without a kept sample holds zeros"
        assert not statistics.var[2].any()


def test_gradients_equal_those_of_the_slow_formula() -> None:
    model = network()
    labels = torch.tensor([0, 1, 0, 1, 1])
    groups = ClassGroups.of(labels)
    weights = [torch.randn(2, c) for c in (5, 7, 7)]

    def fast(images: Tensor) -> Tensor:
        with batchnorm_taps(model) as taps:
            model(images)
        parts = [m.by_class(groups) for m in taps]
        batch = sum((m.batch().mean * m.batch().var).sum() for m in taps)
        return batch + sum((w * (p.mean + p.var)).sum() for w, p in zip(weights, parts, strict=True))

    def slow(images: Tensor) -> Tensor:
        total = torch.zeros(())
        for x, w in zip(bn_inputs(model, images), weights, strict=True):
            flat = x.reshape(x.shape[0], x.shape[1], -1)
            everything = flat.transpose(0, 1).reshape(x.shape[1], -1)
            total = total + (everything.mean(1) * everything.var(1, correction=0)).sum()
            for row in range(2):
                joined = flat[labels == row].transpose(0, 1).reshape(x.shape[1], -1)
                total = total + (w[row] * (joined.mean(1) + joined.var(1, correction=0))).sum()
        return total

    images = torch.randn(5, 3, 10, 10, requires_grad=True)
    (grad_fast,) = torch.autograd.grad(fast(images), images)
    (grad_slow,) = torch.autograd.grad(slow(images), images)
    assert grad_slow.abs().max() > 1e-3
    torch.testing.assert_close(grad_fast, grad_slow, rtol=1e-4, atol=1e-6)


def test_float32_under_autocast() -> None:
    model = network()
    images = torch.randn(4, 3, 10, 10)
    with batchnorm_taps(model) as taps, torch.autocast("cpu", dtype=torch.bfloat16):
        model(images)
    assert all(m.first.dtype == m.second.dtype == torch.float32 for m in taps)


def test_variance_survives_a_large_mean() -> None:
    """Without the shift, E[x^2] - E[x]^2 loses everything here."""
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.fill_(1000.0)
    layer_model = nn.Sequential(layer)
    x = 1000 + 0.1 * torch.randn(16, 2, 8, 8)
    with batchnorm_taps(layer_model) as taps:
        layer_model(x)
    _, var = slow_statistics(x, list(range(16)))
    torch.testing.assert_close(taps.moments[0].batch().var.double(), var, rtol=1e-3, atol=0)


def test_dead_channels_have_finite_gradients() -> None:
    layer = nn.BatchNorm2d(2).eval()
    x = torch.randn(4, 2, 3, 3)
    x[:, 0] = 0
    x.requires_grad_(True)
    model = nn.Sequential(layer)
    with batchnorm_taps(model) as taps:
        model(x)
    torch.sqrt(taps.moments[0].by_class(ClassGroups.of(torch.tensor([0, 0, 1, 1]))).var + layer.eps).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_hooks_are_gone_afterwards_and_lists_do_not_grow() -> None:
    model = network()

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in model.modules())

    with batchnorm_taps(model) as taps:
        for _ in range(3):
            model(torch.randn(2, 3, 10, 10))
        assert len(taps.moments) == 3
        assert hooks() == 4
    assert hooks() == 0
    with pytest.raises(RuntimeError, match="inside"), batchnorm_taps(model):
        raise RuntimeError("inside")
    assert hooks() == 0


def test_a_copy_made_inside_the_block_is_not_tapped() -> None:
    model = network()
    images = torch.randn(2, 3, 10, 10)
    with batchnorm_taps(model) as taps:
        twin = copy.deepcopy(model)
        model(images)
        seen = list(taps)
        twin(10 * images)
        assert [id(moments) for moments in taps] == [id(moments) for moments in seen]


def test_model_without_batchnorm_is_refused_and_stored_statistics_are_the_layers() -> None:
    with pytest.raises(ValueError, match="no BatchNorm"), batchnorm_taps(nn.Linear(2, 2)):
        pass
    model = network()
    model[0][1].running_mean.fill_(2.0)
    stored = stored_statistics(model)
    assert list(stored) == ["0.1", "0.4", "3"]
    assert stored["0.1"].mean.tolist() == [2.0] * 5
