"""Real processes, killed and stopped in the middle: the run goes on, and every step counts once."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from research.deployment.actors import Lease, Worker, method_of
from research.experiment import Experiment
from research.parallel.mesh import MeshConfig
from research.prepared import Prepared
from research.runs import resume
from research.trained import evaluate
from research.training.checkpoints import Checkpoints

pytest.importorskip("ray", reason="Ray is not installed: make setup EXTRA=ray")

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=LinearConfig(),
    data=ImagesConfig(name="digits", batch=16),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, clip=None),
    asynchronous=AsynchronousConfig(rule="dc_asgd", workers=3),
    run=RunConfig(steps=600, log_every=50, checkpoint_every=100, tensorboard=False),
)
"""
QUICK = ("--return-seconds", 1, "--hang-seconds", 4)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


def pushes(folder: Path) -> list[dict[str, Any]]:
    path = folder / "pushes.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def actors(of: int, title: str) -> list[int]:
    """The processes that `of` started, or what it started did, whose title begins so."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text()
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode().strip("\0")
        except (OSError, ValueError):
            continue

    def is_below(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == of:
                return True
        return False

    return [p for p, name in titles.items() if name.startswith(title) and is_below(p)]


def assert_all_steps_once(folder: Path, steps: int) -> None:
    made = pushes(folder)
    assert [line["step"] for line in made] == list(range(1, steps + 1))
    assert sorted(step for line in made for step in line["steps"]) == list(range(steps))
    numbers = [(line["epoch"], line["worker"], line["sequence"]) for line in made]
    assert len(set(numbers)) == steps


def assert_is_what_was_pushed(folder: Path) -> None:
    """The last checkpoint is what a server makes of the pushes of the log, one after another: each
    of a gradient at the parameters of so many updates before as its staleness says."""
    experiment = Experiment.from_json(json.loads((folder / "config.json").read_text()))
    prepared = Prepared(experiment, MeshConfig(data=1).build(jax.devices()[:1]))  # as they had
    learner: Any = prepared.learner

    def batch(step: int) -> Any:
        return prepared.rows.place(prepared.batches.rows(step, prepared.rows.own))

    with jax.set_mesh(prepared.mesh):
        worker, method = Worker(learner, batch), method_of(learner, learner.init())
        history = [method.parameters]
        for line in pushes(folder):
            late, steps = line["staleness"], tuple(line["steps"])
            lease = Lease(1, 1, steps, 0, 0.0, history[-1 - late], method.buffers)
            method.take(line["worker"], lease, worker.work(lease), late)
            history.append(method.parameters)
        checkpoints = Checkpoints(folder / "checkpoints")
        step, state = checkpoints.restore(learner.abstract_state)
        checkpoints.close()
    assert step == len(history) - 1
    pairs = zip(*map(jax.tree.leaves, (state.parameters, history[-1])), strict=True)
    for there, here in pairs:
        np.testing.assert_array_equal(there, here)


@pytest.mark.distributed
def test_killed_and_hung_workers_do_not_stop_the_others(
    small: Path, tmp_path: Path, research: Any, until: Any, metrics: Any
) -> None:
    folder = tmp_path / "run"
    words = ("--", "train", small, "--run.directory", folder)
    run = research.start("launch", "--engine", "ray", *QUICK, *words)
    until(lambda: len({line["worker"] for line in pushes(folder)}) == 3, run)
    killed, stopped, _ = actors(run.pid, "ray::Host.work")
    os.kill(killed, signal.SIGKILL)
    os.kill(stopped, signal.SIGSTOP)
    before = len(pushes(folder))
    until(lambda: len(pushes(folder)) > before + 20, run)  # by the third
    done = research.end(run)
    assert_all_steps_once(folder, 600)
    assert_is_what_was_pushed(folder)
    assert "died: another one takes its place" in done.stdout
    assert "hung: another one takes its place" in done.stdout
    lost = metrics(folder)[-1]["workers_lost"]
    assert lost >= 2 and f"{lost} workers lost" in done.stdout  # a slow machine may lose more
    assert not Path(f"/proc/{stopped}").exists()
    last = metrics(folder)[-1]
    assert last["validation_accuracy"] > 0.8
    assert last["bytes_sent_total"] > 2 * 600 * 4 * 650  # 64 · 10 + 10 numbers, up and down
    # What is left is a run as any other.
    assert evaluate(folder)["step"] == 600
    resume(folder, lambda e: replace(e, run=replace(e.run, steps=603)))
    assert metrics(folder)[-1]["step"] == 603


@pytest.mark.distributed
def test_a_killed_server_is_restored_and_nothing_counts_twice(
    small: Path, tmp_path: Path, research: Any, until: Any, metrics: Any
) -> None:
    folder = tmp_path / "run"
    words = ("--", "train", small, "--run.directory", folder, "--asynchronous.workers", 2)
    run = research.start("launch", "--engine", "ray", *QUICK, *words)
    until(lambda: len(pushes(folder)) > 210, run)
    [server] = set(actors(run.pid, "ray::Host")) - set(actors(run.pid, "ray::Host.work"))
    os.kill(server, signal.SIGKILL)
    until(lambda: pushes(folder)[-1]["epoch"] == 2, run)
    run.send_signal(signal.SIGTERM)  # and before the end it is told to stop
    done = research.end(run)
    assert "SIGTERM: saved at step" in done.stdout
    assert "the server died, and goes on from step" in done.stdout
    assert "the server died 1 time" in done.stdout
    made = pushes(folder)
    restored = next(line["step"] for line in made if line["epoch"] == 2) - 1
    assert restored in (100, 200, 300, 400) and f"goes on from step {restored}" in done.stdout
    assert [line["step"] for line in made] == list(range(1, len(made) + 1))
    assert len({step for line in made for step in line["steps"]}) == len(made)
    assert_is_what_was_pushed(folder)
    steps = [record["step"] for record in metrics(folder)]
    assert steps == sorted(set(steps))


@pytest.mark.long
@pytest.mark.distributed
def test_a_launch_that_was_killed_is_resumed_by_processes(
    small: Path, tmp_path: Path, research: Any, until: Any
) -> None:
    """DiLoCo with a quorum of 2 of 3, whose launcher is killed, and all that it started with it."""
    folder = tmp_path / "run"
    words = ("--run.directory", folder, "--asynchronous.rule", "diloco", "--run.steps", 3000)
    run = research.start("launch", "--engine", "ray", *QUICK, "--", "train", small, *words)
    until(lambda: len(pushes(folder)) > 20, run)
    started = actors(run.pid, "ray::Host")
    run.kill()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in started))
    research("launch", "--engine", "ray", *QUICK, "--", "resume", folder, "--run.steps", 1200)
    made = pushes(folder)
    assert [line["step"] for line in made] == list(range(10, 1201, 10))
    assert sorted(step for line in made for step in line["steps"]) == list(range(1200))
    assert made[0]["epoch"] == 1 and made[-1]["epoch"] == 2
    assert evaluate(folder)["step"] == 1200
