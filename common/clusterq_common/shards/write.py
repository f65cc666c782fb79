"""Write samples into tar shards that are either whole or absent."""

import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset

from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_file, atomic_write
from clusterq_common.progress.console import info
from clusterq_common.shards.card import dataset_card, timm_info, wids_index
from clusterq_common.shards.digest import ContentDigest
from clusterq_common.shards.manifest import MANIFEST, MEANING, Manifest, Shard, Split, SplitName, meaning_of
from clusterq_common.shards.sample import Sample
from clusterq_common.teacher.spec import InputSpec

LARGEST_SHARD = 8192
BYTES_PER_SHARD = 1 << 30
# Files beside the shards of a set.
INDEX_FILES = ("README.md", "_info.json", "wids-train.json", "wids-heldout.json", MANIFEST)
# Signatures of the set and of its parents (`sharing.signature`), which a set need not have.
SIGNATURE = "manifest.signature.json"
PARENT_SIGNATURES = "parents.signatures.json"
# All files that may be beside the shards of a set.
SET_FILES = (*INDEX_FILES, SIGNATURE, PARENT_SIGNATURES)


class DiskFullError(ClusterqError):
    """Raised if the disk is too full for a shard."""


@dataclass
class Written:
    """Counts of a split while it is written."""

    per_class: list[int]
    shards: list[Shard]
    confidence: float = 0.0

    @classmethod
    def nothing(cls, num_classes: int) -> "Written":
        """Return counts of zero."""
        return cls([0] * num_classes, [])

    def add(self, other: "Written") -> None:
        """Add the counts of another part of the same split."""
        self.per_class = [a + b for a, b in zip(self.per_class, other.per_class, strict=True)]
        self.shards += other.shards
        self.confidence += other.confidence

    def split(self) -> Split:
        """Return the split as the manifest states it."""
        return Split(samples=sum(self.per_class), per_class=self.per_class, shards=self.shards)


def samples_per_shard(spec: InputSpec) -> int:
    """Return the default number of samples in a shard: as many as fit into a gibibyte uncompressed, at most 8192."""
    return max(1, min(LARGEST_SHARD, BYTES_PER_SHARD // spec.raw_bytes))


def shard_name(split: SplitName, number: int) -> str:
    """Return the name of a shard's file, such as `synth-train-000000.tar`."""
    return f"synth-{split}-{number:06d}.tar"


def write_shard(folder: Path, name: str, samples: Iterable[Sample], *, start_key: int, num_classes: int) -> Written:
    """Write one shard. Equal samples give equal bytes. No file is written without a sample.

    Args:
        folder: where it goes; made if missing.
        name: the shard's file name.
        samples: what goes in, in this order; drawn one at a time.
        start_key: number of the first sample in its split.

    Raises:
        DiskFullError: the disk is full. Whatever is raised, no half-written file stays behind.
    """
    written = Written.nothing(num_classes)
    content = ContentDigest()
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            # mtime is an integer, because a float would cost each member an extended header of a kilobyte.
            with webdataset.TarWriter(file, encoder=False, mtime=0, compress=False) as tar:
                # Gives the same bytes as tarfile's default, without its search for values that need a longer header.
                tar.tarstream.format = tarfile.USTAR_FORMAT
                for number, sample in enumerate(samples):
                    tar.write({"__key__": f"{start_key + number:08d}", **_members(sample)})
                    content.add(sample.content)
                    written.per_class[sample.label] += 1
                    written.confidence += sample.teacher_confidence
            count = sum(written.per_class)
            if not count:
                raise _NothingToWriteError
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except _NothingToWriteError:
        return written
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFullError(
            f"{path}: the disk is full; finished shards are kept, free some space and run the same command again."
        ) from error
    written.shards = [Shard(file=name, bytes=size, samples=count, sha256=digest, content=content.hexdigest())]
    return written


def index_files(manifest: Manifest) -> list[str]:
    """Return the names of the files that `write_manifest` writes, in its order."""
    return [name for name in INDEX_FILES if not name.startswith("wids-") or name[5:-5] in manifest.splits]


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the dataset card and the indexes of other tools, then manifest.json: with it the set is complete.

    Returns what is written: the manifest with the digest of its own meaning. A signature under another one is removed.
    """
    write_card(folder, manifest)
    written = manifest.model_copy(update={MEANING: meaning_of(manifest.model_dump(mode="json"))})
    text = json.dumps(written.model_dump(mode="json"), indent=2) + "\n"
    _remove_signature_of_another(folder, text)
    atomic_write(folder / MANIFEST, text)
    return written


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write the files that only repeat the manifest: the dataset card and the indexes of other tools."""
    atomic_write(folder / "README.md", dataset_card(manifest))
    atomic_write(folder / "_info.json", json.dumps(timm_info(manifest), indent=2) + "\n")
    for split in manifest.splits:
        atomic_write(folder / f"wids-{split}.json", json.dumps(wids_index(manifest, split), indent=2) + "\n")


def _remove_signature_of_another(folder: Path, text: str) -> None:
    """Remove the signature of an extended set, which belongs to its former manifest."""
    signature = folder / SIGNATURE
    if not signature.is_file() or ((folder / MANIFEST).is_file() and (folder / MANIFEST).read_text(encoding="utf-8") == text):
        return
    signature.unlink()
    info(
        f"Note: the set in {folder} has changed, so its signature was removed; sign it again with `clusterq-finetune shards sign`."
    )


class _NothingToWriteError(Exception):
    """Raised to remove a shard file without samples."""


def _members(sample: Sample) -> dict[str, bytes]:
    facts = {
        "label": sample.label,
        "asked": sample.asked,
        "seed": sample.seed,
        "attempt": sample.attempt,
        "teacher_top1": sample.teacher_top1,
        "teacher_confidence": round(sample.teacher_confidence, 6),
    }
    members = {"png": sample.png, "cls": str(sample.label).encode(), "json": json.dumps(facts).encode()}
    if sample.logits is not None:
        buffer = io.BytesIO()
        np.save(buffer, sample.logits, allow_pickle=False)
        members["logits.npy"] = buffer.getvalue()
    return members
