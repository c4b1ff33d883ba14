"""The memory of 1,000 clients a round, out of 1,000 and out of 10,000.

    python scripts/benchmarks/population.py

Clients of 6 digits each and an MLP 64-200-200-10 of 55,010 parameters, by FedAvg, whose clients
keep nothing, and by SCAFFOLD, whose clients keep as much as the parameters, with their table on the
device and on the host. Both are the same memory where the device is a CPU; but rows on the host
take theirs when a client is in its first cohort. Every side is a process of its own that makes 5
rounds; one or two minutes.
"""

import json
import os
import subprocess
import sys
from typing import Any

from harness import BENCHMARKS, REPOSITORY, results

SIDES = [
    ("fedavg", "device", 1_000),
    ("fedavg", "device", 10_000),
    ("scaffold", "device", 1_000),
    ("scaffold", "device", 10_000),
    ("scaffold", "host", 10_000),
]
COHORT = 1_000


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of every side (5)")
    options = parser.parse_args()
    rounds, divisor = (2, 20) if options.quick else (options.rounds, 1)
    before = results.provenance()
    sides: list[dict[str, Any]] = []
    for rule, table, clients in SIDES:
        words = [rule, table, clients // divisor, COHORT // divisor, rounds]
        done = subprocess.run(
            [sys.executable, "-m", "harness.population", *map(str, words)],
            cwd=BENCHMARKS,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{REPOSITORY}:{BENCHMARKS}"},
            stdout=subprocess.PIPE,
            check=True,
        )
        name = f"{rule}, {words[3]:,} of {words[2]:,}, table on the {table}"
        sides.append({"side": name, **json.loads(done.stdout)})
    rows = [
        [
            side["side"],
            *(f"{side[name] / 1e6:,.0f}" for name in ("peak", "before", "table_bytes")),
            f"{1e3 * side['seconds']:,.0f}",
        ]
        for side in sides
    ]
    results.table(["MB", "peak", "before the state", "table", "ms a round"], rows)
    provenance = {**before, "load_average_after": results.provenance()["load_average"]}
    result = {"benchmark": "population", "provenance": provenance, "rounds": rounds, "sides": sides}
    results.write("population", result, options)


if __name__ == "__main__":
    main()
