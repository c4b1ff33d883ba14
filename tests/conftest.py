"""What all tests share: 8 virtual devices in this process, and the command in processes of its own.

Here the platform is the CPU unless JAX_PLATFORMS says otherwise: with `JAX_PLATFORMS=cuda,cpu` what
asks for no device in particular runs on the GPU, and the laws on virtual devices as ever.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script, where Ctrl-C is ignored: what the tests start would
    # inherit that, and some of it is there to be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax

from research.data import cache_folder

ROOT = Path(__file__).parents[1]

jax.config.update("jax_num_cpu_devices", 8)
# Compiled programs are kept from one run of the tests to the next, and shared with the commands
# that tests start. Tests compile hundreds of small ones.
jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Nor is an example too slow because the machine has other work.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=TransformerConfig(layers=2, width=32, heads=4),
    data=TextConfig(source={text!r}, vocabulary="character", context=16, batch=8),
    optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant"),
    run=RunConfig(
        steps=12, log_every=1, checkpoint_every=3, evaluate_batches=2, sample_tokens=0,
        tensorboard=False
    ),
)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a language model of 30,000 parameters on this project's license."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(text=str(ROOT / "LICENSE")))
    return path


class Research:
    """The `research` command, as a user starts it: each time a process of its own."""

    def __init__(self) -> None:
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        # Every command would compile its thousand modules anew.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.environment.pop("XLA_FLAGS", None)
        if "PYTHONDONTWRITEBYTECODE" in os.environ:
            self.environment.setdefault("PYTHONPYCACHEPREFIX", str(cache_folder() / "bytecode"))
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: object, prefix: tuple[str, ...] = (), **environment: str) -> Any:
        """Starts the command; `prefix` goes before Python, keywords are environment variables."""
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "research", *map(str, words)],
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def __call__(
        self, *words: object, status: int = 0, prefix: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the command to its end, which must be `status`."""
        return self.end(self.start(*words, prefix=prefix, **environment), status)

    def end(self, process: Any, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Waits for a started command, which must end with `status`."""
        output, errors = process.communicate(timeout=300)
        assert process.returncode == status, f"status {process.returncode}\n{output}\n{errors}"
        return subprocess.CompletedProcess(process.args, status, output, errors)


@pytest.fixture
def research() -> Iterator[Research]:
    """The command; what a test leaves running is ended."""
    command = Research()
    yield command
    for process in command.started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def until() -> Callable[..., Any]:
    """Waits for a condition: `until(lambda: ..., process)`; fails if the process ends before it."""

    def wait(condition: Callable[[], Any], process: Any = None, seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            if process is not None and process.poll() is not None:
                pytest.fail(f"ended with {process.returncode}: {process.communicate()}")
            assert time.monotonic() < deadline, f"waited {seconds} s"
            time.sleep(0.002)
        return value

    return wait


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; a line that is still being written is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    return read_metrics


@pytest.fixture
def resumed(tmp_path: Path, research: "Research", until: Any) -> Callable[..., tuple[Path, Path]]:
    """`resumed(config, *words)`: the folders of a run that was killed after some steps and resumed
    on 4 devices, and of the same run that nothing happened to."""

    def run(config: Path, *words: Any) -> tuple[Path, Path]:
        whole, folder = tmp_path / "whole", tmp_path / "run"
        research("train", config, *words, "--run.directory", whole)
        process = research.start("train", config, *words, "--run.directory", folder)
        until(lambda: read_metrics(folder)[3:], process)
        process.kill()
        process.wait()
        research("resume", folder, "--cpu-devices", 4)
        return folder, whole

    return run


@pytest.fixture
def losses() -> Callable[[Path], dict[int, float]]:
    """The loss of every step of a run that logs each step; the order and number of lines is
    checked."""

    def read(folder: Path) -> dict[int, float]:
        records = read_metrics(folder)
        steps = [record["step"] for record in records]
        assert steps == list(range(1, len(steps) + 1))
        return {record["step"]: record["loss"] for record in records}

    return read


@pytest.fixture
def mistake(research: Research, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command on 8 devices and returns its one-line complaint.

    `mistake("train", config, "--run.steps", "x", status=2)`; asserts the exit status, that nothing
    but the sentence went to stderr, and that it is no traceback. In this process, which saves the
    seconds of a start, where this process has the 8 devices.
    """
    from research.cli import main

    def run(*words: object, status: int = 2) -> str:
        if len(jax.devices()) != 8:
            return one_error(research(*words, "--cpu-devices", 8, status=status).stderr)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        assert end.value.code == status
        return one_error(capfd.readouterr().err)

    return run


@pytest.fixture
def error_of() -> Callable[[Any], str]:
    """The one-line complaint of a command that ended."""
    return lambda done: one_error(done.stderr)


def one_error(errors: str) -> str:
    """The single sentence that stderr holds, without its `error: `."""
    assert "Traceback" not in errors
    # Notices that XLA's C++ writes about the machine are not ours.
    lines = [
        line for line in errors.splitlines() if not re.match(r"[WIE]\d{4} |WARNING: All log", line)
    ]
    assert len(lines) == 1 and lines[0].startswith("error: "), errors
    return lines[0].removeprefix("error: ")
