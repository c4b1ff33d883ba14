"""Progress on the terminal: a live line with loss, speed and time left, or plain lines in a log."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from research.training.metrics import Record

DRAW_EVERY = 1.0
"""Seconds between two drawings of the live bar."""


class ProgressReport:
    """Shows a run's progress from `start` to `steps`; says nothing where `quiet` (other
    processes)."""

    def __init__(self, start: int, steps: int, unit: str, quiet: bool = False):
        self._console = Console(highlight=False, soft_wrap=True, quiet=quiet)
        self._start, self._steps = start, steps
        self._rate = f"{unit}_per_second"
        self._unit = unit
        self._began = self._drawn = time.perf_counter()
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
                auto_refresh=False,  # a thread that draws takes time from the step
                transient=True,
            )
            self._task = self._bar.add_task("", total=steps, completed=start, figures="")

    def __enter__(self) -> "ProgressReport":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the live bar, at most once a second; a log has no use for it."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            now = time.perf_counter()
            if now - self._drawn >= DRAW_EVERY:
                self._drawn = now
                self._bar.refresh()

    def log(self, record: Record) -> None:
        """Shows a logged step."""
        figures = f"loss {record['loss']:.4f}  {record[self._rate]:,.0f} {self._unit}/s"
        if "validation_loss" in record:
            figures += f"  validation loss {record['validation_loss']:.4f}"
            if "validation_accuracy" in record and self._unit == "examples":
                figures += f"  accuracy {record['validation_accuracy']:.2%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=int(record["step"]), figures=figures)
            if "validation_loss" in record:
                self.line(f"step {record['step']}/{self._steps}  {figures}")
            return
        done = int(record["step"]) - self._start
        left = (
            (time.perf_counter() - self._began) / max(done, 1) * (self._steps - int(record["step"]))
        )
        self.line(f"step {record['step']}/{self._steps}  {figures}  {_clock(left)} left")

    def line(self, text: str) -> None:
        """Prints a line above the live bar, or into the log."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """As every tracker; the bar is stopped by the context."""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
