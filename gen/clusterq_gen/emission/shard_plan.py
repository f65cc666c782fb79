"""Plans of shards, made before any image exists. A shard depends on (seed, class, attempt) alone.

The wanted images form one line in which classes take turns, and a shard is the next stretch of it. The candidates of the t-th
image of a class are its attempts 20 t ... 20 t + 19. A class's candidates within a shard serve its images there in turn. So
shards are independent: any number of processes may make them, in any order, and one may be made again.
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
    """Plan of one shard.

    Attributes:
        split, number: they name the shard.
        first_slot: position of its first image in the split's line. The keys of its samples start there.
        wanted: number of wanted images by class index.
        attempts: first attempt by class index.
        limit: end of the attempts by class index, exclusive.
    """

    split: SplitName
    number: int
    first_slot: int
    wanted: tuple[int, ...]
    attempts: tuple[int, ...]
    limit: tuple[int, ...]

    @property
    def name(self) -> str:
        """File name of the shard."""
        return shard_name(self.split, self.number)


# Plan of a source for the slots of one shard: (split, number, slots, classes) -> ShardPlan.
Fill = Callable[[SplitName, int, range, int], ShardPlan]


def fresh_plan(split: SplitName, number: int, slots: range, num_classes: int) -> ShardPlan:
    """Plan a shard of an unlimited source. Slot s is the (s // classes)-th image of class s % classes, with attempts of its own."""
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
    """Return, by class, the range of its images that lie in a stretch of the line, where classes take turns."""
    # Slot s is the (s // classes)-th image of class s % classes.
    return [
        range(-(-(slots.start - label) // num_classes), -(-(slots.stop - label) // num_classes)) for label in range(num_classes)
    ]


def plan_shards(
    rounds: list[dict[SplitName, int]], num_classes: int, samples_per_shard: int, fill: Fill = fresh_plan
) -> list[ShardPlan]:
    """Plan all shards of a set.

    Args:
        rounds: requested images of each class by split, at first and at each extension; never fewer than in the round before.
        samples_per_shard: slots of a shard; the last one of a round may have fewer.
        fill: the source's function that plans one shard.
    """
    plans = []
    for split in FIRST_ATTEMPT:
        have = number = 0
        for wanted in rounds:
            slots = range(have * num_classes, wanted.get(split, 0) * num_classes)
            for start in slots[::samples_per_shard]:
                plans.append(fill(split, number, range(start, min(start + samples_per_shard, slots.stop)), num_classes))
                number += 1
            have = wanted.get(split, 0)
    return plans
