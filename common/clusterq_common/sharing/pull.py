"""Fetch the missing files of a set from an address, several at a time, each verified, the manifest last."""

import shutil
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock

from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write, final_name
from clusterq_common.progress.console import info, progress
from clusterq_common.quantities import size
from clusterq_common.run.folder_lock import only_program
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.index import verify_shard
from clusterq_common.shards.manifest import MANIFEST, SHARD_NAME, Shard, read_manifest
from clusterq_common.shards.read import check_size
from clusterq_common.shards.write import PARENT_SIGNATURES, SET_FILES, SIGNATURE, write_card
from clusterq_common.sharing.cache import cached_set, one_at_a_time
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.fetch import fetch_shard, partial_name
from clusterq_common.sharing.offer import Offer, refuse_too_large
from clusterq_common.sharing.origin import remember_origin
from clusterq_common.sharing.remote import Remote
from clusterq_common.sharing.signature import read_signature

# Room for the small files beside the shards: manifest, card, indexes.
SPARE_BYTES = 64 << 20


def pull(offer: Offer, config: SharingConfig, out: Path | None = None) -> Path:
    """Fetch a set. Returns its folder.

    Only the manifest, the shards that it lists and the signatures are fetched. The dataset card and the indexes of other programs are
    written anew from the manifest.

    Args:
        offer: the set, as returned by `look`.
        config: limits.
        out: a new or empty folder, the folder of an interrupted pull, or one with an earlier, smaller state of the set. The default is
            the user's cache.

    Raises:
        ClusterqError: the set is larger than allowed or than the free disk, the folder holds something else, or a file cannot be
            fetched or differs from the manifest. Fetched files stay, and the next pull continues with them.
    """
    refuse_too_large(offer, config)
    folder = cached_set(offer.digest) if out is None else out
    held: AbstractContextManager[None] = one_at_a_time(folder) if out is None else only_program(folder)
    with held:
        if out is not None:
            _refuse_other_files(folder, offer)
        missing = _missing(folder, offer, replace=out is None)
        _refuse_full_disk(folder, missing)
        if missing:
            _fetch(offer.remote, missing, folder, config.parallel)
        _put_signatures(folder, offer)
        if missing or not _holds(folder / MANIFEST, offer.data):
            write_card(folder, offer.manifest)
            atomic_write(folder / MANIFEST, offer.data)
    remember_origin(offer.origin())
    return folder


def _missing(folder: Path, offer: Offer, *, replace: bool) -> list[Shard]:
    """Return the shards that are missing in the folder.

    Raises:
        ClusterqError: a file of a listed shard's name holds other bytes, and is not the cache's own, which are replaced.
    """
    missing = []
    for shard in offer.shards:
        path = folder / shard.file
        if not path.exists() and not path.is_symlink():
            missing.append(shard)
            continue
        try:
            check_size(path, shard)
            verify_shard(path, shard)
        except ClusterqError as error:
            if not replace:
                raise ClusterqError(
                    f"{path} is not the shard of that name in {offer.remote.shown}, expected a new folder or a part of that set; choose "
                    "another folder, or remove the file.",
                    setting="out",
                ) from error
            path.unlink()
            missing.append(shard)
    return missing


def _refuse_other_files(folder: Path, offer: Offer) -> None:
    """Raise an error for a folder that holds anything but a part, or an earlier state, of the set."""
    listed = {shard.file for shard in offer.shards}
    known = listed | {partial_name(shard) for shard in offer.shards} | {*SET_FILES}
    stranger = next(
        (path for path in sorted(folder.iterdir()) if path.name not in known and final_name(path.name) not in known), None
    )
    if stranger is not None:
        what = "a shard of another set" if SHARD_NAME.fullmatch(final_name(stranger.name)) else "which is no part of the set"
        raise ClusterqError(
            f"{folder} holds {stranger.name}, {what}, expected a new or empty folder, or an earlier state of {offer.remote.shown}; choose "
            "another one.",
            setting="out",
        )
    if (folder / MANIFEST).is_file():
        before = read_manifest(folder)
        shards = {(shard.file, shard.sha256) for split in before.splits.values() for shard in split.shards}
        if not shards <= {(shard.file, shard.sha256) for shard in offer.shards}:
            raise ClusterqError(
                f"{folder} holds another set ({before.digest[:19]}...), expected a new or empty folder, or an earlier state of "
                f"{offer.remote.shown}; choose another one.",
                setting="out",
            )


def _refuse_full_disk(folder: Path, missing: list[Shard]) -> None:
    there = sum((folder / partial_name(shard)).stat().st_size for shard in missing if (folder / partial_name(shard)).is_file())
    needed = sum(shard.bytes for shard in missing) - there + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if missing and needed > free:
        raise ClusterqError(
            f"{folder}: the set needs {size(needed)}, the disk has {size(free)} left; free some space, choose another {setting_name('out')}, or set "
            "CLUSTERQ_CACHE to a folder on a larger disk."
        )


def _fetch(remote: Remote, shards: list[Shard], folder: Path, parallel: int) -> None:
    """Fetch shards, several at a time. After a failure no further one is started."""
    total = sum(shard.bytes for shard in shards)
    info(f"Fetching {len(shards)} files, {size(total)}, from {remote.shown} into {folder}.")
    with progress("fetching (kB)", total // 1000) as ticker, ThreadPoolExecutor(min(parallel, len(shards))) as pool:
        guard, fetched, stopped = Lock(), 0, False

        def advance(count: int) -> None:
            nonlocal fetched
            with guard:
                if stopped:
                    raise _StoppedError
                fetched += count
                ticker.advance(fetched // 1000 - ticker.done)

        work = [pool.submit(fetch_shard, remote, shard, folder, advance) for shard in shards]
        try:
            wait(work, return_when=FIRST_EXCEPTION)
        finally:  # an interruption, too
            stopped = any(not each.done() for each in work)
            pool.shutdown(wait=True, cancel_futures=True)
        failed = [error for each in work if not each.cancelled() and (error := each.exception()) is not None]
        for error in sorted(failed, key=lambda error: isinstance(error, _StoppedError)):
            raise error


def _put_signatures(folder: Path, offer: Offer) -> None:
    """Write the fetched signatures. The user's own signature of this manifest is kept, one of another manifest is removed."""
    for name in (SIGNATURE, PARENT_SIGNATURES):
        if name in offer.signatures and not _holds(folder / name, offer.signatures[name]):
            atomic_write(folder / name, offer.signatures[name])
    if SIGNATURE not in offer.signatures and (folder / SIGNATURE).exists():
        here = read_signature(folder)
        if here is None or here.manifest != offer.digest:
            (folder / SIGNATURE).unlink()


def _holds(path: Path, data: bytes) -> bool:
    return not path.is_symlink() and path.is_file() and path.read_bytes() == data


class _StoppedError(Exception):
    """Raised to end the fetching of a file after the failure of another one, or an interruption."""
