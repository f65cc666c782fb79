"""Write samples into tar shards that are either whole or absent."""

import errno
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import webdataset
from torch import Tensor

from clusterq_common.runtime.errors import ClusterqError
from clusterq_common.runtime.files import PARTIAL_SUFFIX, atomic_write, publish, sha256_file
from clusterq_common.shards.card import dataset_card, timm_info, wids_index
from clusterq_common.shards.manifest import MANIFEST, Manifest, Shard

SAMPLES_PER_SHARD = 10_000
BYTES_PER_SHARD = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One synthetic image and what the teacher says of its decoded pixels.

    Attributes:
        pixels: (C, S, S) uint8.
        png: the same pixels, encoded.
        label: the class it was generated for.
        seed, attempt: with the label, the key of its noise.
        teacher_top1, teacher_confidence: the teacher's class and its softmax probability.
        logits: (classes,) float16, or None where they are left out.
    """

    pixels: Tensor
    png: bytes
    label: int
    seed: int
    attempt: int
    teacher_top1: int
    teacher_confidence: float
    logits: np.ndarray[Any, np.dtype[np.float16]] | None


class SplitWriter:
    """Writes one split. The same samples give the same bytes.

    Used as a context manager; if the block fails, the shard in progress is removed and finished ones stay.

    Args:
        folder: where the shards go; made if missing.
        split: `train` or `heldout`.
        start_key: number of the first sample; `start_shard`: number of the first shard (to extend a set).
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        start_key: int = 0,
        start_shard: int = 0,
        samples_per_shard: int = SAMPLES_PER_SHARD,
        bytes_per_shard: int = BYTES_PER_SHARD,
    ) -> None:
        self.shards: list[Shard] = []
        self._key = start_key
        self._in_shard = 0
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._options = {
            "pattern": str(folder).replace("%", "%%") + f"/synth-{split}-%06d.tar{PARTIAL_SUFFIX}",
            "maxcount": samples_per_shard,
            "maxsize": bytes_per_shard,
            "start_shard": start_shard,
            "post": self._finish,
            "verbose": 0,
            "encoder": False,
            "mtime": 0.0,
            "compress": False,
        }
        # Opened with the first sample: an empty split leaves no file.
        self._writer: webdataset.ShardWriter | None = None

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            ClusterqError: the disk is full.
        """
        members: dict[str, str | bytes] = {
            "__key__": f"{self._key:08d}",
            "png": sample.png,
            "cls": str(sample.label).encode(),
            "json": json.dumps(
                {
                    "label": sample.label,
                    "seed": sample.seed,
                    "attempt": sample.attempt,
                    "teacher_top1": sample.teacher_top1,
                    "teacher_confidence": round(sample.teacher_confidence, 6),
                }
            ).encode(),
        }
        if sample.logits is not None:
            buffer = io.BytesIO()
            np.save(buffer, sample.logits, allow_pickle=False)
            members["logits.npy"] = buffer.getvalue()
        try:
            if self._writer is None:
                self._writer = webdataset.ShardWriter(**self._options)
            self._writer.write(members)
        except OSError as error:
            raise _disk_error(error, self._folder) from error
        self._key += 1
        self._in_shard = self._writer.count

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        if kind is None:
            try:
                writer.close()
            except OSError as failure:
                raise _disk_error(failure, self._folder) from failure
            return
        # Closing would publish a shard cut short: drop the stream and its file instead.
        writer.post = None
        partial = Path(writer.fname)
        try:
            writer.close()
        except OSError:
            # The disk may be full still: the error that brought us here is the one to report.
            pass
        finally:
            partial.unlink(missing_ok=True)

    def _finish(self, name: str) -> None:
        partial = Path(name)
        final = partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))
        digest, size = sha256_file(partial), partial.stat().st_size
        publish(partial, final)
        self.shards.append(Shard(file=final.name, bytes=size, samples=self._in_shard, sha256=digest))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the dataset card and the indexes of other tools, then manifest.json: with it the set is complete."""
    atomic_write(folder / "README.md", dataset_card(manifest))
    atomic_write(folder / "_info.json", json.dumps(timm_info(manifest), indent=2) + "\n")
    for split in manifest.splits:
        atomic_write(folder / f"wids-{split}.json", json.dumps(wids_index(manifest, split), indent=2) + "\n")
    atomic_write(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def _disk_error(error: OSError, folder: Path) -> Exception:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ClusterqError(
            f"{folder}: the disk is full; finished shards are kept, free some space and run `clusterq-gen emit` again."
        )
    return error
