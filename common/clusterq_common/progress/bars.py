"""A bar on a terminal: what is done, how fast, how long it will take; beneath it the figures that matter, and memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from clusterq_common.progress.console import Ticker
from clusterq_common.progress.meter import Meter, memory

# Two cores are worth more to the work than to its picture.
REFRESHES_PER_SECOND = 4
# Kept, so that the bar does not change its length with each figure.
PACE_WIDTH = 28


@contextmanager
def bar(description: str, meter: Meter) -> Iterator[Ticker]:
    """Show a block of work on stderr's terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    console = Console(stderr=True)
    with _Bars(*columns, console=console, expand=True, refresh_per_second=REFRESHES_PER_SECOND) as bars:
        yield _Bar(description, meter, bars)


class _Bars(Progress):
    """The figures have a line of their own, so that both lines fit into 80 columns."""

    ticker: Ticker | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.ticker is not None:
            facts = [fact for fact in (self.ticker.note, memory()) if fact]
            yield Text(f"  {', '.join(facts)}", style="dim")


class _Bar(Ticker):
    def __init__(self, description: str, meter: Meter, bars: _Bars) -> None:
        super().__init__(description, meter)
        self._bars = bars
        self._task = bars.add_task(description, total=meter.total, completed=meter.done, pace=" " * PACE_WIDTH)
        bars.ticker = self

    def show(self) -> None:
        pace = [fact for fact in (self.meter.images_per_second(), self.meter.time()) if fact]
        self._bars.update(self._task, completed=self.meter.done, pace=", ".join(pace).ljust(PACE_WIDTH))
