"""One federated round for all sides of a comparison: the problem, and a worker that runs a side.

    python -m harness.federated SIDE PROBLEM.npz

A side has the problem and two functions: `round()` goes on by one round from the parameters that it
has, `parameters()` are those, as NumPy arrays. Its module is imported only where it is run, so each
needs no more than its own libraries. Functions of the worker: `version` of the library, `parity`
makes the first round, and says how far its parameters lie from ours, `run` measures rounds.
"""

import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from harness.workers import serve

WIDTHS = (200, 200)
CLIENTS, EXAMPLES, BATCH, RATE = 100, 60, 10, 0.05
LAYERS = len(WIDTHS) + 1


class Problem(NamedTuple):
    """A round from its beginning, and where ours ended."""

    inputs: np.ndarray  # [clients, steps, batch, features] float32
    targets: np.ndarray  # [clients, steps, batch] int32
    start: list[np.ndarray]  # weight [in, out] and bias of each layer, first to last
    end: list[np.ndarray]

    def save(self, path: str) -> None:
        """Writes it to `path` (npz)."""
        np.savez(
            path,
            inputs=self.inputs,
            targets=self.targets,
            **{f"start_{i}": array for i, array in enumerate(self.start)},
            **{f"end_{i}": array for i, array in enumerate(self.end)},
        )

    @classmethod
    def load(cls, path: str) -> "Problem":
        """What `save` wrote."""
        with np.load(path) as arrays:
            start, end = (
                [arrays[f"{name}_{i}"] for i in range(2 * LAYERS)] for name in ("start", "end")
            )
            return cls(arrays["inputs"], arrays["targets"], start, end)


class Side(Protocol):
    """What computes rounds; made of a problem."""

    def round(self) -> None:
        """One round, until its parameters are there."""

    def parameters(self) -> list[np.ndarray]:
        """The server's, in the order of `Problem.start`."""


SIDES: dict[str, tuple[str, str | None]] = {
    "scan": ("harness.federated_by_hand:Scan", "jax"),
    "unrolled": ("harness.federated_by_hand:UnrolledScan", "jax"),
    "numpy": ("harness.federated_by_hand:Numpy", "numpy"),
    "torch": ("harness.federated_by_hand:Torch", "torch"),
    "fedjax": ("harness.federated_systems:FedJax", "fedjax"),
    "drjax": ("harness.federated_systems:DrJax", "drjax"),
    "pfl": ("harness.federated_systems:Pfl", "pfl"),
    "flower": ("harness.federated_systems:Flower", "flwr"),
}
"""Class of every side but ours, and its library."""


def made(name: str, problem: Problem) -> Side:
    """The side called so. Raises ImportError where its library is missing."""
    module, attribute = SIDES[name][0].split(":")
    return getattr(importlib.import_module(module), attribute)(problem)


def timed(once: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each of `rounds` calls."""
    wall, cpu = [], []
    for _ in range(rounds):
        began, began_cpu = time.perf_counter(), time.process_time()
        once()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return wall, cpu


def main() -> None:
    """Serves the side of the command line."""
    name, problem = sys.argv[1], Problem.load(sys.argv[2])
    side = made(name, problem)

    def parity() -> float:
        side.round()
        pairs = zip(side.parameters(), problem.end, strict=True)
        return max(float(np.abs(mine - ours).max()) for mine, ours in pairs)

    serve(
        {
            "version": lambda: importlib.metadata.version(SIDES[name][1] or ""),
            "parity": parity,
            "run": lambda rounds: getattr(side, "timed", timed)(side.round, rounds),
        }
    )


if __name__ == "__main__":
    main()
