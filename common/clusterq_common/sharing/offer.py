"""Inspection of a set at an address before anything large is fetched: manifest, signer, and whether the rules accept it."""

import json
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from clusterq_common.documents import DEEPEST, holds_too_many, is_nested_deeper
from clusterq_common.errors import ClusterqError
from clusterq_common.quantities import size
from clusterq_common.shards.manifest import LARGEST_MANIFEST, MANIFEST, Manifest, Shard, meaning_of, parse_manifest
from clusterq_common.shards.write import PARENT_SIGNATURES, SIGNATURE
from clusterq_common.sharing.address import Address, parse_address
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.http import HttpRemote
from clusterq_common.sharing.hub import hub_remote
from clusterq_common.sharing.makers import Maker, judge
from clusterq_common.sharing.objects import ObjectRemote
from clusterq_common.sharing.origin import Origin, now_text
from clusterq_common.sharing.remote import NotThereError, Remote, read_small, read_small_dated
from clusterq_common.sharing.signature import (
    LARGEST_PARENTS,
    LARGEST_SIGNATURE,
    Signature,
    can_check_keys,
    check_parents,
    parse_parents,
    parse_signature,
)


@dataclass(frozen=True)
class Offer:
    """Small files of the set at an address.

    Attributes:
        remote: to fetch from.
        manifest: checked.
        digest: of all that the manifest says.
        data: the manifest's file, byte for byte.
        signatures: files of signatures, byte for byte, by name; verified, where the package for it is installed.
        maker: who signed the set.
        parents: signatures under the sets that it comes from.
        changed: when the set was put there, as the server says.
    """

    remote: Remote
    manifest: Manifest
    digest: str
    data: bytes
    signatures: dict[str, bytes]
    maker: Maker
    parents: list[Signature]
    changed: str | None

    @property
    def shards(self) -> list[Shard]:
        """All shards that the manifest lists."""
        return [shard for split in self.manifest.splits.values() for shard in split.shards]

    @property
    def size(self) -> int:
        """Total bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def origin(self) -> Origin:
        """Record of where the set came from."""
        return Origin(
            address=self.remote.shown,
            revision=self.remote.revision,
            digest=self.manifest.digest,
            manifest=self.digest,
            changed=self.changed,
            fetched=now_text(),
        )


def look(text: str, config: SharingConfig, setting: str | None = "shards") -> Offer:
    """Fetch the manifest and the signatures of a set at an address, and nothing else.

    Args:
        text: the address.
        config: limits and rules.
        setting: what named the address, for errors.

    Raises:
        ClusterqError: the address or what lies there cannot be used, its signature does not hold, or the rules refuse it.
    """
    remote, changed = open_remote(parse_address(text, allow_http=config.allow_http, setting=setting), config)
    try:
        data, dated = read_small_dated(remote, MANIFEST, LARGEST_MANIFEST)
    except NotThereError as error:
        raise NotThereError(f"{error}", setting=setting) from error
    where = f"{remote.shown}/{MANIFEST}"
    values = parse_json(data, where, setting)
    manifest, digest = parse_manifest(values, where), meaning_of(values)
    signed = _file(remote, SIGNATURE, LARGEST_SIGNATURE)
    parents = _file(remote, PARENT_SIGNATURES, LARGEST_PARENTS)
    signature = None if signed is None else parse_signature(signed, f"{remote.shown}/{SIGNATURE}")
    of_parents = [] if parents is None else parse_parents(parents, f"{remote.shown}/{PARENT_SIGNATURES}")
    if can_check_keys():
        check_parents(of_parents, manifest, f"{remote.shown}/{PARENT_SIGNATURES}")
    files = {name: held for name, held in ((SIGNATURE, signed), (PARENT_SIGNATURES, parents)) if held is not None}
    maker = judge(signature, manifest, digest, remote.shown, config)
    return Offer(remote, manifest, digest, data, files, maker, of_parents, _date(changed or dated))


def open_remote(address: Address, config: SharingConfig) -> tuple[Remote, str | None]:
    """Return the folder at an address; on the Hub at its present commit, with that commit's date.

    Raises:
        ClusterqError: a package is missing, or the Hub knows no such dataset.
    """
    if address.scheme == "hf":
        return hub_remote(address, allow_http=config.allow_http)
    if address.scheme in {"s3", "gs"}:
        return ObjectRemote(address), None
    return HttpRemote.at(address, allow_http=config.allow_http), None


def refuse_too_large(offer: Offer, config: SharingConfig) -> None:
    """Raise an error for a set larger than the user's limit.

    Raises:
        ClusterqError: it is.
    """
    if offer.size > config.largest:
        raise ClusterqError(
            f"the set at {offer.remote.shown} has {size(offer.size)}, expected at most {config.max_bytes}; raise the limit, or ask "
            "for a smaller set (`shards subset`).",
            setting="max_bytes",
        )


def _file(remote: Remote, name: str, largest: int) -> bytes | None:
    try:
        return read_small(remote, name, largest)
    except NotThereError:
        return None


def parse_json(data: bytes, where: str, setting: str | None) -> Any:
    """Parse the bytes of a manifest from an address.

    Raises:
        ClusterqError: they are no JSON, nested too deeply, or too many.
    """
    if holds_too_many(data):
        raise ClusterqError(f"{where} holds millions of values, expected a set's {MANIFEST}; do not use it.", setting=setting)
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ClusterqError(
            f"{where} is no JSON ({type(error).__name__}), expected a set's {MANIFEST}; check the address.", setting=setting
        ) from error
    if is_nested_deeper(values, DEEPEST):
        raise ClusterqError(
            f"{where} is nested more than {DEEPEST} deep, expected a set's {MANIFEST}; do not use it.", setting=setting
        )
    return values


def _date(text: str | None) -> str | None:
    """Return a server's date as ISO 8601; None if it is not a date."""
    if text is None:
        return None
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return read(text).isoformat()
        except (ValueError, OverflowError):
            continue
    return None
