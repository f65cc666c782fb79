"""Verification of a whole set, which reports all problems instead of the first one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clusterq_common.archives.tar import BLOCK, TarHeaders
from clusterq_common.errors import ClusterqError
from clusterq_common.files import final_name, sha256_file
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.digest import ContentDigest
from clusterq_common.shards.index import index_tar
from clusterq_common.shards.manifest import SHARD_NAME, Manifest, Shard, SplitName
from clusterq_common.shards.read import check_size
from clusterq_common.shards.sample import Sample
from clusterq_common.shards.split_reader import SplitReader


@dataclass(frozen=True)
class Problem:
    """One problem of a set.

    Attributes:
        file: the shard, or another file of the folder.
        key: the sample, where it is about one.
        what: a sentence.
    """

    file: str
    key: str | None
    what: str


def verify_set(folder: Path, manifest: Manifest, *, advance: Callable[[int], None] = lambda _: None) -> list[Problem]:
    """Compare every file and every sample with the manifest: sizes, hashes, members, labels, images, counts, digests.

    Args:
        folder: where the shards lie.
        manifest: the folder's manifest, which `read_manifest` has checked.
        advance: called with the number of samples of each checked shard.
    """
    listed = {shard.file for split in manifest.splits.values() for shard in split.shards}
    problems = [
        Problem(path.name, None, "is not in the manifest; it belongs to no set or an unfinished one")
        for path in sorted(folder.iterdir())
        if SHARD_NAME.fullmatch(final_name(path.name)) and path.name not in listed
    ]
    for name, split in manifest.splits.items():
        per_class = np.zeros(manifest.teacher.spec.num_classes, np.int64)
        keys: dict[str, str] = {}
        complete = True
        for shard in split.shards:
            shard_problems = list(_verify_shard(folder, manifest, shard, per_class, keys))
            complete &= not shard_problems
            problems += shard_problems
            advance(shard.samples)
        if complete and per_class.tolist() != split.per_class:
            first = int((per_class != split.per_class).argmax())
            what = f"class {first} has {per_class[first]} samples in split {name}, the manifest says {split.per_class[first]}"
            problems.append(Problem("manifest.json", None, what))
    return problems


def good_samples(folder: Path, manifest: Manifest, split: SplitName) -> Iterator[Sample]:
    """Yield every sample of a split that can be read, also from damaged shards.

    A shard cut short gives nothing: where its samples lie cannot be known for certain.
    """
    for shard in manifest.splits[split].shards:
        try:
            reader = _reader(folder, manifest, shard)
        except (ClusterqError, OSError):
            continue
        for number in range(len(reader)):
            try:
                sample = reader.read_sample(number)
            except ClusterqError:
                continue
            yield sample


def _verify_shard(
    folder: Path, manifest: Manifest, shard: Shard, per_class: np.ndarray, keys: dict[str, str]
) -> Iterator[Problem]:
    path = folder / shard.file
    try:
        check_size(path, shard)
    except ClusterqError as error:
        yield Problem(shard.file, None, _plain(error))
        if not path.is_file():
            return
    if sha256_file(path) != shard.sha256:
        yield Problem(shard.file, None, "its SHA-256 is not the manifest's")
    try:
        reader = _reader(folder, manifest, shard)
    except ClusterqError as error:
        yield Problem(shard.file, None, _plain(error))
        return
    if _data_behind(path):
        yield Problem(shard.file, None, "it goes on behind the mark of its end; what lies there belongs to no sample")
    content = ContentDigest()
    whole = len(reader) == shard.samples
    if not whole:
        yield Problem(shard.file, None, f"it holds {len(reader)} samples, the manifest says {shard.samples}")
    for number in range(len(reader)):
        key = reader.key(number)
        if keys.setdefault(key, shard.file) != shard.file:
            yield Problem(shard.file, key, f"{keys[key]} has a sample of the same key")
        try:
            sample = reader.read_sample(number)
        except ClusterqError as error:
            yield Problem(shard.file, key, _plain(error))
            whole = False
            continue
        content.add(sample.content)
        per_class[sample.label] += 1
    if whole and content.hexdigest() != shard.content:
        yield Problem(shard.file, None, "its labels and pixels are not those that the manifest's content digest stands for")


def _reader(folder: Path, manifest: Manifest, shard: Shard) -> SplitReader:
    """Return a reader of one shard that indexes the tar anew, because a cached index describes the undamaged file."""
    return SplitReader(folder, manifest, [shard], [index_tar(folder / shard.file, manifest)])


def _data_behind(path: Path) -> bool:
    with path.open("rb", buffering=BLOCK) as file:
        headers = TarHeaders(file)
        for _ in headers:
            pass
        return headers.has_data_behind()


def _plain(error: ClusterqError) -> str:
    return str(error).removeprefix(f"{setting_name('shards')}: ")
