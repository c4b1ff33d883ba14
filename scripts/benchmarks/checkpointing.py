"""What asynchronous checkpoints cost: one save every 50 steps beside none.

    python scripts/benchmarks/checkpointing.py [--threads 2] [--every 50] [--quick]

The loop of `research train` on configs/shakespeare_cpu.py (0.8 M parameters, about 10 MB a
checkpoint with Adam's moments) runs in blocks of 200 steps, in turns with and without checkpoints,
in one process. The last checkpoint of a block has nothing to hide behind: its writing counts whole.
Goal: at most 5 %. About four minutes.
"""

import os
import statistics
import tempfile
from pathlib import Path

from harness import REPOSITORY, results, workers

GOAL = 0.05
WITHOUT, WITH = "no checkpoints", "checkpoints"


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = results.parser(__doc__)
    parser.add_argument("--threads", type=int, default=2, help="CPUs that the process may use (2)")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of either kind (6)")
    parser.add_argument("--steps", type=int, default=200, help="steps a block (200)")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints (50)")
    parser.add_argument("--folder", type=Path, help="disk to write to (a temporary folder)")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.every = 2, 20, 10
    before = results.provenance(threads=options.threads)

    # Before JAX is imported: its threads stay where the process is confined.
    workers.confine(workers.choose_cpus(options.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from harness.loops import LoopBench, Timed

    from research.experiment import Experiment
    from research.training.checkpoints import Checkpoints

    experiment = Experiment.load(REPOSITORY / "configs/shakespeare_cpu.py")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        bench = LoopBench(experiment, folder)
        checkpoints = Checkpoints(folder / "checkpoints", experiment.run.keep_checkpoints)
        timed = Timed(checkpoints)

        def without() -> tuple[list[float], list[float]]:
            return bench.loop(options.steps, 50)

        def with_checkpoints() -> tuple[list[float], list[float]]:
            return bench.loop(
                options.steps, 50, checkpoint_every=options.every, checkpoints=timed, wait=True
            )

        without()
        with_checkpoints()
        size = _bytes(folder / "checkpoints" / str(checkpoints.latest()))
        timed.seconds.clear()
        timings = workers.interleave({WITHOUT: without, WITH: with_checkpoints}, options.rounds)
        checkpoints.close()

    cost = {
        "wall": results.paired_ratio(timings[WITH].wall, timings[WITHOUT].wall),
        "cpu": results.paired_ratio(timings[WITH].cpu, timings[WITHOUT].cpu),
    }
    sides = {kind: results.summary(timing) for kind, timing in timings.items()}
    rows = [
        [
            kind,
            *(f"{1e3 * side['seconds'][part]:.2f}" for part in ("median", "minimum")),
            f"{1e3 * side['cpu_seconds']['median']:.2f}",
        ]
        for kind, side in sides.items()
    ]
    results.table(["ms a step", "median", "minimum", "CPU median"], rows)
    blocked = statistics.median(timed.seconds)
    print(f"a checkpoint: {size / 1e6:.1f} MB; the loop waits {1e3 * blocked:.1f} ms in save()")
    share = 100 * (cost["wall"]["median"] - 1)
    print(
        results.goal(f"cost of a checkpoint every {options.every} steps", share, 100 * GOAL, " %")
    )
    result = {
        "benchmark": "checkpointing",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "experiment": experiment.to_json(),
        "rounds": options.rounds,
        "steps_per_block": options.steps,
        "checkpoint_every": options.every,
        "checkpoint_bytes": size,
        "seconds_in_save": results.statistics_of(timed.seconds),
        "sides": sides,
        "ratio": cost,
        "goal": 1 + GOAL,
    }
    results.write("checkpointing", result, options)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
