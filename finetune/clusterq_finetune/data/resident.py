"""Small sets, decoded once and kept on the device, so that an epoch needs no decoding and no copies to a GPU."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clusterq_common.device.setup import to_device_async
from clusterq_finetune.data.shard_batches import ShardBatch, ShardDataset, batches

# CIFAR-sized sets have a few megabytes; sets at 224 pixels a side exceed this.
MOST_BYTES = 512 * 2**20
READ_AT_ONCE = 256


@dataclass(frozen=True)
class ResidentSplit:
    """A whole split in memory: pixels (N, C, H, W) uint8, labels (N,) int64, logits (N, classes) float16 or None."""

    pixels: Tensor
    labels: Tensor
    logits: Tensor | None

    @classmethod
    def read(cls, dataset: ShardDataset, device: torch.device, *, workers: int = 0) -> "ResidentSplit":
        """Decode the whole split."""
        size = len(dataset)
        order = [list(range(begin, min(begin + READ_AT_ONCE, size))) for begin in range(0, size, READ_AT_ONCE)]
        pixels, labels, logits = zip(*batches(dataset, order, workers=workers), strict=True)
        stored = None if logits[0] is None else torch.cat(logits).to(device)
        return cls(torch.cat(pixels).to(device), torch.cat(labels).to(device), stored)

    def batch(self, indices: list[int]) -> ShardBatch:
        """Return the samples with these indices."""
        rows = to_device_async(torch.tensor(indices, dtype=torch.long), self.labels.device)
        return ShardBatch(self.pixels[rows], self.labels[rows], None if self.logits is None else self.logits[rows])


class TrainingBatches:
    """Batches in a given order, from memory where the split is small enough, else decoded on demand.

    Args:
        dataset: the split.
        device: device of the networks.
        workers: number of decoding processes.
        most_bytes: size of the largest split that is kept in memory.
    """

    def __init__(self, dataset: ShardDataset, device: torch.device, *, workers: int = 0, most_bytes: int = MOST_BYTES) -> None:
        self.dataset, self.device, self.workers = dataset, device, workers
        spec = dataset.spec
        sample = spec.raw_bytes + 2 * spec.num_classes
        self.small = 0 < len(dataset) * sample <= most_bytes

    def __call__(self, order: Iterable[list[int]]) -> Iterator[ShardBatch]:
        """Yield the batches of an order of indices. They are the same with and without the split in memory."""
        if not self.small:
            yield from batches(self.dataset, order, workers=self.workers)
            return
        for indices in order:
            yield self.resident.batch(indices)

    @cached_property
    def resident(self) -> ResidentSplit:
        """The split in memory, decoded when the first batch is requested."""
        return ResidentSplit.read(self.dataset, self.device, workers=self.workers)
