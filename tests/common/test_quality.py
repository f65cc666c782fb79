"""Figures of a quality report against slow, plain computations."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clusterq_common.capture import classifier_input
from clusterq_common.teacher.spec import InputSpec
from clusterq_report.quality import distances, frechet
from clusterq_report.quality.collect import Collected
from clusterq_report.quality.distances import nearest_neighbours, spread
from clusterq_report.quality.figures import Measured
from clusterq_report.quality.frechet import Gaussian, squared_frechet_distance
from clusterq_report.quality.sample import noise, sampled


def features(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Correlated ones."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=random, dtype=torch.float64)
    return scale * torch.randn(count, width, generator=random, dtype=torch.float64) @ mixing + shift


def plain_frechet(a: Tensor, b: Tensor) -> float:
    """By the eigenvalues of C_a^(1/2) C_b C_a^(1/2), from numpy's covariances."""
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    apart = np.square(a.mean(0).numpy() - b.mean(0).numpy()).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)


@pytest.mark.parametrize(("many", "few"), [(300, 200), (300, 7), (5, 7)], ids=["more", "mixed", "fewer than dimensions"])
def test_frechet_distance(many: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(many, 12, 0), features(few, 12, 1, scale=1.5, shift=0.7)
    expected = plain_frechet(a, b)
    assert squared_frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(frechet, "BLOCK", 16)
    assert squared_frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(expected, rel=1e-6)
    assert Gaussian.of(a).variance == pytest.approx(float(a.var(0).sum()))


def test_frechet_distance_against_a_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = features(200, 6, 2), features(200, 6, 3, shift=-1.0)
    first, second = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = linalg.sqrtm(first @ second)
    expected = np.square((a.mean(0) - b.mean(0)).numpy()).sum() + np.trace(first + second - 2 * root.real)
    assert squared_frechet_distance(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_distance_of_a_set_to_itself_and_of_a_shift() -> None:
    for count in (4, 100):
        own = features(count, 9, 4)
        assert squared_frechet_distance(Gaussian.of(own), Gaussian.of(own)) == pytest.approx(0, abs=1e-9)
        moved = Gaussian.of(own + 2.0)
        assert squared_frechet_distance(Gaussian.of(own), moved) == pytest.approx(9 * 4.0)


def test_nearest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 5)
    points, labels = features(40, 3, 0), torch.arange(40) % 3
    labels[7] = 5
    points[12], points[20] = points[3], points[4] + 1e-9
    nearest = nearest_neighbours(points, labels, seed=0)
    for n in range(40):
        own = [m for m in range(40) if m != n and labels[m] == labels[n]]
        expected = min(((float((points[n] - points[m]).norm()), m) for m in own), default=(math.inf, -1))
        assert float(nearest.within[n]) == pytest.approx(expected[0], rel=1e-9)
        assert int(nearest.twin[n]) == expected[1]
        others = [float((points[n] - points[m]).norm()) for m in range(40) if labels[m] != labels[n]]
        assert not own or min(others) - 1e-9 <= float(nearest.between[n]) <= sorted(others)[-len(own)] + 1e-9
    assert float(nearest.within[3]) == 0, "copies lie at no distance, not at rounding's"
    assert math.isinf(nearest.between[7]), "as many others as the class has: none"


def test_as_many_others_are_compared_with() -> None:
    """Of noise, whose classes are names alone, both kinds of neighbour are equally far."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(900, 4, generator=random)
    labels = torch.arange(900) % 30
    nearest = nearest_neighbours(points, labels, seed=1)
    assert float(nearest.within.median() / nearest.between.median()) == pytest.approx(1, abs=0.06)
    assert nearest_neighbours(points, labels, seed=1).between.equal(nearest.between)
    assert not nearest_neighbours(points, labels, seed=2).between.equal(nearest.between)


def test_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 7)
    points, labels = features(30, 4, 5, shift=100.0), torch.tensor([0, 1, 1] * 10)
    labels[29] = 3
    spreads = spread(points, labels, classes=4)

    def plain(pairs: list[tuple[int, int]]) -> float:
        return math.sqrt(sum(float((points[n] - points[m]).square().sum()) for n, m in pairs) / len(pairs))

    every = [(n, m) for n in range(30) for m in range(30) if n != m]
    assert spreads.between == pytest.approx(plain([(n, m) for n, m in every if labels[n] != labels[m]]))
    for label in (0, 1):
        assert float(spreads.within[label]) == pytest.approx(
            plain([(n, m) for n, m in every if labels[n] == labels[m] == label])
        )
    assert spreads.within[2:].isnan().all(), "no pair"
    alone = spread(points, torch.zeros(30, dtype=torch.long), classes=1)
    assert alone.between == pytest.approx(float(alone.within[0])) == pytest.approx(plain(every))


def test_a_sample_has_each_class_in_its_share() -> None:
    labels = np.repeat([0, 1, 2, 4], [600, 300, 3, 97]).astype(np.int64)
    chosen = sampled(labels, 100, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [60, 30, 2, 0, 10]
    assert (np.diff(chosen) > 0).all()
    assert sampled(labels, 100, seed=0).tolist() == chosen.tolist() != sampled(labels, 100, seed=1).tolist()
    assert sampled(labels, 1000, seed=0).tolist() == list(range(1000))


def test_of_too_many_classes_some_are_drawn_and_two_images_of_each() -> None:
    labels = np.arange(3000, dtype=np.int64) % 500
    chosen = sampled(labels, 100, seed=0)
    counts = np.bincount(labels[chosen], minlength=500)
    assert sorted(set(counts.tolist())) == [0, 2], "one image of a class would have no neighbour"
    assert (counts > 0).sum() == 50
    assert set(labels[chosen]) != set(labels[sampled(labels, 100, seed=1)])


def test_noise_has_the_training_datas_mean_and_std() -> None:
    spec = InputSpec(size=16, channels=3, num_classes=2, mean=(0.5, 0.4, 0.6), std=(0.1, 0.05, 0.15))
    pixels = torch.cat([batch for batch, _ in noise(torch.zeros(200, dtype=torch.long), spec, seed=0)])
    assert pixels.shape == (200, 3, 16, 16)
    values = pixels.double() / 255
    assert values.mean((0, 2, 3)).tolist() == pytest.approx([0.5, 0.4, 0.6], abs=2e-3)
    assert values.std((0, 2, 3)).tolist() == pytest.approx([0.1, 0.05, 0.15], abs=2e-3)


@pytest.mark.parametrize("head", [nn.Conv2d(4, 3, 1), nn.Linear(4, 3)], ids=["convolution", "linear"])
def test_penultimate_features(head: nn.Module) -> None:
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    tail = [head, nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    if isinstance(head, nn.Linear):
        tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), head]
    model, x = nn.Sequential(body, *tail).eval(), torch.randn(5, 1, 8, 8)
    with classifier_input(model) as features:
        model(x)
        assert torch.allclose(features.latest, body(x).mean((2, 3)), atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def collected(small: Tensor, labels: Tensor, top1: Tensor | None = None) -> Collected:
    count = len(labels)
    return Collected(
        labels=labels,
        top1=labels if top1 is None else top1,
        confidence=torch.linspace(0.1, 1, count),
        entropy=torch.linspace(0, math.log(10), count),
        other=None,
        clipped=torch.zeros(count),
        digests=[image.numpy().tobytes() for image in small],
        small=small,
        features=small.float(),
        batchnorm=[{"layer": "bn", "mean": 0.1, "std": 0.2}],
    )


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 300), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_collapsed_class_and_copies_are_told_from_noise() -> None:
    small, labels = pictures(200), torch.arange(200) % 10
    shaken = small[3].int() + torch.randint(-2, 3, (20, 300), generator=torch.Generator().manual_seed(1))
    small[labels == 3] = shaken.clamp(0, 255).to(torch.uint8)
    small[16], small[25] = small[6], small[15]  # classes 6 and 6; 5 and 5
    small[17] = small[8]  # a copy under another label: 7 and 8
    measured = Measured(collected(small, labels), 10, seed=0)
    by_class = {row.label: row for row in measured.by_class()}
    assert by_class[3].near == 1
    assert {label: row.near for label, row in by_class.items() if row.near} == {3: 1, 5: 0.1, 6: 0.1}
    assert [by_class[label].exact for label in (5, 6, 7, 8)] == [2, 2, 1, 1]
    summary = measured.summary()
    assert summary.near == pytest.approx(24 / 200)
    assert summary.exact == 6
    assert summary.pixels.nearest == pytest.approx(0.9, abs=0.1)
    numbers = list(range(1000, 1200))
    pairs = measured.pairs(numbers)
    assert {(pair.first, pair.second, pair.distance) for pair in pairs[:2]} == {(1006, 1016, 0.0), (1015, 1025, 0.0)}
    assert pairs[2].label == 3
    members = [number for pair in pairs for number in (pair.first, pair.second)]
    assert len(set(members)) == len(members)


def test_what_the_teacher_contradicts_and_how_sure_it_is() -> None:
    labels = torch.arange(100) % 10
    top1 = labels.clone()
    top1[labels == 2] = 7
    top1[2] = 2
    measured = Measured(collected(pictures(100), labels, top1), 10, seed=0)
    row = measured.by_class()[2]
    assert (row.agreement, row.taken_for) == (0.1, 7)
    summary = measured.summary()
    assert summary.agreement == pytest.approx(0.91)
    assert summary.confidence.mean == pytest.approx(0.55)
    assert (summary.entropy.low, summary.entropy.median, summary.entropy.high) == pytest.approx((0.05, 0.5, 0.95))
    assert sum(summary.confidence.shares) == pytest.approx(1)
    assert summary.confidence.shares[0] == summary.confidence.shares[1] == 0, "nobody is less sure than 0.1"
    top1[5] = 1
    wrong = Measured(collected(pictures(100), labels, top1), 10, seed=0).contradicted(list(range(100)), 3)
    assert [image.number for image in wrong] == [92, 5, 82], "the surest, but each class in turn"
    assert (wrong[0].label, wrong[0].named) == (2, 7)


def test_a_thousand_classes_with_two_images_each() -> None:
    labels = torch.arange(1000).repeat_interleave(2)
    measured = Measured(collected(pictures(2000), labels), 1000, seed=0)
    rows = measured.by_class()
    assert len(rows) == 1000
    assert all(row.features_nearest is not None and row.features_nearest_other is not None for row in rows)
    single = Measured(collected(pictures(3), torch.tensor([1, 2, 2])), 1000, seed=0).by_class()[0]
    assert (single.images, single.near, single.pixels_nearest, single.features_within) == (1, 0, None, None)
