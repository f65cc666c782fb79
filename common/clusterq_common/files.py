"""Files that are either whole or absent: write beside, fsync, rename. Nothing is written through a link that someone planted."""

import errno
import hashlib
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import TextIO

from clusterq_common.errors import ClusterqError
from clusterq_common.setting_names import setting_name

PARTIAL_SUFFIX = ".partial"
# NAME.partial is what earlier versions wrote.
_PARTIAL = re.compile(r"(?P<name>.+?)(\.[0-9a-f]{16})?\.partial")
_reading = threading.Lock()
# Errors of a write, which knows no names.
_OF_A_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# Windows would change the ends of lines without it.
BINARY = getattr(os, "O_BINARY", 0)
# Windows knows no such links.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | BINARY | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def atomic_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a new file beside `path` to write to and read from; on success it is synced and renamed to `path`, else removed.

    Its name cannot be guessed and it must not exist, so that neither a link nor what a killed writer left is in the way. Where `path`
    itself is a link, the link is replaced and what it points to stays as it was.

    Raises:
        OSError: as the file system says; `path` is then as it was before.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}")
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
        publish(partial, path)
    except OSError as error:
        if error.errno in _OF_A_WRITE and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Make the finished file `partial` durable and give it the name `path` in one step."""
    with partial.open("r+b") as file:  # Windows syncs what may be written to alone
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_directory(path.parent)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that `path` holds all of it or is unchanged."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def open_to_append(path: Path) -> TextIO:
    """Open a text file to write at its end, in UTF-8; it is made where it is missing.

    Raises:
        OSError: as the file system says, and where `path` is a link (ELOOP).
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
    return os.fdopen(descriptor, "a", encoding="utf-8")


def make_folder(path: Path) -> None:
    """Make a folder of a run, and those above it, where it is missing.

    Raises:
        ClusterqError: it is a link, which would take what is written into it elsewhere.
    """
    if path.is_symlink():
        raise ClusterqError(f"{path} is a link, expected a folder of its own; put a folder in its place.")
    path.mkdir(parents=True, exist_ok=True)


def write_output(path: Path, data: bytes) -> None:
    """Write the file that the setting `out` names, and make the folders above it where they are missing.

    Raises:
        ClusterqError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, data)
    except OSError as error:
        raise ClusterqError(
            f"{path} cannot be written ({error.strerror}), expected room for {len(data):,} bytes in a folder of yours; free some space, or "
            f"choose another {setting_name('out')}.",
            setting="out",
        ) from error


def need_place(setting: str, path: Path | None) -> None:
    """Make sure, before any work, that a file can be put where a setting says.

    Raises:
        ClusterqError: the path is a folder, or lies in none.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        problem = "is a folder" if path.is_dir() else f"lies in {path.parent}, which is no folder"
        raise ClusterqError(f"{path} {problem}, expected a file to write; name one in a folder that exists.", setting=setting)


def home_folder(instead: str) -> Path:
    """The user's home folder.

    Raises:
        ClusterqError: the user has none; `instead` is the variable to set.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise ClusterqError(
            f"{instead} and HOME are not set, and this user has no home folder; set {instead} to a folder of yours."
        ) from error


def final_name(name: str) -> str:
    """The name that an unfinished file was to get; any other name as it is.

    >>> final_name("a.tar.0123456789abcdef.partial"), final_name("a.tar.partial"), final_name("a.tar")
    ('a.tar', 'a.tar', 'a.tar')
    """
    unfinished = _PARTIAL.fullmatch(name)
    return unfinished["name"] if unfinished else name


def read_at(descriptor: int, size: int, offset: int, path: Path) -> bytes:
    """Read `size` bytes from `offset` of an open file; fewer where it ends.

    Raises:
        OSError: as the file system says, with the name `path`.
    """
    try:
        if hasattr(os, "pread"):
            return os.pread(descriptor, size, offset)
        # Windows: one place for all readers of a descriptor.
        with _reading:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, size)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in bounded memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(directory: Path) -> None:
    """A rename lasts through a power cut only once its directory is synced (POSIX; other systems have no such call)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
