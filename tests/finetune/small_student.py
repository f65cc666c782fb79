"""A small residual network, images for it, a student of it, and the blocks of any network."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.convert import convert
from clusterq_common.quant.structure import quantizable_layers
from clusterq_common.teacher.load import Teacher
from clusterq_common.teacher.spec import InputSpec, TeacherConfig
from clusterq_finetune.config import FinetuneConfig, resolve
from clusterq_finetune.recipes.blocks import Block, Parts, find_blocks

SPEC = InputSpec(size=8, channels=2, num_classes=4, mean=(0.5, 0.5), std=(0.25, 0.25))


class Residual(nn.Module):
    """A depthwise and a pointwise convolution around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.deep_norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.point = nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.deep_norm(self.deep(x)))
        return torch.relu(self.norm(self.point(y)) + x)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    net = nn.Sequential(*first, Residual(8), Residual(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(32, 2, 8, 8))  # statistics that fit
    return net.eval().requires_grad_(False)


def pixels(count: int) -> Tensor:
    """Smooth images: on white noise each weight acts alone, and rounding to nearest cannot be beaten."""
    coarse = torch.rand(count, 2, 3, 3, generator=torch.Generator().manual_seed(count))
    return (interpolate(coarse, (8, 8), mode="bilinear") * 255).to(torch.uint8)


def settings(quant: dict[str, object] | None = None, **values: object) -> FinetuneConfig:
    base: dict[str, object] = {
        "batchnorm": "frozen",
        "reconstruct": "block",
        "reconstruct_lr": 0.1,
        "reconstruct_steps": 100,
        "reconstruct_batch_size": 16,
    }
    return resolve({"recipe": base | values, "quant": quant or {"bits": "w2a4"}}, "shards", TeacherConfig(arch="small"))


def prepared(config: FinetuneConfig) -> tuple[nn.Module, Teacher]:
    """A calibrated student, and its teacher."""
    teacher = Teacher(small_net(), TeacherConfig(arch="small"), SPEC, "sha256:none")
    student = convert(teacher.model, config.quant, torch.zeros(1, 2, 8, 8), lambda _: None).eval()
    calibrate(student, [(pixels(64).float() / 255 - 0.5) * 4], config.quant)
    return student, teacher


def parts_of(model: nn.Module, size: int, channels: int, parts: Parts) -> tuple[list[Block], list[str], list[str]]:
    example = torch.zeros(1, channels, size, size)
    layers = quantizable_layers(model.eval(), example)
    blocks, left = find_blocks(model, layers, example, parts)
    covered = [layer for block in blocks for layer in block.layers]
    assert sorted(covered + left) == sorted(layers), "every layer once"
    return blocks, left, layers
