"""How fast work goes on, how long it will take and how much memory it holds: the figures beside a bar. Free of torch."""

import sys
import time
from collections import deque
from pathlib import Path

# Speed is that of the last so many seconds: a run slows down when its student joins, and what comes first is no measure of the rest.
WINDOW_SECONDS = 60.0
STATM = Path("/proc/self/statm")


class Meter:
    """Units of work done over time.

    Args:
        total: units in all.
        done: units that were done before, by an earlier process: they say nothing of how fast this one is.
        images: images in a unit; 0 where units are not images.
    """

    def __init__(self, total: int, done: int, images: float) -> None:
        self.total, self.done, self.images = total, done, images
        self.begin = time.monotonic()
        self._marks = deque([(self.begin, done)])

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        now = time.monotonic()
        self.done += count
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the work began in this process."""
        return time.monotonic() - self.begin

    @property
    def speed(self) -> float:
        """Units a second, of late; 0 before anything is done."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(end - start, 1e-9) if after > before else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present speed; None where nothing is known yet."""
        return max(0, self.total - self.done) / self.speed if self.speed else None

    def time(self) -> str:
        """How long it will take, and in the end how long it took; empty where nothing is known yet."""
        if self.done >= self.total:
            return f"in {duration(self.elapsed)}"
        left = self.seconds_left
        return "" if left is None else f"{duration(left)} left"

    def images_per_second(self) -> str:
        """The speed; empty where units are not images, or nothing is known yet."""
        return f"{_three_digits(self.speed * self.images)} images/s" if self.speed and self.images else ""


def memory() -> str:
    """What this process holds: main memory (resident set, Linux alone says how large it is now) and, on a GPU, tensors.

    Neither waits for the GPU, nor asks CUDA anything that would spoil a graph that is being recorded: torch keeps the books itself.
    """
    parts = []
    if STATM.is_file():
        import resource

        pages = int(STATM.read_text(encoding="ascii").split()[1])
        parts.append(f"{_gigabytes(pages * resource.getpagesize())} memory")
    torch = sys.modules.get("torch")  # asked only where a command has imported it
    if torch is not None and torch.cuda.is_initialized():
        parts.append(f"{_gigabytes(torch.cuda.memory_allocated())} GPU")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for a person.

    >>> duration(7.4), duration(83), duration(7400), duration(200_000)
    ('7 s', '1 min 23 s', '2 h 3 min', '2 d 7 h')
    """
    whole = round(seconds)
    for unit, name, part, part_name in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // part} {part_name}"
    return f"{whole} s"


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count < 10e9 else f"{count / 1e9:.0f} GB"


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
