"""What each shard will hold, before any image exists: a shard is a function of (seed, class, attempt) alone.

Wanted images stand in one line, classes taking turns; a shard is the next stretch of it. The candidates of the t-th image
of a class are its attempts 20 t ... 20 t + 19; a class's candidates within a shard serve its images there in turn. So shards
need nothing from each other: any number of processes may make them, in any order, and one may be made again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.write import shard_name

CANDIDATES_PER_IMAGE = 20
# Held-out images come from attempts that no training image can reach.
FIRST_ATTEMPT: dict[SplitName, int] = {"train": 0, "heldout": 1 << 40}


@dataclass(frozen=True)
class ShardPlan:
    """One shard's worth of wanted images.

    Attributes:
        split, number: name the shard.
        first_slot: place of its first image in the split's line; its samples' keys start there.
        wanted: images by class index.
        attempts: by class index, the first attempt.
        limit: by class index, the one after the last.
    """

    split: SplitName
    number: int
    first_slot: int
    wanted: tuple[int, ...]
    attempts: tuple[int, ...]
    limit: tuple[int, ...]

    @property
    def name(self) -> str:
        """The shard's file name."""
        return shard_name(self.split, self.number)


# What a source puts into the slots of one shard: (split, number, slots, classes) -> Block.
Fill = Callable[[SplitName, int, range, int], ShardPlan]


def fresh_block(split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
    """A shard of a source that never runs out: slot s is the (s // classes)-th image of class s % classes, with tries of its own."""
    turns = turns_of(slots, num_classes)
    attempts = [FIRST_ATTEMPT[split] + CANDIDATES_PER_IMAGE * turn.start for turn in turns]
    return ShardPlan(
        split=split,
        number=number,
        first_slot=slots.start,
        wanted=tuple(len(turn) for turn in turns),
        attempts=tuple(attempts),
        limit=tuple(first + CANDIDATES_PER_IMAGE * len(turn) for first, turn in zip(attempts, turns, strict=True)),
    )


def turns_of(slots: range, num_classes: int) -> list[range]:
    """By class, which of its images lie in a stretch of the line, classes taking turns."""
    # Slot s is the (s // classes)-th image of class s % classes.
    return [
        range(-(-(slots.start - label) // num_classes), -(-(slots.stop - label) // num_classes)) for label in range(num_classes)
    ]


def plan_blocks(
    rounds: list[dict[SplitName, int]], num_classes: int, samples_per_shard: int, fill: Fill = fresh_block
) -> list[ShardPlan]:
    """All shards of a set, by the images of each class that it was asked for: at first, then at each extension.

    Args:
        rounds: images of each class by split; each at least as many as the one before.
        samples_per_shard: slots of a shard; the last one of a round may have fewer.
        fill: the source's.
    """
    blocks = []
    for split in FIRST_ATTEMPT:
        have = number = 0
        for wanted in rounds:
            slots = range(have * num_classes, wanted.get(split, 0) * num_classes)
            for start in slots[::samples_per_shard]:
                blocks.append(fill(split, number, range(start, min(start + samples_per_shard, slots.stop)), num_classes))
                number += 1
            have = wanted.get(split, 0)
    return blocks
