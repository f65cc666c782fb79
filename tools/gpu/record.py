"""Record of one stage: its figures, written to disk one by one, and its remaining time."""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clusterq_common.files import atomic_write
from clusterq_common.progress.console import info


@dataclass(frozen=True)
class Figure:
    """One measured value.

    Attributes:
        name: name of the measurement.
        value: a number, a truth value or a word.
        unit: unit of the value; empty where it has none.
        note: remark for the reader, such as a shortened budget.
    """

    name: str
    value: float | bool | str
    unit: str = ""
    note: str = ""


@dataclass
class Record:
    """Results of a stage so far. Each figure is written at once, so that a stopped stage keeps its figures.

    Attributes:
        path: JSON file of the stage.
        seconds: time of the stage.
        rehearsal: whether this run only checks that the stage works; its figures have no meaning.
        failures: name of a part -> reason why it gave no figure.
    """

    path: Path
    seconds: float
    rehearsal: bool = False
    figures: list[Figure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begin = time.monotonic()
        self._save(finished=False)

    @property
    def left(self) -> float:
        """Remaining seconds of the stage."""
        return self.seconds - (time.monotonic() - self._begin)

    def add(self, name: str, value: float | bool | str, unit: str = "", note: str = "") -> None:
        """Add a figure and save the record."""
        self.figures.append(Figure(name, value, unit, note))
        info(f"  {name}: {shown(value)} {unit}{f' ({note})' if note else ''}")
        self._save(finished=False)

    def part(self, name: str, action: Callable[[], object], *, needs: float = 0.0) -> None:
        """Run one part of the stage. An error is recorded under its name, and the stage continues.

        Args:
            needs: required seconds; with less time left, the part is skipped.
        """
        if self.left < needs and not self.rehearsal:
            self.failures[name] = f"not begun: it needs {needs:.0f} s, and {max(self.left, 0):.0f} s were left"
            self._save(finished=False)
            return
        begin = time.monotonic()
        try:
            action()
        except Exception as error:  # any error in a part is recorded, and the next part is still measured
            self.failures[name] = f"{type(error).__name__}: {str(error)[:500]}"
            traceback.print_exc()
        info(f"  {name}: {time.monotonic() - begin:.1f} s{', FAILED' if name in self.failures else ''}")
        self._save(finished=False)

    def finish(self) -> None:
        """Mark the record in the file as finished."""
        self._save(finished=True)

    def _save(self, *, finished: bool) -> None:
        values = {
            "finished": finished,
            "rehearsal": self.rehearsal,
            "seconds": round(time.monotonic() - self._begin, 2),
            "figures": [asdict(figure) for figure in self.figures],
            "failures": self.failures,
        }
        atomic_write(self.path, json.dumps(values, indent=1) + "\n")


def shown(value: float | bool | str) -> str:
    """Return a value as text for a table."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
