"""Sets of shards, which may come from strangers: only known members are read, and nothing is unpickled."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clusterq_common.errors import ClusterqError
from clusterq_common.run.run_folder import SHARDS
from clusterq_common.shards.index import ADVICE, shard_index, verify_shard
from clusterq_common.shards.manifest import MANIFEST, Manifest, Shard, SplitName, read_manifest
from clusterq_common.shards.split_reader import SplitReader

if TYPE_CHECKING:
    from clusterq_common.shards.batches import ImageBatches
    from clusterq_common.shards.pipeline import ShardPipeline


class ShardSet:
    """A folder of shards, checked and indexed.

    Attributes:
        folder: folder of its files.
        manifest: its description: teacher, splits, origin, digests.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._splits: dict[SplitName, SplitReader] = {}

    @classmethod
    def open(cls, path: Path | str, *, verify: bool = True) -> "ShardSet":
        """Open a run folder (its `shards/`) or a bare folder of shards.

        Args:
            path: the folder.
            verify: compare every shard's SHA-256 with the manifest's.

        Raises:
            ClusterqError: no shards there, an unfinished or inconsistent set, or shards that are missing, cut short or changed.
        """
        folder = shard_folder(Path(path))
        manifest = read_manifest(folder)
        if not manifest.splits["train"].samples:
            raise ClusterqError(f"{folder} holds no training image; {ADVICE}.", setting="shards")
        for split in manifest.splits.values():
            for shard in split.shards:
                check_size(folder / shard.file, shard)
                if verify:
                    verify_shard(folder / shard.file, shard)
        return cls(folder, manifest)

    def split(self, name: SplitName) -> SplitReader:
        """Return a reader of a split's samples in the order of the shards.

        Raises:
            ClusterqError: there is no such split, or a tar holds what no shard of clusterq holds.
        """
        if name not in self._splits:
            shards = self._listed(name)
            indexes = [shard_index(self.folder / shard.file, shard, self.manifest) for shard in shards]
            keys = np.concatenate([index[:, 0] for index in indexes]) if indexes else np.zeros(0)
            # Keys are sorted in clusterq's own shards, so these need no second check.
            if not (np.diff(keys) > 0).all() and len(np.unique(keys)) != len(keys):
                raise ClusterqError(f"two samples of {self.folder} have the same key; {ADVICE}.", setting="shards")
            self._splits[name] = SplitReader(self.folder, self.manifest, shards, indexes)
        return self._splits[name]

    def images(
        self, name: SplitName = "train", limit: int | None = None, *, batch_size: int = 128, seed: int = 0
    ) -> "ImageBatches":
        """Return the first images of a shuffled pass over a split, normalised for the teacher, as `calibrate` takes them.

        Args:
            name: of the split.
            limit: how many images; all if left out.
            batch_size: images in a batch.
            seed: seed of the order.

        Returns:
            Batches (N, C, H, W) float32, normalised. They can be iterated over more than once.

        Raises:
            ClusterqError: there is no such split, or a tar holds what no shard of clusterq holds.
        """
        from clusterq_common.shards.batches import ImageBatches  # here: reading a set needs no torch

        return ImageBatches(self.split(name), self.manifest.teacher.spec, limit=limit, batch_size=batch_size, seed=seed)

    def as_webdataset(self, name: SplitName = "train") -> "ShardPipeline":
        """Return a pipeline of webdataset over a split's tars, which are verified first.

        Chain `shuffle`, `batched`, `to_tuple` to it. clusterq decodes members within bounds; webdataset's `decode` would unpickle
        some. A sample is a dictionary: `png` (C, H, W) uint8, `cls` the label, `json` its facts, and `logits.npy` (classes,)
        float16 if the set has logits.

        Args:
            name: of the split.

        Raises:
            ClusterqError: there is no such split, a shard differs from the manifest, or it holds a member that no shard of clusterq
                has. While samples are read: a member is invalid.
        """
        from clusterq_common.shards.pipeline import shard_pipeline

        shards = self._listed(name)
        for shard in shards:
            check_size(self.folder / shard.file, shard)
            verify_shard(self.folder / shard.file, shard)
        self.split(name)  # looks at the name and the size of every member
        return shard_pipeline(self.folder, self.manifest, shards)

    def _listed(self, name: SplitName) -> list[Shard]:
        if name not in self.manifest.splits:
            raise ClusterqError(
                f"{self.folder} has no split {name!r}; it has {', '.join(self.manifest.splits)}.", setting="shards"
            )
        return self.manifest.splits[name].shards


def shard_folder(path: Path) -> Path:
    """Return the folder of shards for a path: the path itself, or `shards/` in a run folder.

    Raises:
        ClusterqError: it is no folder.
    """
    if not path.is_dir():
        raise ClusterqError(
            f"{path} is no folder, expected a run folder of clusterq-gen or a folder of shards.", setting="shards"
        )
    return path if (path / MANIFEST).is_file() or not (path / SHARDS).is_dir() else path / SHARDS


def check_size(path: Path, shard: Shard) -> None:
    """Check that a listed shard exists, is no link, and has the listed size.

    Raises:
        ClusterqError: it is not.
    """
    if path.is_symlink() or not path.is_file():
        raise ClusterqError(f"{path} is missing (the manifest lists it); {ADVICE}.", setting="shards")
    size = path.stat().st_size
    if size != shard.bytes:
        state = "cut short" if size < shard.bytes else "changed"
        raise ClusterqError(f"{path} is {state}: {size} bytes, expected {shard.bytes}; {ADVICE}.", setting="shards")
