"""A run under an elastic launch, and what can befall it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(48,)),
    data=ImagesConfig(name="digits", batch=48),
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, schedule="constant"),
    run=RunConfig(
        steps=400, log_every=1, checkpoint_every=100, evaluate_batches=2, tensorboard=False
    ),
)
"""

LEFT_AFTER = 300
"""Seconds for whatever is waited for; a busy machine needs some."""


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chaos") / "small.py"
    path.write_text(CONFIG)
    return path


class Elastic:
    """A launch of three processes, of which two are enough."""

    def __init__(self, folder: Path, words: list[object], options: list[object]):
        self.folder = folder
        self.log = folder.with_suffix(".log")
        launch = ["launch", "--processes", 3, "--elastic", "2:3", *options, "--", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        environment.pop("XLA_FLAGS", None)
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "research", *map(str, launch)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def generations(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "generations.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "metrics.jsonl")

    def children(self) -> list[int]:
        """The processes that the launch has started: workers, those that stand by, services."""
        pid = self.process.pid
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for path in tasks for child in path.read_text().split()]

    def losses(self) -> list[float]:
        """Of all steps; that each is there once, in order, is checked."""
        records = self.metrics()
        assert [record["step"] for record in records] == list(range(1, len(records) + 1))
        return [record["loss"] for record in records]

    def wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + LEFT_AFTER
        while not (value := condition()):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.005)
        return value

    def reaches(self, step: int, generation: int = 1) -> dict[int, int]:
        """Waits for a step of that generation, or a later one; returns its workers' ids."""

        def there() -> Any:
            assert self.process.poll() is None, self.log.read_text()
            records = _lines(self.folder / "metrics.jsonl")
            known = self.generations()
            return (
                len(known) >= generation and records and records[-1]["step"] >= step and known[-1]
            )

        pids = self.wait(there)["pids"]
        return {int(rank): pid for rank, pid in pids.items()}

    def end(self, status: int = 0, patience: float = LEFT_AFTER) -> str:
        """Waits for its end; returns all that it printed."""
        try:
            assert self.process.wait(patience) == status, self.log.read_text()
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(self.log.read_text())
        return self.log.read_text()


@pytest.fixture
def elastic(small_config: Path, tmp_path: Path) -> Iterator[Callable[..., Elastic]]:
    """`elastic(*options, run="name")` starts one; with `resume=True` goes on with that run."""
    started: list[Elastic] = []

    def start(
        *options: object, run: str = "run", resume: bool = False, more: Sequence[object] = ()
    ) -> Elastic:
        folder = tmp_path / run
        words: list[object] = ["train", small_config, "--run.directory", folder]
        if resume:
            words = ["resume", folder]
        started.append(Elastic(folder, [*words, "--cpu-devices", 1, *more], list(options)))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
            try:
                each.process.wait(20)
            except subprocess.TimeoutExpired:
                each.process.kill()


@pytest.fixture(scope="session")
def undisturbed(small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the run that nothing befalls."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    words = ["train", small_config, "--run.directory", folder, "--cpu-devices", 1]
    run = Elastic(folder, words, ["--no-standby"])
    assert "1 generation, no step was lost" in run.end()
    return run.losses()


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
