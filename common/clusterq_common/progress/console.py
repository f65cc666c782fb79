"""Messages of a running program: bars on a terminal, a line now and then elsewhere. All go to stderr; stdout is for results.

`quietly` leaves warnings, errors and results. Within `heard_by` nothing goes to a terminal: a caller's own functions get it.
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

# Lines come this often at first and less often as a run grows long: a day of training is a thousand of them and a half.
LEAST_SECONDS_BETWEEN_LINES = 10.0
MOST_SECONDS_BETWEEN_LINES = 60.0
LINES_TO_SLOW_DOWN = 20

# Called with what is being done, how many units of it are done, and how many there are.
OnProgress = Callable[[str, int, int], None]


class _Listener(NamedTuple):
    log: Callable[[str], None]
    progress: OnProgress | None


_quiet = False
_phases: ContextVar[Sequence[Phase]] = ContextVar("phases", default=())
_listener: ContextVar[_Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(log: Callable[[str], None] | None, progress: OnProgress | None) -> Iterator[None]:
    """Within this, lines and warnings go to `log` and counts to `progress`; to nobody where these are None."""
    token = _listener.set(_Listener(log or _to_nobody, progress))
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def expecting(phases: Sequence[Phase]) -> Iterator[None]:
    """Within the context, progress also shows the estimated time of the phases that follow."""
    token = _phases.set(phases)
    try:
        yield
    finally:
        _phases.reset(token)


def _seconds_after(phase: str) -> float:
    """Return the estimated seconds of the phases after this one; 0 where it was not estimated."""
    phases = _phases.get()
    places = [place for place, expected in enumerate(phases) if expected.name == phase]
    return total_seconds(phases[places[0] + 1 :]) if places else 0.0


def _to_nobody(_: str) -> None:
    """Nobody asked."""


def remarks() -> TextIO:
    """The stream for what other packages print on their way: stderr, or nothing within `heard_by`."""
    return sys.stderr if _listener.get() is None else io.StringIO()


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Around a command: with `quiet` neither lines nor bars are shown."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def shows_progress() -> bool:
    """Return whether other packages may draw bars of their own: not when quiet, within `heard_by`, or off a terminal."""
    return _listener.get() is None and not _quiet and is_main_process() and sys.stderr.isatty()


def is_main_process() -> bool:
    """Return whether this process prints: of those that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def info(line: str) -> None:
    """One line for the person watching; what it quotes may be anyone's, see `escape.one_line`, as in all of these."""
    if (listener := _listener.get()) is not None:
        listener.log(one_line(line))
    elif is_main_process() and not _quiet:
        write_line(line)


def warn(sentence: str) -> None:
    """A reason to look closer: said within `quietly`, too."""
    if (listener := _listener.get()) is not None:
        listener.log(one_line(f"Warning: {sentence}"))
    elif is_main_process():
        write_line(f"Warning: {sentence}")


def print_result(line: str) -> None:
    """One line of what a command was asked for: on stdout, within `quietly`, too."""
    if is_main_process():
        _write(sys.stdout, one_line(line))


def print_json(value: Any) -> None:
    """One line of JSON on stdout, for a program to read."""
    if is_main_process():
        # The one control character that json leaves as it is.
        _write(sys.stdout, json.dumps(value).replace("\x7f", "\\u007f"))


def write_line(line: str) -> None:
    """Put one line on stderr, whoever this process is."""
    try:
        _write(sys.stderr, one_line(line))
    except OSError as error:
        # The terminal was closed: nobody is left to tell, and the work is worth more than the remark.
        if error.errno not in {errno.EPIPE, errno.EIO, errno.EBADF}:
            raise


def _write(stream: TextIO | None, line: str) -> None:
    if stream is not None and not stream.closed:  # neither has a process that was started without
        print(encodable(line, stream.encoding), file=stream, flush=True)


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
        description: what is being done, as "training".
        total: units of work.
        done: units that are behind it already.
        images: images in a unit, for the speed; 0 where units are not images.
        phase: name of this work among the phases of `expecting`.
    """
    meter = Meter(total, done, images, _seconds_after(phase))
    listener = _listener.get()
    if listener is not None and listener.progress is not None:
        yield _Told(description, meter, listener.progress)
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
    from clusterq_common.progress.bars import bar  # imported late: rich's bars take a while, and help must not

    with bar(description, meter) as ticker:
        yield ticker
        ticker.finish()
