"""A file of factories, and teachers from it."""

from clusterq_common.teacher.spec import TeacherConfig

FACTORY = """
import torch
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
def wrapped():
    return nn.Sequential(nn.Identity(), net())
def without_norm():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
def broken():
    raise RuntimeError("no luck")
def ended():
    raise SystemExit(3)
class Mute(Exception):
    def __str__(self):
        raise ValueError("no text")
def mute():
    raise Mute
def number():
    return 7
def scripted():
    return torch.jit.trace(net().eval(), torch.zeros(1, 1, 8, 8))
def without_values():
    return net().to("meta")
class Odd(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.body, self.answer = net(), answer
    def forward(self, x):
        return self.answer(self.body, x)
def complex_numbers():
    return Odd(lambda body, x: body(x).to(torch.complex64))
def integers():
    return Odd(lambda body, x: body(x).long())
def in_place():
    return Odd(lambda body, x: body(x.mul_(2)))
def with_dropout():
    return Odd(lambda body, x: nn.functional.dropout(body(x) + 1, 0.5, training=True))
def mixing():
    return Odd(lambda body, x: body(x) + x.mean())
"""
SIZES = {"input_size": 8, "in_channels": 1, "num_classes": 3, "mean": "0.5", "std": "0.25"}


def own(factory: str, function: str = "net", weights: str | None = "random", **sizes: object) -> TeacherConfig:
    """Settings of a teacher that a function of the factory file makes."""
    return TeacherConfig(arch=f"{factory}:{function}", weights=weights, **{**SIZES, **sizes})
