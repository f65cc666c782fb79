"""Fetch one file from an address into a folder. It gets its final name once its SHA-256 matches the manifest's."""

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from clusterq_common.errors import ClusterqError
from clusterq_common.files import PARTIAL_SUFFIX, publish
from clusterq_common.shards.manifest import SHARD_NAME, Shard
from clusterq_common.sharing.remote import CHUNK, CutOffError, Remote, pause

TRIES = 4


def partial_name(shard: Shard) -> str:
    """Return the name of a partly fetched shard. It has the digest, so that a later try resumes only this file."""
    return f"{shard.file}.{shard.sha256[:16]}{PARTIAL_SUFFIX}"


def fetch_shard(remote: Remote, shard: Shard, folder: Path, advance: Callable[[int], None] = lambda _: None) -> None:
    """Fetch a shard. An earlier part of it is resumed where the server can send ranges, also after a connection fails.

    Args:
        remote: the set's place.
        shard: as the manifest lists it.
        folder: where it goes.
        advance: called with numbers of fetched bytes; negative when a server makes the file begin anew.

    Raises:
        ClusterqError: the name leads out of the folder, the server refuses, the connection fails repeatedly, or length or bytes are
            not the manifest's.
    """
    # `read_manifest` has checked the name already. It is checked again, because it decides where a file is written.
    if not SHARD_NAME.fullmatch(shard.file):
        raise ClusterqError(f"{remote.shown}: {shard.file!r} is no name of a shard; do not use the set.")
    partial = folder / partial_name(shard)
    try:
        with _open_partial(partial) as file:
            part = _Part(file, shard, advance)
            for number in range(TRIES):
                try:
                    part.complete(remote)
                    break
                except CutOffError:  # what has arrived is kept; the next request begins behind it
                    if number == TRIES - 1:
                        raise
                    pause(number)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise ClusterqError(
                f"{folder}: the disk is full; what was fetched is kept, free some space and run the same command again."
            ) from error
        raise
    digest = part.hasher.hexdigest()
    if digest != shard.sha256:
        partial.unlink()
        raise ClusterqError(
            f"{remote.shown}: {shard.file} came with other bytes than its manifest says (SHA-256 {digest[:12]}..., expected "
            f"{shard.sha256[:12]}...) and was removed; try again, or ask for the set anew."
        )
    publish(partial, folder / shard.file)


class _Part:
    """Fetched beginning of a shard on disk, with its length and its running digest."""

    def __init__(self, file: BinaryIO, shard: Shard, advance: Callable[[int], None]) -> None:
        self._file, self._shard, self._advance = file, shard, advance
        self.hasher, self.have = hashlib.sha256(), 0
        while chunk := file.read(CHUNK):
            self._count(chunk)
        if self.have > shard.bytes:
            self._begin_anew()

    def complete(self, remote: Remote) -> None:
        """Fetch the rest of the shard.

        Raises:
            CutOffError: the connection ended early; what arrived is kept.
            ClusterqError: the server has a file of another length.
        """
        name, whole = self._shard.file, self._shard.bytes
        if self.have == whole:
            return
        with remote.open(name, self.have) as stream:
            if stream.size is not None and stream.size != whole:
                raise ClusterqError(
                    f"{remote.shown}: {name} has {stream.size} bytes there, its manifest says {whole}; the set is being changed or damaged: "
                    "try again later, or ask its maker."
                )
            if stream.start != self.have:  # the server knows no ranges
                self._begin_anew()
            for chunk in stream.chunks:
                if self.have + len(chunk) > whole:
                    raise ClusterqError(f"{remote.shown}: {name} goes on behind its {whole} bytes; do not use the set.")
                self._file.write(chunk)
                self._count(chunk)
        if self.have < whole:
            raise CutOffError(
                f"{remote.shown}: {name} was cut off after {self.have} of {whole} bytes; run the same command again to go on."
            )

    def _count(self, chunk: bytes) -> None:
        self.hasher.update(chunk)
        self.have += len(chunk)
        self._advance(len(chunk))

    def _begin_anew(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._advance(-self.have)
        self.hasher, self.have = hashlib.sha256(), 0


def _open_partial(path: Path) -> BinaryIO:
    """Open a part to resume, or a new file.

    Raises:
        ClusterqError: a link, or a file with another name somewhere, lies in its place.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ClusterqError(f"{path} is a link, expected an unfinished file; remove it.") from error
        raise
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        os.close(descriptor)
        raise ClusterqError(f"{path} is no file of its own, expected an unfinished one; remove it.")
    return os.fdopen(descriptor, "r+b")
