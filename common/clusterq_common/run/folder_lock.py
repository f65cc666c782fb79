"""Lock on a folder for one program at a time. It is the operating system's and ends with the process."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clusterq_common.errors import ClusterqError
from clusterq_common.progress.console import info

try:
    import fcntl
except ImportError:  # not a POSIX system: there is no such lock
    # mypy takes the name for a module and nothing else.
    fcntl = None  # type: ignore[assignment]


# Descriptors that hold locks.
_held: set[int] = set()


@contextmanager
def only_program(folder: Path, setting: str = "out") -> Iterator[None]:
    """Keep other programs of clusterq from writing to a folder. The folder is made, and removed again if it stays empty.

    The folder itself is locked, so that no file is added to it. Where the file system knows no such lock, as some network ones,
    nothing is locked. Of several processes of one job the first one alone calls this.

    Args:
        folder: what is written to.
        setting: the one that named it, for the error.

    Raises:
        ClusterqError: another program has it, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ClusterqError(f"{folder} is a file, expected a folder; choose another name.", setting=setting)

    def refuse(_: int) -> None:
        raise ClusterqError(
            f"another program is writing to {folder}, expected a folder that no other one uses; wait for it to end, or choose another "
            "folder.",
            setting=setting,
        )

    made = not folder.is_dir()
    with _locked(folder, refuse):
        try:
            yield
        finally:
            # The empty folder is removed before the lock is released. Afterwards another program could use it.
            if made:
                with suppress(OSError):  # something is in it, as it should be
                    folder.rmdir()


@contextmanager
def after_other_programs(folder: Path, remark: str) -> Iterator[None]:
    """Create a folder and hold its lock once no other program has it; see `only_program`.

    Args:
        folder: what is written to.
        remark: printed before waiting.
    """

    def wait(descriptor: int) -> None:
        info(remark)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    with _locked(folder, wait, mode=0o700):
        yield


@contextmanager
def _locked(folder: Path, when_taken: Callable[[int], None], mode: int = 0o777) -> Iterator[None]:
    """Hold a folder's lock, if the system has locks.

    Args:
        folder: made if it is missing, with this mode.
        when_taken: called with the folder's descriptor if another program has the lock: takes it or raises an error.
    """
    descriptor = _take(folder, when_taken, mode)
    if descriptor is not None:
        _held.add(descriptor)
    try:
        yield
    finally:
        # A process forked in the meantime has closed it already.
        if descriptor is not None and descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def _take(folder: Path, when_taken: Callable[[int], None], mode: int) -> int | None:
    """Return an open descriptor that holds the lock; None where there are none."""
    while True:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        if fcntl is None:
            return None
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                when_taken(descriptor)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None
        except BaseException:  # a refusal, or Ctrl-C while waiting: the lock must not stay with an open descriptor
            os.close(descriptor)
            raise
        # Another program may have removed the folder and made it again since it was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        os.close(descriptor)


def _let_go() -> None:
    """Release the lock in a forked process, which must not hold it beyond its parent's end. The parent keeps it."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
