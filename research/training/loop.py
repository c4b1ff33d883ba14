"""The one loop: it runs every algorithm, and owns all that a machine can lose.

The device is kept one step ahead of the host: a step's metrics are read while later steps run. All
of them are read before anything is saved, so no checkpoint ever holds parameters that are not
finite, or that came after a loss that is not.
"""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.errors import Diverged, RunError
from research.parallel.processes import is_first
from research.parallel.stopping import StopRequest
from research.parallel.supervision import GROWTH, beat, phase
from research.training.checkpoints import Checkpoints
from research.training.configuration import RunConfig
from research.training.metrics import Record, Tracker
from research.training.pace import Pace
from research.training.progress import ProgressReport
from research.training.snapshots import Snapshots

IN_FLIGHT = 2
"""Steps that are dispatched and not yet read: enough to hide the host, few enough to stop soon."""

FINITE = ("loss", "gradient_norm", "parameter_norm")
"""Metrics that say, in this order of cause and effect, whether a state is worth keeping."""

COUNTED = ("replicas_dropped", "clients_dropped", "examples_dropped", "members_frozen")
"""Metrics that count, since the run began, what it went on without: a line tells when one grows."""

State = Any


def train(
    step_function: Callable[[State, Any], tuple[State, Any]],
    state: State,
    feed: Iterator[Any],
    run: RunConfig,
    *,
    start: int,
    journal: "Journal",
    evaluate: Callable[[State], dict[str, float]],
    observe: Callable[[int, State], dict[str, Any]] = lambda step, state: {},
    complaint: Callable[[dict[str, float]], str | None] = lambda values: None,
    checkpoints: Checkpoints,
    snapshots: Snapshots | None = None,
    progress: ProgressReport,
    stop: StopRequest,
    indexes: Callable[[int], np.ndarray],
    folder: Path,
) -> tuple[State, int]:
    """Runs `step_function` on the batches of `feed` from step `start` to `run.steps`.

    Returns the last state and the number of updates it has had: fewer than `run.steps` after a
    request to stop. Either way that state is saved. `observe(step, state)` gives what is measured
    only where it is logged, after that many updates. `complaint` says of a step's metrics why the
    run cannot go on, if so. `indexes(step)` names the examples of the batch of a step (from 0) if
    its loss is not finite. `snapshots` are taken where a supervisor may have to go on from them.

    Raises RunError for a complaint and a disk that is full, Diverged for a loss that is not finite.
    """
    last = start
    pending: deque[tuple[int, Any]] = deque()
    lost: dict[str, float] = {}
    pace = Pace()
    for step in range(start + 1, run.steps + 1):
        with pace.loading():
            batch = next(feed)
        state, metrics = step_function(state, batch)
        evaluating = step == run.steps or _due(step, run.evaluate_every)
        logging = evaluating or step == 1 or _due(step, run.log_every)
        pending.append((step, metrics | observe(step, state) if logging else metrics))
        last = step
        stopping = stop.reached(step)
        remembering = snapshots is not None and (snapshots.due(step) or stopping)
        growing = remembering and stop.signal_name == GROWTH  # memory is enough
        saving = step == run.steps or (stopping and not growing) or _due(step, run.checkpoint_every)

        while len(pending) > (0 if evaluating or saving or remembering else IN_FLIGHT):
            done, its_metrics = pending.popleft()
            values = {name: float(v) for name, v in jax.device_get(its_metrics).items()}
            if (reason := complaint(values)) is not None:
                raise RunError(f"step {done}: {reason}; {_saved(checkpoints)}")
            if not all(math.isfinite(values[name]) for name in FINITE):
                raise _not_finite(done, values, indexes(done - 1), checkpoints, folder)
            for name in COUNTED:
                if values.get(name, 0) > lost.get(name, values.get(name, 0) if start else 0):
                    what = name.replace("_", " ")
                    progress.line(f"warning: step {done}: {what}: {values[name]:.0f} so far")
                lost[name] = values.get(name, 0)
            progress.advance(done)
            beat(done)
            logged = (done == step and evaluating) or done == 1 or _due(done, run.log_every)
            if logged:
                paces, slow = pace.measure()
                values |= paces
                if slow is not None:
                    progress.line(f"warning: step {done}: {slow}")
            if done == step and evaluating:
                record = journal.measure(done, values)
                with journal.paused():
                    phase("evaluating")
                    record |= {f"validation_{n}": v for n, v in evaluate(state).items()}
                    phase("training")
                journal.write(record)
            elif logged:
                journal.write(journal.measure(done, values))

        if saving:
            phase("saving")
            checkpoints.save(step, state)
            phase("training")
        if remembering:
            assert snapshots is not None
            snapshots.save(step, state, lambda line: progress.line(f"warning: {line}"))
        if stopping:
            break
    return state, last


class Journal:
    """Measures the speed between logged steps and hands every record to the trackers."""

    def __init__(
        self, trackers: list[Tracker], unit: str, per_step: int, start: int, seconds: float
    ):
        """`per_step` units (tokens or examples) a step; the run has had `start` steps in
        `seconds`."""
        self._trackers = trackers
        self._unit, self._per_step = unit, per_step
        self._step = start
        self._before = seconds
        self._began = self._mark = time.perf_counter()
        self._pauses = 0.0

    def measure(self, step: int, values: dict[str, float]) -> Record:
        """The record of `step`: its metrics, the run's seconds so far, and the speed since the last
        record, evaluations not counted."""
        now = time.perf_counter()
        busy = max(now - self._mark - self._pauses, 1e-9)
        rate = self._per_step * (step - self._step) / busy
        self._step, self._mark, self._pauses = step, now, 0.0
        seconds = self._before + now - self._began
        return {
            "step": step,
            **values,
            "seconds": round(seconds, 4),
            f"{self._unit}_per_second": rate,
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count in the speed."""
        began = time.perf_counter()
        yield
        self._pauses += time.perf_counter() - began

    def write(self, record: Record) -> None:
        for tracker in self._trackers:
            tracker.log(record)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _not_finite(
    step: int, values: dict[str, float], indexes: np.ndarray, checkpoints: Checkpoints, folder: Path
) -> Diverged:
    """The error that names the step, the examples of its batch, and the way back."""
    bad = next(name for name in FINITE if not math.isfinite(values[name]))
    listed = folder / "not_finite.json"
    if is_first():
        listed.write_text(json.dumps({"step": step, "examples": indexes.tolist(), **values}) + "\n")
    few = ", ".join(map(str, indexes[:8])) + (", ..." if len(indexes) > 8 else "")
    return Diverged(
        f"{bad.replace('_', ' ')} is {values[bad]} at step {step}, on the batch of examples {few} "
        f"(all in {listed}); {_saved(checkpoints)}: lower the learning rate or look at the "
        f"examples, then `research resume {folder}`"
    )


def _saved(checkpoints: Checkpoints) -> str:
    good = checkpoints.latest()
    if good is None:
        return "no checkpoint was saved before it"
    return f"the last good checkpoint is {good}"
