"""Kinds of networks as people have them, each small: (N, 3, 32, 32) -> five classes unless its name says otherwise."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


def block(inputs: int, outputs: int, stride: int = 2, groups: int = 1, norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False, groups=groups), norm(outputs), nn.ReLU())


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Plain(nn.Module):
    def __init__(self, norm: Any = nn.BatchNorm2d, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(block(channels, 8, norm=norm), block(8, 16, norm=norm))
        self.head = head(16, classes)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class GivesDict(Plain):
    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x), "loss": None}


class GivesTuple(Plain):
    def forward(self, x: Tensor) -> Any:
        features = self.body(x)
        return self.head(features), features


@dataclass
class Answer:
    logits: Tensor
    hidden_states: Any = None


class GivesDataclass(Plain):
    def forward(self, x: Tensor) -> Any:
        return Answer(super().forward(x))


class GivesMaps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = block(3, 16), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.head(self.body(x)), 1)


class GivesProbabilities(Plain):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


class Viewed(nn.Module):
    """VGG's and LeNet's way to flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = block(3, 8), nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).view(x.size(0), -1))


class StridedOnes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.body, self.head = nn.Conv2d(3, 8, 1, 2), block(8, 16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.first(x)))


class Changed(nn.Module):
    """A convolution whose weight is made of other tensors."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.conv, self.norm, self.head = change(nn.Conv2d(3, 16, 3, 2, 1)), nn.BatchNorm2d(16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.norm, self.head = nn.Parameter(torch.randn(16, 3, 3, 3) * 0.1), nn.BatchNorm2d(16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(F.conv2d(x, self.weight, stride=2, padding=1))))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.head = block(3, 16), block(16, 16, 1), head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.stem(x))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = block(3, 16), nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head((x + self.mix(x, x, x)[0]).mean(1))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.norm, self.head = block(3, 16), nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.up(self.stem(x)))))


class TwoInputs(Plain):
    def forward(self, x: Tensor, age: Tensor) -> Any:
        return super().forward(x) + age


class OneOfTwoKeepsNone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = block(3, 8), block(8, 16, norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False))
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def pruned() -> nn.Module:
    model = Plain()
    prune.random_unstructured(model.body[0][0], "weight", 0.5)
    return model


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(8, 3, 2, 1), nn.LazyBatchNorm2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)
    )


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight.std(), bias)


def standardised() -> nn.Module:
    model = Plain()
    model.body[1][0] = Standardised(8, 16, 3, 2, 1, bias=False)
    return model


def replaced_method() -> nn.Module:
    model = Plain()
    layer = model.body[1][0]
    layer.forward = lambda x: F.conv2d(x, layer.weight / layer.weight.std(), None, 2, 1)
    return model


# Kind -> how to make one. Those with another number of classes or channels: see SIZES.
NETWORKS: dict[str, Any] = {
    "convolutions with BatchNorm": Plain,
    "grouped and depthwise convolutions": lambda: nn.Sequential(block(3, 8), block(8, 16, groups=8), head(16)),
    "one block called twice": Shared,
    "SyncBatchNorm": lambda: Plain(nn.SyncBatchNorm),
    "BatchNorm1d behind linear layers": lambda: nn.Sequential(
        block(3, 8), nn.Flatten(), nn.Linear(2048, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5)
    ),
    "one input channel": lambda: Plain(channels=1),
    "four input channels": lambda: Plain(channels=4),
    "output: a dict with `logits`": GivesDict,
    "output: a tuple, logits among it": GivesTuple,
    "output: a data class with `logits`": GivesDataclass,
    "output: (N, classes, 1, 1)": GivesMaps,
    "output: one logit for two classes": lambda: Plain(classes=1),
    "output: probabilities": GivesProbabilities,
    "output: one probability for two classes": lambda: nn.Sequential(Plain(classes=1), nn.Sigmoid()),
    "output: a probability of each class, by sigmoid": lambda: nn.Sequential(Plain(), nn.Sigmoid()),
    "`x.view(x.size(0), -1)` behind a convolution": Viewed,
    "strided 1x1 convolution on the image": StridedOnes,
    "weight norm, new style": lambda: Changed(parametrizations.weight_norm),
    "weight norm, old style": lambda: Changed(nn.utils.weight_norm),
    "spectral norm, new style": lambda: Changed(parametrizations.spectral_norm),
    "spectral norm, old style": lambda: Changed(nn.utils.spectral_norm),
    "pruned weights": pruned,
    "lazy layers": lazy,
    "float16 weights": lambda: Plain().half(),
    "attention behind convolutions": Attention,
    "transposed convolution": Transposed,
    "convolution that changes its own weights": standardised,
    "functional convolutions": Functional,
    "two inputs": TwoInputs,
    "GroupNorm": lambda: Plain(lambda channels: nn.GroupNorm(4, channels)),
    "InstanceNorm": lambda: Plain(nn.InstanceNorm2d),
    "BatchNorm without running statistics": lambda: Plain(lambda channels: nn.BatchNorm2d(channels, track_running_stats=False)),
    "some BatchNorm without running statistics": OneOfTwoKeepsNone,
}
SIZES = {
    "one input channel": (1, 5),
    "four input channels": (4, 5),
    "output: one logit for two classes": (3, 2),
    "output: one probability for two classes": (3, 2),
}
