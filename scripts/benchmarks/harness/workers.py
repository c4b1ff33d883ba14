"""Contestants as processes that are measured in turns.

A worker is a process that reads calls from its standard input, one line of JSON each, and answers
each with one line. All contestants are alive at once and run in short blocks, one after another:
whatever else the machine does, and its clock rate, falls on all of them alike. What is compared are
the medians of blocks of one round, which ran within seconds of each other.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from harness import BENCHMARKS, REPOSITORY


class Worker:
    """A process that runs `python -m module *arguments`, confined to `cpus`.

    Raises SystemExit, with the end of what it said, if the worker ends early.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        cpus: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        python: str = sys.executable,
    ):
        self.name = name
        paths = [str(BENCHMARKS), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **thread_environment(len(cpus)),
                **(environment or {}),
            },
            preexec_fn=(lambda: confine(cpus)) if cpus else None,
        )

    def call(self, function: str, **arguments: Any) -> Any:
        """What the worker's `function` returns."""
        self.begin(function, **arguments)
        return self.answer()

    def begin(self, function: str, **arguments: Any) -> None:
        """Sends a call and does not wait; `answer` waits."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([function, arguments]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail()

    def answer(self) -> Any:
        """The answer to the oldest call not yet answered."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._fail()
        return json.loads(line)

    def move(self, cpus: Sequence[int]) -> None:
        """Confines all threads of the worker to `cpus`."""
        if hasattr(os, "sched_setaffinity"):
            for thread in os.listdir(f"/proc/{self._process.pid}/task"):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cpus)

    def close(self) -> None:
        """Ends the worker."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _fail(self) -> None:
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().strip()[-3000:]
        raise SystemExit(f"{said}\n{self.name} ended with status {self._process.returncode}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve(functions: dict[str, Callable[..., Any]]) -> None:
    """Answers calls until standard input ends. What the functions print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        function, arguments = json.loads(line)
        answers.write(json.dumps(functions[function](**arguments)) + "\n")
        answers.flush()


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that make every numerical library use so many threads (0: as it likes)."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads)) if threads else {}


def confine(cpus: Sequence[int]) -> None:
    """Keeps this process, and the threads that it will start, on `cpus`."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def available_cpus() -> list[int]:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def choose_cpus(threads: int) -> list[int]:
    """The CPUs of a measurement with `threads` threads. Raises SystemExit if there are fewer."""
    cpus = available_cpus()
    if not 1 <= threads <= len(cpus):
        raise SystemExit(f"--threads {threads} cannot be: this machine has {len(cpus)} CPUs")
    return cpus[:threads]


@dataclass
class Timings:
    """Seconds a step of one contestant: one list of steps a round."""

    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    """Of all threads of the process: hardly changed by what else the machine does."""

    def add(self, wall: list[float], cpu: list[float]) -> None:
        """One round's steps."""
        self.wall.append(wall)
        self.cpu.append(cpu)


def interleave(
    contestants: dict[str, Callable[[], tuple[list[float], list[float]]]], rounds: int
) -> dict[str, Timings]:
    """Runs every contestant once a round, each round beginning with another one.

    A contestant runs one block and returns the wall and CPU seconds of its steps.
    """
    timings = {name: Timings() for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            timings[name].add(*contestants[name]())
        if sys.stderr.isatty():
            end = "\n" if turn + 1 == rounds else ""
            print(f"\rround {turn + 1} of {rounds}", end=end, file=sys.stderr, flush=True)
    return timings
