"""Facts about a set beyond its manifest: who signed it, how old it is, where it came from."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clusterq_common.shards.card import set_version
from clusterq_common.shards.manifest import MANIFEST, Manifest
from clusterq_common.shards.read import shard_folder
from clusterq_common.sharing.address import is_address
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.makers import Maker, trusted_keys
from clusterq_common.sharing.offer import look
from clusterq_common.sharing.origin import Origin, origin_of
from clusterq_common.sharing.place import describe_folder
from clusterq_common.sharing.signature import Signature, age_text, can_check_keys, read_parents


@dataclass(frozen=True)
class About:
    """Facts on a set.

    Attributes:
        manifest: of the set.
        maker: who signed it.
        parents: signatures under the sets that it comes from, with the signer's name where the key is trusted; none where they cannot be
            checked.
        origin: where this user fetched it from; None for a set that lies here for another reason.
        written: when the file of the manifest was written here; None for a set at an address.
    """

    manifest: Manifest
    maker: Maker
    parents: list[tuple[Signature, str | None]]
    origin: Origin | None
    written: datetime | None

    def lines(self) -> list[str]:
        """Return the facts as lines of text."""
        lines = [
            f"version:   {set_version(self.manifest)}",
            f"maker:     {self.maker.description()}",
            f"age:       {self.age()}",
        ]
        for signature, name in self.parents:
            lines.append(
                f"parent:    {signature.set[:19]}... signed by {name or 'a key that you have not named as trusted'} ({signature.fingerprint})"
            )
        if self.origin is not None:
            lines.append(f"address:   {self.origin.address}")
        return lines

    def age(self) -> str:
        """Age of the set, and by whose clock: a manifest holds no date, so that equal settings give equal bytes."""
        if self.maker.signature is not None:
            return f"signed {self.maker.signature.age()} ({self.maker.signature.signed_at}, by its maker's clock)"
        if self.origin is not None and self.origin.changed is not None:
            return f"put there {_age(self.origin.changed)} ({self.origin.changed}, as the server says)"
        if self.written is not None:
            return f"written here {age_text(self.written)}"
        return "unknown: it is not signed, and the server gives no date"

    def as_json(self) -> dict[str, Any]:
        """Return the facts as JSON-ready values."""
        return {
            "version": set_version(self.manifest),
            "maker": self.maker.facts(),
            "age": self.age(),
            "parents": [
                {"set": signature.set, "key": signature.fingerprint, "signed_at": signature.signed_at, "name": name}
                for signature, name in self.parents
            ],
            "origin": None if self.origin is None else self.origin.model_dump(mode="json"),
        }


def about(named: str, config: SharingConfig) -> About:
    """Return facts on a set in a folder, or at an address, from which only small files are fetched.

    Raises:
        ClusterqError: there is no usable set, its signature does not hold, or the rules refuse it.
    """
    known = trusted_keys(config)
    if is_address(named):
        offer = look(named, config)
        return About(offer.manifest, offer.maker, _named(offer.parents, known), offer.origin(), None)
    manifest, maker = describe_folder(Path(named), config)
    folder = shard_folder(Path(named))
    written = datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, UTC)
    return About(manifest, maker, _named(read_parents(folder), known), origin_of(folder), written)


def _named(signatures: list[Signature], known: dict[bytes, str]) -> list[tuple[Signature, str | None]]:
    return [(signature, known.get(signature.public_key)) for signature in signatures] if can_check_keys() else []


def _age(text: str) -> str:
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return "at some time"
    return age_text(then if then.tzinfo is not None else then.replace(tzinfo=UTC))
