"""Shards as batches, in an order that depends on the seed and the epoch alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from clusterq_common.runtime.seeding import stream
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet


class ShardBatch(NamedTuple):
    """pixels (N, C, S, S) uint8; labels (N,) int64; logits (N, classes) float16, or None where the set has none."""

    pixels: Tensor
    labels: Tensor
    logits: Tensor | None


class ShardDataset(Dataset[tuple[Tensor, int, Tensor | None]]):
    """One split of a shard set by index; members are read from the tars where they lie, in any order."""

    def __init__(self, shards: ShardSet, split: SplitName) -> None:
        self.samples = shards.split(split)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor | None]:
        pixels, label, logits = self.samples.read(index)
        return torch.from_numpy(pixels).permute(2, 0, 1), label, None if logits is None else torch.from_numpy(logits)


class EpochSampler(Sampler[int]):
    """All indices once, shuffled by (seed, epoch): the same for any number of workers and after any interruption."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.size, generator=stream(self.seed, "order", self.epoch)).tolist()


def batches(dataset: ShardDataset, *, batch_size: int, workers: int, sampler: EpochSampler | None = None) -> DataLoader[Any]:
    """A loader of `ShardBatch`es: in the sampler's order, or in the order of the shards when there is none."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=False,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(samples: list[tuple[Tensor, int, Tensor | None]]) -> ShardBatch:
    logits = [sample[2] for sample in samples]
    stacked = torch.stack([one for one in logits if one is not None]) if logits[0] is not None else None
    return ShardBatch(torch.stack([sample[0] for sample in samples]), torch.tensor([sample[1] for sample in samples]), stacked)
