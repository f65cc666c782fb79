"""A maker's signature of a set: a file beside the manifest, which other programs ignore.

What is signed is a short text: the digest of the set's images, the digest of all that its manifest says, and the time.
"""

import base64
import binascii
import json
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from clusterq_common.documents import is_nested_deeper, read_json
from clusterq_common.errors import ClusterqError
from clusterq_common.files import atomic_write
from clusterq_common.run.extras import need
from clusterq_common.settings import Settings
from clusterq_common.shards.manifest import LARGEST_MANIFEST, MANIFEST, Digest, Manifest, meaning_of
from clusterq_common.shards.write import PARENT_SIGNATURES, SIGNATURE
from clusterq_common.sharing.keys import SIGNATURE_BYTES, fingerprint, parse_public, public_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT: Final = "clusterq-signature/1"
PARENTS_FORMAT: Final = "clusterq-parent-signatures/1"
T = TypeVar("T", bound=Settings)

LARGEST_SIGNATURE = 16 << 10
LARGEST_PARENTS = 1 << 20
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"


class Signature(Settings):
    """Content of a signature file."""

    format: Literal["clusterq-signature/1"] = FORMAT
    set: Digest = Field(description="digest of the set: its labels and pixels")
    manifest: Digest = Field(description="digest of the manifest's meaning: everything else that the set says")
    signed_at: Annotated[str, Field(pattern=_TIME)] = Field(description="by the signer's clock, UTC")
    key: Annotated[str, Field(max_length=200)] = Field(description="the signer's public key, as OpenSSH writes it")
    signature: Annotated[str, Field(max_length=200)] = Field(description="Ed25519 over `signed_text`, in base64")

    @model_validator(mode="after")
    def _key_and_time(self) -> "Signature":
        self.fingerprint, self.age()  # each raises ValueError where the key, or the time, is none
        return self

    @property
    def public_key(self) -> bytes:
        """The signer's key, 32 bytes."""
        kind, _, text = self.key.partition(" ")
        return parse_public(kind, text)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the signer's key."""
        return fingerprint(self.public_key)

    def signed_text(self) -> bytes:
        """Return the text that is signed. Its first line keeps it apart from anything else that the key may sign."""
        return f"{self.format}\nset {self.set}\nmanifest {self.manifest}\nsigned {self.signed_at}\n".encode()

    def age(self, now: datetime | None = None) -> str:
        """Time since the signature was made, in words."""
        return age_text(datetime.strptime(self.signed_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC), now)


class ParentSignatures(Settings):
    """Signatures under the sets that a derived set comes from."""

    format: Literal["clusterq-parent-signatures/1"] = PARENTS_FORMAT
    signatures: list[Signature] = Field(max_length=1000)


def manifest_digest(folder: Path) -> str:
    """Compute the digest of the meaning of a folder's manifest, whose consistency `read_manifest` checks."""
    values = read_json(folder / MANIFEST, what=f"a {MANIFEST}", largest=LARGEST_MANIFEST)
    return meaning_of(values)


def sign(manifest: Manifest, digest: str, key: "Ed25519PrivateKey", now: datetime | None = None) -> Signature:
    """Sign a set: its manifest, and the digest of what that says (`manifest_digest`)."""
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    public = public_line(key.public_key().public_bytes_raw())
    unsigned = Signature(set=manifest.digest, manifest=digest, signed_at=when, key=public, signature="")
    return unsigned.model_copy(update={"signature": base64.b64encode(key.sign(unsigned.signed_text())).decode()})


def write_signature(folder: Path, signature: Signature) -> None:
    """Write a signature beside its manifest."""
    atomic_write(folder / SIGNATURE, _json(signature))


def parse_signature(data: bytes, where: str) -> Signature:
    """Parse a signature without verifying it.

    Raises:
        ClusterqError: it is too large or malformed.
    """
    return _parsed(Signature, data, where, LARGEST_SIGNATURE)


def parse_parents(data: bytes, where: str) -> list[Signature]:
    """Parse the signatures of a set's parents without verifying them.

    Raises:
        ClusterqError: they are too large or malformed.
    """
    return _parsed(ParentSignatures, data, where, LARGEST_PARENTS).signatures


def parents_file(signatures: list[Signature]) -> bytes:
    """Return the content of the file of signatures under parents."""
    return _json(ParentSignatures(signatures=signatures))


