"""BatchNorm statistics and biases that undo what quantization shifts and stretches."""

import copy

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.quant.calibrate import calibrate, float_activations
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import activation_sites, convert
from clusterq_finetune.recipes.correct import correct_channels, restore_channels

EPS = 1e-5


def network(seed: int = 0) -> nn.Sequential:
    """Positive inputs, so that each rounded weight shifts what comes out."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        norm.momentum = 1.0
    model(torch.rand(64, 3, 12, 12) ** 2)  # trained on other images than those below
    return model.eval().requires_grad_(False)


def images(count: int = 4, size: int = 6) -> list[Tensor]:
    random = torch.Generator().manual_seed(7)
    return [torch.rand(size, 3, 12, 12, generator=random) for _ in range(count)]


def shaken(model: nn.Sequential) -> nn.Sequential:
    student = copy.deepcopy(model)
    for layer in (student[0], student[3], student[8]):
        layer.weight += 0.2 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1)) + 0.05
    return student


def outputs(model: nn.Sequential, layer: int, batches: list[Tensor]) -> Tensor:
    """(C, values): what a layer gives, channel by channel."""
    return torch.cat([model[: layer + 1](batch) for batch in batches]).transpose(0, 1).flatten(1)


def twice(batches: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(batch, batch) for batch in batches]


@torch.no_grad()
def test_each_channel_has_the_teachers_mean_and_spread_again() -> None:
    teacher, batch = network(), images(1)
    student = shaken(teacher)
    for layer in (1, 4):
        apart = (outputs(student, layer, batch).mean(1) - outputs(teacher, layer, batch).mean(1)).abs()
        assert apart.max() > 0.3, "there is something to correct"
    correct_channels(student, teacher, twice(batch))
    for layer in (1, 4):
        corrected, wanted = outputs(student, layer, batch), outputs(teacher, layer, batch)
        torch.testing.assert_close(corrected.mean(1), wanted.mean(1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(corrected.std(1), wanted.std(1), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(student(batch[0]).mean(0), teacher(batch[0]).mean(0), rtol=1e-3, atol=1e-3)
    assert (shaken(teacher)(batch[0]).mean(0) - teacher(batch[0]).mean(0)).abs().max() > 0.1
    assert torch.equal(student[0].weight, shaken(teacher)[0].weight), "weights are left alone"
    assert not student[1].training


@torch.no_grad()
def test_against_the_formula_over_several_batches_of_unequal_size() -> None:
    teacher = network()
    student, batches = shaken(teacher), [*images(2), images(1, 2)[0]]
    correct_channels(student, teacher, twice(batches))
    # The first layer's input depends on nothing that is corrected.
    moments = []
    for model in (teacher, student):
        per_batch = [model[0](batch).transpose(0, 1).flatten(1).double() for batch in batches]
        share = torch.tensor([len(batch) for batch in batches], dtype=torch.float64) / sum(map(len, batches))
        mean = sum(w * values.mean(1) for w, values in zip(share, per_batch, strict=True))
        var = sum(w * values.var(1, unbiased=False) for w, values in zip(share, per_batch, strict=True))
        moments.append((mean, var))
    (teacher_mean, teacher_var), (mean, var) = moments
    ratio = (var + EPS) / (teacher_var + EPS)
    stored = teacher[1]
    expected_var = (stored.running_var.double() + EPS) * ratio - EPS
    expected_mean = mean - (teacher_mean - stored.running_mean.double()) * ratio.sqrt()
    torch.testing.assert_close(student[1].running_var.double(), expected_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student[1].running_mean.double(), expected_mean, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_bias_without_batchnorm_against_the_formula() -> None:
    torch.manual_seed(0)
    # As in squeeze-and-excitation; (N, T, C) for the last: its channels come last.
    layers = [nn.Conv2d(3, 5, 3), nn.Flatten(2), nn.Linear(100, 4)]
    teacher = nn.Sequential(*layers).eval().requires_grad_(False)
    student, batches = copy.deepcopy(teacher), [*images(2), images(1, 2)[0]]
    student[0].weight *= 1.5
    student[2].weight += 0.1
    correct_channels(student, teacher, twice(batches))
    every = torch.cat(batches)
    expected = teacher[0](every).mean((0, 2, 3)) - (student[0](every) - student[0].bias.view(-1, 1, 1)).mean((0, 2, 3))
    torch.testing.assert_close(student[0].bias, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(student(every).mean((0, 1)), teacher(every).mean((0, 1)), rtol=1e-4, atol=1e-4)
    restore_channels(student, teacher)
    for layer in (0, 2):
        assert torch.equal(student[layer].bias, teacher[layer].bias)
        assert student[layer].bias.data_ptr() != teacher[layer].bias.data_ptr()


def test_what_is_not_quantized_keeps_its_statistics() -> None:
    teacher = network()
    student = copy.deepcopy(teacher)
    correct_channels(student, teacher, twice(images()))
    for layer in (1, 4):
        torch.testing.assert_close(student[layer].running_mean, teacher[layer].running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(student[layer].running_var, teacher[layer].running_var, rtol=1e-5, atol=1e-5)
    for layer in (0, 3, 8):
        torch.testing.assert_close(student[layer].bias, teacher[layer].bias, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dead_channels_stay_dead() -> None:
    teacher = network()
    teacher[0].weight[2] = 0
    teacher[0].bias[2] = 0
    teacher[1].running_mean[2], teacher[1].running_var[2] = 0, 4e-36
    student = shaken(teacher)
    student[0].weight[2] = 0
    correct_channels(student, teacher, twice(images()))
    assert student[1].running_mean[2].abs() < 1e-6
    assert student[1].running_var[2].abs() < 1e-6
    for norm in (student[1], student[4]):
        assert bool(torch.isfinite(norm.running_mean).all())
        assert bool((norm.running_var >= 0).all())


class Twice(nn.Module):
    """Runs its normalisation on two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(x)))


