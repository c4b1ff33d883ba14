"""A federated round: ours beside the same by hand and in other systems, in turns on one core.

    python scripts/benchmarks/federated_round.py --peers-python build/peers/bin/python

100 clients of 60 digits each (drawn with replacement from the 1,437 of 8×8 pixels), all of them in
every round, one local epoch in batches of 10, an MLP 64-200-200-10, SGD, the mean of what they
send: FedAvg. All sides begin with the same weights and the same batches, and their parameters after
a round must agree to 1e-5, or a side is left out.

Ours is measured twice. "Same batch" is the compiled round of `research.prepared.Prepared` on data
that stays on the device, as all sides but FedJAX, pfl and Flower have it: compare with those. The
other is a round of the run: who takes part, a new shuffle of every client, reading and scaling,
placing, the round, its metrics read; on one core nothing hides the host's part of it.

Other systems are an environment of their own; those that it lacks are left out, with the reason:

    python -m venv build/peers
    build/peers/bin/pip install -r scripts/benchmarks/federated_peers.txt

Flower starts workers anew for every block, and is measured in fewer ones, after the others and
again beside ours. Five to ten minutes.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import results, workers

OURS = "reigen, same batch"
SCAN, UNROLLED = "scan by hand", "scan by hand, unrolled"
WHOLE, HOST = "reigen, whole round", "reigen, host's part of it"
PEERS = {
    SCAN: "scan",
    UNROLLED: "unrolled",
    "NumPy by hand": "numpy",
    "PyTorch, loop by hand": "torch",
    "FedJAX": "fedjax",
    "DrJAX": "drjax",
    "pfl": "pfl",
    "Flower": "flower",
}
SYSTEMS = ("FedJAX", "DrJAX", "pfl", "Flower")
TOLERANCE = 1e-5
# malloc keeps what is freed, as ours asks it to (see research/parallel/host_memory.py).
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
Block = Callable[[], tuple[list[float], list[float]]]


def main() -> None:
    """Measures, prints a table and writes the result."""
    options = parse()
    cpus = workers.choose_cpus(options.cpu + 1)[-1:]
    before = results.provenance(threads=1)
    with tempfile.TemporaryDirectory() as folder:
        running: dict[str, workers.Worker] = {}
        try:
            for width in options.widths:
                name = OURS if width == options.widths[0] else f"{OURS}, {width} side by side"
                running[name] = workers.Worker(
                    name, "harness.federated_ours", [str(width)], cpus, {"JAX_PLATFORMS": "cpu"}
                )
            problem = str(Path(folder, "problem.npz"))
            metrics = running[OURS].call("parity", path=problem)
            missing = start_peers(running, problem, cpus, options)
            parity = agree(running, missing)
            versions = {name: running[name].call("version") for name in PEERS if name in running}
            experiment = running[OURS].call("experiment")
            timings = measure(running, options)
        finally:
            for worker in running.values():
                worker.close()

    sides = summed_up(timings)
    report(timings, sides)
    for name, reason in missing.items():
        print(f"{name} was left out: {reason}")
    result = {
        "benchmark": "federated_round",
        "provenance": {**before, "load_average_after": results.provenance()["load_average"]},
        "peers": {"versions": versions, "left_out": missing},
        "experiment": experiment,
        "first_round": metrics,
        "parity": parity,
        "blocks": options.blocks,
        "rounds_per_block": options.rounds,
        "sides": sides,
    }
    results.write("federated_round_1_thread", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument("--peers-python", default=sys.executable, help="of the other systems")
    parser.add_argument("--cpu", type=int, default=0, help="number of the CPU that all use (0)")
    parser.add_argument("--blocks", type=int, default=15, help="of every side (15)")
    parser.add_argument("--rounds", type=int, default=8, help="a block (8)")
    parser.add_argument("--flower-blocks", type=int, default=2, help="of Flower (2)")
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[1, 10, 100],
        help="clients side by side of our sides; the first is compared (1 10 100)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="SIDE", help="of the peers"
    )
    options = parser.parse_args()
    if options.quick:
        options.blocks, options.rounds, options.flower_blocks = 2, 2, 1
    return options


def start_peers(
    running: dict[str, workers.Worker], problem: str, cpus: list[int], options: argparse.Namespace
) -> dict[str, str]:
    """Starts the other sides; those that cannot be, and why."""
    missing = {}
    for name in options.only:
        side = PEERS[name]
        # Ours and what is written by hand in JAX run in one environment.
        python = sys.executable if "scan" in name else options.peers_python
        library = {"flower": "flwr", "scan": "jax", "unrolled": "jax"}.get(side, side)
        found = subprocess.run([python, "-c", f"import {library}"], capture_output=True, text=True)
        if found.returncode and "ModuleNotFoundError" in found.stderr:
            missing[name] = found.stderr.strip().splitlines()[-1]
            continue
        running[name] = workers.Worker(
            name,
            "harness.federated",
            [side, problem],
            cpus,
            {"JAX_PLATFORMS": "cpu", "RAY_DEDUP_LOGS": "0", **KEEP},
            python,
        )
    return missing


def agree(running: dict[str, workers.Worker], missing: dict[str, str]) -> dict[str, float]:
    """How far every side's parameters are from ours after a round. Those that differ by more than
    `TOLERANCE` are left out."""
    parity = {}
    for name in [name for name in PEERS if name in running]:
        parity[name] = difference = running[name].call("parity")
        print(f"{name}: parameters after a round are ours to {difference:.1e}", flush=True)
        if not difference <= TOLERANCE:
            missing[name] = f"its parameters differ by {difference:.2g} after a round"
            running.pop(name).close()
    return parity


def measure(
    running: dict[str, workers.Worker], options: argparse.Namespace
) -> dict[str, workers.Timings]:
    """Blocks of all sides in turns, then Flower beside ours; the first round of each is left out,
    but for Flower, which does so itself."""

    def block(name: str, function: str = "run") -> Block:
        def run() -> tuple[list[float], list[float]]:
            wall, cpu = running[name].call(function, rounds=options.rounds + 1)
            return wall[1:], cpu[1:]

        return run

    sides = {name: block(name, "same_batch") for name in running if name.startswith(OURS)}
    sides |= {WHOLE: block(OURS), HOST: block(OURS, "host")}
    sides |= {name: block(name) for name in PEERS if name in running and name != "Flower"}
    for side in sides.values():
        side()
    timings = workers.interleave(sides, options.blocks)
    if "Flower" in running:
        pair = {
            OURS: sides[OURS],
            "Flower": lambda: running["Flower"].call("run", rounds=options.rounds),
        }
        later = workers.interleave(pair, options.flower_blocks)
        timings["Flower"] = later["Flower"]
        timings[f"{OURS}, beside Flower"] = later[OURS]
    return timings


def summed_up(timings: dict[str, workers.Timings]) -> dict[str, Any]:
    """Of every side its seconds, and those over ours and over the scan's of the same turn."""
    sides = {}
    for name, timing in timings.items():
        has_cpu = bool(timing.cpu[0])
        side = results.summary(timing if has_cpu else workers.Timings(timing.wall, timing.wall))
        if not has_cpu:
            del side["cpu_seconds"]
        sides[name] = side
        beside = f"{OURS}, beside Flower" if name == "Flower" else OURS
        for label, other in (("over_ours", beside), ("over_scan", SCAN)):
            if other in timings and len(timings[other].wall) == len(timing.wall):
                side[label] = results.paired_ratio(timing.wall, timings[other].wall)
                if has_cpu:
                    side[f"cpu_{label}"] = results.paired_ratio(timing.cpu, timings[other].cpu)
    return sides


