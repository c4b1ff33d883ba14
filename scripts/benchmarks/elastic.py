"""What failures cost an elastic run, and what being ready for them costs when there are none.

    python scripts/benchmarks/elastic.py --kills 20      from kill -9 of one of 4 to the next step
    python scripts/benchmarks/elastic.py --overhead      snapshots and beats, in shares of a step

The first trains `configs/python_stdlib.py`, or another `--config`, in 4 processes of one device,
and kills each rank in turn. Times are those of `generations.jsonl`: from the kill as the supervisor
saw it to the first step that is done again.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "python_stdlib.py"
PROCESSES = 4
SMALL = [
    *("--mesh.data", "-1", "--mesh.fsdp", "1", "--mesh.tensor", "1"),
    *("--run.log-every", "1", "--run.sample-tokens", "0", "--run.checkpoint-every", "1000"),
]


def main() -> None:
    """One of both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--overhead", action="store_true")
    options = parser.parse_args()
    if options.overhead:
        overhead()
    else:
        recoveries(options.kills, options.config)


def recoveries(kills: int, config: Path) -> None:
    """Median and worst seconds of so many kills, and the steps that were done again."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        words = ["--processes", str(PROCESSES), "--elastic", f"2:{PROCESSES}"]
        words += ["--return-seconds", "0", "--", "train", str(config), "--cpu-devices", "1"]
        words += ["--run.directory", str(folder), "--run.steps", "100000", *SMALL]
        launch = subprocess.Popen(
            [sys.executable, "-m", "research", "launch", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        try:
            for kill in range(kills + 1):
                last = wait_for_steps(folder, kill + 1, 12)
                if kill < kills:
                    os.kill(last["pids"][str(kill % PROCESSES)], signal.SIGKILL)
            launch.send_signal(signal.SIGTERM)
            launch.wait()
        finally:
            launch.kill()
        known = generations(folder)
    times = [g["recovery"] for g in known[1:]]
    again = [g["lost"] for g in known[1:]]
    print(
        f"{len(times)} kills of one of {PROCESSES} processes: {statistics.median(times):.1f} s to "
        f"the next step in the median, {min(times):.1f} to {max(times):.1f} s; "
        f"{statistics.median(again):.0f} steps done again in the median, {max(again)} at most; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def generations(folder: Path) -> list[dict[str, Any]]:
    """What the run folder says of them."""
    path = folder / "generations.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_steps(folder: Path, generation: int, steps: int) -> dict[str, Any]:
    """The generation, once it has logged so many steps of its own."""
    begun = None
    while True:
        time.sleep(0.05)
        known = generations(folder)
        metrics = folder / "metrics.jsonl"
        if len(known) < generation or not known[-1]["pids"] or not metrics.exists():
            continue
        done = len(metrics.read_text().splitlines())
        begun = done if begun is None or done < begun else begun
        if done >= begun + steps:
            return known[-1]


def overhead() -> None:
    """Seconds of a snapshot and of a beat beside those of the step, in one process."""
    import jax

    from research.experiment import Experiment
    from research.parallel import processes, supervision
    from research.prepared import Prepared
    from research.training.snapshots import Snapshots

    processes.initialize(1)
    experiment = Experiment.load(CONFIG)
    from dataclasses import replace

    from research.parallel.mesh import MeshConfig

    prepared = Prepared(replace(experiment, mesh=MeshConfig()))
    with jax.set_mesh(prepared.mesh), tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        state = prepared.learner.init()
        step, feed = prepared.compile(), prepared.feed(0)
        snapshots = Snapshots(Path(place), "benchmark", 10)
        supervision._beats = os.open(os.devnull, os.O_WRONLY)
        supervision.EVERY_SECONDS = 0.0
        steps: list[float] = []
        saves: list[float] = []
        beats: list[float] = []
        for number in range(1, 121):
            began = time.perf_counter()
            state, metrics = step(state, next(feed))
            jax.block_until_ready((state, metrics))
            steps.append(time.perf_counter() - began)
            if number % 10 == 0:
                began = time.perf_counter()
                snapshots.save(number, state)
                saves.append(time.perf_counter() - began)
            began = time.perf_counter()
            supervision.beat(number)
            beats.append(time.perf_counter() - began)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    one, save, beat = (statistics.median(times[3:]) for times in (steps, saves, beats))
    share = (save / 10 + beat) / one
    print(
        f"a step {1000 * one:.1f} ms, a snapshot of {size / 1e6:.1f} MB {1000 * save:.2f} ms, a "
        f"beat {1e6 * beat:.0f} µs: with one snapshot in 10 steps {100 * share:.2f} % of the step; "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