def test_a_layer_that_runs_twice_keeps_what_it_has() -> None:
    teacher = Twice().eval().requires_grad_(False)
    student = copy.deepcopy(teacher)
    student.conv.weight.mul_(2)
    correct_channels(student, teacher, twice(images()))
    assert torch.equal(student.norm.running_var, teacher.norm.running_var)
    assert torch.equal(student.norm.running_mean, teacher.norm.running_mean)
    assert not torch.equal(student.conv.bias, teacher.conv.bias), "it runs once"


def test_restored_statistics_are_the_teachers_and_nothing_watches_any_more() -> None:
    teacher = network()
    student = shaken(teacher)
    correct_channels(student, teacher, twice(images()))
    assert not torch.equal(student[1].running_mean, teacher[1].running_mean)
    student(images()[0])
    kept = student[1].running_mean.clone()
    teacher(images()[1])
    student(images()[1] * 3)
    assert torch.equal(student[1].running_mean, kept)
    restore_channels(student, teacher)
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(student[1], name), getattr(teacher[1], name))
        assert getattr(student[1], name).data_ptr() != getattr(teacher[1], name).data_ptr()


def test_hooks_go_when_a_pass_fails() -> None:
    teacher = network()
    student = shaken(teacher)
    with pytest.raises(RuntimeError):
        correct_channels(student, teacher, [(images()[0], torch.zeros(1, 5, 12, 12))])
    assert not student[1]._forward_pre_hooks
    assert not teacher[1]._forward_pre_hooks


@torch.no_grad()
def test_a_quantized_student_comes_nearer_to_its_teacher() -> None:
    teacher, batches = network(), images(8)
    error = {}
    for way in ("frozen", "corrected"):
        student = convert(teacher, QuantConfig(bits="w2a4"), batches[0][:1], lambda _: None).eval()
        calibrate(student, batches, QuantConfig(bits="w2a4"))
        if way == "corrected":
            correct_channels(student, teacher, twice(batches))
        fresh = torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(9))
        error[way] = float((student(fresh) - teacher(fresh)).square().mean())
    assert error["corrected"] < 0.5 * error["frozen"]


@torch.no_grad()
def test_activations_can_be_left_in_float_for_a_while() -> None:
    teacher, batch = network(), images(1)[0]
    config = QuantConfig(bits="w8a2")
    student = convert(teacher, config, batch[:1], lambda _: None).eval()
    calibrate(student, [batch], config)
    quantized = student(batch)
    with float_activations(student):
        torch.testing.assert_close(student(batch), teacher(batch), rtol=0, atol=0.01)
    assert torch.equal(student(batch), quantized)
    assert (quantized - teacher(batch)).abs().max() > 0.05
    assert len(activation_sites(student)) == 3
