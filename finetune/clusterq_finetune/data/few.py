"""The first training images of a set, as a set of their own."""

from clusterq_common.shards.manifest import SplitName
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.split_reader import SplitReader


class FewImages(ShardSet):
    """The first training images of a set, without held-out ones, to time work on.

    Args:
        shards: the set.
        count: how many images, at most.
    """

    def __init__(self, shards: ShardSet, count: int) -> None:
        manifest = shards.manifest
        super().__init__(shards.folder, manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}}))
        self._reader = shards.split("train").first(count)

    def split(self, name: SplitName) -> SplitReader:
        """Return the reader of the few images; the set has no other split."""
        return self._reader if name == "train" else super().split(name)
