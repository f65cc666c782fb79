"""A progress bar on a terminal, with speed and remaining time, and a second line with notes and memory."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from clusterq_common.progress.meter import Meter, memory
from clusterq_common.progress.ticker import Ticker

# Few, so that drawing the bar takes little time from the work.
REFRESHES_PER_SECOND = 4
# Fixed, so that the bar's length does not change with each figure.
PACE_WIDTH = 28


@contextmanager
def bar(description: str, meter: Meter) -> Iterator[Ticker]:
    """Show the progress of a block of work on stderr's terminal."""
    # Speed and time left are the meter's, since lines show the same figures where there is no terminal; rich's own columns would
    # show others.
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
    """Progress display with the notes on a second line, so that both lines fit into 80 columns."""

    ticker: Ticker | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.ticker is not None:
            facts = [fact for fact in (self.ticker.meter.afterwards(), self.ticker.note, memory()) if fact]
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
