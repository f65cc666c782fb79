"""Read shards that someone else may have written: known members only, nothing decoded by name, nothing unpickled."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clusterq_common.errors import ClusterqError
from clusterq_common.files import BINARY, read_at
from clusterq_common.png import Array
from clusterq_common.run.run_folder import SHARDS
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.index import ADVICE, MEMBERS, Index, shard_index, verify_shard
from clusterq_common.shards.manifest import MANIFEST, Manifest, Shard, SplitName, read_manifest
from clusterq_common.shards.members import SampleFacts, read_facts, read_label, read_logits, read_pixels
from clusterq_common.shards.sample import Logits, Sample

if TYPE_CHECKING:
    from clusterq_common.shards.batches import ImageBatches
    from clusterq_common.shards.pipeline import ShardPipeline

# Descriptors a reader keeps: well below what a process may have.
LARGEST_OPEN = 128


class SplitReader:
    """One split by index; may be used from any process, in any order."""

    def __init__(self, folder: Path, manifest: Manifest, shards: list[Shard], indexes: list[Index]) -> None:
        self._spec = manifest.teacher.spec
        self._has_logits = manifest.has_logits
        self._paths = [folder / shard.file for shard in shards]
        self._index = np.concatenate(indexes) if indexes else np.zeros((0, 1 + 2 * len(MEMBERS)), np.int64)
        self._shard = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
        self._open: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._index)

    def key(self, number: int) -> str:
        """The sample's key in its tar."""
        return f"{int(self._index[number, 0]):08d}"

    def shard(self, number: int) -> str:
        """The name of the shard the sample lies in."""
        return self._paths[self._shard[number]].name

    def read(self, number: int) -> tuple[Array, int, Logits | None]:
        """Pixels (H, W, C) uint8, label, and the teacher's logits (classes,) float16 or None.

        Raises:
            ClusterqError: a member does not hold what it should.
        """
        where = self._where(number)
        pixels = read_pixels(self._member(number, "png"), self._spec, where)
        label = self.label(number)
        return pixels, label, read_logits(self._member(number, "logits.npy"), self._spec, where) if self._has_logits else None

    def read_sample(self, number: int) -> Sample:
        """The whole sample, ready to be written again.

        Raises:
            ClusterqError: a member does not hold what it should.
        """
        pixels, label, logits = self.read(number)
        facts = self.facts(number)
        return Sample(
            png=self._member(number, "png"),
            content=sample_digest(label, pixels),
            label=label,
            asked=label if facts.asked is None else facts.asked,
            seed=facts.seed,
            attempt=facts.attempt,
            teacher_top1=facts.teacher_top1,
            teacher_confidence=facts.teacher_confidence,
            logits=logits,
        )

    def label(self, number: int) -> int:
        """The class index alone.

        Raises:
            ClusterqError: it is none.
        """
        return read_label(self._member(number, "cls"), self._spec, self._where(number))

    def facts(self, number: int) -> SampleFacts:
        """The facts in the sample's `.json`.

        Raises:
            ClusterqError: it is no JSON, holds other things, or another label than `.cls`.
        """
        return read_facts(self._member(number, "json"), self.label(number), self._spec, self._where(number))

    def _where(self, number: int) -> str:
        return f"{setting_name('shards')}: sample {self.key(number)} of {self._paths[self._shard[number]]}"

    def _member(self, number: int, name: str) -> bytes:
        offset, size = self._index[number, 1 + 2 * MEMBERS.index(name) :][:2]
        shard = int(self._shard[number])
        return read_at(self._descriptor(shard), int(size), int(offset), self._paths[shard])

    def _descriptor(self, shard: int) -> int:
        # By process: after a fork a descriptor is opened anew.
        known = (os.getpid(), shard)
        if known not in self._open:
            if len(self._open) >= LARGEST_OPEN:
                oldest = next(iter(self._open))
                descriptor = self._open.pop(oldest)
                if oldest[0] == known[0]:
                    os.close(descriptor)
            self._open[known] = os.open(self._paths[shard], os.O_RDONLY | BINARY)
        return self._open[known]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for (process, _), descriptor in getattr(self, "_open", {}).items():
            if process == os.getpid():
                os.close(descriptor)


class ShardSet:
    """A folder of shards, checked and indexed.

    Attributes:
        folder: where its files lie.
        manifest: what it says of itself: teacher, splits, how it was made, digests.
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
        """All samples of a split in the order of the shards.

        Raises:
            ClusterqError: there is no such split, or a tar holds what no shard of clusterq holds.
        """
        if name not in self._splits:
            shards = self._listed(name)
            indexes = [shard_index(self.folder / shard.file, shard, self.manifest) for shard in shards]
            keys = np.concatenate([index[:, 0] for index in indexes]) if indexes else np.zeros(0)
            # Sorted, as clusterq writes them, they need no second look.
            if not (np.diff(keys) > 0).all() and len(np.unique(keys)) != len(keys):
                raise ClusterqError(f"two samples of {self.folder} have the same key; {ADVICE}.", setting="shards")
            self._splits[name] = SplitReader(self.folder, self.manifest, shards, indexes)
        return self._splits[name]

    def images(
        self, name: SplitName = "train", limit: int | None = None, *, batch_size: int = 128, seed: int = 0
    ) -> "ImageBatches":
        """The first images of a shuffled pass over a split as the teacher takes them: what `calibrate` wants to see.

        Args:
            name: of the split.
            limit: how many images; all if left out.
            batch_size: images in a batch.
            seed: of the order.

        Returns:
            Batches (N, C, H, W) float32, normalised; one may go through them more than once.

        Raises:
            ClusterqError: there is no such split, or a tar holds what no shard of clusterq holds.
        """
        from clusterq_common.shards.batches import ImageBatches  # here: reading a set needs no torch

        return ImageBatches(self.split(name), self.manifest.teacher.spec, limit=limit, batch_size=batch_size, seed=seed)

    def as_webdataset(self, name: SplitName = "train") -> "ShardPipeline":
        """A pipeline of the package webdataset over a split's tars, which are verified first; then chain `shuffle`, `batched`, `to_tuple`.

        Members are decoded by clusterq, within bounds, never by webdataset's `decode`, which unpickles some. A sample is a dictionary:
        `png` (C, H, W) uint8, `cls` its label, `json` what is known of it, `logits.npy` (classes,) float16 where the set has logits.

        Args:
            name: of the split.

        Raises:
            ClusterqError: there is no such split, a shard is not the manifest's, or it holds what no shard of clusterq holds. While one reads: a
                member does not hold what it should.
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
    """The folder of shards that a path means: itself, or `shards/` in a run folder.

    Raises:
        ClusterqError: it is no folder.
    """
    if not path.is_dir():
        raise ClusterqError(
            f"{path} is no folder, expected a run folder of clusterq-gen or a folder of shards.", setting="shards"
        )
    return path if (path / MANIFEST).is_file() or not (path / SHARDS).is_dir() else path / SHARDS


def check_size(path: Path, shard: Shard) -> None:
    """Check that a listed shard is there, as a file of its own and with the listed size.

    Raises:
        ClusterqError: it is not.
    """
    if path.is_symlink() or not path.is_file():
        raise ClusterqError(f"{path} is missing (the manifest lists it); {ADVICE}.", setting="shards")
    size = path.stat().st_size
    if size != shard.bytes:
        state = "cut short" if size < shard.bytes else "changed"
        raise ClusterqError(f"{path} is {state}: {size} bytes, expected {shard.bytes}; {ADVICE}.", setting="shards")
