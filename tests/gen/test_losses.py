"""Losses on BatchNorm statistics against a slow reference: Python loops over samples, classes, layers and channels, in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.run.seeding import stream
from clusterq_common.taps import BatchNormTaps, ClassGroups, StoredStatistics, stored_statistics
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.bn_matching import BatchNormMatchingLoss
from clusterq_gen.losses.diversity import DiversityLoss
from clusterq_gen.losses.fda import FeatureAlignmentLoss
from clusterq_gen.losses.spread import ClassSpreadLoss
from clusterq_gen.methods import build_method
from clusterq_gen.training.centroids import Centroids, SemanticLayers
from tests.gen.scene import EPS, LABELS, Scene, draws_at


def slow_alignment(scene: Scene, reduction: str, noise: tuple[Tensor, Tensor] | None = None) -> float:
    """Eq. 4 (Eq. 6 with noise) term by term; noise rows follow the batch's classes 0, 2, 5."""
    per_class = []
    for row, label in [(0, 0), (1, 2)]:  # class 5 takes no part
        start, per_layer = 0, []
        for mean, std in scene.class_statistics(label):
            columns = slice(start, start + len(mean))
            start += len(mean)
            mu, sigma = scene.centroids.mean[label, columns].double(), scene.centroids.std[label, columns].double()
            if noise is not None:
                mu, sigma = mu + noise[0][row, columns], sigma + noise[1][row, columns]
            channels = [(mean[c] - mu[c]) ** 2 + (std[c] - sigma[c]) ** 2 for c in range(len(mean))]
            per_layer.append(sum(channels) if reduction == "sum" else sum(channels) / len(channels))
        per_class.append(sum(per_layer) if reduction == "sum" else sum(per_layer) / len(per_layer))
    return float(sum(per_class) if reduction == "sum" else sum(per_class) / len(per_class))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_fda_is_equation_4(reduction: str) -> None:
    scene = Scene()
    value = FeatureAlignmentLoss(reduction)(scene.batch)
    assert value.item() == pytest.approx(slow_alignment(scene, reduction), rel=1e-4)
    value.backward()
    gradient = scene.images.grad.flatten(1).norm(dim=1)
    assert (gradient[scene.keep] > 0).all()
    assert (gradient[~scene.keep] == 0).all(), "misclassified samples take no part"


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_diversity_is_equation_6(reduction: str, noise: str) -> None:
    scene = Scene()
    loss = DiversityLoss(noise, 0.3, 0.15, reduction, seed=9)
    random = stream(9, "diversity", 3)
    draw = (
        (lambda: torch.randn(3, 8, generator=random))
        if noise == "gaussian"
        else (lambda: torch.rand(3, 8, generator=random) * 2 - 1)
    )
    drawn = (0.3 * draw(), 0.15 * draw())
    value = loss(scene.batch)
    assert value.item() == pytest.approx(slow_alignment(scene, reduction, drawn), rel=1e-4)
    assert loss(replace(scene.batch, draws=draws_at(4))).item() != pytest.approx(value.item()), "drawn afresh each step"
    value.backward()
    assert scene.images.grad.abs().max() > 0


def test_diversity_without_noise_is_fda_and_in_expectation_adds_its_variance() -> None:
    scene = Scene()
    fda = FeatureAlignmentLoss("sum")(scene.batch).item()
    assert DiversityLoss("gaussian", 0, 0, "sum", 0)(scene.batch).item() == pytest.approx(fda)
    loss = DiversityLoss("gaussian", 0.3, 0.15, "sum", 0)
    mean = sum(loss(replace(scene.batch, draws=draws_at(step))).item() for step in range(400)) / 400
    assert mean == pytest.approx(fda + 2 * 8 * (0.3**2 + 0.15**2), rel=0.03)  # two classes, eight channels


