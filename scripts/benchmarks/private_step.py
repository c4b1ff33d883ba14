"""A step of DP-SGD beside the plain step, and beside Opacus: the MNIST CNN, 256 examples.

    python scripts/benchmarks/private_step.py --peers-python /path/to/python [--threads 2] [--quick]

The CNN of McMahan et al. 2017 (1,663,370 parameters) on 256 images of random numbers: forward,
backward, clipping to a norm of 1, noise and the update of SGD. Ours by the quick way to clip
(`ghost`) and by gradients of every example (`per_example`); PyTorch's plain step; Opacus with its
hooks, and with its ghost clipping. All have the same 256 examples in every step (no sampling), and
before anything is timed, all end a step without noise at the same parameters. In turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import results, workers

BATCH, BOUND, RATE = 256, 1.0, 0.1
TOLERANCE = 1e-4
PLAIN, GHOST, EACH = "reigen, plain", "reigen, ghost", "reigen, per example"
PEERS = {"PyTorch, plain": "plain", "Opacus, hooks": "hooks", "Opacus, ghost": "ghost"}
Block = Callable[[], tuple[list[float], list[float]]]


def main() -> None:
    """Measures, prints a table and writes the result."""
    options = parse()
    before = results.provenance(threads=options.threads)
    cpus = workers.choose_cpus(options.threads)
    workers.confine(cpus)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder, "problem.npz")
        blocks, after = ours(problem, options)
        settings = json.dumps({"threads": options.threads, "bound": BOUND, "rate": RATE})
        arguments = [str(problem), settings]
        with workers.Worker(
            "Opacus", "harness.private_opacus", arguments, cpus, python=options.peers_python
        ) as peer:
            version = peer.call("version")
            parity = {name: peer.call("parity", kind=kind) for name, kind in PEERS.items()}
            parity[EACH] = after
            for name, difference in parity.items():
                print(f"{name}: parameters move as ours to {difference:.1e} of the largest move")
                if not difference <= TOLERANCE:
                    raise SystemExit(f"{name} computes another step: at most {TOLERANCE:g} is ours")
            for name, kind in PEERS.items():
                blocks[name] = peer_block(peer, kind, options.steps)
            for block in blocks.values():
                block()
            timings = workers.interleave(blocks, options.rounds)

    sides = {}
    for name, timing in timings.items():
        sides[name] = results.summary(timing)
        for label, other in (("over_plain", PLAIN), ("over_ghost", GHOST)):
            sides[name][label] = results.paired_ratio(timing.wall, timings[other].wall)
            sides[name][f"cpu_{label}"] = results.paired_ratio(timing.cpu, timings[other].cpu)
    report(sides)
    result = {
        "benchmark": "private_step",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "peers": version,
        "parity": parity,
        "batch": BATCH,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "sides": sides,
    }
    results.write(f"private_step_{options.threads}_threads", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument("--peers-python", default=sys.executable, help="of Opacus")
    parser.add_argument("--threads", type=int, default=2, help="of every side (2)")
    parser.add_argument("--rounds", type=int, default=9, help="in turns (9)")
    parser.add_argument("--steps", type=int, default=3, help="a round (3)")
    parser.add_argument("--microbatch", type=int, default=32, help="of ours (32)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 2, 1
    return options


def ours(problem: Path, options: argparse.Namespace) -> tuple[dict[str, Block], float]:
    """Our sides, and how far the moves of the two private ones are apart; writes what the others
    need."""
    import jax
    import numpy as np

    from research.exchange.privacy import Event
    from research.learning import OptimizerConfig, Private, Synchronous
    from research.learning.private.private import Clipping
    from research.models import CNNConfig, Specification
    from research.parallel.host_memory import keep_freed_memory
    from research.parallel.mesh import MeshConfig

    keep_freed_memory()
    mesh = MeshConfig(data=1).build(jax.devices()[:1])
    optimizer = OptimizerConfig("sgd", learning_rate=RATE, schedule="constant", clip=None)
    schedule = optimizer.learning_rate_schedule(1)
    one = Synchronous(
        CNNConfig("mcmahan"), Specification((28, 28, 1), 10), optimizer.build(1), schedule, mesh
    )

    def private(method: Any, noise: float) -> Private:
        parts = BATCH // options.microbatch
        return Private(one, Event(noise, 0.1), BATCH, parts, Clipping(BOUND), method)

    generator = np.random.default_rng(0)
    rows = {
        "inputs": generator.normal(size=(BATCH, 28, 28, 1)).astype(np.float32),
        "targets": generator.integers(10, size=BATCH, dtype=np.int32),
    }
    weighted = rows | {"weights": np.ones(BATCH, np.float32)}

    def moved(learner: Any, batch: Any) -> dict[str, Any]:
        with jax.set_mesh(mesh):
            state = learner.step(learner.init(), batch | learner.events(0))[0]
        return dotted(jax.device_get(state.parameters))

    quiet = {method: private(method, 0.0) for method in ("ghost", "per_example")}
    made = {method: moved(learner, weighted) for method, learner in quiet.items()}
    with jax.set_mesh(mesh):
        start = dotted(jax.device_get(one.init().parameters))
    plain, kept = moved(one, rows), made["ghost"]
    np.savez(
        problem,
        **rows,
        **start,
        **{f"plain.{name}": array for name, array in plain.items()},
        **{f"private.{name}": array for name, array in kept.items()},
    )

    def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
        return max(float(np.abs(one[name] - other[name]).max()) for name in one)

    between = apart(kept, made["per_example"]) / apart(start, kept)

    def block(learner: Any, batch: Any) -> Block:
        with jax.set_mesh(mesh):
            placed = jax.device_put(batch)
            state = learner.init()

        def run() -> tuple[list[float], list[float]]:
            nonlocal state
            wall, cpu = [], []
            for _ in range(options.steps):
                began, began_cpu = time.perf_counter(), time.process_time()
                with jax.set_mesh(mesh):
                    state, metrics = learner.step(state, placed | learner.events(0))
                    jax.block_until_ready(metrics)
                wall.append(time.perf_counter() - began)
                cpu.append(time.process_time() - began_cpu)
            return wall, cpu

        return run

    blocks = {
        PLAIN: block(one, rows),
        GHOST: block(private("ghost", 1.0), weighted),
        EACH: block(private("per_example", 1.0), weighted),
    }
    return blocks, between


def dotted(tree: Any) -> dict[str, Any]:
    """Parameters as `layer.kernel`."""
    return {
        f"{layer}.{name}": array for layer, part in tree.items() for name, array in part.items()
    }


def peer_block(peer: workers.Worker, kind: str, steps: int) -> Block:
    """A block of the other side."""

    def run() -> tuple[list[float], list[float]]:
        wall, cpu = peer.call("run", kind=kind, steps=steps)
        return wall, cpu

    return run


def report(sides: dict[str, Any]) -> None:
    """Prints the table."""
    rows = []
    for name, side in sides.items():
        wall = side["seconds"]
        cells = [f"{1e3 * wall[part]:.0f}" for part in ("median", "quarter", "three_quarters")]
        cells.append(f"{1e3 * side['cpu_seconds']['median']:.0f}")
        for ratio in ("over_plain", "cpu_over_plain", "over_ghost", "cpu_over_ghost"):
            cells.append(f"{side[ratio]['median']:.2f}")
        rows.append([name, *cells])
    header = ["ms a step", "median", "25 %", "75 %", "CPU", "/ plain", "(CPU)", "/ ghost", "(CPU)"]
    results.table(header, rows)
    print(results.goal("ghost over the plain step", sides[GHOST]["over_plain"]["median"], 2.0))
    fastest = min(side["over_ghost"]["median"] for name, side in sides.items() if "Opacus" in name)
    print(results.goal("ghost over the faster Opacus", 1 / fastest, 1.0))


if __name__ == "__main__":
    main()
