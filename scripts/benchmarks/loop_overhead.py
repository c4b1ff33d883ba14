"""What the training loop costs beside the step itself: data, logging, progress, host work.

    python scripts/benchmarks/loop_overhead.py [--threads 2] [--quick]

Compares, in turns and in one process, blocks of the bare compiled step of
configs/shakespeare_cpu.py, on one batch that stays on the device, with blocks of
`research.training.loop.train`: data fed by the background thread, JSON lines and TensorBoard every
10 steps, progress as lines of a log or as the live bar of a terminal. Goal: below 3 % of a step.
About two minutes. On a busy machine look at the CPU seconds: waiting hides the host's work.
"""

import os
import tempfile
from pathlib import Path

from harness import REPOSITORY, results, workers

GOAL = 0.03
BARE, LOG, TERMINAL = "bare step", "loop, log file", "loop, terminal"


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = results.parser(__doc__)
    parser.add_argument("--threads", type=int, default=1, help="CPUs that the process may use (1)")
    parser.add_argument("--rounds", type=int, default=15, help="blocks of every kind (15)")
    parser.add_argument("--steps", type=int, default=40, help="steps a block (40)")
    parser.add_argument("--log-every", type=int, default=10, help="steps between logs (10)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 2, 10
    before = results.provenance(threads=options.threads)

    # Before JAX is imported: its threads stay where the process is confined.
    workers.confine(workers.choose_cpus(options.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from harness.loops import LoopBench

    from research.experiment import Experiment

    experiment = Experiment.load(REPOSITORY / "configs/shakespeare_cpu.py")
    with tempfile.TemporaryDirectory() as folder:
        bench = LoopBench(experiment, Path(folder))
        steps, every = options.steps, options.log_every
        kinds = {
            BARE: lambda: bench.bare(steps),
            LOG: lambda: bench.loop(steps, every),
            TERMINAL: lambda: bench.loop(steps, every, terminal=True),
        }
        for block in kinds.values():
            block()
        timings = workers.interleave(kinds, options.rounds)

    overhead = {
        kind: {
            "wall": results.paired_ratio(timings[kind].wall, timings[BARE].wall),
            "cpu": results.paired_ratio(timings[kind].cpu, timings[BARE].cpu),
        }
        for kind in (LOG, TERMINAL)
    }
    sides = {kind: results.summary(timing) for kind, timing in timings.items()}
    header = ["ms a step", "median", "25 %", "75 %", "minimum", "CPU median", "overhead", "CPU"]
    rows = []
    for kind, side in sides.items():
        wall, cpu = side["seconds"], side["cpu_seconds"]
        parts = [wall[part] for part in ("median", "quarter", "three_quarters", "minimum")]
        more = overhead.get(kind)
        shares = (
            [f"{100 * (more[of]['median'] - 1):.1f} %" for of in ("wall", "cpu")] if more else []
        )
        cells = [f"{1e3 * seconds:.2f}" for seconds in [*parts, cpu["median"]]]
        rows.append([kind, *cells, *(shares or ["", ""])])
    results.table(header, rows)
    for kind in (LOG, TERMINAL):
        share = overhead[kind]["wall"]["median"] - 1
        print(results.goal(f"overhead of the {kind}", 100 * share, 100 * GOAL, " %"))
    result = {
        "benchmark": "loop_overhead",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "experiment": experiment.to_json(),
        "rounds": options.rounds,
        "steps_per_block": options.steps,
        "log_every": options.log_every,
        "sides": sides,
        "ratio_to_bare": overhead,
        "goal": 1 + GOAL,
    }
    results.write(f"loop_overhead_{options.threads}_threads", result, options)


if __name__ == "__main__":
    main()
