"""How long one waits: from the command to the first training step, and for `research --help`.

    python scripts/benchmarks/startup.py [--repeats 5] [--quick]

`research train configs/python_stdlib.py --cpu-devices 8`, with an empty compilation cache and with
the one that this left, until the first step is logged. Goals on two cores: 20 s, 8 s, and 0.5 s for
the help. Then the same road is walked piece by piece in a process of its own, to say where the time
goes. About two minutes.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import REPOSITORY, results
from harness.workers import Worker, serve

GOALS = {"cold": 20.0, "warm": 8.0, "help": 0.5}
CONFIG = "configs/python_stdlib.py"
DEVICES = 8
MILESTONES = {"run folder:": "imports", "Transformer": "introduction", "step 1/": "first step"}


def main() -> None:
    """Measures, prints where the time goes and writes the result."""
    parser = results.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="starts of either kind (3)")
    parser.add_argument("--pieces", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pieces:
        serve({"walk": walk})
        return
    repeats = 1 if options.quick else options.repeats
    before = results.provenance()

    helps = [seconds_of_help() for _ in range(max(2 * repeats, 3))]
    starts: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            starts["cold"].append(start(cache))
            starts["warm"].append(start(cache))
    pieces = {}
    with tempfile.TemporaryDirectory() as cache:
        for kind in ("cold", "warm"):
            environment = {"RESEARCH_CACHE": cache}
            with Worker("pieces", "startup", ["--pieces"], environment=environment) as worker:
                pieces[kind] = worker.call("walk")

    names = list(pieces["cold"])
    rows = [[name, *(f"{pieces[kind][name]:.2f}" for kind in pieces)] for name in names]
    rows.append(["sum", *(f"{sum(pieces[kind].values()):.2f}" for kind in pieces)])
    results.table(["seconds, piece by piece", "cold", "warm"], rows)
    seconds = {
        "help": results.statistics_of(helps),
        **{
            kind: {
                milestone: results.statistics_of([one[milestone] for one in runs])
                for milestone in MILESTONES.values()
            }
            for kind, runs in starts.items()
        },
    }
    for kind, label in (("cold", "empty cache"), ("warm", "warm cache")):
        first = statistics.median(one["first step"] for one in starts[kind])
        print(results.goal(f"first step, {label}", first, GOALS[kind], " s"))
    print(results.goal("research --help", statistics.median(helps), GOALS["help"], " s"))
    result = {
        "benchmark": "startup",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "config": CONFIG,
        "cpu_devices": DEVICES,
        "seconds_to": seconds,
        "seconds_of_pieces": pieces,
        "goals": GOALS,
    }
    results.write("startup", result, options)


def seconds_of_help() -> float:
    """Wall seconds of `research --help`."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "research", "--help"]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    return time.perf_counter() - began


def start(cache: str) -> dict[str, float]:
    """Seconds from the command to each of its milestones; the run is ended after the last."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "research", "train", CONFIG),
            *("--cpu-devices", str(DEVICES), "--run.directory", str(Path(folder, "run"))),
        ]
        environment = {**os.environ, "RESEARCH_CACHE": cache, "PYTHONUNBUFFERED": "1"}
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds: dict[str, float] = {}
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            for beginning, milestone in MILESTONES.items():
                if line.startswith(beginning):
                    seconds.setdefault(milestone, time.perf_counter() - began)
            if "first step" in seconds:
                break
        process.kill()
        process.wait()
        process.stdout.close()
    if "first step" not in seconds:
        raise SystemExit("".join(said)[-2000:] + "\nthe run ended before its first step")
    return seconds


def walk() -> dict[str, float]:
    """Seconds of every piece of the road from imports to the first step, in its order."""
    pieces: dict[str, float] = {}

    @contextlib.contextmanager
    def piece(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        pieces[name] = time.perf_counter() - began

    os.chdir(REPOSITORY)
    with piece("import jax"):
        import jax
    with piece("import flax, optax"):
        import optax  # noqa: F401
    with piece("import orbax"):
        import orbax.checkpoint  # noqa: F401
    with piece("import research"):
        from research import runs  # noqa: F401 - all that `research train` imports
        from research.experiment import Experiment
        from research.parallel import processes
        from research.prepared import Prepared
    with piece("config"):
        experiment = Experiment.load(Path(CONFIG))
    with piece("devices"):
        processes.initialize(DEVICES)
        jax.devices()
    with piece("data"):
        experiment.data.load()
    with piece("data again, mesh, shapes"):
        prepared = Prepared(experiment)
    state: Any
    with jax.set_mesh(prepared.mesh):
        with piece("initial state"):
            state = jax.block_until_ready(prepared.learner.init())
        with piece("step, compiled"):
            step = prepared.compile()
    with piece("first batch, import grain"):
        batch = next(prepared.feed(0))
    with piece("first step"):
        jax.block_until_ready(step(state, batch))
    return pieces


if __name__ == "__main__":
    main()
