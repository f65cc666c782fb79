"""Maker of a set: its signature, compared with the keys that this user trusts."""

from dataclasses import dataclass
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info, warn
from clusterq_common.run.extras import how_to_install
from clusterq_common.setting_names import setting_name
from clusterq_common.shards.manifest import Manifest
from clusterq_common.shards.write import PARENT_SIGNATURES, SIGNATURE
from clusterq_common.sharing.config import SharingConfig
from clusterq_common.sharing.keys import read_trusted
from clusterq_common.sharing.signature import (
    Signature,
    can_check_keys,
    check_parents,
    check_signature,
    check_subject,
    manifest_digest,
    read_parents,
    read_signature,
)


@dataclass(frozen=True)
class Maker:
    """Signer of a set.

    Attributes:
        signature: a valid one, under this very set; None for an unsigned set.
        name: the signer's name in the file of trusted keys; None where the key is not among them, or there is no such file.
        unchecked: there is a signature, and the package that checks it is not installed; it counts for nothing.
    """

    signature: Signature | None = None
    name: str | None = None
    unchecked: bool = False

    def description(self) -> str:
        """Return the maker as text for one line."""
        if self.unchecked:
            return f"signed; the signature was not checked, because the extra `sign` is missing ({how_to_install('sign')})"
        if self.signature is None:
            return "unsigned: who made it cannot be told"
        key = self.signature.fingerprint
        return f"signed by {self.name} ({key})" if self.name else f"signed by a key that you have not named as trusted ({key})"

    def facts(self) -> dict[str, str] | None:
        """Return the facts that results keep; None for an unsigned set."""
        if self.signature is None:
            return None
        return {
            "key": self.signature.fingerprint,
            "signed_at": self.signature.signed_at,
            **({"name": self.name} if self.name else {}),
        }


def trusted_keys(config: SharingConfig) -> dict[bytes, str]:
    """Return the keys in the file that `trust` names; none where it is not given.

    Raises:
        ClusterqError: signatures are required, and no file says whose; or the file cannot be used.
    """
    if config.trust is not None:
        return read_trusted(config.trust)
    if config.require_signed:
        raise ClusterqError(
            f"there is no {setting_name('trust')}, expected the file of keys whose sets are taken; pass it.",
            setting="require_signed",
        )
    return {}


def judge(signature: Signature | None, manifest: Manifest, digest: str, where: str, config: SharingConfig) -> Maker:
    """Return the maker of a set, if its signature is valid and the user's rules accept the set.

    Args:
        signature: beside the manifest; None where there is none.
        manifest, digest: of the set, and of all that it says (`manifest_digest`).
        where: the set, for errors.
        config: which keys are trusted, and whether one of them must have signed.

    Raises:
        ClusterqError: the signature is invalid, whatever the rules, or the rules refuse the set.
    """
    known = trusted_keys(config)
    maker = Maker()
    if signature is not None and not can_check_keys() and config.trust is None:
        check_subject(signature, manifest, digest, where)
        maker = Maker(unchecked=True)
    elif signature is not None:
        check_signature(signature, manifest, digest, where)
        maker = Maker(signature, known.get(signature.public_key))
    if config.require_signed and maker.name is None:
        raise ClusterqError(
            f"{where} is {maker.description()}, expected a signature of a key in {config.trust}; ask its maker to sign it, or, if you "
            "know the key from them, add it there.",
            setting="require_signed",
        )
    return maker


def maker_of(folder: Path, manifest: Manifest, config: SharingConfig) -> Maker:
    """Return the maker of a set in a folder; see `judge`.

    Signatures under its parents are checked, too, if the package for it is installed.

    Raises:
        ClusterqError: see `judge`.
    """
    parents = read_parents(folder)
    if parents and can_check_keys():
        check_parents(parents, manifest, str(folder / PARENT_SIGNATURES))
    signature = read_signature(folder)
    digest = "" if signature is None else manifest_digest(folder)
    where = str(folder if signature is None else folder / SIGNATURE)
    return judge(signature, manifest, digest, where, config)


def report_maker(shown: str, maker: Maker, config: SharingConfig) -> None:
    """Report who made the set. Warn where the user named trusted keys and the signer's is none of them."""
    line = f"{shown} is {maker.description()}"
    if maker.name is None and config.trust is not None:
        warn(f"{line}; {config.trust} does not vouch for it.")
    else:
        info(f"Set: {line}.")
