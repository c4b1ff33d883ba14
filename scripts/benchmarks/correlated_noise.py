"""What the bands of DP-FTRL buy: noise in sums over steps, at equal ε, beside DP-SGD.

    python scripts/benchmarks/correlated_noise.py [--epsilon 3]

60,000 examples in batches of 256, ε at δ = 1e-5 for adding or removing one, and the least noise
that keeps it, by the library's own accounting. The error is the root mean square over steps of the
deviation of the noise in what all steps so far add up to (a model sees such sums), in units of the
clipping bound. No run and no clock: formulas.
"""

import argparse
from typing import Any

from harness import results

from research.exchange.privacy import Budget, deviation_of_sums

EXAMPLES, BATCH, DELTA = 60_000, 256, 1e-5
IN_TURN = round(EXAMPLES / BATCH)  # steps of a pass
BANDS = (1, 4, 16, 64, IN_TURN)


def main() -> None:
    """Computes, prints a table and writes the result."""
    options = parse()
    budget = Budget(options.epsilon, DELTA, "example")
    passes = (1, 4) if options.quick else (1, 4, 10)
    columns: list[dict[str, Any]] = []
    for count in passes:
        steps = count * IN_TURN

        def noise(in_turn: bool, steps: int = steps) -> float:
            plan = budget.plan(EXAMPLES, BATCH, steps, in_turn=in_turn)
            return plan.event.noise_multiplier

        drawn, together = noise(in_turn=False), noise(in_turn=True)
        errors = {f"{bands} bands": together * deviation_of_sums(steps, bands) for bands in BANDS}
        errors["DP-SGD"] = drawn * deviation_of_sums(steps, 1)
        columns.append({"passes": count, "noise": together, "noise_drawn": drawn, "error": errors})
    rows = [
        [name, *(f"{column['error'][name]:.1f}" for column in columns)]
        for name in columns[0]["error"]
    ]
    results.table([f"ε = {options.epsilon:g}", *(f"{n} passes" for n in passes)], rows)
    result = {
        "benchmark": "correlated_noise",
        "provenance": results.provenance(),
        "epsilon": options.epsilon,
        "delta": DELTA,
        "examples": EXAMPLES,
        "batch": BATCH,
        "columns": columns,
    }
    results.write("correlated_noise", result, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = results.parser(__doc__)
    parser.add_argument("--epsilon", type=float, default=3.0, help="the budget (3)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
