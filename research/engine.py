"""Runs whose workers are processes: `research launch --engine ray -- train CONFIG`.

This process prints, holds the folder's lock, and starts all others (`research.deployment.actors`);
`research.serving` and `research.working` are what they run.
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from research.deployment.actors.ray_engine import Engine, Options, imported
from research.errors import Preempted, RunError, UserError
from research.experiment import Experiment
from research.parallel.saying import say
from research.parallel.stopping import StopRequest
from research.serving import Serving
from research.training.folder import RunFolder, new_place
from research.training.progress import ProgressReport
from research.working import Working

REAL = ("plain", "staleness_aware", "dc_asgd", "hogwild", "easgd", "buffered", "diloco")
"""Rules whose workers may be processes."""


def check_real(experiment: Experiment) -> None:
    """Raises UserError for an experiment that has no workers, or is not of one process each."""
    asynchronous, mesh = experiment.asynchronous, experiment.mesh
    if asynchronous.rule not in REAL:
        raise UserError(
            f"--engine ray runs workers around a server, and --asynchronous.rule is "
            f"{asynchronous.rule}: use {', '.join(REAL)}"
        )
    if mesh.replica > 1:
        raise UserError(
            f"--mesh.replica {mesh.replica} splits workers of virtual time, and with --engine ray "
            "each has a process and a mesh of its own: use --mesh.replica 1"
        )
    if experiment.privacy.unit != "none" or experiment.run.initialize_from is not None:
        raise UserError(
            "--engine ray has neither --privacy.* nor --run.initialize-from yet: train without it"
        )


def train(experiment: Experiment, name: str, options: Options, devices: int | None) -> Path:
    """As `research.runs.train`, by workers that are processes with so many virtual `devices`."""
    check_real(experiment)
    imported()
    directory = experiment.run.directory or new_place(name)
    experiment = replace(experiment, run=replace(experiment.run, directory=directory))
    folder = RunFolder(Path(directory))
    say(f"run folder: {folder.path}")
    folder.create()
    with folder.locked():
        try:
            _run(experiment, folder, options, devices)
        finally:
            if not (folder.path / "config.json").exists():
                folder.leave_no_trace()
    say(f"run folder: {folder.path}")
    return folder.path


def resume(
    path: Path,
    change: Callable[[Experiment], Experiment],
    options: Options,
    devices: int | None,
) -> Path:
    """As `research.runs.resume`, by workers that are processes."""
    folder = RunFolder.existing(path)
    imported()
    say(f"run folder: {folder.path}")
    with folder.locked():
        before = Experiment.from_json(folder.read("config"))
        experiment = change(before)
        experiment.check()
        check_real(experiment)
        if experiment != before:
            folder.write("config", experiment.to_json())
        _run(experiment, folder, options, devices)
    say(f"run folder: {folder.path}")
    return folder.path


def _run(experiment: Experiment, folder: RunFolder, options: Options, devices: int | None) -> None:
    options = replace(options, workers=experiment.asynchronous.workers)
    content, path = experiment.to_json(), str(folder.path.absolute())
    # One process may use an accelerator, if Ray gave it one; whoever knows better says so.
    named = os.environ.get("JAX_PLATFORMS")
    of_worker = named or ("cuda,cpu" if options.gpus else "cpu")
    steps = experiment.run.steps
    with contextlib.ExitStack() as stack:
        shown = _Shown(steps, stack)
        engine = Engine(
            options,
            partial(Serving, content, path, "cpu" if options.gpus else named or "cpu", devices),
            lambda number: partial(Working, content, number, of_worker, devices),
            shown.line,
        )
        stack.callback(engine.close)
        stop = stack.enter_context(StopRequest())  # after Ray, which takes SIGTERM for itself
        told = engine.run(shown.look, lambda: stop.reached(0))
        shown.look(told)
        if told["failed"] is not None:
            message, status = told["failed"]
            raise (UserError if status == 2 else RunError)(message)
        if told["first"] >= steps:
            shown.line(f"already at step {steps}: --run.steps sets a later end")
            return
        shown.line(_summary(told, engine, shown.restarts))
        if told["step"] < steps:
            shown.line(
                f"{stop.signal_name or 'stopped'}: saved at step {told['step']} of {steps}; go on "
                f"with `research launch --engine ray -- resume {folder.path}`"
            )
    if told["step"] < steps and Preempted.wanted():
        raise Preempted


def _summary(told: dict[str, Any], engine: Engine, restarts: int) -> str:
    """The run's last line: what was lost, and what came twice or too late."""
    seen = told["observed"]
    facts = [
        f"{told['taken']} pushes",
        f"mean staleness {seen['staleness_mean']:.2f}",
        f"{seen['pushes_refused']} too stale",
        f"{seen['pushes_duplicate']} came twice",
        f"{engine.lost} workers lost",
    ]
    if engine.left_out:
        facts.append(f"left out: {', '.join(map(str, sorted(engine.left_out)))}")
    if restarts:
        facts.append(f"the server died {restarts} time{'s' if restarts > 1 else ''}")
    return "; ".join(facts)


class _Shown:
    """What the server tells, on the terminal, once each."""

    def __init__(self, steps: int, stack: contextlib.ExitStack):
        self._steps, self._stack = steps, stack
        self._progress: ProgressReport | None = None
        self._epoch, self._step = 0, -1
        self.restarts = 0

    def line(self, text: str) -> None:
        if self._progress is None:
            say(text)
        else:
            self._progress.line(text)

    def look(self, told: dict[str, Any]) -> None:
        if "step" not in told:
            return
        if self._progress is None:
            say(told["introduction"])
            self._progress = self._stack.enter_context(
                ProgressReport(told["first"], self._steps, told["unit"])
            )
            self._epoch, self._step = told["epoch"], told["first"]
        elif told["epoch"] != self._epoch:
            self.restarts += 1
            self.line(f"warning: the server died, and goes on from step {told['first']}")
            self._epoch, self._step = told["epoch"], told["first"]
        for record in told["records"]:
            if record["step"] > self._step:
                self._step = int(record["step"])
                self._progress.log(record)
        self._progress.advance(told["step"])
