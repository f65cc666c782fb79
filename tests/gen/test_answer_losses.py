"""Losses on the answers of teacher and student against a slow reference: Python loops over samples and classes, in float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clusterq_common.distill.kl import distillation_kl
from clusterq_common.distill.objective import StudentObjective
from clusterq_common.run.seeding import stream
from clusterq_gen.losses.classification import ClassificationLoss
from tests.gen.scene import LABELS, Scene


def test_classification_is_the_cross_entropy() -> None:
    scene = Scene()
    plain = -sum(F.log_softmax(scene.logits[n], 0)[LABELS[n]] for n in range(7)) / 7
    assert ClassificationLoss()(scene.batch).item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("gamma", "epsilon"), [(2.0, 1.0), (0.5, 1.0), (0.0, 0.9), (1.5, 0.5)])
def test_hard_images_and_soft_targets(gamma: float, epsilon: float, mixed: bool) -> None:
    """HAST's weight and IntraQ's target, image by image; a mixed image is judged by its shares and aims at 1."""
    scene = Scene()
    shares = torch.eye(6)[LABELS]
    if mixed:
        shares[2] = torch.tensor([0.6, 0, 0, 0.3, 0.1, 0])
    targets = epsilon + (1 - epsilon) * torch.rand(7, generator=stream(5, "soft-target", 3)).double()
    batch = replace(scene.batch, teacher_logits=5 * scene.logits, mixture=shares if mixed else None)
    plain = 0.0
    for n in range(7):
        p = (5 * scene.logits[n].detach().double()).softmax(0)
        asked = sum(float(shares[n, c] * p[c]) for c in range(6))
        hit = sum(float(shares[n, c]) * math.log(p[c]) for c in range(6))
        t = 1.0 if mixed and n == 2 else float(targets[n])
        plain += (1 - asked) ** gamma * (-t * hit - (1 - t) * math.log(1 - asked)) / 7
    value = ClassificationLoss(gamma, epsilon, seed=5)(batch)
    assert value.item() == pytest.approx(plain, rel=1e-4)
    value.backward()
    assert (scene.images.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(("gamma", "epsilon"), [(0.5, 1.0), (0.5, 0.9), (2.0, 0.5)])
def test_certain_images_have_finite_gradients(gamma: float, epsilon: float) -> None:
    logits = (200 * torch.eye(6)[LABELS]).requires_grad_()
    wrong = (200 * torch.eye(6)[(LABELS + 1) % 6]).requires_grad_()
    for rows in (logits, wrong):
        loss = ClassificationLoss(gamma, epsilon)(replace(Scene().batch, teacher_logits=rows))
        loss.backward()
        assert torch.isfinite(loss)
        assert rows.grad is not None
        assert torch.isfinite(rows.grad).all()


def test_the_soft_target_is_where_the_loss_is_least() -> None:
    loss = ClassificationLoss(soft_target=0.5, seed=1)
    target = 0.5 + 0.5 * torch.rand(1, generator=stream(1, "soft-target", 3)).item()
    for p, sign in ((target, 0), (target - 0.1, -1), (target + 0.1, 1)):
        row = torch.tensor([[p, 1 - p]]).log().requires_grad_()
        batch = replace(Scene().batch, teacher_logits=row, labels=torch.tensor([0]))
        loss(batch).backward()
        assert row.grad is not None
        assert row.grad[0, 0].item() == pytest.approx(0.1 * sign, abs=1e-5)


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
