"""Synthetic images for calibration: the first ones of a shuffled pass that is never used for training."""

from collections.abc import Iterator

import torch
from torch import Tensor

from clusterq_common.shards.batches import BEFORE_TRAINING
from clusterq_common.shards.read import ShardSet
from clusterq_common.teacher.spec import InputSpec
from clusterq_finetune.config import FinetuneConfig
from clusterq_finetune.data.network_input import to_network_input
from clusterq_finetune.data.shard_batches import EpochBatches, ShardBatch, ShardDataset, batches


def calibration_batches(shards: ShardSet, config: FinetuneConfig) -> Iterator[ShardBatch]:
    """Yield the batches of a shuffled pass that is never used for training."""
    dataset = ShardDataset(shards, "train")
    order = EpochBatches(len(dataset), config.recipe.batch_size, config.runtime.seed)
    order.epoch = BEFORE_TRAINING
    yield from batches(dataset, order)


def calibration_images(shards: ShardSet, config: FinetuneConfig, spec: InputSpec) -> Iterator[Tensor]:
    """Yield the first images of that pass as network inputs, in batches."""
    for pixels in first_pixels(shards, config, config.recipe.calibration_images).split(config.recipe.batch_size):
        yield to_network_input(pixels, spec, config.recipe.low_pass)


def first_pixels(shards: ShardSet, config: FinetuneConfig, count: int) -> Tensor:
    """Return the first images of that pass, (count, C, H, W) uint8, or all where there are fewer."""
    size, seed = config.recipe.batch_size, config.runtime.seed
    return torch.cat(list(shards.images("train", count, batch_size=size, seed=seed).pixels()))
