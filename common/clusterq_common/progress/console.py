"""Messages of a running program: bars on a terminal, occasional lines elsewhere. All go to stderr; stdout is for results.

`quietly` silences everything but warnings, errors and results. Within `send_messages_to` messages go to a caller's functions instead of the terminal.
"""

import errno
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TextIO

from clusterq_common.escape import encodable, one_line
from clusterq_common.progress.meter import Meter, memory
from clusterq_common.progress.ticker import Ticker
from clusterq_common.progress.time_budget import Phase, total_seconds

# The gap between lines grows with the run, so that a day of training prints about 1,500 of them.
LEAST_SECONDS_BETWEEN_LINES = 10.0
MOST_SECONDS_BETWEEN_LINES = 60.0
LINES_TO_SLOW_DOWN = 20

# Called with the name of the work, the units done, and the units in all.
OnProgress = Callable[[str, int, int], None]


class _Listener(NamedTuple):
    log: Callable[[str], None]
    progress: OnProgress | None


_quiet = False
_phases: ContextVar[Sequence[Phase]] = ContextVar("phases", default=())
_afterwards: ContextVar[float] = ContextVar("afterwards", default=0.0)
_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def send_messages_to(log: Callable[[str], None] | None = None, progress: OnProgress | None = None) -> Iterator[None]:
    """Send lines and warnings to `log` and counts to `progress` within the block; where these are None, discard them."""
    token = _listener.set(_Listener(log or _discard, progress))
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def expecting(phases: Sequence[Phase]) -> Iterator[None]:
    """Show the estimated time of the phases that follow in all progress output within the block."""
    token = _phases.set(phases)
    try:
        yield
    finally:
        _phases.reset(token)


@contextmanager
def followed_by(seconds: float) -> Iterator[None]:
    """Count so many estimated seconds of later work, such as a command's next stages, to the phases that follow within the block."""
    token = _afterwards.set(_afterwards.get() + seconds)
    try:
        yield
    finally:
        _afterwards.reset(token)


def _seconds_after(phase: str) -> float:
    """Return the estimated seconds of what follows a phase; 0 for work that is no phase of its own."""
    phases = _phases.get()
    places = [place for place, expected in enumerate(phases) if expected.name == phase]
    own = total_seconds(phases[places[0] + 1 :]) if places else 0.0
    return own + _afterwards.get() if phase else 0.0


def _discard(_: str) -> None:
    """Discard a line."""


def remarks() -> TextIO:
    """Return the stream for messages of other packages: stderr, or one that is discarded within `send_messages_to`."""
    return sys.stderr if _listener.get() is None else io.StringIO()


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Hide lines and bars within the block if `quiet`."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def shows_progress() -> bool:
    """Return whether other packages may draw bars of their own: not when quiet, within `send_messages_to`, or off a terminal."""
    return _listener.get() is None and not _quiet and is_main_process() and sys.stderr.isatty()


def is_main_process() -> bool:
    """Return whether this process prints: of those that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def info(line: str) -> None:
    """Print one line on stderr, unless quiet. As in all functions here, text that the line quotes is escaped by `escape.one_line`."""
    if (listener := _listener.get()) is not None:
        listener.log(one_line(line))
    elif is_main_process() and not _quiet:
        write_line(line)


def warn(sentence: str) -> None:
    """Print a warning, even within `quietly`."""
    if (listener := _listener.get()) is not None:
        listener.log(one_line(f"Warning: {sentence}"))
    elif is_main_process():
        write_line(f"Warning: {sentence}")


def print_result(line: str) -> None:
    """Print one line of a command's result on stdout, even within `quietly`."""
    if is_main_process():
        _write(sys.stdout, one_line(line))


def print_json(value: Any) -> None:
    """Print one line of JSON on stdout, for a program to read."""
    if is_main_process():
        # DEL is the one control character that json does not escape.
        _write(sys.stdout, json.dumps(value).replace("\x7f", "\\u007f"))


def write_line(line: str) -> None:
    """Write one line to stderr, from any process."""
    try:
        _write(sys.stderr, one_line(line))
    except OSError as error:
        # The terminal was closed. The line is lost; the work goes on.
        if error.errno not in {errno.EPIPE, errno.EIO, errno.EBADF}:
            raise


def _write(stream: TextIO | None, line: str) -> None:
    if stream is not None and not stream.closed:  # a process started without streams has neither
        print(encodable(line, stream.encoding), file=stream, flush=True)


class _Silence(Ticker):
    def show(self) -> None:
        pass


class _CallbackTicker(Ticker):
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
            facts = [
                f"{meter.done}/{meter.total}",
                meter.time(),
                meter.afterwards(),
                meter.images_per_second(),
                self.note,
                memory(),
            ]
            info(f"{self.description}: {', '.join(fact for fact in facts if fact)}")


@contextmanager
def progress(description: str, total: int, *, done: int = 0, images: float = 0, phase: str = "") -> Iterator[Ticker]:
    """Show the progress of a block of work.

    Args:
        description: name of the work, such as "training".
        total: units of work.
        done: units that were done before.
        images: images in a unit, for the speed; 0 where units are not images.
        phase: name of this work among the phases of `expecting`.
    """
    meter = Meter(total, done, images, _seconds_after(phase))
    listener = _listener.get()
    if listener is not None and listener.progress is not None:
        yield _CallbackTicker(description, meter, listener.progress)
        return
    if listener is not None or _quiet or not is_main_process():
        yield _Silence(description, meter)
        return
    # FORCE_COLOR makes rich take a file for a terminal; bars are for what really is one, and can move its cursor (TERM=dumb cannot).
    if not sys.stderr.isatty() or os.environ.get("TERM", "") in {"dumb", "unknown"}:
        lines = _Lines(description, meter)
        yield lines
        lines.finish()
        return
    from clusterq_common.progress.bars import bar  # imported late, since rich takes long to import and help must be fast

    with bar(description, meter) as ticker:
        yield ticker
        ticker.finish()
