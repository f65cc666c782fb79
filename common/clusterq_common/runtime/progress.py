"""Progress: a bar on a terminal, a line now and then elsewhere. Both go to stderr; stdout is for results."""

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


def speaks() -> bool:
    """Whether this process talks to the person watching: of those that torchrun starts, the first."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str) -> None:
    """One line for the person watching."""
    if speaks():
        print(line, file=sys.stderr, flush=True)


class Ticker(ABC):
    """Counts finished units of work and shows the count with a short note."""

    def __init__(self, description: str, total: int, done: int) -> None:
        self.description, self.total, self.done = description, total, done

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done."""
        self.done += count
        self.show(note)

    @abstractmethod
    def show(self, note: str) -> None:
        """Bring what is shown up to date."""


class _Bar(Ticker):
    def __init__(self, description: str, total: int, done: int, bars: Progress) -> None:
        super().__init__(description, total, done)
        self._bars = bars
        self._task = bars.add_task(description, total=total, completed=done, note="")

    def show(self, note: str) -> None:
        self._bars.update(self._task, completed=self.done, note=note)


class _Lines(Ticker):
    def __init__(self, description: str, total: int, done: int) -> None:
        super().__init__(description, total, done)
        self._last = time.monotonic()

    def show(self, note: str) -> None:
        now = time.monotonic()
        if self.done >= self.total or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            say(f"{self.description}: {self.done}/{self.total} {note}".rstrip())


@contextmanager
def progress(description: str, total: int, *, done: int = 0) -> Iterator[Ticker]:
    """Show the progress of a block of work of `total` units, `done` of which are behind it already."""
    console = Console(stderr=True)
    if not console.is_terminal or not speaks():
        yield _Lines(description, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bar(description, total, done, bars)
