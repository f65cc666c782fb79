"""Batches from shards, and augmentation."""

from pathlib import Path

import pytest
import torch

from clusterq_common.device.distributed import Ranks
from clusterq_common.shards.read import ShardSet
from clusterq_finetune.data.augment import Augmentation
from clusterq_finetune.data.augment import augment as augment_part
from clusterq_finetune.data.resident import TrainingBatches
from clusterq_finetune.data.shard_batches import EpochBatches, ShardDataset, batches, in_order


def augment(pixels: torch.Tensor, kind: Augmentation, random: torch.Generator) -> torch.Tensor:
    return augment_part(pixels, kind, random, whole=len(pixels), own=slice(None))


def order(shards: ShardSet, workers: int, epoch: int, seed: int = 0) -> list[bytes]:
    dataset = ShardDataset(shards, "train")
    chosen = EpochBatches(len(dataset), 16, seed)
    chosen.epoch = epoch
    return [pixels.numpy().tobytes() for batch in batches(dataset, chosen, workers=workers) for pixels in batch.pixels]


def test_order_depends_on_seed_and_epoch_alone(digits_run: Path) -> None:
    shards = ShardSet.open(digits_run)
    first = order(shards, 0, 0)
    assert first == order(ShardSet.open(digits_run), 2, 0)
    assert first != order(shards, 0, 1)
    assert first != order(shards, 0, 0, seed=1)
    assert sorted(first) == sorted(order(shards, 0, 1)), "every image once in every epoch"


def test_batches_hold_pixels_labels_and_logits(digits_run: Path) -> None:
    dataset = ShardDataset(ShardSet.open(digits_run), "train")
    batch = next(iter(batches(dataset, in_order(dataset, 7))))
    assert batch.pixels.shape == (7, 1, 8, 8)
    assert batch.pixels.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64
    assert batch.logits is not None
    assert batch.logits.shape == (7, 10)
    assert torch.equal(batch.logits.argmax(1), batch.labels), "only images the teacher agrees with are kept"


@pytest.mark.parametrize(("size", "batch_size", "steps"), [(10, 4, None), (10, 4, 7), (3, 8, 2), (10, 20, None), (1, 1, 3)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_epochs_of_any_length_in_any_number_of_processes(size: int, batch_size: int, steps: int | None, world: int) -> None:
    whole = EpochBatches(size, batch_size, 5, steps=steps)
    parts = [EpochBatches(size, batch_size, 5, steps=steps, ranks=Ranks(rank, world)) for rank in range(world)]
    for sampler in (whole, *parts):
        sampler.epoch = 2
    alone = list(whole)
    assert len(alone) == len(whole) == (-(-size // batch_size) if steps is None else steps)
    shared = list(zip(*parts, strict=True))
    assert [[index for part in step for index in part] for step in shared] == alone
    assert [whole.whole(step) for step in range(len(whole))] == [len(batch) for batch in alone]
    flat = [index for batch in alone for index in batch]
    for start in range(0, len(flat) - size + 1, size):
        assert sorted(flat[start : start + size]) == list(range(size)), "every image once in every pass"
    if steps is not None:
        assert all(len(batch) == batch_size for batch in alone)
    for sampler in parts:
        sampler.first_step = len(alone) - 1
    assert [index for part in parts for index in next(iter(part))] == alone[-1], "an interrupted epoch goes on where it stopped"


def test_an_empty_part_of_a_batch_is_a_batch(digits_run: Path) -> None:
    dataset = ShardDataset(ShardSet.open(digits_run), "train")
    (batch,) = list(batches(dataset, [[]]))
    assert batch.pixels.shape == (0, 1, 8, 8)
    assert batch.labels.shape == (0,)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_from_memory_are_those_from_disk(digits_run: Path, workers: int) -> None:
    dataset = ShardDataset(ShardSet.open(digits_run), "train")
    kept = TrainingBatches(dataset, torch.device("cpu"), workers=workers)
    read = TrainingBatches(dataset, torch.device("cpu"), workers=workers, most_bytes=len(dataset) * (64 + 20) - 1)
    assert (kept.small, read.small) == (True, False)
    orders = [*EpochBatches(len(dataset), 16, 3), []]
    for batch, other in zip(kept(orders), read(orders), strict=True):
        assert torch.equal(batch.pixels, other.pixels)
        assert torch.equal(batch.labels, other.labels)
        assert batch.pixels.shape[1:] == other.pixels.shape[1:] == (1, 8, 8)
        if len(batch.labels):
            assert batch.logits is not None
            assert other.logits is not None
            assert torch.equal(batch.logits, other.logits)


def test_processes_augment_their_part_of_the_batch() -> None:
    pixels = torch.randint(256, (9, 3, 16, 16), dtype=torch.uint8)
    alone = augment(pixels, "crop-flip", torch.Generator().manual_seed(3))
    parts = [Ranks(rank, 2).share(9) for rank in range(2)]
    made = [augment_part(pixels[p], "crop-flip", torch.Generator().manual_seed(3), whole=9, own=p) for p in parts]
    assert torch.equal(torch.cat(made), alone)


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


def test_crops_of_squares_are_drawn_as_ever() -> None:
    once, now = (torch.Generator().manual_seed(7) for _ in range(2))
    both = torch.randint(5, (2, 300), generator=once)
    assert torch.equal(both, torch.stack([torch.randint(5, (300,), generator=now) for _ in range(2)]))
    picture = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(300, -1, -1, -1)
    random = torch.Generator().manual_seed(7)
    flip, (top, left) = torch.rand(300, generator=random) < 0.5, torch.randint(5, (2, 300), generator=random)
    for image, turned, down, across in zip(
        augment(picture, "crop-flip", torch.Generator().manual_seed(7)), flip, top, left, strict=True
    ):
        source = picture[0, 0].flip(1) if turned else picture[0, 0]
        rows, columns = (torch.arange(16) + down - 2).clamp(0, 15), (torch.arange(16) + across - 2).clamp(0, 15)
        assert torch.equal(image[0], source[rows][:, columns])


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (8, 24), (24, 8), (3, 64)])
def test_crops_are_shifts_with_repeated_edges(height: int, width: int) -> None:
    margins = max(1, height // 8), max(1, width // 8)
    picture = torch.arange(height * width, dtype=torch.uint8).view(1, 1, height, width).expand(40, -1, -1, -1)
    cropped = augment(picture, "crop-flip", torch.Generator().manual_seed(2))
    plain = picture[0, 0]
    allowed = set()
    for flip in (False, True):
        source = plain.flip(1) if flip else plain
        for top in range(-margins[0], margins[0] + 1):
            for left in range(-margins[1], margins[1] + 1):
                rows = (torch.arange(height) + top).clamp(0, height - 1)
                columns = (torch.arange(width) + left).clamp(0, width - 1)
                allowed.add(source[rows][:, columns].contiguous().numpy().tobytes())
    assert {image[0].numpy().tobytes() for image in cropped} <= allowed
    assert len({image[0].numpy().tobytes() for image in cropped}) > 10
