"""Interface of every kind of address: open a file at a byte offset and, where sets can be sent, store files."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clusterq_common.errors import ClusterqError

CHUNK = 1 << 20
# Seconds before the second try. The wait doubles before each further one.
PAUSE_SECONDS = 0.5


class NotThereError(ClusterqError):
    """Raised if there is no such file at the address."""


class CutOffError(ClusterqError):
    """Raised if the connection failed or ended early. Another try may succeed."""


@dataclass(frozen=True)
class Stream:
    """File that is being fetched.

    Attributes:
        start: the byte it begins with: 0 also where more was asked for and the server cannot.
        size: of the whole file, None where the server does not say.
        changed: when the file was last changed, as the server says.
        chunks: its bytes; raises CutOffError.
    """

    start: int
    size: int | None
    changed: str | None
    chunks: Iterator[bytes]


class Remote(Protocol):
    """A folder at an address.

    Attributes:
        shown: the address without credentials, with the revision it stands for now.
        revision: the commit, where the place has such.
    """

    shown: str
    revision: str | None

    def open(self, name: str, start: int = 0) -> AbstractContextManager[Stream]:
        """Open a file at byte `start`, if the server supports it.

        Raises:
            NotThereError: there is no such file.
            CutOffError: the connection failed.
            ClusterqError: the server refuses.
        """
        ...


class Writable(Protocol):
    """A folder at an address that files can be sent to."""

    shown: str

    def send(self, files: list[Path], last: list[Path], gone: list[str], parallel: int) -> None:
        """Store files, `last` in their order after all others, then remove the files named `gone`.

        Raises:
            ClusterqError: the place refuses, or the connection fails.
        """
        ...


def read_small(remote: Remote, name: str, largest: int) -> bytes:
    """Return the content of a small file.

    Raises:
        NotThereError: there is none.
        ClusterqError: it is larger than `largest`, or cannot be fetched.
    """
    data, _ = read_small_dated(remote, name, largest)
    return data


def read_small_dated(remote: Remote, name: str, largest: int, tries: int = 3) -> tuple[bytes, str | None]:
    """Return the content of a small file, and the server's date of its last change."""
    for number in range(tries - 1):
        try:
            return _read_once(remote, name, largest)
        except CutOffError:
            pause(number)
    return _read_once(remote, name, largest)


def pause(number: int) -> None:
    """Wait before another try. The wait grows with `number`, the earlier waits."""
    time.sleep(PAUSE_SECONDS * 2**number)


def _read_once(remote: Remote, name: str, largest: int) -> tuple[bytes, str | None]:
    data = bytearray()
    with remote.open(name) as stream:
        if stream.size is not None and stream.size > largest:
            raise _too_large(remote, name, largest)
        for chunk in stream.chunks:
            data += chunk
            if len(data) > largest:
                raise _too_large(remote, name, largest)
        if stream.size is not None and len(data) < stream.size:
            raise CutOffError(f"{remote.shown}: {name} was cut off after {len(data)} of {stream.size} bytes; try again.")
    return bytes(data), stream.changed


def _too_large(remote: Remote, name: str, largest: int) -> ClusterqError:
    return ClusterqError(f"{remote.shown}: {name} has more than {largest} bytes, expected fewer; do not use it.")
