"""Read shards that someone else may have written: known members only, nothing decoded by name, nothing unpickled."""

import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from clusterq_common.images import decode_png
from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import sha256_file
from clusterq_common.runtime.run_folder import SHARDS
from clusterq_common.shards.manifest import MANIFEST, Manifest, Shard, SplitName, read_manifest

MEMBERS = ("png", "cls", "json", "logits.npy")
# A member is refused above this, before it is read: small things are small, an image is at most its raw pixels and some.
LARGEST_SMALL_MEMBER = 1 << 20
LONGEST_LABEL = 9
ADVICE = "get the set again, or write it again with `clusterq-gen emit --overwrite`"

Logits = np.ndarray[Any, np.dtype[np.float16]]


@dataclass(frozen=True)
class SampleRef:
    """Where a sample's members lie: (offset, size) in the shard, by suffix."""

    key: str
    shard: str
    members: dict[str, tuple[int, int]]


class ShardSet:
    """A folder of shards, checked and indexed; `read` may be called from any process."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._index: dict[str, list[SampleRef]] = {}

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> "ShardSet":
        """Open a run folder (its `shards/`) or a bare folder of shards.

        Args:
            path: the folder.
            verify: compare every shard's SHA-256 with the manifest's.

        Raises:
            ClusterqError: no shards there, an unfinished or inconsistent set, or shards that are missing, cut short or changed.
        """
        if not path.is_dir():
            raise ClusterqError(f"--shards: {path} is no folder, expected a run folder of clusterq-gen or a folder of shards.")
        folder = path if (path / MANIFEST).is_file() or not (path / SHARDS).is_dir() else path / SHARDS
        manifest = read_manifest(folder)
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        if not manifest.splits["train"].samples:
            raise ClusterqError(f"--shards: {folder} holds no training image; {ADVICE}.")
        for shard in shards:
            _check_file(folder / shard.file, shard, verify=verify)
        return cls(folder, manifest)

    def samples(self, split: SplitName) -> list[SampleRef]:
        """All samples of a split in the order of the shards.

        Raises:
            ClusterqError: there is no such split, or a tar holds what no shard of clusterq holds.
        """
        if split not in self.manifest.splits:
            raise ClusterqError(f"--shards: {self.folder} has no split {split!r}; it has {', '.join(self.manifest.splits)}.")
        if split not in self._index:
            found: list[SampleRef] = []
            for shard in self.manifest.splits[split].shards:
                refs = _index_tar(self.folder / shard.file, self.manifest)
                if len(refs) != shard.samples:
                    raise ClusterqError(
                        f"--shards: {self.folder / shard.file} holds {len(refs)} samples, expected {shard.samples}; {ADVICE}."
                    )
                found += refs
            if len({ref.key for ref in found}) != len(found):
                raise ClusterqError(f"--shards: two samples of {self.folder} have the same key; {ADVICE}.")
            self._index[split] = found
        return self._index[split]

    def read(self, ref: SampleRef) -> tuple[Tensor, int, Logits | None]:
        """Pixels (C, S, S) uint8, label, and the teacher's logits (classes,) float16 or None.

        Raises:
            ClusterqError: a member does not hold what it should.
        """
        spec = self.manifest.teacher.spec
        path = self.folder / ref.shard
        with path.open("rb") as file:
            data = {suffix: os.pread(file.fileno(), size, offset) for suffix, (offset, size) in ref.members.items()}
        where = f"--shards: sample {ref.key} of {path}"
        try:
            pixels = decode_png(data["png"], spec)
        except ClusterqError as error:
            raise ClusterqError(f"{where}: {error}") from error
        label_text = data["cls"]
        if not label_text.isdigit() or len(label_text) > LONGEST_LABEL or int(label_text) >= spec.num_classes:
            raise ClusterqError(f"{where}: label {label_text[:20]!r}, expected a number below {spec.num_classes}; {ADVICE}.")
        logits = _read_logits(data["logits.npy"], spec.num_classes, where) if "logits.npy" in data else None
        return pixels, int(label_text), logits


def _check_file(path: Path, shard: Shard, *, verify: bool) -> None:
    if path.is_symlink() or not path.is_file():
        raise ClusterqError(f"--shards: {path} is missing (the manifest lists it); {ADVICE}.")
    size = path.stat().st_size
    if size != shard.bytes:
        state = "cut short" if size < shard.bytes else "changed"
        raise ClusterqError(f"--shards: {path} is {state}: {size} bytes, expected {shard.bytes}; {ADVICE}.")
    if verify and sha256_file(path) != shard.sha256:
        raise ClusterqError(
            f"--shards: {path} was changed: its SHA-256 is not the manifest's {shard.sha256[:12]}...; {ADVICE}."
        )


def _index_tar(path: Path, manifest: Manifest) -> list[SampleRef]:
    spec = manifest.teacher.spec
    largest_image = 2 * spec.channels * spec.size**2 + (1 << 16)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                allowed = largest_image if suffix == "png" else LARGEST_SMALL_MEMBER
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and re.fullmatch(r"[0-9]{8}", key)
                if not plain or suffix not in MEMBERS or not 0 <= member.size <= allowed:
                    raise ClusterqError(
                        f"--shards: {path} holds {member.name[:80]!r} ({member.size} bytes), which is no member of a clusterq shard; "
                        f"do not use it: {ADVICE}."
                    )
                if suffix in samples.setdefault(key, {}):
                    raise ClusterqError(f"--shards: {path} holds {member.name!r} twice; {ADVICE}.")
                samples[key][suffix] = (member.offset_data, member.size)
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise ClusterqError(f"--shards: {path} is no readable tar ({error}); {ADVICE}.") from error
    wanted = set(MEMBERS) if manifest.has_logits else set(MEMBERS) - {"logits.npy"}
    for key, members in samples.items():
        if set(members) != wanted:
            raise ClusterqError(f"--shards: sample {key} of {path} has {sorted(members)}, expected {sorted(wanted)}; {ADVICE}.")
    return [SampleRef(key, path.name, members) for key, members in samples.items()]


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
