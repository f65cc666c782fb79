"""AdaDFQ's losses against slow references in float64, where they could break, and what the student feels of them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clusterq_common.distill.entropy import EntropyObjective, softmax_entropy
from clusterq_common.errors import ClusterqError
from clusterq_gen.config import MethodConfig
from clusterq_gen.losses.agreement import AgreementLoss
from clusterq_gen.losses.batch import StepBatch
from clusterq_gen.losses.bn_matching import BatchNormMatchingLoss
from clusterq_gen.losses.boundary import BoundaryLoss
from clusterq_gen.losses.disagreement import DisagreementLoss
from clusterq_gen.methods import build_method
from clusterq_gen.presets import preset_notes, resolve
from tests.gen.scene import LABELS, Scene

CLASSES = 6


def game() -> tuple[Scene, StepBatch]:
    """A scene whose student is the teacher seen through a distortion, both with gradient to the images."""
    scene = Scene()
    teacher = 4 * scene.logits
    student = teacher * torch.linspace(0.5, 1.5, CLASSES) + torch.linspace(-1, 1, 7)[:, None] * torch.randn(CLASSES)
    return scene, replace(scene.batch, teacher_logits=teacher, student_logits=student)


def probabilities(logits: Tensor) -> list[float]:
    whole = sum(math.exp(value) for value in logits.tolist())
    return [math.exp(value) / whole for value in logits.tolist()]


def entropy(logits: Tensor) -> float:
    return -sum(p * math.log(p) for p in probabilities(logits) if p > 0)


def both(batch: StepBatch) -> tuple[Tensor, Tensor]:
    assert batch.student_logits is not None
    return batch.teacher_logits.detach().double(), batch.student_logits.detach().double()


def test_disagreement_and_agreement_are_cross_entropies_of_difference_and_sum() -> None:
    for loss, sign in ((DisagreementLoss(), -1), (AgreementLoss(), 1)):
        scene, batch = game()
        teacher, student = both(batch)
        mixed = teacher + sign * student
        plain = -sum(math.log(probabilities(mixed[n])[LABELS[n]]) for n in range(7)) / 7
        value = loss(batch)
        assert value.item() == pytest.approx(plain, rel=1e-5)
        value.backward()
        assert (scene.images.grad.flatten(1).norm(dim=1) > 0).all()


def test_before_there_is_a_student_the_teacher_stands_in_for_it() -> None:
    _, batch = game()
    alone = AgreementLoss()(replace(batch, student_logits=None))
    assert alone.item() == pytest.approx(AgreementLoss()(replace(batch, student_logits=batch.teacher_logits)).item())


@pytest.mark.parametrize(("lower", "upper"), [(0.1, 0.8), (0.4, 0.5), (0.0, 1.0)])
def test_boundary_keeps_relative_entropy_inside(lower: float, upper: float) -> None:
    scene, batch = game()
    teacher, student = both(batch)
    entropies = [entropy(row) for row in teacher - student]
    relative = [(h - min(entropies)) / (math.log(CLASSES) - min(entropies)) for h in entropies]
    plain = sum(max(lower - h, 0) + max(h - upper, 0) for h in relative) / 7
    value = BoundaryLoss(lower, upper)(batch)
    assert value.item() == pytest.approx(plain, rel=1e-4, abs=1e-6)
    value.backward()
    outside = torch.tensor([h < lower or h > upper for h in relative])
    gradient = scene.images.grad.flatten(1).norm(dim=1)
    assert (gradient[outside] > 0).all()
    assert (gradient[~outside] == 0).all(), "inside the boundaries nothing pulls"


@pytest.mark.parametrize(
    "difference", [torch.zeros(4, 5), torch.eye(5)[:4] * 1e4, torch.full((4, 5), 1e-4), torch.eye(5)[:4] * 1e-5]
)
def test_boundary_survives_a_student_that_agrees_fully_or_not_at_all(difference: Tensor) -> None:
    """No difference: every entropy is the largest one, and the quotient 0 / 0; certain rows: probabilities that round to zero."""
    scene = Scene()
    teacher = torch.randn(4, 5)
    student = (teacher - difference).requires_grad_()
    loss = BoundaryLoss(0.1, 0.8)(replace(scene.batch, teacher_logits=teacher, student_logits=student))
    loss.backward()
    assert 0 <= loss.item() <= 1
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 1


def test_entropy_and_the_students_objective() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [500.0, 0.0, -500.0], [1.0, 2.0, 3.0]], requires_grad=True)
    entropies = softmax_entropy(logits)
    assert entropies.tolist() == pytest.approx([math.log(3), 0.0, entropy(logits[2].detach().double())], abs=1e-6)
    entropies.sum().backward()
    assert torch.isfinite(logits.grad).all()

    teacher, student = torch.randn(5, 7), torch.randn(5, 7)
    terms = EntropyObjective(5.0)(student, teacher, torch.arange(5))
    plain = -25 * sum(entropy(row) for row in (teacher - student).double() / 5) / 5
    assert {name: term.item() for name, term in terms.items()} == {"entropy": pytest.approx(plain, rel=1e-5)}
    alike = EntropyObjective(5.0)(teacher + 3, teacher, torch.arange(5))["entropy"]
    assert alike.item() == pytest.approx(-25 * math.log(7))
    assert alike < terms["entropy"]


def test_the_method_is_its_terms() -> None:
    _, batch = game()
    config = MethodConfig(method="adadfq", beta=0.5, gamma=3.0)
    method = build_method(config, 0)
    weighted = method.generator_terms(batch, warmup=False)
    assert set(weighted) == {"agreement", "disagreement", "boundary", "bns"}
    assert weighted["agreement"].item() == pytest.approx(0.5 * 0.1 * AgreementLoss()(batch).item())
    assert weighted["disagreement"].item() == pytest.approx(0.5 * 0.2 * DisagreementLoss()(batch).item())
    assert weighted["boundary"].item() == pytest.approx(BoundaryLoss(0.1, 0.8)(batch).item())
    assert weighted["bns"].item() == pytest.approx(3 * BatchNormMatchingLoss()(batch).item())
    assert set(method.generator_terms(replace(batch, student_logits=None), warmup=True)) == {"agreement", "bns"}
    assert method.needs_student
    assert not method.needs_centroids
    assert not build_method(MethodConfig(), 0).needs_student
    with pytest.raises(
        ClusterqError, match=r"method=adadfq: every loss of its warm-up \(agreement, bns, spread\) has weight 0"
    ):
        build_method(MethodConfig(method="adadfq", beta=0, gamma=0), 0)


def test_presets() -> None:
    flags = {"teacher": {"arch": "resnet18"}, "method": {"method": "adadfq"}}
    small, large = (resolve(flags, "auto", imagenet_sized=imagenet) for imagenet in (False, True))
    assert (small.train.batch_size, small.train.warmup_epochs, small.method.temperature) == (16, 4, 20)
    assert (large.train.batch_size, large.train.warmup_epochs, large.method.temperature) == (16, 50, 5)
    assert (small.train.student_lr, large.train.student_lr) == (1e-4, 1e-5)
    shorter = resolve({**flags, "train": {"epochs": 100}}, "paper-cifar", imagenet_sized=False)
    assert shorter.train.warmup_epochs == 1
    assert "paper-imagenet with adadfq: 5.0" in preset_notes()["method"]["temperature"]
    with pytest.raises(ClusterqError, match=r"lambda_l \(0.9\) must not exceed lambda_u \(0.8\)"):
        resolve({**flags, "method": {"method": "adadfq", "lambda_l": 0.9}}, "quick", imagenet_sized=False)
