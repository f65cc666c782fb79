"""Selection of stored images, independent of their appearance. Free of torch."""

from clusterq_common.shards.index import shard_index
from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet, check_size
from clusterq_common.shards.split_reader import SplitReader

# Classes take turns within a shard, so the first samples cover all of them. Indexing a whole large set would take minutes.
SAMPLES_LOOKED_THROUGH = 1 << 14


def first_shards(shards: ShardSet, split: SplitName = "train") -> SplitReader:
    """Return a reader over as many shards as make 16,384 samples, spread evenly over the split.

    Raises:
        ClusterqError: a shard is missing or has contents that clusterq does not write.
    """
    listed = shards.manifest.splits[split].shards
    wanted = max(1, min(len(listed), SAMPLES_LOOKED_THROUGH // max(1, max(shard.samples for shard in listed))))
    chosen = [listed[number * len(listed) // wanted] for number in range(wanted)]
    for shard in chosen:
        check_size(shards.folder / shard.file, shard)
    indexes = [shard_index(shards.folder / shard.file, shard, shards.manifest) for shard in chosen]
    return SplitReader(shards.folder, shards.manifest, chosen, indexes)


def spread_classes(per_class: list[int], most: int) -> list[int]:
    """Return all classes that have images, or `most` of them, evenly spread over the class indices.

    >>> spread_classes([5, 0, 5, 5, 5, 5, 5], 3)
    [0, 3, 5]
    """
    present = [label for label, count in enumerate(per_class) if count]
    if len(present) <= most:
        return present
    return [present[number * len(present) // most] for number in range(most)]


def first_of_classes(
    reader: SplitReader, classes: list[int], most: int, among: int = SAMPLES_LOOKED_THROUGH
) -> dict[int, list[int]]:
    """Return the numbers of the first `most` samples of each class, in the order of the shards, among the first `among`.

    Raises:
        ClusterqError: a label is invalid.
    """
    by_class: dict[int, list[int]] = {label: [] for label in classes}
    missing = len(classes)
    for number in range(min(len(reader), among)):
        if not missing:
            break
        own = by_class.get(reader.label(number))
        if own is not None and len(own) < most:
            own.append(number)
            missing -= len(own) == most
    return by_class
