"""Losses of a bank's images, against slow references: loops over samples, layers and channels, in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from clusterq_common.capture import classifier_input
from clusterq_common.run.seeding import stream
from clusterq_common.taps import Statistics, StoredStatistics, batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_gen.bank.classes import margin_loss, random_crop
from clusterq_gen.bank.statistics import (
    NOISE_CHUNK,
    NOISE_IMAGES,
    LayerTarget,
    emphasis_loss,
    input_loss,
    layer_targets,
    noise_images,
    statistics_loss,
)
from clusterq_gen.losses.classification import class_loss

EPS = 1e-3
LAYERS = 3
SPEC = InputSpec(size=10, channels=2, num_classes=4, mean=(0.5, 0.4), std=(0.25, 0.2))


def small_teacher() -> Teacher:
    """Three BatchNorm layers, the last one on single positions."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=EPS), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3, eps=EPS)]
    layers += [nn.ReLU(), nn.Conv2d(3, 5, 6), nn.BatchNorm2d(5, eps=EPS), nn.Flatten(), nn.Linear(5, 4)]
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return Teacher(model, TeacherConfig(arch="small"), SPEC, "sha256:none")


def inputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Inputs of the BatchNorm layers, float64."""
    layers = []
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layers.append(x.detach().double())
        x = layer(x)
    return layers


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model if isinstance(layer, nn.BatchNorm2d)]


def slow_distance(x: Tensor, norm: nn.BatchNorm2d, mean_slack: float = 0.0, std_slack: float = 0.0) -> float:
    """x (N, C, H, W): per channel, how far its mean and deviation lie beyond the margins, squared; mean over channels."""
    total = 0.0
    for c in range(x.shape[1]):
        values = x[:, c].flatten()
        mean = sum(values.tolist()) / len(values)
        var = sum((value - mean) ** 2 for value in values.tolist()) / len(values)
        sigma = math.sqrt(norm.running_var[c].item() + EPS)
        total += max(abs(mean - norm.running_mean[c].item()) - mean_slack, 0.0) ** 2
        total += max(abs(math.sqrt(var + EPS) - sigma) - std_slack, 0.0) ** 2
    return total / x.shape[1]


@pytest.mark.parametrize("slack", [0.0, 0.6])
def test_statistics_and_emphasis(slack: float) -> None:
    teacher = small_teacher()
    targets = layer_targets(teacher, 3, slack)
    images = torch.randn(7, 2, 10, 10, requires_grad=True)
    with batchnorm_taps(teacher.model) as taps:
        teacher.model(images)
    margins = [(target.mean_slack, target.std_slack) for target in targets]
    assert all((a > 0) == (b > 0) == (slack > 0) for a, b in margins)
    layers = list(zip(inputs(teacher.model, images), norms(teacher.model), margins, strict=True))
    whole = sum(slow_distance(x, norm, *margin) for x, norm, margin in layers) / LAYERS
    value = statistics_loss(taps.moments, targets)
    assert value.item() == pytest.approx(whole, rel=1e-4)
    single = 0.0
    for n in range(7):
        x, norm, margin = layers[n % LAYERS]
        single += slow_distance(x[n : n + 1], norm, *margin) / (7 * LAYERS)
    emphasis = emphasis_loss(taps.moments, targets)
    assert emphasis.item() == pytest.approx(single, rel=1e-4)
    (value + emphasis).backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().max() > 0


def test_margins_are_quantiles_over_channels_of_what_noise_is_off() -> None:
    teacher = small_teacher()
    noise = torch.cat([noise_images(teacher, NOISE_CHUNK, stream(3, "slack", n)) for n in range(NOISE_IMAGES // NOISE_CHUNK)])
    assert len(noise) == 1024
    targets = layer_targets(teacher, 3, 0.75)
    for x, norm, target in zip(inputs(teacher.model, noise), norms(teacher.model), targets, strict=True):
        assert norm.running_mean is not None
        apart = sorted(abs(x[:, c].mean().item() - norm.running_mean[c].item()) for c in range(x.shape[1]))
        place = 0.75 * (len(apart) - 1)
        low = int(place)
        wanted = apart[low] + (place - low) * (apart[min(low + 1, len(apart) - 1)] - apart[low])
        assert target.mean_slack == pytest.approx(wanted, rel=1e-3)
    # Noise itself is then within the margins in three quarters of the channels: most of its distance costs nothing.
    with torch.no_grad(), batchnorm_taps(teacher.model) as taps:
        teacher.model(noise)
    assert statistics_loss(taps.moments, targets) < 0.5 * statistics_loss(taps.moments, layer_targets(teacher, 3, 0.0))
    assert layer_targets(teacher, 4, 0.75)[0].mean_slack != targets[0].mean_slack, "noise of the seed"


def test_distances_below_the_margin_have_no_gradient() -> None:
    target = LayerTarget(StoredStatistics(torch.zeros(2), torch.ones(2), torch.zeros(2)), mean_slack=0.5, std_slack=0.5)
    mean = torch.tensor([0.4, 0.6], requires_grad=True)
    loss = target.squares(Statistics(mean, torch.ones(2))).mean()
    assert loss.item() == pytest.approx(0.1**2 / 2)
    loss.backward()
    assert mean.grad is not None
    assert mean.grad.tolist() == pytest.approx([0.0, 0.1])


def test_input_statistics() -> None:
    images = torch.randn(5, 2, 6, 6) * 2 + 1
    total = 0.0
    for c in range(2):
        values = images[:, c].double().flatten().tolist()
        mean = sum(values) / len(values)
        std = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        total += (mean**2 + (std - 1) ** 2) / 2
    assert input_loss(images, 4).item() == pytest.approx(total / 4, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_class_loss(gamma: float, soft: bool) -> None:
    logits = (3 * torch.randn(6, 4)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    targets = torch.rand(6) if soft else None
    total = 0.0
    for n in range(6):
        z = logits[n].double().tolist()
        p = math.exp(z[labels[n]]) / sum(math.exp(value) for value in z)
        term = (p - targets[n].item()) ** 2 if targets is not None else -math.log(p)
        total += term * (1 - p) ** gamma / 6
    result = class_loss(logits, labels, targets=targets, gamma=gamma)
    assert result.item() == pytest.approx(total, rel=1e-4)
    sure = torch.tensor([[100.0, 0.0]], requires_grad=True)
    (result + class_loss(sure, torch.tensor([0]), gamma=gamma)).backward()
    assert sure.grad is not None
    assert sure.grad.isfinite().all(), "also where the class is certain"


def test_margin_loss() -> None:
    features, labels = torch.randn(7, 5).requires_grad_(), torch.tensor([1, 1, 3, 3, 3, 1, 0])
    x = features.detach().double()
    total = 0.0
    for n in range(7):
        members = [m for m in range(7) if labels[m] == labels[n]]
        centre = [sum(x[m, d].item() for m in members) / len(members) for d in range(5)]
        dot = sum(x[n, d].item() * centre[d] for d in range(5))
        apart = 1 - dot / (math.sqrt(sum(v * v for v in x[n].tolist())) * math.sqrt(sum(v * v for v in centre)))
        total += (max(0.3 - apart, 0.0) + max(apart - 0.6, 0.0)) / 7
    value = margin_loss(features, labels, 0.3, 0.6)
    assert value.item() == pytest.approx(total, rel=1e-4)
    value.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_crops() -> None:
    images = torch.arange(2 * 8 * 8, dtype=torch.float32).view(1, 2, 8, 8)
    assert random_crop(8, stream(0, "a"), 0.0, 0.5) is None
    crops = [random_crop(8, stream(seed, "a"), 1.0, 0.25) for seed in range(40)]
    cropped = [crop.of(images) for crop in crops if crop is not None]
    assert len(cropped) == len(crops)
    assert all(image.shape == images.shape for image in cropped)
    spans = [(image[0, 0].max() - image[0, 0].min()).item() for image in cropped]
    # A side of 8 spans 63 values; a quarter of the area has a side of 4 and spans 27.
    assert min(spans) >= 27 - 1e-3
    assert max(spans) <= 63 + 1e-3
    assert len(set(spans)) > 2, "several sizes"
    assert len({image[0, 0, 0, 0].item() for image in cropped}) > 4, "several places"
    whole = random_crop(8, stream(0, "a"), 1.0, 1.0)
    assert whole is not None
    torch.testing.assert_close(whole.of(images), images)
    wide = torch.arange(4.0)[:, None] + 100 * torch.arange(16.0)
    for seed in range(40):
        crop = random_crop((4, 16), stream(seed, "a"), 1.0, 0.25)
        assert crop is not None
        assert (crop.height, crop.width) == (max(1, round(crop.width / 4)), crop.width) or abs(
            crop.width - 4 * crop.height
        ) <= 2
        assert 0 <= crop.top <= 4 - crop.height
        assert 0 <= crop.left <= 16 - crop.width
        cut = crop.of(wide[None, None])
        assert cut.shape == (1, 1, 4, 16)
        # Columns tell the left edge, rows the top.
        assert cut.min() == crop.top + 100 * crop.left
    share = sum(random_crop(8, stream(seed, "b"), 0.5, 0.5) is not None for seed in range(200)) / 200
    assert 0.4 < share < 0.6


def test_features_are_what_the_classifier_sees() -> None:
    model = small_teacher().model
    images = torch.randn(3, 2, 10, 10)
    with classifier_input(model) as features:
        logits = model(images)
    torch.testing.assert_close(model[-1](features.latest), logits)
    convolutional = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 1), nn.Flatten(2))
    with classifier_input(convolutional) as features:
        convolutional(images)
    assert features.latest.shape == (3, 6)
    assert not any(layer._forward_pre_hooks for layer in [*model.modules(), *convolutional.modules()])
