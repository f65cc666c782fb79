"""A set as the command line names it, by folder or address: fetched, and its maker checked and reported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusterq_common.errors import ClusterqError
from clusterq_common.escape import without_secrets
from clusterq_common.shards.manifest import MANIFEST, Manifest, read_manifest
from clusterq_common.shards.read import shard_folder
from clusterq_common.sharing.address import is_address
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.makers import Maker, maker_of, report_maker
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.origin import origin_of
from clusterq_common.sharing.pull import pull
from clusterq_common.sharing.signature import manifest_digest


@dataclass(frozen=True)
class Place:
    """Present place of a set.

    Attributes:
        folder: of the set or, if that is what was named, of the run that it lies in.
        digest: of the set.
        manifest: digest of all that its manifest says.
        maker: who signed it.
        address: where it came from, without credentials and with its commit, if an address was named.
    """

    folder: Path
    digest: str
    manifest: str
    maker: Maker
    address: str | None = None


def locate(named: str | Path, config: SharingConfig, *, own: bool = False) -> Place:
    """Fetch a set if it is at an address, and report who made it.

    Args:
        named: a folder of shards, a run folder, or an address.
        config: limits, and whose sets are taken.
        own: whether the caller has just made it in this folder, so that its maker is not reported.

    Raises:
        ClusterqError: there is no usable set, it cannot be fetched, its signature does not hold, or the rules refuse it.
    """
    if is_address(str(named)):
        offer = look(str(named), config, "shards")
        report_maker(offer.remote.shown, offer.maker, config)
        return Place(pull(offer, config), offer.manifest.digest, offer.digest, offer.maker, offer.remote.shown)
    folder = Path(named)
    manifest, maker = describe_folder(folder, config)
    if not own:
        report_maker(str(folder), maker, config)
    return Place(folder, manifest.digest, manifest_digest(shard_folder(folder)), maker)


def saved_folder(saved: str | Path, file: Path) -> str:
    """Return the folder of shards that a saved file names.

    An address in it is not contacted, because the file may come from a stranger.

    Raises:
        ClusterqError: it names an address.
    """
    if is_address(str(saved)):
        raise ClusterqError(
            f"{file} names the address {without_secrets(str(saved))}, expected it on the command line, since a file may come from anyone; pass "
            "it, if it is the set that you want.",
            setting="shards",
        )
    return str(saved)


def describe_folder(folder: Path, config: SharingConfig) -> tuple[Manifest, Maker]:
    """Return the manifest and the maker of a set in a folder.

    Raises:
        ClusterqError: see `locate`.
    """
    inner = shard_folder(folder)
    manifest = read_manifest(inner)
    return manifest, maker_of(inner, manifest, config)


def also_here(place: Place, named: str | Path, config: SharingConfig) -> Place:
    """Return the same set for another process of a job. On another machine, it fetches what the first process fetched.

    Raises:
        ClusterqError: the folder on this machine holds another set, or the address does by now; or see `locate`.
    """
    if place.address is None:
        if manifest_digest(shard_folder(place.folder)) != place.manifest:
            raise ClusterqError(
                f"{place.folder} holds another set on this machine than where the first process runs, expected the same one; copy it to all "
                "machines.",
                setting="shards",
            )
        return place
    if (place.folder / MANIFEST).is_file():
        return place
    located = locate(place.address if place.address.startswith("hf://") else named, config)
    if located.manifest != place.manifest:
        raise ClusterqError(
            f"the set at {located.address} has changed while this job was started; start it again.", setting="shards"
        )
    return located


def pinned(place: Place) -> dict[str, Any]:
    """Return the facts that a result keeps of a set: the manifest's digest, the maker, and the address it was fetched from."""
    folder = shard_folder(place.folder)
    origin = origin_of(folder)
    where = {} if origin is None else {"address": origin.address, "revision": origin.revision}
    return {"manifest": manifest_digest(folder), **where, "maker": place.maker.facts()}
