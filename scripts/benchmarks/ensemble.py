"""What M members cost together, beside M runs one after another: the CNN of McMahan on MNIST.

    python scripts/benchmarks/ensemble.py [--threads 1] [--members 8] [--steps 40] [--quick]

A run alone is a process that makes everything ready, compiles and takes `--steps` steps; so is one
of the whole ensemble, by every plan of --plans. From start to end is what counts (imports, data and
compilation included, no cache of compiled programs), and of the steps alone, which a long run is
nearly nothing but. What is printed are ratios to M runs alone, each timed by itself in turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import REPOSITORY, results, workers

ALONE = "alone"
PLANS = ("scan", "unroll", "vmap")


def main() -> None:
    """Measures, prints a table and writes the result."""
    options = parse()
    if options.side:
        print(json.dumps(side(options)))
        return
    before = results.provenance(threads=options.threads)
    if options.threads:
        workers.confine(workers.choose_cpus(options.threads))
    sides: dict[str, list[dict[str, float]]] = {name: [] for name in (ALONE, *options.plans)}
    for _ in range(options.rounds):
        for name, made in sides.items():
            made.append(started(name, options))
    members = options.members
    rows, summary = [], {}
    for name, made in sides.items():
        many = members if name == ALONE else 1
        summary[name] = {
            what: results.statistics_of([many * each[what] for each in made]) for what in made[0]
        }
        ratios = {
            what: results.statistics_of(
                [
                    each[what] / (members * alone[what])
                    for each, alone in zip(made, sides[ALONE], strict=True)
                ]
            )
            for what in made[0]
        }
        summary[name]["ratio"] = ratios
        middle = {what: summary[name][what]["median"] for what in made[0]}
        shown = f"{members} runs alone" if name == ALONE else f"{members} members, {name}"
        cells = [f"{middle[w]:.1f}" for w in ("seconds", "cpu_seconds")]
        cells += [f"{1e3 * middle[w]:.0f}" for w in ("step_seconds", "step_cpu_seconds")]
        if name != ALONE:
            wanted = ("seconds", "cpu_seconds", "step_seconds", "step_cpu_seconds")
            cells += [f"{ratios[what]['median']:.2f}" for what in wanted]
        rows.append([shown, *cells, *[""] * (8 - len(cells))])
    of_whole = ["s", "CPU s", "ms a step", "CPU ms"]
    results.table(["", *of_whole, *(f"ratio, {name}" for name in of_whole)], rows)
    best = min(summary[plan]["ratio"]["cpu_seconds"]["median"] for plan in options.plans)
    print(results.goal(f"{members} members over {members} runs, CPU seconds", best, 1.0))
    result = {
        "benchmark": "ensemble",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "members": members,
        "steps": options.steps,
        "rounds": options.rounds,
        "sides": summary,
    }
    where = f"{options.threads}_threads" if options.threads else "accelerator"
    results.write(f"ensemble_{where}", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument(
        "--threads", type=int, default=1, help="CPUs that a process may use (1); 0: a GPU"
    )
    parser.add_argument("--members", type=int, default=8, help="M (8)")
    parser.add_argument("--steps", type=int, default=40, help="of a run (40)")
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=PLANS, help="(all)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every kind (3)")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/mnist_cnn.py")
    parser.add_argument("--side", choices=(ALONE, *PLANS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.members = 1, 2, 2
    return options


def started(name: str, options: argparse.Namespace) -> dict[str, float]:
    """What a process of one side measures, and how long it took from start to end."""
    words = ["--side", name, "--members", options.members, "--steps", options.steps]
    words += ["--threads", options.threads, "--config", options.config]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    if options.threads:
        environment["JAX_PLATFORMS"] = "cpu"
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, __file__, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu, **json.loads(done.stdout.splitlines()[-1])}


def side(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the steps; seconds of one step, by the last half of them."""
    from dataclasses import replace

    import jax

    from research.experiment import EnsembleConfig, Experiment
    from research.prepared import Prepared

    base = Experiment.load(options.config)
    run = replace(base.run, steps=options.steps, compilation_cache=False)
    experiment = replace(base, run=run)
    if options.side != ALONE:
        ensemble = EnsembleConfig("deep", members=options.members, plan=options.side)
        experiment = replace(experiment, ensemble=ensemble)
    prepared = Prepared(experiment)
    with jax.set_mesh(prepared.mesh):
        state, step, feed = prepared.learner.init(), prepared.compile(), prepared.feed(0)
        half = options.steps // 2
        for number in range(options.steps):
            if number == half:
                jax.block_until_ready(state)
                began, began_cpu = time.perf_counter(), time.process_time()
            state, _ = step(state, next(feed))
        jax.block_until_ready(state)
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        feed.close()
    count = options.steps - half
    return {"step_seconds": seconds / count, "step_cpu_seconds": cpu / count}


if __name__ == "__main__":
    main()
