"""Interface of whatever shows the progress of a block of work: a bar, lines, a caller's function, or nothing."""

from abc import ABC, abstractmethod

from clusterq_common.escape import one_line
from clusterq_common.progress.meter import Meter


class Ticker(ABC):
    """Counter of finished units of work, which shows the count, its speed and the latest note."""

    def __init__(self, description: str, meter: Meter) -> None:
        self.description, self.meter, self.note = description, meter, ""

    @property
    def done(self) -> int:
        """Units done so far."""
        return self.meter.done

    def finish(self) -> None:
        """End the work, whether or not every unit of it was needed."""
        self.show()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more units as done. A note stays until the next one."""
        self.meter.advance(count)
        self.note = one_line(note) or self.note
        self.show()

    @abstractmethod
    def show(self) -> None:
        """Update the display."""