def report(timings: dict[str, workers.Timings], sides: dict[str, Any]) -> None:
    """Prints the table."""
    rows = []
    for name, side in sides.items():
        wall = side["seconds"]
        cells = [f"{1e3 * wall[part]:.1f}" for part in ("median", "quarter", "three_quarters")]
        cells.append(f"{1e3 * wall['minimum']:.1f}")
        cpu = side.get("cpu_seconds")
        cells.append(f"{1e3 * cpu['median']:.1f}" if cpu else "")
        for ratio in ("over_ours", "cpu_over_ours", "over_scan", "cpu_over_scan"):
            cells.append(f"{side[ratio]['median']:.2f}" if ratio in side else "")
        rows.append([name, *cells])
    header = ["ms a round", "median", "25 %", "75 %", "minimum", "CPU"]
    results.table([*header, "/ ours", "(CPU)", "/ scan", "(CPU)"], rows)
    systems = [name for name in SYSTEMS if name in sides]
    if systems:
        nearest = min(systems, key=lambda name: sides[name]["over_ours"]["median"])
        speed = sides[nearest]["over_ours"]["median"]
        met = "met" if speed >= 3 else "MISSED"
        print(f"{nearest}, the fastest system: {speed:.2f} times ours (goal: at least 3; {met})")
    for name in (SCAN, UNROLLED):
        if name in sides:
            ratio = 1 / sides[name]["over_ours"]["median"]
            print(results.goal(f"ours over the {name}", ratio, 1.0))


if __name__ == "__main__":
    main()
