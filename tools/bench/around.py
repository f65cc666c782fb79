"""Accuracy with and without quantizers around activations, on small networks that are trained here on handwritten digits.

    python tools/bench/around.py

Inverted residuals with squeeze-and-excitation, as in EfficientNet (SiLU) and MobileNetV3 (hard swish), three seeds of each; 1000 images to
train on, 797 to test. Students are calibrated on 512 of the former, with the choices of `--target ort-cpu`. A minute on one core.
"""

from collections.abc import Callable
from statistics import mean

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from clusterq_common.export.for_target import quant_for
from clusterq_common.quant.calibrate import calibrate
from clusterq_common.quant.config import QuantConfig
from clusterq_common.quant.convert import convert

TRAIN, CALIBRATION, EPOCHS, BATCH, SEEDS = 1000, 512, 6, 62, 3
KINDS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "SiLU": (nn.SiLU, nn.Sigmoid),
    "hard swish": (nn.Hardswish, nn.Hardsigmoid),
}
Make = Callable[[], nn.Module]


class Unit(nn.Module):
    """An inverted residual with squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Make, gate: Make) -> None:
        super().__init__()
        wide = 3 * inputs
        self.widen = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), activation(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), activation(),
        )  # fmt: skip
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, wide // 4, 1), activation(), nn.Conv2d(wide // 4, wide, 1), gate()
        )
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skips = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.widen(x)
        y = self.project(y * self.squeeze(y))
        return y + x if self.skips else y


def network(activation: Make, gate: Make) -> nn.Module:
    """Return an untrained network for 8x8 images, 10 classes."""
    units = [Unit(*sizes, activation, gate) for sizes in ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 24, 1))]
    first = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), activation()]
    last = [nn.Conv2d(24, 64, 1, bias=False), nn.BatchNorm2d(64), activation()]
    return nn.Sequential(*first, *units, *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained(net: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Train on noisy images; returns the network in eval mode."""
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, EPOCHS * steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            noisy = images[batch] + 0.3 * torch.randn_like(images[batch])
            optimizer.zero_grad()
            F.cross_entropy(net(noisy), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@torch.no_grad()
def main() -> None:
    """Print top-1 and agreement with float, means over seeds."""
    torch.set_num_threads(1)
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(digits.target)
    for kind, (activation, gate) in KINDS.items():
        top1: dict[str, list[float]] = {}
        same: dict[str, list[float]] = {}
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            order = torch.randperm(len(images))
            train, test = order[:TRAIN], order[TRAIN:]
            with torch.enable_grad():
                net = trained(network(activation, gate), images[train], labels[train])
            expected = net(images[test]).argmax(1)
            top1.setdefault("float", []).append(100 * (expected == labels[test]).float().mean().item())
            for bits in ("w8a8", "w4a8"):
                for around in (False, True):
                    config = QuantConfig.validated(quant_for("ort-cpu", {"bits": bits, "around_activations": around}))
                    student = convert(net, config, images[:1]).eval()
                    calibrate(student, [images[train[:CALIBRATION]]], config)
                    found = student(images[test]).argmax(1)
                    name = f"{bits}{', around activations' if around else ''}"
                    top1.setdefault(name, []).append(100 * (found == labels[test]).float().mean().item())
                    same.setdefault(name, []).append(100 * (found == expected).float().mean().item())
        for name, values in top1.items():
            agrees = f", same class as float {mean(same[name]):.2f} %" if name in same else ""
            print(f"{kind}, {name}: top-1 {mean(values):.2f} %{agrees}", flush=True)


if __name__ == "__main__":
    main()
