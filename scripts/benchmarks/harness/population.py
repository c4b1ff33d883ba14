"""Rounds of a cohort of a population, in a process of their own, and the memory that it took.

    python -m harness.population RULE TABLE CLIENTS COHORT ROUNDS

Prints JSON: the `peak` of resident memory (bytes), that `before` the state was made, the
`table_bytes` of what clients keep, and the median `seconds` of a round, the first left out.
"""

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from harness.federated import BATCH, WIDTHS
from research.data.dataset import Dataset
from research.experiment import (
    Experiment,
    FederatedConfig,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
)
from research.prepared import Prepared

EXAMPLES = 6
"""Of a client."""


@dataclass(frozen=True)
class ManyDigits(ImagesConfig):
    """`total` digits, drawn with replacement from the 1,437."""

    total: int = 0

    def load(self) -> Dataset:
        """The digits, each training image as often as it was drawn."""
        digits = super().load()
        drawn = np.random.RandomState(0).randint(len(digits.train), size=self.total)
        train: Any = digits.train
        train.inputs, train.targets = train.inputs[drawn], train.targets[drawn]
        return replace(digits, train=train)


def main() -> None:
    """Makes the rounds of the command line."""
    rule, table = sys.argv[1:3]
    clients, cohort, rounds = map(int, sys.argv[3:])
    experiment = Experiment(
        model=MLPConfig(widths=WIDTHS),
        data=ManyDigits(batch=BATCH, total=clients * EXAMPLES),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.05, schedule="constant", clip=None),
        federated=FederatedConfig(rule, cohort=cohort, table=table),
        partition=PartitionConfig("iid", clients=clients),
    )
    prepared = Prepared(experiment)
    with jax.set_mesh(prepared.mesh):
        step = prepared.compile()
        before = resident()
        state: Any = prepared.learner.init()
        feed = prepared.feed(0)
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            state, metrics = step(state, next(feed))
            float(metrics["loss"])
            seconds.append(time.perf_counter() - began)
        told = {
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "before": before,
            "table_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state.clients)),
            "seconds": statistics.median(seconds[1:]),
        }
    print(json.dumps(told))


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
