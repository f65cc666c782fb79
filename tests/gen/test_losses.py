"""Every loss against a slow reference: Python loops over samples, classes, layers and channels, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clusterq_common.distill.kl import distillation_kl
from clusterq_common.distill.objective import StudentObjective
from clusterq_common.runtime.seeding import stream
from clusterq_common.taps import stored_statistics
from clusterq_gen.centroids import SemanticLayers
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.bn_matching import BatchNormMatchingLoss
from clusterq_gen.losses.classification import ClassificationLoss
from clusterq_gen.losses.diversity import DiversityLoss
from clusterq_gen.losses.fda import FeatureAlignmentLoss
from clusterq_gen.methods import build_method
from tests.gen.scene import EPS, LABELS, Scene


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
    found = FeatureAlignmentLoss(reduction)(scene.batch)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(slow_alignment(scene, reduction), rel=1e-4)
    found.backward()
    gradient = scene.images.grad.flatten(1).norm(dim=1)
    assert (gradient[scene.keep] > 0).all()
    assert (gradient[~scene.keep] == 0).all(), "misclassified samples take no part"


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_diversity_is_equation_6(reduction: str, noise: str) -> None:
    scene = Scene()
    loss = DiversityLoss(noise, 0.3, 0.15, reduction, seed=9)  # type: ignore[arg-type]
    random = stream(9, "diversity", 3)
    draw = (
        (lambda: torch.randn(3, 8, generator=random))
        if noise == "gaussian"
        else (lambda: torch.rand(3, 8, generator=random) * 2 - 1)
    )
    drawn = (0.3 * draw(), 0.15 * draw())
    found = loss(scene.batch)
    assert found.item() == pytest.approx(slow_alignment(scene, reduction, drawn), rel=1e-4)
    assert loss(replace(scene.batch, step=4)).item() != pytest.approx(found.item()), "drawn afresh each step"
    found.backward()
    assert scene.images.grad.abs().max() > 0


def test_diversity_without_noise_is_fda_and_in_expectation_adds_its_variance() -> None:
    scene = Scene()
    fda = FeatureAlignmentLoss("sum")(scene.batch).item()
    assert DiversityLoss("gaussian", 0, 0, "sum", 0)(scene.batch).item() == pytest.approx(fda)
    loss = DiversityLoss("gaussian", 0.3, 0.15, "sum", 0)
    mean = sum(loss(replace(scene.batch, step=step)).item() for step in range(400)) / 400
    assert mean == pytest.approx(fda + 2 * 8 * (0.3**2 + 0.15**2), rel=0.03)  # two classes, eight channels


def test_bn_matching_and_classification() -> None:
    scene = Scene()
    per_layer = []
    stored = stored_statistics(scene.model)
    for (_, statistics), x in zip(stored.items(), scene.inputs(), strict=True):
        joined = x.transpose(0, 1).reshape(x.shape[1], -1)
        mean = (joined.mean(1) - statistics.mean).square().mean()
        per_layer.append(mean + (joined.var(1, correction=0) - statistics.var).square().mean())
    assert BatchNormMatchingLoss()(scene.batch).item() == pytest.approx(float(sum(per_layer) / 3), rel=1e-4)
    plain = -sum(F.log_softmax(scene.logits[n], 0)[LABELS[n]] for n in range(7)) / 7
    assert ClassificationLoss()(scene.batch).item() == pytest.approx(float(plain), rel=1e-5)


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


def test_start_layer() -> None:
    scene = Scene()
    eps = {moments.name: EPS for moments in scene.taps}
    assert SemanticLayers.choose(scene.taps.moments, eps, None).names == ("4", "7"), "the deep half: layer 1 of 3 on"
    assert SemanticLayers.choose(scene.taps.moments, eps, 0).channels == (4, 3, 5)
    with pytest.raises(ValueError, match="layers 0 to 2"):
        SemanticLayers.choose(scene.taps.moments, eps, 3)


def test_kl_is_the_batch_mean_of_the_sum_over_classes() -> None:
    teacher, student = torch.randn(5, 7), torch.randn(5, 7)
    temperature = 4.0
    p, q = (teacher / temperature).softmax(1).double(), (student / temperature).softmax(1).double()
    plain = sum(p[n, c] * (p[n, c].log() - q[n, c].log()) for n in range(5) for c in range(7)) / 5
    assert distillation_kl(teacher, student, temperature).item() == pytest.approx(16 * float(plain), rel=1e-4)
    assert distillation_kl(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-6)


def test_student_objective_is_equation_9() -> None:
    teacher, student, labels = torch.randn(5, 7), torch.randn(5, 7), torch.arange(5)
    terms = StudentObjective(1.0, 2.0, 20.0)(student, teacher, labels)
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(student, labels).item())
    assert terms["kl"].item() == pytest.approx(2 * distillation_kl(teacher, student, 20.0).item())
    assert set(StudentObjective(0.0, 1.0, 20.0)(student, teacher, labels)) == {"kl"}


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
