"""What a program says while it works: bars on a terminal, a line now and then elsewhere. All of it on stderr; stdout is for results.

`--quiet` (`quietly`) leaves warnings, errors and results.
"""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from clusterq_common.runtime.meter import Meter, memory

# Lines come this often at first and less often as a run grows long: a day of training is a thousand of them and a half.
LEAST_SECONDS_BETWEEN_LINES = 10.0
MOST_SECONDS_BETWEEN_LINES = 60.0
LINES_TO_SLOW_DOWN = 20

_quiet = False


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Around a command: with `quiet` neither lines nor bars are shown."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def speaks() -> bool:
    """Whether this process talks to the person watching: of those that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """One line for the person watching."""
    if speaks() and not _quiet:
        print(line, file=sys.stderr, flush=True)


def warn(sentence: str) -> None:
    """A reason to look closer: said with --quiet, too."""
    if speaks():
        print(f"Warning: {sentence}", file=sys.stderr, flush=True)


def answer(line: str) -> None:
    """One line of what a command was asked for: on stdout, with --quiet, too."""
    if speaks():
        print(line, flush=True)


class Ticker(ABC):
    """Counts finished units of work and shows the count, how fast it grows, and the latest note."""

    def __init__(self, description: str, meter: Meter) -> None:
        self.description, self.meter, self.note = description, meter, ""

    @property
    def done(self) -> int:
        """Units done so far."""
        return self.meter.done

    def finish(self) -> None:
        """The work is over, whether or not every unit of it was needed."""
        self.show()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; a note stays until the next one."""
        self.meter.advance(count)
        self.note = note or self.note
        self.show()

    @abstractmethod
    def show(self) -> None:
        """Bring what is shown up to date."""


class _Silence(Ticker):
    def show(self) -> None:
        pass


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
            say(f"{self.description}: {', '.join(fact for fact in facts if fact)}")


@contextmanager
def progress(description: str, total: int, *, done: int = 0, images: float = 0) -> Iterator[Ticker]:
    """Show the progress of a block of work.

    Args:
        description: what is being done, as "training".
        total: units of work.
        done: units that are behind it already.
        images: images in a unit, for the speed; 0 where units are not images.
    """
    meter = Meter(total, done, images)
    if _quiet or not speaks():
        yield _Silence(description, meter)
        return
    # FORCE_COLOR makes rich take a file for a terminal; bars are for what really is one, and can move its cursor (TERM=dumb cannot).
    if not sys.stderr.isatty() or os.environ.get("TERM", "") in {"dumb", "unknown"}:
        lines = _Lines(description, meter)
        yield lines
        lines.finish()
        return
    from clusterq_common.runtime.bars import bar  # imported late: rich's bars take a while, and --help must not

    with bar(description, meter) as ticker:
        yield ticker
        ticker.finish()
