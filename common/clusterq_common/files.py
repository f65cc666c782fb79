"""Files that are either whole or absent: write beside, fsync, rename."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is synced and renamed to `path`, else removed.

    Raises:
        OSError: as the file system says; `path` is then as it was before.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        yield partial
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Make the finished file `partial` durable and give it the name `path` in one step."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_directory(path.parent)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) so that `path` holds all of it or is unchanged."""
    with atomic_path(path) as partial:
        partial.write_bytes(data.encode() if isinstance(data, str) else data)


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
