"""What one worker that is four times as slow costs, by real processes: synchronous steps, a
parameter server, DiLoCo with a quorum.

    python scripts/benchmarks/slow_worker.py --rounds 3        needs Ray: make setup EXTRA=ray

Four processes learn digits by an MLP of 0.46 M parameters, with 256 examples a gradient. One of
them is stopped and let go in turn (SIGSTOP, SIGCONT) so that it runs a quarter of the time; nobody
is told. Counted are gradients a second, from when all four take part to the end. The ways follow
one another in every round, without and with the slow one.
"""

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WORKERS, BATCH = 4, 256
PERIOD = 0.2
"""Seconds of a turn of the slow process, of which it runs a quarter."""

CONFIG = """
from research.experiment import *

experiment = Experiment(
    model=MLPConfig(widths=(640, 640)),
    data=ImagesConfig(name="digits", batch={batch}),
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, schedule="constant", clip=None),
    run=RunConfig(checkpoint_every=0, log_every=5, tensorboard=False),
)
"""
GRADIENTS = 600
ASYNCHRONOUS = ["--engine", "ray", "--", "train", "CONFIG", "--run.steps", str(GRADIENTS)]
WAYS = {
    "every_step": [
        *("--processes", str(WORKERS), "--", "train", "CONFIG", "--cpu-devices", "1"),
        *("--exchange.rule", "every_step", "--mesh.replica", str(WORKERS)),
        *("--data.batch", str(WORKERS * BATCH), "--run.steps", str(GRADIENTS // WORKERS)),
    ],
    "plain": [*ASYNCHRONOUS, "--asynchronous.rule", "plain"],
    "diloco, quorum 3": [*ASYNCHRONOUS, "--asynchronous.rule", "diloco"],
}


def main() -> None:
    """Prints a line for every way, and writes what was measured to `--output` as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a smoke test: one round")
    parser.add_argument("--output", type=Path, help="result file (JSON; default: none)")
    options = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        print("Ray is not installed: make setup EXTRA=ray")
        return
    if options.quick:
        options.rounds = 1
    measured: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for way in WAYS:
            for slow in (False, True):
                rate = gradients_a_second(way, slow)
                name = f"{way}{', one slow' if slow else ''}"
                measured.setdefault(name, []).append(rate)
                print(f"round {number + 1}: {name}: {rate:.1f} gradients/s", flush=True)
    load = os.getloadavg()[0]
    for way in WAYS:
        even, slow = measured[way], measured[f"{way}, one slow"]
        kept = [b / a for a, b in zip(even, slow, strict=True)]
        print(
            f"{way}: {statistics.median(even):.1f} gradients/s ({min(even):.1f} to "
            f"{max(even):.1f}), with one slow {statistics.median(slow):.1f} ({min(slow):.1f} to "
            f"{max(slow):.1f}): {statistics.median(kept):.0%} kept ({min(kept):.0%} to "
            f"{max(kept):.0%})"
        )
    print(f"load {load:.1f} on {os.cpu_count()} cores")
    if options.output is not None:
        content = {"gradients_per_second": measured, "load": load, "cores": os.cpu_count()}
        options.output.write_text(json.dumps(content, indent=1) + "\n")


def gradients_a_second(way: str, slow: bool) -> float:
    """Of one run."""
    with tempfile.TemporaryDirectory() as place:
        config, folder = Path(place) / "digits.py", Path(place) / "run"
        config.write_text(CONFIG.format(batch=BATCH))
        words = [str(config) if word == "CONFIG" else word for word in WAYS[way]]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        # A worker has one core at most, as it would have one accelerator.
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        launch = subprocess.Popen(
            [sys.executable, "-m", "research", "launch", *words, "--run.directory", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        over = threading.Event()
        try:
            synchronous = way == "every_step"
            first = all_there(folder, synchronous, launch)
            if slow:
                process = last_of(launch.pid, synchronous)
                threading.Thread(target=slowed, args=(process, over), daemon=True).start()
            if launch.wait() != 0:
                raise SystemExit(f"{way} ended with status {launch.returncode}")
        finally:
            over.set()
            launch.kill()
        lines = told(folder, synchronous)
    done = [line for line in lines if line["step"] > first]
    gradients = (done[-1]["step"] - done[0]["step"]) * (WORKERS if synchronous else 1)
    return gradients / (done[-1]["seconds"] - done[0]["seconds"])


def told(folder: Path, synchronous: bool) -> list[dict[str, Any]]:
    """Steps and seconds, as the run wrote them down."""
    path = folder / ("metrics.jsonl" if synchronous else "pushes.jsonl")
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def all_there(folder: Path, synchronous: bool, launch: Any) -> int:
    """The step from which all workers take part."""
    while launch.poll() is None:
        lines = told(folder, synchronous)
        if lines and (synchronous or len({line["worker"] for line in lines}) == WORKERS):
            return int(lines[-1]["step"])
        time.sleep(0.05)
    raise SystemExit(f"the run ended with status {launch.returncode} before all took part")


def last_of(launcher: int, synchronous: bool) -> int:
    """The process of one worker, not the first."""
    below = descendants(launcher)
    for process in reversed(below):
        try:
            title = Path(f"/proc/{process}/cmdline").read_bytes().decode()
            environment = Path(f"/proc/{process}/environ").read_bytes().decode()
        except OSError:
            continue
        last = f"RESEARCH_PROCESS={WORKERS - 1}" in environment.split("\0")
        if last if synchronous else title.startswith("ray::Host.work"):
            return process
    raise SystemExit("no worker was found")


def descendants(of: int) -> list[int]:
    """What a process started, and what that did."""
    made: list[int] = []
    for path in Path(f"/proc/{of}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            made += [child, *descendants(child)]
    return made


def slowed(process: int, over: threading.Event) -> None:
    """Lets `process` run a quarter of the time."""
    try:
        while not over.is_set():
            os.kill(process, signal.SIGSTOP)
            time.sleep(0.75 * PERIOD)
            os.kill(process, signal.SIGCONT)
            time.sleep(0.25 * PERIOD)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    main()
