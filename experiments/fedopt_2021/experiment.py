"""FedOpt (Reddi et al. 2021): server optimizers on Shakespeare by role.

    research reproduce fedopt_2021

1,117 roles, of whom 10 take part in a round, learn one epoch each by SGD to tell the next
character; the server averages what they did (FedAvg), with momentum (FedAvgM), or takes it for the
gradient of Adagrad, Adam or Yogi. The rates are those of the authors.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from research.experiment import (
    Experiment,
    FederatedConfig,
    LSTMConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
    TextConfig,
)
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results, Run

ROUNDS = 150
EVERY = 10  # rounds the held-out speeches are looked at
LAST = 3  # looks, over which accuracies are averaged


def server(name: str, rate: float, beta1: float | None = None, **more: Any) -> OptimizerConfig:
    """The server's optimizer, with optax's further arguments."""
    return OptimizerConfig(
        name=name,
        learning_rate=rate,
        schedule="constant",
        beta1=beta1,
        clip=None,
        arguments={argument: float(value) for argument, value in more.items()},
    )


SERVERS = {
    "FedAvg": server("sgd", 1.0),
    "FedAvgM": server("sgd", 10**-0.5, beta1=0.9),
    "FedAdagrad": server("adagrad", 10**-0.5, eps=0.1, initial_accumulator_value=0),
    "FedAdam": server("adam", 0.01, eps=1e-3),
    "FedYogi": server("yogi", 0.01, eps=1e-3),
}


def variants(quick: bool) -> dict[str, Experiment]:
    """One for each server."""

    def experiment(optimizer: OptimizerConfig) -> Experiment:
        rounds = 2 if quick else ROUNDS
        return Experiment(
            model=LSTMConfig(layers=2, width=64, embedding=8),
            data=TextConfig(
                source="shakespeare_by_role",
                vocabulary="character",
                context=80,
                batch=4,
                validation_fraction=0.2,
            ),
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=1.0, schedule="constant", clip=None
            ),
            federated=FederatedConfig("fedavg", cohort=10, epochs=1, server=optimizer),
            partition=PartitionConfig("natural"),
            run=RunConfig(
                steps=rounds,
                log_every=rounds,
                evaluate_every=rounds if quick else EVERY,
                evaluate_batches=1 if quick else 4,  # of 22
                checkpoint_every=0,
                sample_tokens=0,
                tensorboard=False,
            ),
        )

    some = ("FedAvg", "FedYogi") if quick else SERVERS
    return {name: experiment(SERVERS[name]) for name in some}


def last_accuracies(run: Run) -> float:
    """Of the next character, in % of the held-out ones, in the mean of the last looks."""
    looked = [record for record in run.records() if "validation_accuracy" in record]
    return 100 * float(np.mean([record["validation_accuracy"] for record in looked[-LAST:]]))


def measure(results: Results) -> list[Measurement]:
    """Accuracy of each server, and how far above FedAvg's it is."""
    accuracies = {
        name: [last_accuracies(run) for run in some] for name, some in results.runs.items()
    }
    plain = accuracies["FedAvg"]
    above = {
        name: [ours - theirs for ours, theirs in zip(some, plain, strict=True)]
        for name, some in accuracies.items()
        if name != "FedAvg"
    }
    return [
        *(Measurement(f"{name}: accuracy", some, "%") for name, some in accuracies.items()),
        *(Measurement(f"{name}: above FedAvg", some, "points") for name, some in above.items()),
    ]


def draw(axes: Axes, results: Results) -> None:
    """Accuracy over rounds."""
    draw_curves(axes, results.curves("step", "validation_accuracy"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("rounds")
    axes.set_ylabel("accuracy of the next character")


reproduction = Reproduction(variants, seeds=(0,), measure=measure, draw=draw)
