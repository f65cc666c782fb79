"""Batches from shards, and augmentation."""

from pathlib import Path

import pytest
import torch

from clusterq_common.shards.read import ShardSet
from clusterq_finetune.augment import augment
from clusterq_finetune.data import EpochSampler, ShardDataset, batches


def order(shards: ShardSet, workers: int, epoch: int, seed: int = 0) -> list[bytes]:
    dataset = ShardDataset(shards, "train")
    sampler = EpochSampler(len(dataset), seed)
    sampler.epoch = epoch
    loader = batches(dataset, batch_size=16, workers=workers, sampler=sampler)
    return [pixels.numpy().tobytes() for batch in loader for pixels in batch.pixels]


def test_order_depends_on_seed_and_epoch_alone(digits_run: Path) -> None:
    shards = ShardSet.open(digits_run)
    first = order(shards, 0, 0)
    assert first == order(ShardSet.open(digits_run), 2, 0)
    assert first != order(shards, 0, 1)
    assert first != order(shards, 0, 0, seed=1)
    assert sorted(first) == sorted(order(shards, 0, 1)), "every image once in every epoch"


def test_batches_hold_pixels_labels_and_logits(digits_run: Path) -> None:
    dataset = ShardDataset(ShardSet.open(digits_run), "train")
    batch = next(iter(batches(dataset, batch_size=7, workers=0)))
    assert batch.pixels.shape == (7, 1, 8, 8)
    assert batch.pixels.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert batch.logits is not None
    assert batch.logits.shape == (7, 10)
    assert torch.equal(batch.logits.argmax(1), batch.labels), "only images the teacher agrees with are kept"


def test_augmentation() -> None:
    pixels = torch.randint(256, (64, 3, 16, 16), dtype=torch.uint8)
    assert augment(pixels, "none", torch.Generator()) is pixels
    flipped = augment(pixels, "flip", torch.Generator().manual_seed(0))
    same = (flipped == pixels).flatten(1).all(1)
    mirrored = (flipped == pixels.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 16 < same.sum() < 48
    again = augment(pixels, "crop-flip", torch.Generator().manual_seed(1))
    assert torch.equal(again, augment(pixels, "crop-flip", torch.Generator().manual_seed(1)))
    assert again.shape == pixels.shape
    assert again.dtype == torch.uint8


@pytest.mark.parametrize("size", [8, 16])
def test_crops_are_shifts_with_repeated_edges(size: int) -> None:
    margin = size // 8
    picture = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size).expand(40, -1, -1, -1)
    found = augment(picture, "crop-flip", torch.Generator().manual_seed(2))
    plain = picture[0, 0]
    allowed = set()
    for flip in (False, True):
        source = plain.flip(1) if flip else plain
        for top in range(-margin, margin + 1):
            for left in range(-margin, margin + 1):
                rows = (torch.arange(size) + top).clamp(0, size - 1)
                columns = (torch.arange(size) + left).clamp(0, size - 1)
                allowed.add(source[rows][:, columns].contiguous().numpy().tobytes())
    assert {image[0].numpy().tobytes() for image in found} <= allowed
    assert len({image[0].numpy().tobytes() for image in found}) > 10
