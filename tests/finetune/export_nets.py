"""Small networks with random weights, and students of them, for the tests of exported files."""

import torch
from torch import Tensor, nn

from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert
from clusterq_common.teacher.spec import InputSpec

SPEC = InputSpec(size=16, channels=3, num_classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)


class Plain(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_bn = nn.Conv2d(3, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6)
        self.second, self.second_bn = nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first_bn(self.first(x)))
        return self.head(torch.relu(self.second_bn(self.second(x))).mean((2, 3)))


class Residual(nn.Module):
    """A stem and two residual units whose branches end in BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16),
            ) for _ in range(2)
        )  # fmt: skip
        self.relu = nn.ReLU()
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = self.relu(branch(x) + x)
        return self.head(x.mean((2, 3)))


class Everything(nn.Module):
    """Parts of common families of classifiers: depthwise, grouped, dilated and strided convolutions, a BatchNorm before its
    convolution, ReLU6, hard swish, a squeeze-and-excitation gate, shuffled channels, a dense connection, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.grouped = nn.Sequential(nn.Conv2d(16, 16, 1, groups=4, bias=False), nn.BatchNorm2d(16))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
        self.before = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Conv2d(16, 8, 3, padding=2, dilation=2))
        self.pool = nn.MaxPool2d(2)
        self.tail = nn.Sequential(nn.Linear(24 * 16, 12), nn.ReLU(), nn.Linear(12, 10, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.grouped(self.depthwise(x))
        x = x * self.gate(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 4, channels // 4, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        x = self.pool(torch.cat([x, self.before(x)], dim=1))
        return self.tail(x.view(x.size(0), -1))


def student_of(net: type[nn.Module], seed: int = 0, *, randomise: bool = True, **settings: object) -> tuple[nn.Module, Tensor]:
    """A calibrated student with random BatchNorm, some gammas of which are negative, and images it was not calibrated on."""
    torch.manual_seed(seed)
    model = net()
    for module in model.modules():
        if randomise and isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            with torch.no_grad():
                module.weight[1::3] *= -1
    model.train()
    for _ in range(10):  # BatchNorm's statistics
        model(torch.randn(64, 3, 16, 16))
    config = QuantConfig(**settings)
    student = convert(model.eval(), config, torch.zeros(1, 3, 16, 16), lambda _: None).eval()
    calibrate(student, [torch.randn(64, 3, 16, 16)], config)
    return student, torch.randn(16, 3, 16, 16)