@pytest.mark.parametrize("units", ["raw", "std"])
def test_bn_matching(units: str) -> None:
    """Channel by channel; in units of `std` both distances are shares of sqrt(running var + eps)."""
    scene = Scene()
    per_layer = []
    norms = [layer for layer in scene.model if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm, x in zip(norms, scene.inputs(), strict=True):
        channels = []
        for c in range(x.shape[1]):
            mu, var = float(norm.running_mean[c]), float(norm.running_var[c])
            mean, seen = float(x[:, c].mean()), float(x[:, c].var(correction=0))
            sigma = math.sqrt(var + EPS)
            raw = (mean - mu) ** 2 + (seen - var) ** 2
            own = ((mean - mu) / sigma) ** 2 + ((math.sqrt(seen + EPS) - sigma) / sigma) ** 2
            channels.append(raw if units == "raw" else own)
        per_layer.append(sum(channels) / len(channels))
    value = BatchNormMatchingLoss(units)(scene.batch)
    assert value.item() == pytest.approx(sum(per_layer) / 3, rel=1e-4)
    value.backward()
    assert scene.images.grad.abs().max() > 0


def test_bn_matching_in_running_stds_does_not_see_a_channels_scale() -> None:
    """A teacher all of whose BatchNorm inputs are ten times as large has the same loss; in raw units it has not."""
    scene = Scene()
    stored = {
        name: replace(statistics, eps=torch.zeros_like(statistics.eps)) for name, statistics in scene.batch.stored.items()
    }
    larger = {
        name: StoredStatistics(10 * statistics.mean, 100 * statistics.var, statistics.eps)
        for name, statistics in stored.items()
    }
    scaled = BatchNormTaps()
    scaled.moments = [replace(m, first=10 * m.first, second=100 * m.second, shift=10 * m.shift) for m in scene.taps]
    here, there = replace(scene.batch, stored=stored), replace(scene.batch, stored=larger, taps=scaled)
    own, raw = BatchNormMatchingLoss("std"), BatchNormMatchingLoss("raw")
    assert own(there).item() == pytest.approx(own(here).item(), rel=1e-4)
    assert raw(there).item() > 90 * raw(here).item()


def test_units_of_the_running_std() -> None:
    """Distances in a channel's own std: the slow reference divides by sqrt(running var + eps), channel by channel."""
    scene = Scene()
    stored = stored_statistics(scene.model)
    layers = SemanticLayers.choose(scene.taps.moments, stored, 1, "std")
    features = layers.statistics(scene.taps, ClassGroups.of(LABELS), scene.keep)
    units = [math.sqrt(float(v) + EPS) for name in layers.names for v in stored[name].var]
    scene.centroids.layers = layers
    plain = 0.0
    for row, label in ((0, 0), (1, 2)):
        mean, std = (torch.cat([part[i] for part in scene.class_statistics(label)]) for i in range(2))
        mu, sigma = scene.centroids.mean[label].double(), scene.centroids.std[label].double()
        for d, unit in enumerate(units):
            assert features.mean[row, d].item() == pytest.approx(float(mean[d]) / unit, rel=1e-4, abs=1e-5)
            plain += (float(mean[d]) / unit - float(mu[d])) ** 2 + (float(std[d]) / unit - float(sigma[d])) ** 2
    value = FeatureAlignmentLoss("sum")(replace(scene.batch, features=features))
    assert value.item() == pytest.approx(plain, rel=1e-4)
    value.backward()
    assert scene.images.grad.abs().max() > 0


def test_units_of_the_running_std_do_not_see_a_channels_scale() -> None:
    """A teacher whose semantic channels are all ten times as large has the same features."""
    scene = Scene()
    groups = ClassGroups.of(LABELS)
    stored = {
        name: replace(statistics, eps=torch.zeros_like(statistics.eps))
        for name, statistics in stored_statistics(scene.model).items()
    }
    scaled = [replace(m, first=10 * m.first, second=100 * m.second, shift=10 * m.shift) for m in scene.taps]
    larger = {
        name: StoredStatistics(10 * statistics.mean, 100 * statistics.var, statistics.eps)
        for name, statistics in stored.items()
    }
    before = SemanticLayers.choose(scene.taps.moments, stored, 1, "std").statistics(scene.taps, groups, scene.keep)
    scene.taps.moments = scaled
    after = SemanticLayers.choose(scaled, larger, 1, "std").statistics(scene.taps, groups, scene.keep)
    torch.testing.assert_close(after.mean, before.mean)
    torch.testing.assert_close(after.std[:2], before.std[:2])


def test_centroids_follow_equation_5() -> None:
    scene = Scene()
    mean, std = scene.centroids.mean.clone(), scene.centroids.std.clone()
    scene.centroids.known[2] = False
    scene.centroids.update(scene.features, 0.2)
    hat = [torch.cat([part[i] for part in scene.class_statistics(0)]).float() for i in range(2)]
    torch.testing.assert_close(scene.centroids.mean[0], 0.8 * mean[0] + 0.2 * hat[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scene.centroids.std[0], 0.8 * std[0] + 0.2 * hat[1], rtol=1e-4, atol=1e-5)
    first = torch.cat([part[0] for part in scene.class_statistics(2)]).float()
    torch.testing.assert_close(scene.centroids.mean[2], first, rtol=1e-4, atol=1e-5)
    assert torch.equal(scene.centroids.mean[5], mean[5]), "no correctly classified sample: unchanged"
    assert torch.equal(scene.centroids.mean[1], mean[1]), "absent: unchanged"
    assert scene.centroids.known.tolist() == [True, True, True, False, False, False]


@pytest.mark.parametrize("units", ["raw", "std"])
def test_drift_of_each_layer_is_in_running_stds(units: str) -> None:
    scene = Scene()
    stored = stored_statistics(scene.model)
    layers = SemanticLayers.choose(scene.taps.moments, stored, 1, units)
    features = layers.statistics(scene.taps, ClassGroups.of(LABELS), scene.keep)
    centroids = Centroids(6, layers)
    centroids.mean.normal_()
    centroids.known[:1] = True  # class 2 is present, but has no centroid yet; class 5 is never right
    before = centroids.mean.clone()
    drift = centroids.drift(features, stored)
    assert torch.equal(centroids.mean, before), "measured, not moved"
    start = 0
    for place, name in enumerate(layers.names):
        own = slice(start, start + layers.channels[place])
        hat = scene.class_statistics(0)[place][0]
        std = (stored[name].var.double() + EPS).sqrt()
        expected = hat / std - before[0, own] if units == "std" else (hat - before[0, own]) / std
        assert drift[place].item() == pytest.approx(expected.square().mean().sqrt().item(), rel=1e-4)
        start = own.stop
    centroids.known[:] = False
    assert centroids.drift(features, stored).tolist() == [0.0] * len(layers.names)


def test_start_layer() -> None:
    scene = Scene()
    stored = stored_statistics(scene.model)
    assert SemanticLayers.choose(scene.taps.moments, stored, None).names == ("4", "7"), "the deep half: layer 1 of 3 on"
    assert SemanticLayers.choose(scene.taps.moments, stored, 0).channels == (4, 3, 5)
    with pytest.raises(ValueError, match="layers 0 to 2"):
        SemanticLayers.choose(scene.taps.moments, stored, 3)


def test_methods_are_their_terms() -> None:
    scene = Scene()
    clusterq = build_method(MethodConfig(), 0)
    weighted = clusterq.generator_terms(scene.batch, warmup=False)
    assert list(weighted) == ["class", "bns", "fda", "de"]
    assert weighted["bns"].item() == pytest.approx(0.1 * BatchNormMatchingLoss()(scene.batch).item())
    assert list(clusterq.generator_terms(scene.batch, warmup=True)) == ["class", "bns"]
    gdfq = build_method(MethodConfig(method="gdfq"), 0)
    assert list(gdfq.generator_terms(scene.batch, warmup=False)) == ["class", "bns"]
    assert clusterq.needs_centroids
    assert not gdfq.needs_centroids
    assert not build_method(MethodConfig(alpha_fda=0, alpha_de=0), 0).needs_centroids


def slow_share(values: Tensor, keep: Tensor) -> float:
    """Share of the variance of values (7, D) that lies within classes, value by value."""
    kept = [n for n in range(7) if keep[n]]
    labels = {int(LABELS[n]) for n in kept}
    within = total = 0.0
    for column in values.detach().double().unbind(1):
        column_of = {n: float(column[n]) for n in kept}
        middle = sum(column_of.values()) / len(column_of)
        total += sum((value - middle) ** 2 for value in column_of.values()) / (len(kept) - 1)
        for label in labels:
            own = [column_of[n] for n in kept if LABELS[n] == label]
            within += sum((value - sum(own) / len(own)) ** 2 for value in own) / (len(kept) - len(labels))
    return within / total


def slow_spread(scene: Scene, images: Tensor, keep: Tensor, least: tuple[float, float]) -> float:
    """Cell by cell and layer by layer; images of 16 pixels a side have cells of two."""
    cells = [
        images[:, c, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2)) for c in range(2) for y in range(8) for x in range(8)
    ]
    norms = [layer for layer in scene.model if isinstance(layer, torch.nn.BatchNorm2d)]
    gaps = []
    for x, norm in zip(scene.inputs(), norms, strict=True):
        unit = (norm.running_var.double() + EPS).sqrt()
        gaps.append(max(0.0, least[1] - slow_share(x.mean((2, 3)) / unit, keep)))
    return max(0.0, least[0] - slow_share(torch.stack(cells, 1), keep)) + sum(gaps) / len(gaps)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("least", [(2.0, 2.0), (0.0, 2.0), (2.0, 0.0)])
def test_spread_is_the_share_of_variance_within_classes(mixed: bool, least: tuple[float, float]) -> None:
    """Labels of noise say nothing: as much lies within classes as between any images. More than that is asked for here."""
    scene = Scene()
    images = torch.randn(7, 2, 16, 16, requires_grad=True)
    keep = torch.ones(7, dtype=torch.bool)
    batch = replace(scene.batch, images=images)
    if mixed:
        keep[1] = keep[6] = False
        shares = F.one_hot(LABELS, 6).float()
        shares[~keep] = 1 / 6
        batch = replace(batch, mixture=shares)
    value = ClassSpreadLoss(*least)(batch)
    assert value.item() == pytest.approx(slow_spread(scene, images, keep, least), rel=1e-4)
    value.backward()
    for wanted, given in zip(least, (images, scene.images), strict=True):
        gradient = given.grad.flatten(1).norm(dim=1)
        assert ((gradient > 0) == (keep & (wanted > 0))).all(), "images between classes take no part"


def test_spread_asks_for_nothing_where_there_is_enough_or_none_can_be_seen() -> None:
    scene = Scene()
    assert ClassSpreadLoss(0.01, 0.01)(scene.batch).item() == 0
    alone = replace(scene.batch, groups=ClassGroups.of(torch.arange(7)), labels=torch.arange(7))
    assert ClassSpreadLoss(1.0, 1.0)(alone).item() == 0, "one image of each class"
