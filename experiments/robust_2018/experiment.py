"""Robust rules (Yin et al. 2018): median and trimmed mean, where some clients flip their labels.

    research reproduce robust_2018

40 clients learn MNIST by softmax regression, one gradient each a round; those that are Byzantine
take every digit for 9 minus it.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from research.experiment import (
    AggregationConfig,
    AttackConfig,
    Experiment,
    FederatedConfig,
    ImagesConfig,
    LinearConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)
from research.reproduction import Measurement, Reproduction, Results

RATE, ROUNDS = 0.1, 100
SETTINGS: dict[str, tuple[Any, int, int, int]] = {
    "softmax regression": (LinearConfig(), 40, 2, 150),
}
"""Model, clients, of whom so many are Byzantine, and the digits that each takes in a round."""
RULES = {
    "mean, nobody Byzantine": "mean",
    "mean": "mean",
    "median": "median",
    "trimmed mean": "trimmed_mean",
}


def variants(quick: bool) -> dict[str, Experiment]:
    """Rules in both settings; the test images are looked at when it is over."""
    made = {}
    for setting, (model, clients, byzantine, batch) in SETTINGS.items():
        for what, rule in RULES.items():
            flipped = AttackConfig("label_flip", 0 if "nobody" in what else byzantine)
            made[f"{setting}, {what}"] = experiment(
                model,
                ImagesConfig("mnist", batch, hold_out=False),
                PartitionConfig(clients=clients),
                flipped,
                {"rule": rule, "byzantine": byzantine},
                quick,
            )
    if quick:
        return {variant: made[variant] for variant in made if variant in QUICK}
    return made


def experiment(
    model: Any,
    data: ImagesConfig,
    partition: PartitionConfig,
    attack: AttackConfig,
    aggregation: dict[str, Any],
    quick: bool,
) -> Experiment:
    """All clients of a `partition` take a step each a round, and one is made of what they send."""
    rounds = 10 if quick else ROUNDS
    return Experiment(
        model=model,
        data=data,
        optimizer=OptimizerConfig("sgd", learning_rate=RATE, schedule="constant", clip=None),
        federated=FederatedConfig(
            "fedavg",
            cohort=partition.clients,
            sampling="fixed",
            steps=1,
            weighting="uniform",
            aggregation=AggregationConfig(**aggregation),
        ),
        partition=partition,
        attack=attack,
        run=RunConfig(
            steps=rounds,
            log_every=rounds,
            evaluate_every=rounds,
            evaluate_batches=2 if quick else 0,
            checkpoint_every=0,
            tensorboard=False,
        ),
    )


QUICK = ("softmax regression, mean", "softmax regression, median")


def measure(results: Results) -> list[Measurement]:
    """Test accuracies at the end."""
    return [row(results, variant) for variant in variants(quick=False)]


def row(results: Results, variant: str) -> Measurement:
    """The accuracy of one."""
    return Measurement(
        variant,
        at_the_end(results, variant),
        "%",
        diverged=results.diverged(variant) if variant in results.runs else (),
    )


def at_the_end(results: Results, variant: str, metric: str = "validation_accuracy") -> list[float]:
    """%, of every seed; nan of one that diverged."""
    return [
        np.nan if run.diverged else 100 * run.last(metric) for run in results.runs.get(variant, ())
    ]


def draw(axes: Axes, results: Results) -> None:
    """Accuracies of all, a group a setting."""
    for group, setting in enumerate(SETTINGS):
        for bar, what in enumerate(RULES):
            values = at_the_end(results, f"{setting}, {what}")
            if values:
                axes.bar(5 * group + bar, np.mean(values), color=f"C{bar}")
    axes.legend(RULES)
    axes.set_xticks([1.5], list(SETTINGS))
    axes.set_ylabel("test accuracy (%)")


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw, may_diverge=True)