def read_file(folder: Path, name: str, largest: int) -> bytes | None:
    """Return the bytes of a signature file; None if there is none.

    Raises:
        ClusterqError: it is a link or a folder, or too large.
    """
    path = folder / name
    if not path.exists() and not path.is_symlink():
        return None
    if path.is_symlink() or not path.is_file():
        raise ClusterqError(f"{path} is no plain file, expected a signature; remove it, or get the set again.")
    with path.open("rb") as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise ClusterqError(f"{path} has more than {largest} bytes, expected a signature; do not use the set.")
    return data


def read_signature(folder: Path) -> Signature | None:
    """Read the signature beside a manifest without verifying it; None if there is none.

    Raises:
        ClusterqError: it is too large or malformed.
    """
    data = read_file(folder, SIGNATURE, LARGEST_SIGNATURE)
    return None if data is None else parse_signature(data, str(folder / SIGNATURE))


def read_parents(folder: Path) -> list[Signature]:
    """Read the signatures of a set's parents without verifying them.

    Raises:
        ClusterqError: they are too large or malformed.
    """
    data = read_file(folder, PARENT_SIGNATURES, LARGEST_PARENTS)
    return [] if data is None else parse_parents(data, str(folder / PARENT_SIGNATURES))


def check_signature(signature: Signature, manifest: Manifest, digest: str, where: str) -> None:
    """Check that a signature was made with its key, for this very set.

    Raises:
        ClusterqError: it is not, or the package that tells is missing.
    """
    check_subject(signature, manifest, digest, where)
    check_key(signature, where)


def check_subject(signature: Signature, manifest: Manifest, digest: str, where: str) -> None:
    """Check that a signature names this very set.

    Raises:
        ClusterqError: it does not.
    """
    if (signature.set, signature.manifest) != (manifest.digest, digest):
        raise ClusterqError(
            f"{where}: the signature is under another manifest ({signature.manifest[:19]}..., this one is {digest[:19]}...); get the set again, "
            "or, if it is your own, sign it again with `shards sign`."
        )


def can_check_keys() -> bool:
    """Return whether the package that checks signatures is installed."""
    return find_spec("cryptography") is not None


def check_parents(signatures: list[Signature], manifest: Manifest, where: str) -> None:
    """Check that signatures of parents were made with their keys, for sets that the manifest names as parents.

    Raises:
        ClusterqError: one is not.
    """
    known = {parent.digest for parent in manifest.parents}
    for signature in signatures:
        if signature.set not in known:
            raise ClusterqError(
                f"{where}: a signature is under {signature.set[:19]}..., which is no parent of this set; get the set again."
            )
        check_key(signature, where)


def check_key(signature: Signature, where: str) -> None:
    """Check that a signature was made with the key that it names.

    Raises:
        ClusterqError: it was not, or the package that tells is missing.
    """
    need("cryptography", where, "sign")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(signature.public_key).verify(_raw(signature), signature.signed_text())
    except (InvalidSignature, ValueError) as error:
        raise ClusterqError(
            f"{where}: the signature is not that of the key it names; do not use the set, and ask its maker for it again."
        ) from error


def age_text(then: datetime, now: datetime | None = None) -> str:
    """Return the time since a date in words.

    >>> age_text(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, 5, tzinfo=UTC))
    '2 days ago'
    """
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if seconds < -60:
        return "in the future, by this machine's clock"
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _raw(signature: Signature) -> bytes:
    try:
        raw = base64.b64decode(signature.signature, validate=True)
    except binascii.Error as error:
        raise ValueError("it is not in base64") from error
    if len(raw) != SIGNATURE_BYTES:
        raise ValueError("it has another length")
    return raw


def _json(values: Settings) -> bytes:
    return (json.dumps(values.model_dump(mode="json"), indent=2) + "\n").encode()


def _parsed(kind: type[T], data: bytes, where: str, largest: int) -> T:
    if len(data) > largest:
        raise ClusterqError(f"{where} has more than {largest} bytes, expected a signature; do not use the set.")
    try:
        values: Any = json.loads(data)
        if is_nested_deeper(values, 8):
            raise ValueError("it is nested too deeply")
        parsed = kind.model_validate(values)
    except (ValueError, ValidationError, RecursionError) as error:
        raise ClusterqError(
            f"{where} is no signature ({type(error).__name__}), expected what `shards sign` writes; do not use the set, and ask its maker for it again."
        ) from error
    return parsed
