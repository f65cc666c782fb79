"""Alignment of features: which, how far apart, and that a student moves towards them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clusterq_common.errors import ClusterqError
from clusterq_common.teacher.spec import TeacherConfig
from clusterq_finetune.config import resolve
from clusterq_finetune.recipes.features import feature_distance, feature_modules, outputs_of
from tests.conftest import Cli


class Unit(nn.Module):
    """A residual unit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv(x) + x)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Unit(), Unit(), *head).eval()


def test_each_unit_and_the_layers_outside_of_them_but_not_the_logits() -> None:
    assert feature_modules(net(), torch.zeros(1, 1, 8, 8)) == ("2", "3", "4")


def test_distance_against_a_plain_loop() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 3, 4, 4), "b": (5, 2)}
    teacher = {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}
    student = {name: value + 0.1 * torch.randn(value.shape, generator=random) for name, value in teacher.items()}
    distances = [
        float(((student[name][n] - teacher[name][n]) ** 2).sum() / (teacher[name][n] ** 2).sum())
        for name in shapes
        for n in range(5)
    ]
    assert float(feature_distance(student, teacher)) == pytest.approx(sum(distances) / len(distances), rel=1e-5)
    assert feature_distance(teacher, teacher) == 0
    dead = {"a": torch.zeros(2, 3)}
    assert feature_distance(dead, dead) == 0


def test_outputs_carry_gradients_and_hooks_are_gone_afterwards() -> None:
    model = net()
    names = feature_modules(model, torch.zeros(1, 1, 8, 8))
    with outputs_of(model, names) as outputs:
        model(torch.ones(2, 1, 8, 8))
    assert tuple(outputs) == names
    outputs["4"].sum().backward()
    assert model[0].weight.grad is not None
    before = outputs["4"]
    model(torch.zeros(2, 1, 8, 8))
    assert outputs["4"] is before


def test_stored_logits_and_features_exclude_each_other() -> None:
    with pytest.raises(ClusterqError, match="feature_weight needs its features"):
        resolve({"recipe": {"teacher_logits": "stored", "feature_weight": 1.0}}, "s", TeacherConfig(arch="resnet18"))


def test_a_student_moves_towards_the_teachers_features(digits_run: Path, finetune: Cli, tmp_path: Path) -> None:
    flags = ("--bits", "w3a3", "--epochs", 4, "--steps-per-epoch", 0, "--batch-size", 16, "--ce-weight", 0, "--kl-weight", 0)
    done = finetune("--shards", digits_run, "--out", tmp_path / "run", *flags, "--feature-weight", 1)
    assert done.code == 0, done.err
    result: dict[str, Any] = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["teacher_logits"]["source"] == "recomputed"
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss/features"] for record in records if "loss/features" in record]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert "loss/kl" not in records[0]
