"""Keys of makers: Ed25519, in OpenSSH's forms. Reading public ones needs no package."""

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clusterq_common.errors import ClusterqError
from clusterq_common.escape import one_line
from clusterq_common.run.extras import need

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KIND = "ssh-ed25519"
KEY_BYTES = 32
SIGNATURE_BYTES = 64
LARGEST_KEY_FILE = 1 << 20
PASSPHRASE = "CLUSTERQ_KEY_PASSPHRASE"
# A key's type and value, each preceded by its length in four bytes.
_HEADER = len(KIND).to_bytes(4, "big") + KIND.encode() + KEY_BYTES.to_bytes(4, "big")
# Options before keys that OpenSSH trusts less, or not at all: `@revoked`, `cert-authority`, `expiry-time="..."`.
_RESTRICTION = re.compile(r"@.*|.*[=\"].*|(.*,)?(cert-authority|restrict|no-[a-z0-9-]+)(,.*)?", re.IGNORECASE)


def public_line(key: bytes, name: str = "") -> str:
    """Return a public key (32 bytes) as a line of OpenSSH: `ssh-ed25519 AAAA... NAME`."""
    return " ".join([KIND, base64.b64encode(_HEADER + key).decode(), *([one_line(name)] if name else [])])


def parse_public(kind: str, text: str) -> bytes:
    """Parse a line of OpenSSH to the 32 bytes of a public key.

    Raises:
        ValueError: it is no Ed25519 key in OpenSSH's form.
    """
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("it is not in base64") from error
    if kind != KIND or not blob.startswith(_HEADER) or len(blob) != len(_HEADER) + KEY_BYTES:
        raise ValueError(f"it is no key of kind {KIND}")
    return blob[len(_HEADER) :]


def fingerprint(key: bytes) -> str:
    """Return `SHA256:...` of a public key, as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(_HEADER + key).digest()).decode().rstrip("=")


def read_trusted(path: Path) -> dict[bytes, str]:
    """Read public keys of makers and their names from a file of lines `ssh-ed25519 AAAA... NAME` or `NAME ssh-ed25519 AAAA...`.

    Raises:
        ClusterqError: the file cannot be read or holds no key, a line is no key, or a key has a restriction of OpenSSH, which
            clusterq would not enforce.
    """
    names: dict[bytes, str] = {}
    # Split at line feeds alone. `splitlines` also splits at invisible characters, and a reader would not see a key after one.
    for number, line in enumerate(_text(path, "trust", newline="\n").split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        place = words.index(KIND) if KIND in words[:2] else -1
        try:
            if place < 0 or len(words) < place + 2:
                raise ValueError(f"it is no line of a key of kind {KIND}")
            if place == 1 and _RESTRICTION.fullmatch(words[0]):
                raise ValueError(f"{words[0][:40]!r} in front of a key restricts it, which is not kept to here")
            key = parse_public(words[place], words[place + 1])
        except ValueError as error:
            raise ClusterqError(
                f"line {number} of {path} is no key ({error}), expected `{KIND} AAAA... NAME`; take over the line of the maker's .pub "
                "file.",
                setting="trust",
            ) from error
        name = " ".join(words[2:]) if place == 0 else words[0]
        names[key] = one_line(name) or fingerprint(key)
    if not names:
        raise ClusterqError(
            f"{path} holds no key, expected a line for each maker; add the lines of their .pub files.", setting="trust"
        )
    return names


def generate(path: Path, name: str, setting: str = "out") -> bytes:
    """Create a key pair. Returns the public key.

    The private key is written to `path`, readable by its owner alone, the public one to `path`.pub.

    Raises:
        ClusterqError: one of the files is there already, or the package is missing.
    """
    need("cryptography", "shards keygen", "sign")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    public = path.with_name(f"{path.name}.pub")
    for one in (path, public):
        if one.exists() or one.is_symlink():
            raise ClusterqError(
                f"{one} is there already, expected a new file; choose another name. Keys are never replaced.", setting=setting
            )
    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _write_new(path, data, 0o600, setting)
    known = key.public_key().public_bytes_raw()
    try:
        _write_new(public, f"{public_line(known, name)}\n".encode(), 0o644, setting)
    except BaseException:  # an interruption, too, leaves no half of a pair
        path.unlink()
        raise
    return known


def load_private(path: Path, ask: Callable[[], str] | None = None) -> "Ed25519PrivateKey":
    """Read a private key in OpenSSH's format or PEM.

    Args:
        path: the file.
        ask: gives the passphrase where CLUSTERQ_KEY_PASSPHRASE does not; called only for a key that has one.

    Raises:
        ClusterqError: it cannot be read, others can read it, it is no Ed25519 key, or its passphrase is another one.
    """
    need("cryptography", "shards sign", "sign")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = _text(path, "key").encode()
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ClusterqError(f"others may read {path}, expected a file for its owner alone; run chmod 600 on it.", setting="key")
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data else load_pem_private_key
    try:
        try:
            key = load(data, password=None)
        except TypeError:  # it has a passphrase
            known = os.environ.get(PASSPHRASE) or (ask() if ask is not None else "")
            key = load(data, password=known.encode())
    except ClusterqError:  # there is nobody to ask
        raise
    except Exception as error:  # the package raises errors of several kinds; none may quote the key
        raise ClusterqError(
            f"{path} is no private key that can be read ({type(error).__name__}), expected one that `shards keygen` wrote; check the "
            f"file, and {PASSPHRASE} where it has a passphrase.",
            setting="key",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ClusterqError(f"{path} is a key of another kind, expected Ed25519; make one with `shards keygen`.", setting="key")
    return key


def _text(path: Path, setting: str | None, newline: str | None = None) -> str:
    try:
        if not path.is_file():
            raise ClusterqError(f"{path} is no file, expected a file of keys; check the path.", setting=setting)
        if path.stat().st_size > LARGEST_KEY_FILE:
            raise ClusterqError(
                f"{path} has more than {LARGEST_KEY_FILE} bytes, expected a file of keys; check the path.", setting=setting
            )
        with path.open(encoding="utf-8", newline=newline) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ClusterqError(f"{path} is no text, expected a file of keys; check the path.", setting=setting) from error
    except OSError as error:
        raise ClusterqError(f"{path} cannot be read ({error.strerror}); check its permissions.", setting=setting) from error


def _write_new(path: Path, data: bytes, mode: int, setting: str | None) -> None:
    """Write a file that must not exist, with these permissions from the first moment on."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    except FileExistsError as error:
        raise ClusterqError(f"{path} is there already, expected a new file; choose another name.", setting=setting) from error
    except FileNotFoundError as error:
        raise ClusterqError(f"the folder of {path} does not exist; make it, or choose another.", setting=setting) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
