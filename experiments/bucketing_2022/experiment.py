"""Bucketing (Karimireddy et al. 2022): robust rules under attack, where clients are alike or not.

    research reproduce bucketing_2022

25 clients, of whom 5 are Byzantine, learn MNIST by one gradient each a round. Their digits are
shuffled (iid) or sorted (non-iid); the server takes a rule of single gradients, of means of two
(s = 2), or of gradients mixed with their nearest neighbors.
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
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)
from research.reproduction import Measurement, Reproduction, Results

CLIENTS, BYZANTINE, RATE, ROUNDS = 25, 5, 0.05, 200
RULES = {
    "Avg": "mean",
    "Krum": "krum",
    "CM": "median",
    "RFA": "geometric_median",
    "CClip": "centered_clipping",
}
ATTACKS = {"BF": "sign_flip", "mimic": "mimic", "IPM": "ipm", "ALIE": "alie"}
ALONE = ("Krum", "CM")
"""Rules that take single gradients, or numbers of them, and lose the rest."""
BUCKETS = {"groups": -(-CLIENTS // 2)}
NEIGHBORS = {"mixing": "nearest_neighbors"}
BECAUSE = "an MLP in place of the paper's CNN; Byzantine clients take their digits with them"
NEAR = 10.0
"""Points, of accuracies that spread over as many between seeds in the paper."""


def variants(quick: bool) -> dict[str, Experiment]:
    """Rules under attacks; the test images are looked at when it is over."""

    def experiment(rule: str, attack: str, similarity: float, **how: Any) -> Experiment:
        rounds = 20 if quick else ROUNDS
        return Experiment(
            model=MLPConfig(widths=(64,)),
            data=ImagesConfig(name="mnist", batch=32, hold_out=False),
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=RATE, schedule="constant", clip=None
            ),
            federated=FederatedConfig(
                "fedavg",
                cohort=CLIENTS,
                sampling="fixed",
                steps=1,
                weighting="uniform",
                aggregation=AggregationConfig(
                    rule=RULES[rule],  # type: ignore[arg-type]
                    byzantine=BYZANTINE,
                    radius=10 * RATE,  # of gradients 10, as in the paper
                    **how,
                ),
            ),
            partition=PartitionConfig("similarity", clients=CLIENTS, similarity=similarity),
            attack=AttackConfig(attack, count=BYZANTINE),  # type: ignore[arg-type]
            run=RunConfig(
                steps=rounds,
                log_every=rounds,
                evaluate_every=rounds,
                evaluate_batches=2 if quick else 0,
                checkpoint_every=0,
                tensorboard=False,
            ),
        )

    made = {name(rule, "no attack", "non-iid"): experiment(rule, "none", 0.0) for rule in RULES}
    for rule in RULES:
        for attack, which in ATTACKS.items():
            made[name(rule, attack, "non-iid")] = experiment(rule, which, 0.0)
    for rule in ALONE:
        made[name(rule, "mimic", "iid")] = experiment(rule, "mimic", 1.0)
        made[name(rule, "mimic", "non-iid, s = 2")] = experiment(rule, "mimic", 0.0, **BUCKETS)
        mixed = name(rule, "mimic", "non-iid, neighbors")
        made[mixed] = experiment(rule, "mimic", 0.0, **NEIGHBORS)
    if quick:
        return {variant: made[variant] for variant in made if "mimic, non-iid" in variant}
    return made


def name(rule: str, attack: str, data: str) -> str:
    """Of a variant, and of the paper's number."""
    return f"{rule}, {attack}, {data}"


def measure(results: Results) -> list[Measurement]:
    """Test accuracies at the end."""
    return [
        Measurement(
            variant,
            100 * results.last(variant, "validation_accuracy") if variant in results.runs else (),
            "%",
            tolerance=NEAR,
            because=BECAUSE,
            diverged=results.diverged(variant) if variant in results.runs else (),
        )
        for variant in variants(quick=False)
    ]


def draw(axes: Axes, results: Results) -> None:
    """Rule × attack, where clients differ."""
    rows = [*((rule, "non-iid") for rule in RULES)]
    rows += [(rule, "non-iid, neighbors") for rule in ALONE]
    columns = ["no attack", *ATTACKS]
    table = np.full((len(rows), len(columns)), np.nan)
    for i, (rule, data) in enumerate(rows):
        for j, attack in enumerate(columns):
            variant = name(rule, attack, data)
            if variant in results.runs:
                table[i, j] = 100 * np.mean(results.last(variant, "validation_accuracy"))
    axes.imshow(table, cmap="RdYlGn", vmin=10, vmax=95, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center")
    axes.set_xticks(range(len(columns)), columns)
    labels = [rule + (" of neighbors" if "neighbors" in data else "") for rule, data in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.grid(False)
    axes.set_xlabel("test accuracy (%) with 5 of 25 clients Byzantine, non-iid")


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw, may_diverge=True)
