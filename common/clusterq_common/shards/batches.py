"""Batches of a split's images as network input."""

from collections.abc import Iterator

import torch
from torch import Tensor

from clusterq_common.images.normalise import normalise
from clusterq_common.run.seeding import stream
from clusterq_common.shards.split_reader import SplitReader
from clusterq_common.teacher.spec import InputSpec

# Epoch number of the pass for calibration. Passes of training start at 0.
BEFORE_TRAINING = -1


class ImageBatches:
    """Batches of the first images of one shuffled pass over a split. Every iteration yields the same ones.

    Args:
        reader: the split.
        spec: of the set's teacher.
        limit: how many images; None: all of them.
        batch_size: images in a batch; the last one may have fewer.
        seed: of the order.
    """

    def __init__(self, reader: SplitReader, spec: InputSpec, *, limit: int | None, batch_size: int, seed: int) -> None:
        self.reader, self.spec = reader, spec
        order = torch.randperm(len(reader), generator=stream(seed, "order", BEFORE_TRAINING))[:limit].tolist()
        self.batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield normalised images (N, C, H, W) float32 in channels_last order."""
        for pixels in self.pixels():
            yield normalise(pixels, self.spec).contiguous(memory_format=torch.channels_last)

    def pixels(self) -> Iterator[Tensor]:
        """Yield the same images as stored, (N, C, H, W) uint8."""
        for batch in self.batches:
            yield torch.stack([torch.from_numpy(self.reader.read(number)[0]).permute(2, 0, 1) for number in batch])
