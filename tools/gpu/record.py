"""Figures of one stage, on disk after each of them, and the time that the stage has."""

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
        name: what was measured.
        value: a number, a truth value or a word.
        unit: of the value; empty where it has none.
        note: what a reader must know beside it, such as a shortened budget.
    """

    name: str
    value: float | bool | str
    unit: str = ""
    note: str = ""


@dataclass
class Record:
    """What a stage has found so far. Each figure is written at once: a stage that is stopped keeps what it has.

    Attributes:
        path: the stage's JSON file.
        seconds: the stage's time.
        rehearsal: whether this run only shows that the stage works; its figures mean nothing.
        failures: name of a part -> why it gave no figure.
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
        """Seconds that the stage still has."""
        return self.seconds - (time.monotonic() - self._begin)

    def add(self, name: str, value: float | bool | str, unit: str = "", note: str = "") -> None:
        """Keep a figure."""
        self.figures.append(Figure(name, value, unit, note))
        info(f"  {name}: {shown(value)} {unit}{f' ({note})' if note else ''}")
        self._save(finished=False)

    def part(self, name: str, action: Callable[[], object], *, needs: float = 0.0) -> None:
        """Do one part of the stage; an error in it is kept under its name, and the stage goes on.

        Args:
            needs: seconds; with less time left the part is not begun.
        """
        if self.left < needs and not self.rehearsal:
            self.failures[name] = f"not begun: it needs {needs:.0f} s, and {max(self.left, 0):.0f} s were left"
            self._save(finished=False)
            return
        begin = time.monotonic()
        try:
            action()
        except Exception as error:  # whatever goes wrong in a part is written down, and the next one is measured all the same
            self.failures[name] = f"{type(error).__name__}: {str(error)[:500]}"
            traceback.print_exc()
        info(f"  {name}: {time.monotonic() - begin:.1f} s{', FAILED' if name in self.failures else ''}")
        self._save(finished=False)

    def finish(self) -> None:
        """Say in the file that nothing more will come."""
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
    """A value as a table has it."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
