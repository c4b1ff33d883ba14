"""The project's own training loop, in blocks that can be measured one beside the other."""

import contextlib
import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from research.experiment import Experiment
from research.parallel.stopping import StopRequest
from research.prepared import Prepared
from research.training.checkpoints import Checkpoints
from research.training.loop import Journal
from research.training.loop import train as run_loop
from research.training.metrics import JsonLines, TensorBoard, Tracker
from research.training.progress import ProgressReport


class NoCheckpoints:
    """Saves nothing: the loop always saves its last step, which here ends only a block."""

    def save(self, step: int, state: Any) -> None:
        """As `Checkpoints.save`."""

    def latest(self) -> None:
        """As `Checkpoints.latest`."""


class Timed:
    """`Checkpoints` that adds up for how long the loop waited in `save`."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.seconds: list[float] = []

    def save(self, step: int, state: Any) -> None:
        """As `Checkpoints.save`."""
        began = time.perf_counter()
        self.checkpoints.save(step, state)
        self.seconds.append(time.perf_counter() - began)

    def latest(self) -> int | None:
        """As `Checkpoints.latest`."""
        return self.checkpoints.latest()


class LoopBench:
    """An experiment with its compiled step and one state, which every kind of block trains on."""

    def __init__(self, experiment: Experiment, folder: Path):
        """Keeps what the loop writes in `folder`."""
        self.prepared = Prepared(experiment)
        self.folder = folder
        with jax.set_mesh(self.prepared.mesh):
            self.state = self.prepared.learner.init()
            self.step = self.prepared.compile()
        self.feed = self.prepared.feed(0)
        self.batch = next(self.feed)
        self.done = 0

    def bare(self, steps: int) -> tuple[list[float], list[float]]:
        """The compiled step alone, on one batch that stays on the device."""
        began, began_cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(metrics)
        return self._mean(steps, began, began_cpu)

    def loop(
        self,
        steps: int,
        log_every: int,
        *,
        terminal: bool = False,
        checkpoint_every: int = 0,
        checkpoints: Any = None,
        wait: bool = False,
    ) -> tuple[list[float], list[float]]:
        """`training.loop.train` with feed, JSON lines, TensorBoard and progress.

        `terminal`: with the live bar of a terminal, else the lines of a log; both go to the null
        device. `wait`: until the last checkpoint is written, as part of what is measured.
        """
        prepared, last = self.prepared, self.done + steps
        run = replace(
            prepared.experiment.run,
            steps=last,
            log_every=log_every,
            evaluate_every=0,
            checkpoint_every=checkpoint_every,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(_output(terminal))
            stop = stack.enter_context(StopRequest())
            unit = prepared.dataset.unit
            progress = stack.enter_context(ProgressReport(self.done, last, unit))
            trackers: list[Tracker] = [
                progress,
                JsonLines(self.folder / "metrics.jsonl"),
                TensorBoard(self.folder / "tensorboard", self.done),
            ]
            for tracker in trackers:
                stack.callback(tracker.close)
            journal = Journal(trackers, unit, prepared.units_per_step, self.done, 0.0)
            began, began_cpu = time.perf_counter(), time.process_time()
            self.state, self.done = run_loop(
                self.step,
                self.state,
                self.feed,
                run,
                start=self.done,
                journal=journal,
                evaluate=lambda state: {},
                checkpoints=NoCheckpoints() if checkpoints is None else checkpoints,
                progress=progress,
                stop=stop,
                indexes=prepared.batches.indexes,
                folder=self.folder,
            )
            if wait:
                checkpoints.checkpoints.wait()
            return self._mean(steps, began, began_cpu)

    @staticmethod
    def _mean(steps: int, began: float, began_cpu: float) -> tuple[list[float], list[float]]:
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        return [seconds / steps], [cpu_seconds / steps]


@contextlib.contextmanager
def _output(terminal: bool) -> Iterator[None]:
    """Sends what is printed to the null device; `terminal` makes rich take it for a terminal."""
    name = "TTY_COMPATIBLE"
    before = os.environ.get(name)
    os.environ[name] = "1" if terminal else "0"
    try:
        with (
            open(os.devnull, "w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
