"""Read the samples of one split by index."""

import copy
import os
from pathlib import Path

import numpy as np

from clusterq_common.files import BINARY, read_at
from clusterq_common.images.png import Array
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.index import MEMBERS, Index
from clusterq_common.shards.manifest import Manifest, Shard
from clusterq_common.shards.members import SampleFacts, read_facts, read_label, read_logits, read_pixels
from clusterq_common.shards.sample import Logits, Sample

# Open files of a reader, well below the limit of a process.
LARGEST_OPEN = 128


class SplitReader:
    """Reader of one split by index, in any order and from any process."""

    def __init__(self, folder: Path, manifest: Manifest, shards: list[Shard], indexes: list[Index]) -> None:
        self._spec = manifest.teacher.spec
        self._has_logits = manifest.has_logits
        self._paths = [folder / shard.file for shard in shards]
        self._index = np.concatenate(indexes) if indexes else np.zeros((0, 1 + 2 * len(MEMBERS)), np.int64)
        self._shard = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
        self._open: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._index)

    def first(self, count: int) -> "SplitReader":
        """Return a reader of the first samples alone, at most so many."""
        few = copy.copy(self)
        few._index, few._shard, few._open = self._index[:count], self._shard[:count], {}
        return few

    def key(self, number: int) -> str:
        """Return the sample's key in its tar."""
        return f"{int(self._index[number, 0]):08d}"

    def shard(self, number: int) -> str:
        """Return the name of the shard that holds the sample."""
        return self._paths[self._shard[number]].name

    def read(self, number: int) -> tuple[Array, int, Logits | None]:
        """Return pixels (H, W, C) uint8, label, and the teacher's logits (classes,) float16 or None.

        Raises:
            ClusterqError: a member does not hold what it should.
        """
        where = self._where(number)
        pixels = read_pixels(self._member(number, "png"), self._spec, where)
        label = self.label(number)
        return pixels, label, read_logits(self._member(number, "logits.npy"), self._spec, where) if self._has_logits else None

    def read_sample(self, number: int) -> Sample:
        """Return the whole sample, ready to be written again.

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
        """Return the class index alone.

        Raises:
            ClusterqError: it is none.
        """
        return read_label(self._member(number, "cls"), self._spec, self._where(number))

    def facts(self, number: int) -> SampleFacts:
        """Return the facts in the sample's `.json`.

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
        # Kept by process: after a fork, files are opened anew.
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
