"""Send a set to an address, the manifest last. Of an extended set only new files are sent."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info, warn
from clusterq_common.quantities import size
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import LARGEST_MANIFEST, MANIFEST, Manifest, Shard, parse_manifest
from clusterq_common.shards.read import ShardSet
from clusterq_common.shards.write import PARENT_SIGNATURES, SIGNATURE, index_files
from clusterq_common.sharing.address import Address, parse_address
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.hub import HubFolder
from clusterq_common.sharing.makers import maker_of, report_maker
from clusterq_common.sharing.objects import ObjectRemote
from clusterq_common.sharing.offer import open_remote, parse_json
from clusterq_common.sharing.remote import NotThereError, Remote, Writable, read_small


@dataclass(frozen=True)
class Pushed:
    """Summary of a push.

    Attributes:
        address: where to, without credentials.
        digest: of the set.
        sent: names of the shards that were sent.
        kept: how many lay there already.
        removed: names of shards of the set that was replaced.
    """

    address: str
    digest: str
    sent: list[str]
    kept: int
    removed: list[str]


def push(shards: ShardSet, text: str, config: SharingConfig, *, public: bool = False, overwrite: bool = False) -> Pushed:
    """Verify a set and send it to an address.

    Shards that the address's own manifest lists with the same SHA-256 are not sent again. The manifest is sent last, so that readers
    find either the earlier set or the whole new one. A signature at the address is removed if this set has none.

    Args:
        shards: the set, opened with its hashes verified.
        text: the address.
        config: how many files are sent at the same time.
        public: make a new dataset of the Hub public.
        overwrite: replace a set that is no earlier state of this one; its shards are removed.

    Raises:
        ClusterqError: the address takes no sets, holds another one, or refuses; or the set's own signature is invalid.
    """
    address = parse_address(text, allow_http=config.allow_http, setting=None)
    folder, manifest = shards.folder, shards.manifest
    report_maker(str(folder), maker_of(folder, manifest, config), config)
    _refuse_place(address, public=public)
    remote: Remote | None = None
    before, commit = None, None
    with suppress(NotThereError):  # the usual case: nothing is there yet
        remote, _ = open_remote(address, config)
        commit = remote.revision
        before = _manifest_at(read_small(remote, MANIFEST, LARGEST_MANIFEST), f"{address}/{MANIFEST}")
    there = {} if before is None else {shard.file: shard.sha256 for shard in _shards(before)}
    ours = {shard.file: shard.sha256 for shard in _shards(manifest)}
    if before is not None and not overwrite and not there.items() <= ours.items():
        raise ClusterqError(
            f"{address} holds another set ({before.digest[:19]}...), expected nothing there, or an earlier state of {folder}; choose another "
            f"address, or pass {setting_name('overwrite')} to replace it."
        )
    place: Writable = (
        HubFolder(address, allow_http=config.allow_http, public=public, before=commit)
        if address.scheme == "hf"
        else ObjectRemote(address)
    )
    new = [shard for shard in _shards(manifest) if there.get(shard.file) != shard.sha256]
    removed = sorted(there.keys() - ours.keys())
    amount = size(sum(shard.bytes for shard in new))
    info(f"Sending {len(new)} of {len(ours)} shards, {amount}, to {address}.")
    beside = [name for name in index_files(manifest) if name != MANIFEST]
    beside += [name for name in (PARENT_SIGNATURES, SIGNATURE) if (folder / name).is_file()]
    last = [folder / name for name in [*beside, MANIFEST] if (folder / name).is_file()]
    stale = [] if remote is None else [name for name in _unsigned(folder) if _lies_at(remote, name)]
    if stale:
        warn(
            f"{address}: {', '.join(stale)} there is of the earlier set, and is removed; this set has none. `shards sign` makes one."
        )
    place.send([folder / shard.file for shard in new], last, [*removed, *stale], config.parallel)
    return Pushed(str(address), manifest.digest, [shard.file for shard in new], len(ours) - len(new), removed)


def _manifest_at(data: bytes, where: str) -> Manifest:
    return parse_manifest(parse_json(data, where, None), where)


def _refuse_place(address: Address, *, public: bool) -> None:
    """Raise an error for an address that takes no sets, or cannot be made public from here."""
    if address.scheme not in {"hf", "s3", "gs"}:
        raise ClusterqError(
            f"{address} is a web server, which takes no files, expected hf://, s3:// or gs://; copy the folder to the server by its own "
            "means."
        )
    if public and address.scheme != "hf":
        raise ClusterqError(
            f"{address} is no dataset of the Hub, expected hf://; leave it out, and let the service's own tools say who may read.",
            setting="public",
        )


def _unsigned(folder: Path) -> list[str]:
    """Return the names of signature files that a set lacks."""
    return [name for name in (SIGNATURE, PARENT_SIGNATURES) if not (folder / name).is_file()]


def _lies_at(remote: Remote, name: str) -> bool:
    try:
        with remote.open(name):
            return True
    except NotThereError:
        return False


def _shards(manifest: Manifest) -> list[Shard]:
    return [shard for split in manifest.splits.values() for shard in split.shards]
