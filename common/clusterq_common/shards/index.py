"""Index of the members in a shard. It is made once, kept in the user's cache and opened in milliseconds."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from clusterq_common.archives.tar import BLOCK, TarFormatError, TarHeaders, shortened
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, home_folder, sha256_file
from clusterq_common.progress.console import info
from clusterq_common.shards.manifest import Manifest, Shard

MEMBERS = ("png", "cls", "json", "logits.npy")
# Larger members are refused before they are read. An image takes at most its raw pixels and a little more.
LARGEST_SMALL_MEMBER = 1 << 20
ADVICE = "get the set again, make its bad shards anew with `clusterq-gen emit`, or save the rest with `clusterq-finetune shards repair`"
KEY = re.compile(r"[0-9]{8}")
ABSENT = (-1, -1)
# Folder in the cache. Earlier versions used `index`, which may cover tars that are refused today.
INDEXES = "headers"

# (samples, 1 + 2 * members) int64: key, then offset and size of each of MEMBERS; -1, -1 for absent ones.
Index = np.ndarray[Any, np.dtype[np.int64]]


def cache_folder() -> Path:
    """Return the folder of the cache: `CLUSTERQ_CACHE`, else `clusterq` in the user's cache folder."""
    named = os.environ.get("CLUSTERQ_CACHE")
    return (
        Path(named)
        if named
        else Path(os.environ.get("XDG_CACHE_HOME") or home_folder("CLUSTERQ_CACHE") / ".cache") / "clusterq"
    )


def verify_shard(path: Path, shard: Shard) -> None:
    """Compare a shard's SHA-256 with the manifest's, once for as long as the file is unchanged (inode, size, times).

    Raises:
        ClusterqError: the file is another one.
    """
    facts = path.stat()
    # Programs cannot set ctime, so a file that was changed after its verification is hashed again.
    stamp = [str(path.resolve()), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    known = cache_folder() / "verified" / f"{shard.sha256}.json"
    if _stamp(known) == stamp:
        return
    if sha256_file(path) != shard.sha256:
        raise ClusterqError(
            f"{path} was changed: its SHA-256 is not the manifest's {shard.sha256[:12]}...; {ADVICE}.", setting="shards"
        )
    _keep(known, json.dumps(stamp).encode())


def shard_index(path: Path, shard: Shard, manifest: Manifest) -> Index:
    """Return the index of a verified shard, from the cache if it is there.

    Raises:
        ClusterqError: the tar holds what no shard of clusterq holds, or another number of samples than the manifest says.
    """
    kept = cache_folder() / INDEXES / f"{shard.sha256}.npy"
    stored = _load(kept)
    if stored is not None and _fits(stored, shard, has_logits=manifest.has_logits):
        return stored
    index = index_tar(path, manifest)
    if len(index) != shard.samples:
        raise ClusterqError(f"{path} holds {len(index)} samples, expected {shard.samples}; {ADVICE}.", setting="shards")
    _keep(kept, _npy(index))
    return index


def index_tar(path: Path, manifest: Manifest) -> Index:
    """Index a tar from its headers, without reading its files.

    Raises:
        ClusterqError: a member that no shard of clusterq has, or a sample with members missing or doubled.
    """
    spec = manifest.teacher.spec
    largest_image = 2 * spec.raw_bytes + (1 << 16)
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        # Only headers are read, block by block.
        with path.open("rb", buffering=BLOCK) as file:
            for member in TarHeaders(file):
                key, _, suffix = member.name.partition(".")
                allowed = largest_image if suffix == "png" else LARGEST_SMALL_MEMBER
                known = member.plain and KEY.fullmatch(key) and suffix in MEMBERS
                if not known or not 0 <= member.size <= allowed:
                    raise ClusterqError(
                        f"{path} holds {shortened(member.name)} ({member.size} bytes), which is no member of a clusterq "
                        f"shard; do not use it: {ADVICE}.",
                        setting="shards",
                    )
                if suffix in samples.setdefault(key, {}):
                    raise ClusterqError(f"{path} holds {member.name!r} twice; {ADVICE}.", setting="shards")
                samples[key][suffix] = (member.offset, member.size)
    except TarFormatError as error:
        raise ClusterqError(f"{path} is no readable tar ({error}); {ADVICE}.", setting="shards") from error
    wanted = set(MEMBERS) if manifest.has_logits else set(MEMBERS) - {"logits.npy"}
    for key, members in samples.items():
        if set(members) != wanted:
            raise ClusterqError(
                f"sample {key} of {path} has {sorted(members)}, expected {sorted(wanted)}; {ADVICE}.", setting="shards"
            )
    rows = [
        (int(key), *(number for name in MEMBERS for number in members.get(name, ABSENT))) for key, members in samples.items()
    ]
    return np.array(rows, dtype=np.int64).reshape(-1, 1 + 2 * len(MEMBERS))


def _fits(index: Index, shard: Shard, *, has_logits: bool) -> bool:
    """Return whether a cached index can be of this shard. The cache is the user's own, but it may be old or cut short."""
    if index.dtype != np.int64 or index.shape != (shard.samples, 1 + 2 * len(MEMBERS)):
        return False
    offsets, sizes = index[:, 1::2], index[:, 2::2]
    used = len(MEMBERS) if has_logits else len(MEMBERS) - 1
    ends = offsets[:, :used] + sizes[:, :used]
    return bool((offsets[:, :used] >= 0).all() and (sizes[:, :used] >= 0).all() and (ends <= shard.bytes).all())


def _stamp(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # not there, or not to be read: the shard is hashed


def _load(path: Path) -> Index | None:
    try:
        stored: Index = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not there, or not to be read: the headers are read again
    return stored


def _npy(index: Index) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    return buffer.getvalue()


def _keep(path: Path, data: bytes) -> None:
    """Store an index in the cache. If the cache cannot be written, only time is lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    except OSError as error:
        info(f"Note: {path.parent} cannot be written ({error.strerror}); set CLUSTERQ_CACHE to a folder of yours to save time.")
