"""Progress of a long loop with rate and time left: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from instructgpt.formatting import format_seconds
from instructgpt.run.directory import console

PROGRESS_INTERVAL_S = 30.0
_FIRST_REPORT_S = 5.0


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


@contextmanager
def show_progress(title: str, total: int, completed: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of items done since its last call. Nothing is shown without a title.

    Args:
        completed: items done before, which count as done but not for the rate.
    """
    if not title:
        yield lambda _: None
    elif console.is_terminal:
        text = TextColumn("{task.description}", markup=False)
        columns = (text, BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=completed)
            yield lambda count: progress.advance(task, count)
    else:
        yield _LineReporter(title, total, completed)


class _LineReporter:
    """Print a line after a few seconds, and then every `PROGRESS_INTERVAL_S`."""

    def __init__(self, title: str, total: int, completed: int) -> None:
        self.title, self.total = title, total
        self.start = self.completed = completed
        self.start_s = time.monotonic()
        self.next_report_s = self.start_s + min(_FIRST_REPORT_S, PROGRESS_INTERVAL_S)

    def __call__(self, count: int) -> None:
        self.completed += count
        now_s = time.monotonic()
        if now_s < self.next_report_s:
            return
        self.next_report_s = now_s + PROGRESS_INTERVAL_S
        rate = (self.completed - self.start) / max(1e-9, now_s - self.start_s)
        remaining = f", {format_seconds((self.total - self.completed) / rate)} left" if rate else ""
        message = f"{self.title}: {self.completed} of {self.total}, {rate:.3g}/s{remaining}"
        console.print(message, highlight=False, markup=False, soft_wrap=True)
