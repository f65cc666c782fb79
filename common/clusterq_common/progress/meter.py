"""Measurement of speed, remaining time and memory, for progress output. Free of torch."""

import sys
import time
from collections import deque
from pathlib import Path

from clusterq_common.quantities import duration, size

# The speed is measured over the last seconds, because it changes during a run, for example when the student joins.
WINDOW_SECONDS = 60.0
STATM = Path("/proc/self/statm")


class Meter:
    """Meter of units of work over time.

    Args:
        total: total number of units.
        done: number of units done before by an earlier process; they do not count for the speed.
        images: images in a unit; 0 where units are not images.
        later: estimated seconds of the phases that follow this work; 0 where there are none, or none was estimated.
    """

    def __init__(self, total: int, done: int, images: float, later: float = 0.0) -> None:
        self.total, self.done, self.images, self.later = total, done, images, later
        self.begin = time.monotonic()
        self._marks = deque([(self.begin, done)])

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""
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
        """Recent speed in units a second; 0 before anything is done."""
        (start, before), (end, after) = self._marks[0], self._marks[-1]
        return (after - before) / max(end - start, 1e-9) if after > before else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining seconds at the present speed; None before anything is known."""
        return max(0, self.total - self.done) / self.speed if self.speed else None

    def time(self) -> str:
        """Return the remaining time, or at the end the time taken; empty before anything is known."""
        if self.done >= self.total:
            return f"in {duration(self.elapsed)}"
        left = self.seconds_left
        return "" if left is None else f"{duration(left)} left"

    def afterwards(self) -> str:
        """Return the estimated time of the phases that follow; empty below a second, and at the end of the work."""
        return f"then about {duration(self.later)}" if self.later >= 1 and self.done < self.total else ""

    def images_per_second(self) -> str:
        """Return the speed as text; empty where units are not images, or before anything is known."""
        return f"{_three_digits(self.speed * self.images)} images/s" if self.speed and self.images else ""


def memory() -> str:
    """Return the memory of this process: main memory (resident set, known on Linux only) and, on a GPU, that of tensors.

    It neither synchronises with the GPU nor calls CUDA in a way that would break a graph capture. torch keeps the counts itself.
    """
    parts = []
    if STATM.is_file():
        import resource

        pages = int(STATM.read_text(encoding="ascii").split()[1])
        parts.append(f"{size(pages * resource.getpagesize())} memory")
    torch = sys.modules.get("torch")  # used only if a command has imported it
    if torch is not None and torch.cuda.is_initialized():
        parts.append(f"{size(torch.cuda.memory_allocated())} GPU")
    return ", ".join(parts)


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
