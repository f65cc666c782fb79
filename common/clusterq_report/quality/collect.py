"""Collection of per-image measurements in one pass through the networks."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from clusterq_common.capture import classifier_input
from clusterq_common.images.normalise import normalise
from clusterq_common.taps import batchnorm_taps
from clusterq_common.teacher.load import Teacher
from clusterq_report.measure.features import BatchNormDistances
from clusterq_report.quality.sample import Batch

# Longest side at which images are compared by pixels: enough to recognise equal pictures, with bounded memory.
LARGEST_COMPARED = 32


@dataclass(frozen=True)
class Networks:
    """Networks that measure the images, both on `device`; `other` may be None."""

    teacher: Teacher
    other: Teacher | None
    device: torch.device


@dataclass(frozen=True)
class Collected:
    """Measurements of N images, all on the CPU.

    Attributes:
        labels, top1: (N,) int64, the stored class and the teacher's top-1.
        confidence: (N,) float32, the teacher's softmax probability of its top-1.
        entropy: (N,) float32, entropy of that softmax, in nats.
        other: (N,) int64, the other network's top-1; None where there is no other network.
        clipped: (N,) float32, share of an image's values that are 0 or 255.
        digests: digest of each image's pixels; equal for equal images.
        small: (N, P) uint8, pixels, at most 32 on the longer side.
        features: (N, D) float32, input of the teacher's classifier.
        batchnorm: by layer, see `BatchNormDistances.result`.
    """

    labels: Tensor
    top1: Tensor
    confidence: Tensor
    entropy: Tensor
    other: Tensor | None
    clipped: Tensor
    digests: list[bytes]
    small: Tensor
    features: Tensor
    batchnorm: list[dict[str, Any]]


@torch.no_grad()
def collect(batches: Iterator[Batch], networks: Networks, advance: Callable[[int], None] = lambda _: None) -> Collected:
    """Run all images through the networks, in eval mode and float32.

    About P + 4 D bytes are kept for each image; nothing else grows with the number of images.

    Args:
        batches: at least one image.
        networks: networks that measure them.
        advance: called with the number of images of each batch.

    Raises:
        ClusterqError: an image cannot be read.
    """
    teacher, other, device = networks.teacher, networks.other, networks.device
    distances = BatchNormDistances(teacher.model.eval())
    digests: list[bytes] = []
    collected: dict[str, list[Tensor]] = {}
    with (
        torch.autocast(device.type, enabled=False),
        batchnorm_taps(teacher.model) as taps,
        classifier_input(teacher.model) as features,
    ):
        for stored, labels in batches:
            pixels = stored.to(device)
            log_shares = teacher.model(_normalised(pixels, teacher)).float().log_softmax(1)
            distances.add(taps)
            shares = log_shares.exp()
            confidence, top1 = shares.max(1)
            kept = {
                "labels": labels,
                "top1": top1,
                "confidence": confidence,
                "entropy": -(shares * log_shares).sum(1),
                "clipped": ((pixels == 0) | (pixels == 255)).float().mean((1, 2, 3)),
                "small": small_pixels(pixels).flatten(1),
                "features": features.latest.float(),
            }
            if other is not None:
                kept["other"] = other.model(_normalised(pixels, other)).argmax(1)
            for name, values in kept.items():
                collected.setdefault(name, []).append(values.cpu())
            digests += [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in stored.contiguous()]
            advance(len(labels))
    joined = {name: torch.cat(values) for name, values in collected.items()}
    return Collected(
        other=joined.pop("other", None), digests=digests, batchnorm=[_plain(row) for row in distances.result()], **joined
    )


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value if isinstance(value, str) else float(value) for name, value in row.items()}


def _normalised(pixels: Tensor, network: Teacher) -> Tensor:
    return normalise(pixels, network.spec).contiguous(memory_format=torch.channels_last)


def small_pixels(pixels: Tensor) -> Tensor:
    """Convert (N, C, H, W) uint8 to (N, C, h, w) uint8 with the longer of h and w at most 32, by means over areas."""
    sides = pixels.shape[-2:]
    if max(sides) > LARGEST_COMPARED:
        height, width = (max(1, round(side * LARGEST_COMPARED / max(sides))) for side in sides)
        pixels = adaptive_avg_pool2d(pixels.float(), (height, width)).round().to(torch.uint8)
    return pixels
