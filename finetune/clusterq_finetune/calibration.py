"""The synthetic images that set ranges: the first of a shuffled pass that training never makes."""

from collections.abc import Iterator

from torch import Tensor

from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data import EpochBatches, ShardBatch, ShardDataset, batches
from clusterq_finetune.view import view


def calibration_batches(shards: ShardSet, config: FinetuneConfig) -> Iterator[ShardBatch]:
    """A shuffled pass that training never makes."""
    dataset = ShardDataset(shards, "train")
    order = EpochBatches(len(dataset), config.recipe.batch_size, config.runtime.seed)
    order.epoch = -1
    yield from batches(dataset, order)


def calibration_images(shards: ShardSet, config: FinetuneConfig, spec: InputSpec) -> Iterator[Tensor]:
    """Its first images."""
    left = config.recipe.calibration_images
    for batch in calibration_batches(shards, config):
        pixels = batch.pixels[:left]
        left -= len(pixels)
        yield view(pixels, spec, config.recipe.low_pass)
        if left <= 0:
            return
