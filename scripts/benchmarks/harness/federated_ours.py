"""Our side of a federated round: `research.prepared.Prepared`, its compiled round and its feed.

    python -m harness.federated_ours WIDTH

Its functions: `experiment` describes it, `parity` makes the first round and writes the problem for
the other sides, `run` measures rounds with all that the training loop does for one, `same_batch`
those on one batch that stays on the device, `host` what reading a round costs the host.
"""

import sys
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from harness.federated import BATCH, CLIENTS, EXAMPLES, RATE, WIDTHS, Problem, timed
from harness.workers import serve
from research.data.dataset import Dataset
from research.experiment import (
    Experiment,
    FederatedConfig,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)
from research.prepared import Prepared


@dataclass(frozen=True)
class RedrawnDigits(ImagesConfig):
    """As many of the 1,437 digits, drawn with replacement, as all clients have."""

    def load(self) -> Dataset:
        """The digits, each training image as often as it was drawn."""
        digits = super().load()
        drawn = np.random.RandomState(0).randint(len(digits.train), size=CLIENTS * EXAMPLES)
        train: Any = copy(digits.train)
        train.inputs, train.targets = train.inputs[drawn], train.targets[drawn]
        return replace(digits, train=train)


def experiment(width: int) -> Experiment:
    """All clients in every round, `width` of them side by side."""
    plan: Any = {1: "scan", CLIENTS: "vmap"}.get(width, "chunk")
    federated = FederatedConfig("fedavg", cohort=CLIENTS, plan=plan)
    if plan == "chunk":
        federated = replace(federated, width=width)
    return Experiment(
        model=MLPConfig(widths=WIDTHS),
        data=RedrawnDigits(name="digits", batch=BATCH),
        optimizer=OptimizerConfig(name="sgd", learning_rate=RATE, schedule="constant", clip=None),
        federated=federated,
        partition=PartitionConfig("iid", clients=CLIENTS),
        run=RunConfig(steps=1_000_000),
    )


class Ours:
    """A run that has been prepared, its state, and its feed."""

    def __init__(self, width: int):
        self.prepared = prepared = Prepared(experiment(width))
        with jax.set_mesh(prepared.mesh):
            self.state = prepared.learner.init()
            self.step = prepared.compile()
        self.feed = prepared.feed(0)
        self.batch = next(self.feed)
        self.rounds = 0

    def parity(self, path: str) -> dict[str, float]:
        """Makes the first round, writes it to `path`, and gives its metrics."""
        rows = self.batch
        start = self._arrays()
        metrics = self._step(self.batch)
        Problem(
            np.asarray(rows["inputs"]).reshape(CLIENTS, -1, BATCH, 64),
            np.asarray(rows["targets"]),
            start,
            self._arrays(),
        ).save(path)
        return metrics

    def run(self, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of rounds: cohort, shuffles, reading, placing, the step, its metrics read."""
        return timed(lambda: self._step(next(self.feed)), rounds)

    def same_batch(self, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of the compiled step alone, as the sides written by hand have it."""
        return timed(lambda: self._step(self.batch), rounds)

    def host(self, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of the host's part of a round: who takes part, their shuffles, their examples."""

        def read() -> None:
            self.rounds += 1
            self.prepared.batches.rows(self.rounds, self.prepared.rows.own)

        return timed(read, rounds)

    def _step(self, batch: Any) -> dict[str, float]:
        self.state, metrics = self.step(self.state, batch)
        return {name: float(value) for name, value in jax.device_get(metrics).items()}

    def _arrays(self) -> list[np.ndarray]:
        parameters = self.state.parameters
        layers = [parameters["hidden"][f"layer_{i}"] for i in range(len(WIDTHS))]
        layers.append(parameters["output"])
        return [np.array(layer[name]) for layer in layers for name in ("kernel", "bias")]


if __name__ == "__main__":
    ours = Ours(int(sys.argv[1]))
    serve(
        {
            "experiment": lambda: ours.prepared.experiment.to_json(),
            "parity": ours.parity,
            "run": ours.run,
            "same_batch": ours.same_batch,
            "host": ours.host,
        }
    )
