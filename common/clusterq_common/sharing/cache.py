"""Sets that were fetched to be used at once: each in a folder of the user's cache, named by its manifest's digest."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clusterq_common.progress.console import info
from clusterq_common.shards.index import cache_folder

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no such lock
    fcntl = None  # type: ignore[assignment]

SETS = "sets"


def cached_set(digest: str) -> Path:
    """The folder of the set whose manifest has this digest."""
    return cache_folder() / SETS / digest.removeprefix("sha256:")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one program fetch into a folder of the cache; another one that wants the same set waits, and then finds it there.

    The folder itself is locked, as `folder_lock.only_program` does it; where the file system knows no such lock, nothing is.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _wait_for(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        info(f"Another program is fetching the same set into {folder}; waiting for it.")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return
