"""FedProx (Li et al. 2020): Synthetic(1, 1) where none, half or nine tenths of a round straggle.

    research reproduce fedprox_2020

30 devices, of whom 10 take part in a round, learn by logistic regression, 20 epochs a round.
Stragglers do only some of theirs: FedAvg drops them, FedProx takes what they have done (μ = 0), or
besides holds all devices near to the server's parameters (μ = 1).
"""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes

from research.experiment import (
    Experiment,
    FederatedConfig,
    LinearConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
    SyntheticConfig,
)
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results, Run

ROUNDS = 200
LAST = 20  # rounds, over which accuracies and losses are averaged
STRAGGLERS = (0.0, 0.5, 0.9)


class Way(NamedTuple):
    """What becomes of stragglers, and how devices are held."""

    straggling: Any
    mu: float


WAYS = {
    "FedAvg": Way("drop", 0.0),
    "FedProx, μ = 0": Way("partial", 0.0),
    "FedProx, μ = 1": Way("partial", 1.0),
}


def variants(quick: bool) -> dict[str, Experiment]:
    """Ways at every share of stragglers; the test examples are looked at after every round."""

    def experiment(way: Way, stragglers: float) -> Experiment:
        rounds = 4 if quick else ROUNDS
        return Experiment(
            model=LinearConfig(),
            data=SyntheticConfig(alpha=1.0, beta=1.0, devices=30, batch=10, seed=1),
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=0.01, schedule="constant", clip=None
            ),
            federated=FederatedConfig(
                "fedprox",
                cohort=10,
                epochs=20,
                mu=way.mu,
                stragglers=stragglers,
                straggling=way.straggling,
            ),
            partition=PartitionConfig("natural"),
            run=RunConfig(
                steps=rounds,
                log_every=rounds,
                evaluate_every=1,
                checkpoint_every=0,
                tensorboard=False,
            ),
        )

    return {
        f"{name}, {stragglers:.0%} stragglers": experiment(way, stragglers)
        for stragglers in ((0.9,) if quick else STRAGGLERS)
        for name, way in WAYS.items()
        if stragglers or name != "FedProx, μ = 0"  # which then is FedAvg
    }


def over_the_last(run: Run, metric: str) -> list[float]:
    """`metric` after each of the last rounds."""
    return [record[metric] for record in run.records() if metric in record][-LAST:]


def measure(results: Results) -> list[Measurement]:
    """Test accuracy and loss, in the mean of the last rounds, and how much the loss goes up and
    down in them."""

    def rows(what: str, unit: str, of: Any, metric: str, scale: float = 1.0) -> list[Measurement]:
        return [
            Measurement(
                f"{name}: {what}",
                [scale * float(of(over_the_last(run, metric))) for run in some],
                unit,
            )
            for name, some in results.runs.items()
        ]

    return [
        *rows("test accuracy", "%", np.mean, "validation_accuracy", 100),
        *rows("test loss", "nats", np.mean, "validation_loss"),
        *rows("deviation of the loss from round to round", "nats", np.std, "validation_loss"),
    ]


def draw(axes: Axes, results: Results) -> None:
    """Test loss over rounds, where nine tenths straggle."""
    curves = results.curves("step", "validation_loss")
    draw_curves(
        axes,
        {
            name.removesuffix(", 90% stragglers"): seeds
            for name, seeds in curves.items()
            if name.endswith(", 90% stragglers")
        },
    )
    axes.set_xlabel("rounds")
    axes.set_ylabel("test loss, 90 % stragglers")


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw)
