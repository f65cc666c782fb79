"""Read shards that someone else may have written: known members only, nothing decoded by name, nothing unpickled."""

import io
import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, ValidationError

from clusterq_common import png
from clusterq_common.png import Array
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.run_folder import SHARDS
from clusterq_common.runtime.settings import Settings
from clusterq_common.shards.digest import sample_digest
from clusterq_common.shards.index import ADVICE, MEMBERS, Index, shard_index, verify_shard
from clusterq_common.shards.manifest import MANIFEST, Manifest, Shard, SplitName, read_manifest
from clusterq_common.shards.sample import Logits, Sample

LONGEST_LABEL = 9
# Descriptors a reader keeps: well below what a process may have.
LARGEST_OPEN = 128


class SampleFacts(Settings):
    """The `.json` member of a sample."""

    label: Annotated[int, Field(ge=0)]
    asked: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=0)]
    teacher_top1: Annotated[int, Field(ge=0)]
    teacher_confidence: Annotated[float, Field(ge=0, le=1)]


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
        """Pixels (S, S, C) uint8, label, and the teacher's logits (classes,) float16 or None.

        Raises:
            ClusterqError: a member does not hold what it should.
        """
        where = f"--shards: sample {self.key(number)} of {self._paths[self._shard[number]]}"
        try:
            pixels = png.decode(self._member(number, "png"), self._spec.size, self._spec.channels)
        except ClusterqError as error:
            raise ClusterqError(f"{where}: {error}") from error
        return pixels, self._label(number, where), self._logits(number, where)

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
        return self._label(number, f"--shards: sample {self.key(number)} of {self._paths[self._shard[number]]}")

    def facts(self, number: int) -> SampleFacts:
        """What the sample's `.json` says.

        Raises:
            ClusterqError: it is no JSON, holds other things, or another label than `.cls`.
        """
        where = f"--shards: sample {self.key(number)} of {self._paths[self._shard[number]]}"
        try:
            facts = SampleFacts.model_validate(json.loads(self._member(number, "json")))
        except (ValidationError, ValueError, RecursionError) as error:
            raise ClusterqError(f"{where}: its .json cannot be used ({type(error).__name__}); {ADVICE}.") from error
        label = self._label(number, where)
        if facts.label != label or facts.teacher_top1 >= self._spec.num_classes:
            raise ClusterqError(f"{where}: its .json says label {facts.label}, its .cls {label}; {ADVICE}.")
        return facts

    def _member(self, number: int, name: str) -> bytes:
        offset, size = self._index[number, 1 + 2 * MEMBERS.index(name) :][:2]
        shard = int(self._shard[number])
        return os.pread(self._descriptor(shard), int(size), int(offset))

    def _descriptor(self, shard: int) -> int:
        # By process: after a fork a descriptor is opened anew.
        known = (os.getpid(), shard)
        if known not in self._open:
            if len(self._open) >= LARGEST_OPEN:
                oldest = next(iter(self._open))
                descriptor = self._open.pop(oldest)
                if oldest[0] == known[0]:
                    os.close(descriptor)
            self._open[known] = os.open(self._paths[shard], os.O_RDONLY)
        return self._open[known]

    def _label(self, number: int, where: str) -> int:
        text = self._member(number, "cls")
        if not text.isdigit() or len(text) > LONGEST_LABEL or int(text) >= self._spec.num_classes:
            raise ClusterqError(f"{where}: label {text[:20]!r}, expected a number below {self._spec.num_classes}; {ADVICE}.")
        return int(text)

    def _logits(self, number: int, where: str) -> Logits | None:
        return _read_logits(self._member(number, "logits.npy"), self._spec.num_classes, where) if self._has_logits else None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for (process, _), descriptor in getattr(self, "_open", {}).items():
            if process == os.getpid():
                os.close(descriptor)


class ShardSet:
    """A folder of shards, checked and indexed."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._splits: dict[SplitName, SplitReader] = {}

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> "ShardSet":
        """Open a run folder (its `shards/`) or a bare folder of shards.

        Args:
            path: the folder.
            verify: compare every shard's SHA-256 with the manifest's.

        Raises:
            ClusterqError: no shards there, an unfinished or inconsistent set, or shards that are missing, cut short or changed.
        """
        folder = shard_folder(path)
        manifest = read_manifest(folder)
        if not manifest.splits["train"].samples:
            raise ClusterqError(f"--shards: {folder} holds no training image; {ADVICE}.")
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
        if name not in self.manifest.splits:
            raise ClusterqError(f"--shards: {self.folder} has no split {name!r}; it has {', '.join(self.manifest.splits)}.")
        if name not in self._splits:
            shards = self.manifest.splits[name].shards
            indexes = [shard_index(self.folder / shard.file, shard, self.manifest) for shard in shards]
            keys = np.concatenate([index[:, 0] for index in indexes]) if indexes else np.zeros(0)
            # Sorted, as clusterq writes them, they need no second look.
            if not (np.diff(keys) > 0).all() and len(np.unique(keys)) != len(keys):
                raise ClusterqError(f"--shards: two samples of {self.folder} have the same key; {ADVICE}.")
            self._splits[name] = SplitReader(self.folder, self.manifest, shards, indexes)
        return self._splits[name]


def shard_folder(path: Path) -> Path:
    """The folder of shards that a path means: itself, or `shards/` in a run folder.

    Raises:
        ClusterqError: it is no folder.
    """
    if not path.is_dir():
        raise ClusterqError(f"--shards: {path} is no folder, expected a run folder of clusterq-gen or a folder of shards.")
    return path if (path / MANIFEST).is_file() or not (path / SHARDS).is_dir() else path / SHARDS


def check_size(path: Path, shard: Shard) -> None:
    """Whether a listed shard is there, as a file of its own and with the listed size.

    Raises:
        ClusterqError: it is not.
    """
    if path.is_symlink() or not path.is_file():
        raise ClusterqError(f"--shards: {path} is missing (the manifest lists it); {ADVICE}.")
    size = path.stat().st_size
    if size != shard.bytes:
        state = "cut short" if size < shard.bytes else "changed"
        raise ClusterqError(f"--shards: {path} is {state}: {size} bytes, expected {shard.bytes}; {ADVICE}.")


def _read_logits(data: bytes, classes: int, where: str) -> Logits:
    stream = io.BytesIO(data)
    try:
        # The header first: a hostile one could make numpy reserve any amount of memory.
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy's header parser lets tokenizer and recursion errors through
        raise ClusterqError(f"{where}: its logits cannot be read ({error}); {ADVICE}.") from error
    values = data[stream.tell() :]
    if dtype != np.float16 or shape != (classes,) or len(values) != 2 * classes:
        raise ClusterqError(f"{where}: its logits are {dtype} {shape}, expected float16 ({classes},); {ADVICE}.")
    logits = np.frombuffer(values, dtype=np.float16).copy()
    if not np.isfinite(logits).all():
        raise ClusterqError(f"{where}: its logits are not finite; {ADVICE}.")
    return logits
