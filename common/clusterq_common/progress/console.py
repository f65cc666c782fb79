"""Output of a running program: progress bars on a terminal, occasional lines elsewhere. It is on stderr; stdout is for results.

With `--quiet` (`quietly`) only warnings, errors and results remain. Within `heard_by`, output goes to the caller's functions
instead of the terminal.
"""

import io
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TextIO

from clusterq_common.progress.meter import Meter, memory

# The interval between lines grows with the length of a run: a day of training prints about 1,500 lines.
LEAST_SECONDS_BETWEEN_LINES = 10.0
MOST_SECONDS_BETWEEN_LINES = 60.0
LINES_TO_SLOW_DOWN = 20

# Called with the description of the work, the units done, and the total.
OnProgress = Callable[[str, int, int], None]


class _Listener(NamedTuple):
    log: Callable[[str], None]
    progress: OnProgress | None


_quiet = False
_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(log: Callable[[str], None] | None, progress: OnProgress | None) -> Iterator[None]:
    """Send lines and warnings to `log` and counts to `progress` within the block; where one is None, they are dropped."""
    token = _listener.set(_Listener(log or _to_nobody, progress))
    try:
        yield
    finally:
        _listener.reset(token)


def _to_nobody(_: str) -> None:
    """Drop a line that no caller listens to."""


def remarks() -> TextIO:
    """Return the stream for other packages' remarks: stderr, or one that is dropped within `heard_by`."""
    return sys.stderr if _listener.get() is None else io.StringIO()


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Hide lines and bars within the block, if `quiet`."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def is_main_process() -> bool:
    """Return whether this process prints output: the first one of those that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


def info(line: str) -> None:
    """Print one line of information."""
    if (listener := _listener.get()) is not None:
        listener.log(line)
    elif is_main_process() and not _quiet:
        print(line, file=sys.stderr, flush=True)


def warn(sentence: str) -> None:
    """Print a warning, also with --quiet."""
    if (listener := _listener.get()) is not None:
        listener.log(f"Warning: {sentence}")
    elif is_main_process():
        print(f"Warning: {sentence}", file=sys.stderr, flush=True)


def print_result(line: str) -> None:
    """Print one line of a command's result on stdout, also with --quiet."""
    if is_main_process():
        print(line, flush=True)


class Ticker(ABC):
    """Counter of finished units of work. It shows the count, the speed and the latest note."""

    def __init__(self, description: str, meter: Meter) -> None:
        self.description, self.meter, self.note = description, meter, ""

    @property
    def done(self) -> int:
        """Number of units done so far."""
        return self.meter.done

    def finish(self) -> None:
        """Mark the work as finished, even if some units were not needed."""
        self.show()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done. A note stays until the next one."""
        self.meter.advance(count)
        self.note = note or self.note
        self.show()

    @abstractmethod
    def show(self) -> None:
        """Update the display."""


class _Silence(Ticker):
    def show(self) -> None:
        pass


class _Told(Ticker):
    def __init__(self, description: str, meter: Meter, on_progress: OnProgress) -> None:
        super().__init__(description, meter)
        self._on_progress = on_progress

    def show(self) -> None:
        self._on_progress(self.description, self.meter.done, self.meter.total)


class _Lines(Ticker):
    def __init__(self, description: str, meter: Meter) -> None:
        super().__init__(description, meter)
        self._last, self._said = time.monotonic(), meter.done

    def finish(self) -> None:
        self._say()

    def show(self) -> None:
        meter, now = self.meter, time.monotonic()
        gap = min(MOST_SECONDS_BETWEEN_LINES, max(LEAST_SECONDS_BETWEEN_LINES, meter.elapsed / LINES_TO_SLOW_DOWN))
        if meter.done >= meter.total or now - self._last >= gap:
            self._last = now
            self._say()

    def _say(self) -> None:
        meter = self.meter
        if self._said < meter.done:
            self._said = meter.done
            facts = [f"{meter.done}/{meter.total}", meter.time(), meter.images_per_second(), self.note, memory()]
            info(f"{self.description}: {', '.join(fact for fact in facts if fact)}")


@contextmanager
def progress(description: str, total: int, *, done: int = 0, images: float = 0) -> Iterator[Ticker]:
    """Show the progress of a block of work.

    Args:
        description: name of the work, such as "training".
        total: number of units of work.
        done: number of units already done before.
        images: images in a unit, for the speed; 0 where units are not images.
    """
    meter = Meter(total, done, images)
    listener = _listener.get()
    if listener is not None and listener.progress is not None:
        yield _Told(description, meter, listener.progress)
        return
    if listener is not None or _quiet or not is_main_process():
        yield _Silence(description, meter)
        return
    # rich treats a file as a terminal under FORCE_COLOR. Bars need a real one that can move its cursor (TERM=dumb cannot).
    if not sys.stderr.isatty() or os.environ.get("TERM", "") in {"dumb", "unknown"}:
        lines = _Lines(description, meter)
        yield lines
        lines.finish()
        return
    from clusterq_common.progress.bars import bar  # imported late: rich's bars take a while, and --help must not

    with bar(description, meter) as ticker:
        yield ticker
        ticker.finish()
