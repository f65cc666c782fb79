"""The demo's classifier, as a user's own factory: `tools/demo/digits_net.py:digits_net`."""

from torch import nn


def digits_net() -> nn.Module:
    """Build a small BatchNorm network: (N, 1, 8, 8) normalised images -> (N, 10) logits, random weights."""
    return nn.Sequential(
        *_block(1, 16),
        *_block(16, 32),
        *_block(32, 32, stride=2),  # 4 x 4
        *_block(32, 64),
        *_block(64, 64, stride=2),  # 2 x 2
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _block(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
