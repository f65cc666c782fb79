"""Sources of the measured images: drawn from a set, pure noise, or real ones from the caller."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clusterq_common.images.normalise import to_pixels
from clusterq_common.run.seeding import stream
from clusterq_common.shards.split_reader import SplitReader
from clusterq_common.teacher.spec import InputSpec
from clusterq_report.measure.measuring_batch import measuring_batch

# (pixels (N, C, H, W) uint8, labels (N,) int64)
Batch = tuple[Tensor, Tensor]
Ints = np.ndarray[Any, np.dtype[np.int64]]

# A single image of a class would have no neighbour.
LEAST_OF_A_CLASS = 2


def sampled(labels: Ints, most: int, seed: int) -> Ints:
    """Return the numbers of about `most` images, ascending, or of all where there are no more.

    Each class gets its proportional share, at least two images where it has them. Where two of each class would exceed `most`, the
    classes are drawn first, as many as fit.

    Args:
        labels: (N,) class of each image.
        most: number of images wanted, at least two.
        seed: seed of the draw.
    """
    if len(labels) <= most:
        return np.arange(len(labels), dtype=np.int64)
    counts = np.bincount(labels)
    classes = np.flatnonzero(counts)
    if LEAST_OF_A_CLASS * len(classes) > most:
        order = torch.randperm(len(classes), generator=stream(seed, "quality classes"))[: most // LEAST_OF_A_CLASS]
        classes = classes[order.numpy()]
    total = int(counts[classes].sum())
    chosen = []
    for label in classes.tolist():
        count = int(counts[label])
        take = min(count, max(round(count * most / total), LEAST_OF_A_CLASS))
        own = np.flatnonzero(labels == label)
        chosen.append(own[torch.randperm(count, generator=stream(seed, "quality sample", label))[:take].numpy()])
    return np.sort(np.concatenate(chosen))


def stored(reader: SplitReader, numbers: Ints, spec: InputSpec) -> Iterator[Batch]:
    """Yield images of a split, a batch at a time.

    Raises:
        ClusterqError: a sample cannot be read.
    """
    size = measuring_batch(spec)
    for start in range(0, len(numbers), size):
        read = [reader.read(int(number)) for number in numbers[start : start + size]]
        pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image, _, _ in read])
        yield pixels, torch.tensor([label for _, label, _ in read])


def noise(labels: Tensor, spec: InputSpec, seed: int) -> Iterator[Batch]:
    """Yield images without content, as a reference.

    Each value is drawn from a normal distribution with the mean and std of the teacher's normalisation (for many teachers those of
    their training data), and then rounded to eight bits. They carry the given labels (N,).
    """
    for number, own in enumerate(labels.split(measuring_batch(spec))):
        random = stream(seed, "quality noise", number)
        yield to_pixels(torch.randn(len(own), *spec.shape, generator=random), spec), own
