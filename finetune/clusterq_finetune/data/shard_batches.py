"""Batches from shards, in an order that depends on the seed and the epoch alone."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from clusterq_common.device.distributed import Ranks
from clusterq_common.run.seeding import stream
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet


class ShardBatch(NamedTuple):
    """A batch: pixels (N, C, H, W) uint8; labels (N,) int64; logits (N, classes) float16, or None where the set has none."""

    pixels: Tensor
    labels: Tensor
    logits: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> "ShardBatch":
        """Return a batch with `change` applied to each tensor."""
        return ShardBatch(change(self.pixels), change(self.labels), None if self.logits is None else change(self.logits))


class ShardDataset(Dataset[tuple[Tensor, int, Tensor | None]]):
    """One split of a shard set, by index. Members are read directly from the tars, in any order."""

    def __init__(self, shards: ShardSet, split: SplitName) -> None:
        self.samples = shards.split(split)
        self.spec = shards.manifest.teacher.spec

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor | None]:
        pixels, label, logits = self.samples.read(index)
        return torch.from_numpy(pixels).permute(2, 0, 1), label, None if logits is None else torch.from_numpy(logits)

    def collate(self, samples: list[tuple[Tensor, int, Tensor | None]]) -> ShardBatch:
        """Combine a loader's samples into one batch, which may be empty: a process's part of a small last batch."""
        if not samples:
            empty = torch.zeros(0, *self.spec.shape, dtype=torch.uint8)
            return ShardBatch(empty, torch.zeros(0, dtype=torch.long), None)
        pixels, labels, logits = zip(*samples, strict=True)
        stored = None if logits[0] is None else torch.stack([row for row in logits if row is not None])
        batch = torch.empty(len(pixels), *pixels[0].shape, dtype=torch.uint8)
        if get_worker_info() is not None:
            batch.share_memory_()  # as in evaluation: building batches in shared memory keeps a worker's memory from growing
        return ShardBatch(torch.stack(pixels, out=batch), torch.tensor(labels), stored)


class EpochBatches(Sampler[list[int]]):
    """Batches of indices, shuffled by (seed, epoch): the same for any number of workers and after any interruption.

    Each process gets its part of each batch.

    Args:
        size: number of samples.
        batch_size: samples in a batch, of all processes together; the last one of a pass may be smaller.
        seed: seed of the order.
        steps: batches in an epoch, all full, from as many passes as needed; None: one pass.
        ranks: the processes.

    Attributes:
        epoch: epoch of the next iteration.
        first_step: first step of that iteration, for an interrupted epoch.
    """

    def __init__(self, size: int, batch_size: int, seed: int, *, steps: int | None = None, ranks: Ranks | None = None) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.passes = 1 if steps is None else -(-steps * batch_size // size)
        self.steps = -(-size // batch_size) if steps is None else steps
        self.ranks = ranks or Ranks()
        self.epoch = self.first_step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        orders = [torch.randperm(self.size, generator=stream(self.seed, *self._key(number))) for number in range(self.passes)]
        order = torch.cat(orders).tolist()
        for step in range(self.first_step, self.steps):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield batch[self.ranks.share(len(batch))]

    def whole(self, step: int) -> int:
        """Return the number of samples in batch `step` of an epoch, over all processes."""
        return min(self.batch_size, self.passes * self.size - step * self.batch_size)

    def _key(self, number: int) -> tuple[int | str, ...]:
        return ("order", self.epoch, number) if number else ("order", self.epoch)


def batches(dataset: ShardDataset, order: Iterable[list[int]], *, workers: int = 0) -> DataLoader[Any]:
    """Return a loader of `ShardBatch`es in the given order of batches."""
    return DataLoader(
        dataset,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=dataset.collate,
        persistent_workers=False,
        pin_memory=torch.cuda.is_available(),
    )


def in_order(dataset: ShardDataset, batch_size: int, ranks: Ranks | None = None) -> list[list[int]]:
    """Return all indices in the order of the shards, as batches. Each of several processes gets a part of the whole."""
    own = range(len(dataset))[(ranks or Ranks()).share(len(dataset))]
    return [list(own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
