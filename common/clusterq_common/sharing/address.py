"""Addresses of sets: a dataset of the Hugging Face Hub, a folder in a bucket, a folder on a web server."""

import ipaddress
import re
import socket
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from clusterq_common.errors import ClusterqError, did_you_mean
from clusterq_common.setting_names import setting_name

SCHEMES = ("hf", "s3", "gs", "https", "http")
FORMS = "hf://datasets/TEAM/NAME[@revision], s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or https://HOST/FOLDER"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB = re.compile(r"datasets/(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]*")
LONGEST = 4096


@dataclass(frozen=True)
class Address:
    """Address of a set. `str()` gives it without credentials: what results, logs and reports may show.

    Attributes:
        scheme: one of SCHEMES.
        host: server with its port, or bucket; empty for the Hub.
        path: folder on it, as it is written in the address; of the Hub `TEAM/NAME`.
        revision: branch, tag or commit of the Hub; None where none was given.
        user: `NAME:PASSWORD` in front of a server, decoded; secret.
        query: what follows the question mark, as tokens of storage services do; secret.
    """

    scheme: str
    host: str
    path: str
    revision: str | None = None
    user: str | None = field(default=None, repr=False)
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.scheme == "hf":
            return f"hf://datasets/{self.path}" + (f"@{self.revision}" if self.revision else "")
        return f"{self.scheme}://{self.host}/{self.path}".rstrip("/")


def is_address(text: str) -> bool:
    """Return whether a text has the form of an address rather than of a folder."""
    return _SCHEME.match(text) is not None


def parse_address(text: str, *, allow_http: bool = False, setting: str | None = "shards") -> Address:
    """Parse an address.

    Args:
        text: the address.
        allow_http: whether any server may be asked without encryption, and not only this machine.
        setting: what named it, for errors.

    Raises:
        ClusterqError: it has another form, or it is http:// to another machine.
    """
    match = _SCHEME.match(text[:LONGEST])
    scheme = match[1].lower() if match else ""
    if scheme not in SCHEMES:
        meant = did_you_mean(scheme, SCHEMES) or f"; expected {FORMS}, or a folder"
        raise ClusterqError(f"found an address that begins with {scheme[:20]}://{meant}.", setting=setting)
    try:
        parts = urlsplit(text)
        port = parts.port  # raises on a port that is no number
    except ValueError as error:
        raise ClusterqError(
            f"the address cannot be read ({type(error).__name__}), expected {FORMS}.", setting=setting
        ) from error
    if parts.fragment or len(text) > LONGEST:
        raise ClusterqError(f"the address has a part behind #, or is too long, expected {FORMS}.", setting=setting)
    if scheme == "hf":
        return _of_hub(text, setting)
    if scheme in {"s3", "gs"}:
        return _of_bucket(scheme, text, setting)
    if not parts.hostname:
        raise ClusterqError(f"the address names no server, expected {FORMS}.", setting=setting)
    host = (f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname) + (f":{port}" if port else "")
    if scheme == "http" and not (allow_http or is_this_machine(parts.hostname)):
        raise ClusterqError(
            f"http://{host} is another machine, asked without encryption, expected https://; use that, or pass {setting_name('allow_http')} if "
            "you trust the network between.",
            setting=setting,
        )
    user = None if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    _refuse_steps_up(parts.path, setting)
    return Address(scheme, host, parts.path.strip("/"), user=user, query=parts.query)


def is_this_machine(host: str) -> bool:
    """Return whether a server's name means this machine itself: localhost, 127.0.0.0/8 or ::1."""
    bare = host.strip("[]").lower()
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return bare == "localhost"


def may_be_this_machine(host: str) -> bool:
    """Return whether a server's name may lead to this machine.

    Systems take many spellings: 0.0.0.0, 127.1, ::ffff:127.0.0.1, a.localhost. This is wider than `is_this_machine`, for refusals. A
    name that a name server resolves to such an address is not recognised.
    """
    bare = host.strip("[]").lower().rstrip(".")
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(bare))
        except (OSError, ValueError):
            return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified


def _of_hub(text: str, setting: str | None) -> Address:
    named = _HUB.fullmatch(text[len("hf://") :].rstrip("/"))
    if named is None or ".." in named[0]:
        raise ClusterqError(
            "the address of the Hub has another form, expected hf://datasets/TEAM/NAME or hf://datasets/TEAM/NAME@revision "
            "(credentials come from `hf auth login` or HF_TOKEN).",
            setting=setting,
        )
    return Address("hf", "", named["repo"], named["revision"])


def _of_bucket(scheme: str, text: str, setting: str | None) -> Address:
    bucket, _, path = text[len(f"{scheme}://") :].partition("/")
    if not _BUCKET.fullmatch(bucket) or "?" in path:
        raise ClusterqError(
            f"the address has another form, expected {scheme}://BUCKET/FOLDER without credentials; these come from the environment, "
            "as the service's own tools take them.",
            setting=setting,
        )
    _refuse_steps_up(path, setting)
    return Address(scheme, bucket, path.strip("/"))


def _refuse_steps_up(path: str, setting: str | None) -> None:
    if {".", ".."} & set(unquote(path).split("/")):
        raise ClusterqError(
            "the address has . or .. in its path, expected the folder's own place; write that.", setting=setting
        )
