"""SCAFFOLD (Karimireddy et al. 2020): rounds to a target at 0, 10 and 100 % similarity of clients.

    research reproduce scaffold_2020

100 clients, of whom 20 take part in a round, learn MNIST by logistic regression: a gradient of each
a round (SGD), or 1 or 5 epochs by SCAFFOLD, FedAvg or FedProx, each at the best of its rates.
"""

import math
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from research.experiment import (
    Experiment,
    FederatedConfig,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results, Run

TARGETS = (0.85, 0.9)  # test accuracy
ROUNDS = {0.0: 40, 0.1: 30, 1.0: 20}
"""By similarity, after how many no one waits any longer."""


class Way(NamedTuple):
    """How clients learn in a round."""

    rule: Any
    epochs: int
    rate: float  # by validation, see the README


WAYS = {
    "SGD": Way("fedsgd", 1, 0.2),
    "SCAFFOLD, 1 epoch": Way("scaffold", 1, 0.1),
    "FedAvg, 1 epoch": Way("fedavg", 1, 0.2),
    "FedProx, 1 epoch": Way("fedprox", 1, 0.2),
    "SCAFFOLD, 5 epochs": Way("scaffold", 5, 0.1),
    "FedAvg, 5 epochs": Way("fedavg", 5, 0.1),
    "FedProx, 5 epochs": Way("fedprox", 5, 0.02),
}


def variants(quick: bool) -> dict[str, Experiment]:
    """Ways to learn at every similarity; the test images are looked at after every round."""

    def experiment(way: Way, similarity: float, rounds: int) -> Experiment:
        return Experiment(
            model=MLPConfig(widths=()),
            data=ImagesConfig(name="mnist", batch=120, hold_out=False),  # a fifth of a client's
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=way.rate, schedule="constant", clip=None
            ),
            federated=FederatedConfig(
                way.rule, cohort=20, epochs=way.epochs, weighting="uniform", mu=1.0
            ),
            partition=PartitionConfig("similarity", clients=100, similarity=similarity),
            run=RunConfig(
                steps=rounds,
                log_every=rounds,
                evaluate_every=1,
                evaluate_batches=2 if quick else 0,
                checkpoint_every=0,
                tensorboard=False,
            ),
        )

    return {
        f"{name}, {similarity:.0%} similar": experiment(way, similarity, rounds)
        for similarity, rounds in ({0.0: 4} if quick else ROUNDS).items()
        for name, way in WAYS.items()
    }


def rounds_to(target: float, run: Run) -> float:
    """The first round after which the test accuracy is `target`; inf if there is none."""
    looked = [record for record in run.records() if "validation_accuracy" in record]
    there = [record["step"] for record in looked if record["validation_accuracy"] >= target]
    return float(min(there, default=math.inf))


def measure(results: Results) -> list[Measurement]:
    """Rounds to the targets, or in how many they were not reached."""
    return [
        Measurement(
            f"{name}: rounds to {target:.0%}",
            [rounds_to(target, run) for run in some],
            "rounds",
            limit=max(record["step"] for run in some for record in run.records()),
        )
        for target in TARGETS
        for name, some in results.runs.items()
    ]


def draw(axes: Axes, results: Results) -> None:
    """Error over rounds, where clients differ most and do most by themselves."""
    curves = results.curves("step", "validation_accuracy")
    shown = ("SGD", "SCAFFOLD, 5", "FedAvg, 5", "FedProx, 5")
    drawn = {
        name.removesuffix(", 0% similar"): [(x, [1 - right for right in y]) for x, y in seeds]
        for name, seeds in curves.items()
        if name.startswith(shown) and name.endswith(", 0% similar")
    }
    draw_curves(axes, drawn)
    for target in TARGETS:
        axes.axhline(1 - target, color="gray", linewidth=0.8, linestyle="dashed")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_minor_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("rounds")
    axes.set_ylabel("test error")


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw)
