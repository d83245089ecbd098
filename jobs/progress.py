"""Progress of the stages: bars on a terminal, elsewhere a log line every few seconds."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

logger = logging.getLogger(__name__)
LOG_EVERY_S = 5.0


class Bar(Protocol):
    def advance(self, amount: int, note: str = "") -> None:
        """`note` is shown next to the bar, such as the training loss; a later one replaces it."""


class _Done(ProgressColumn):
    """How much of how much, and how fast; bytes as MB."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if task.fields["unit"] == "bytes":
            rate = f"{speed / 1e6:,.0f} MB/s" if speed else ""
            return Text(f"{task.completed / 1e6:,.1f} of {(task.total or 0) / 1e6:,.1f} MB  {rate}")
        rate = f"{speed:,.0f} {task.fields['unit']}/s" if speed else ""
        return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f}  {rate}  {task.fields['note']}")


class _LogBar:
    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done = stage, total, 0
        self.started = self.logged = time.monotonic()

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.logged >= LOG_EVERY_S:
            self.logged = now
            rate = self.done / (now - self.started)
            left_s = (self.total - self.done) / rate if rate else 0
            figures = f"{self.done} of {self.total}, {rate:.0f}/s, {left_s:.0f} s left"
            logger.info("%s: %s", self.stage, f"{figures}, {note}" if note else figures)


class Progress:
    """Shows each stage while it runs and keeps its wall time in seconds in `seconds`."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "rows") -> Iterator[Bar]:
        """A bar from 0 to `total` while the block runs."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self._bars() as bars:
                yield _RichBar(bars, name, total, unit)
        else:
            logger.info("%s: started, %s %s to do", name, f"{total:,}", unit)
            yield _LogBar(name, total)
        seconds = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        if not self.console.is_terminal:
            logger.info("%s: done in %.1f s", name, seconds)

    def _bars(self) -> RichProgress:
        columns = (TextColumn("{task.description:<9}"), BarColumn(), _Done(), TimeRemainingColumn())
        return RichProgress(*columns, console=self.console)


class _RichBar:
    def __init__(self, bars: RichProgress, name: str, total: int, unit: str) -> None:
        self.bars = bars
        self.task = bars.add_task(name, total=total, unit=unit, note="")

    def advance(self, amount: int, note: str = "") -> None:
        self.bars.update(self.task, advance=amount, note=note)
