"""nanoGPT's documented CPU run: a training step of ours beside PyTorch's, in turns on one machine.

    python scripts/benchmarks/nanogpt_cpu.py [--threads 2] [--quick]

The model is configs/shakespeare_cpu.py: 4 layers of width 128, 64 tokens, batch 12, float32. First
all sides start from the same weights and take the same batches: the initial losses must agree to
1e-4 and those after three updates to 1e-3. Then every side runs blocks of steps in turns, each step
with its own batch and the reading of its loss (nanoGPT's run logs every step). Ours is the compiled
step of `research.prepared.Prepared`; the whole loop, `research train`, is measured once more after
them. PyTorch runs as it is, and with the same malloc setting as ours ("memory kept").

The default takes about ten minutes, a third of it compiling and warming up six processes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import REPOSITORY, contestants, results, workers

from research.experiment import Experiment

OURS = "reigen"
PYTORCH: dict[str, dict[str, bool]] = {
    "eager": {},
    "compiled": {"compiled": True},
    "eager, memory kept": {"keep_memory": True},
    "compiled, memory kept": {"compiled": True, "keep_memory": True},
    "compiled, memory kept, fused AdamW": {"compiled": True, "keep_memory": True, "fused": True},
}


def main() -> None:
    """Measures, prints a table and writes the result."""
    options = parse()
    experiment = Experiment.load(REPOSITORY / "configs/shakespeare_cpu.py")
    if options.unroll is not None:
        experiment = replace(experiment, model=replace(experiment.model, unroll=options.unroll))
    cpus = workers.choose_cpus(options.threads)
    wanted = [name for name in PYTORCH if name in options.only]
    if wanted:
        contestants.needs_torch(f"--only {OURS}")
    before = results.provenance(threads=options.threads)

    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.npz")
        running = {
            OURS: contestants.reigen(OURS, experiment, cpus, {"JAX_PLATFORMS": "cpu"}),
        }
        try:
            losses = running[OURS].call("parity", path=str(weights), steps=contestants.UPDATES + 1)
            parity = start_pytorch(running, wanted, experiment, cpus, weights, losses)
            timings = measure(running, options)
        finally:
            for worker in running.values():
                worker.close()
        loop = whole_loop(experiment, cpus, options.loop_steps, Path(folder))

    tokens = experiment.data.batch * experiment.data.context
    report(timings, tokens, loop)
    sides = {name: results.summary(timing) for name, timing in timings.items()}
    for name, side in sides.items():
        side["tokens_per_second"] = tokens / side["seconds"]["median"]
        if name != OURS:
            side["parity"] = parity[name]
            side["speed_of_ours"] = results.paired_ratio(timings[name].wall, timings[OURS].wall)
            side["cpu_speed_of_ours"] = results.paired_ratio(timings[name].cpu, timings[OURS].cpu)
    result = {
        "benchmark": "nanogpt_cpu",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "experiment": experiment.to_json(),
        "tokens_per_step": tokens,
        "rounds": options.rounds,
        "steps_per_block": options.steps,
        "sides": sides,
        "whole_loop": loop,
    }
    results.write(f"nanogpt_cpu_{options.threads}_threads", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPUs and threads of each side (1)")
    parser.add_argument("--rounds", type=int, default=20, help="blocks of every side (20)")
    parser.add_argument("--steps", type=int, default=20, help="steps a block (20)")
    parser.add_argument("--loop-steps", type=int, default=300, help="of the whole loop (300)")
    parser.add_argument("--unroll", type=int, help="layers per scan iteration (the config's)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[OURS, *PYTORCH],
        default=[OURS, *PYTORCH],
        metavar="SIDE",
        help=f"sides besides ours: {', '.join(repr(name) for name in PYTORCH)} (all)",
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.loop_steps = 2, 4, 20
    return options


def start_pytorch(
    running: dict[str, workers.Worker],
    wanted: list[str],
    experiment: Experiment,
    cpus: list[int],
    weights: Path,
    losses: list[float],
) -> dict[str, dict[str, float]]:
    """Starts PyTorch's sides and shows that they are the same model; loss differences by side."""
    rows = contestants.table_rows(weights)
    spread = workers.available_cpus()
    for place, name in enumerate(wanted):
        worker = contestants.pytorch(name, experiment, rows, cpus, **PYTORCH[name])
        running[name] = worker
        worker.begin("load", path=str(weights))
        if len(cpus) == 1:  # compile beside each other, measure on the same CPU
            worker.move([spread[place % len(spread)]])
        worker.begin("parity")
    parity = {}
    for name in wanted:
        worker = running[name]
        worker.answer()  # of load
        parity[name] = contestants.same_model(losses, worker.answer(), name, 1e-4, 1e-3)
        print(f"{name}: same losses as ours, to {max(parity[name].values()):.1e}")
        worker.move(cpus)
    return parity


def measure(
    running: dict[str, workers.Worker], options: argparse.Namespace
) -> dict[str, workers.Timings]:
    """Blocks of all sides in turns; the first step of every block is left out."""

    def block(worker: workers.Worker) -> Any:
        def run() -> tuple[list[float], list[float]]:
            wall, cpu = worker.call("run", steps=options.steps + 1, synchronize=True)
            return wall[1:], cpu[1:]

        return run

    for worker in running.values():
        worker.call("run", steps=5, synchronize=True)
    return workers.interleave(
        {name: block(worker) for name, worker in running.items()}, options.rounds
    )


def whole_loop(
    experiment: Experiment, cpus: list[int], steps: int, folder: Path
) -> dict[str, float]:
    """Tokens a second of `research train`, between its logged steps, evaluation left out."""
    directory = folder / "run"
    every = max(steps // 6, 1)
    command = [
        *(sys.executable, "-m", "research", "train", "configs/shakespeare_cpu.py"),
        *("--run.directory", str(directory), "--run.steps", str(steps), "--run.sample-tokens", "0"),
        *("--run.log-every", str(every), "--run.evaluate-batches", "1"),
        *("--model.unroll", str(experiment.model.unroll)),
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        preexec_fn=lambda: workers.confine(cpus),
    )
    if done.returncode:
        raise SystemExit(f"{done.stderr.strip()[-2000:]}\nresearch train failed")
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["tokens_per_second"] for line in lines]
    return results.statistics_of(rates[1:])  # the first ends the warm-up


def report(timings: dict[str, workers.Timings], tokens: int, loop: dict[str, float]) -> None:
    """Prints the table."""
    rows = []
    for name, timing in timings.items():
        side = results.summary(timing)
        wall, cpu = side["seconds"], side["cpu_seconds"]
        speed = statistics.median(
            statistics.median(theirs) / statistics.median(mine)
            for theirs, mine in zip(timing.wall, timings[OURS].wall, strict=True)
        )
        rows.append(
            [
                name if name == OURS else f"PyTorch {name}",
                *(f"{1e3 * wall[part]:.1f}" for part in ("median", "quarter", "three_quarters")),
                f"{1e3 * wall['minimum']:.1f}",
                f"{1e3 * cpu['median']:.1f}",
                f"{tokens / wall['median']:,.0f}",
                f"{speed:.3f}",
            ]
        )
    header = ["ms a step", "median", "25 %", "75 %", "minimum", "CPU median", "tokens/s", "ours is"]
    results.table([*header[:-1], "ours faster by"], rows)
    print(f"whole loop (`research train`): {loop['median']:,.0f} tokens/s")


if __name__ == "__main__":
    main()
