"""FedAvg (McMahan et al. 2017): rounds to a target on MNIST, dealt out at random or by shards.

    research reproduce fedavg_2017

100 clients of 600 digits, of whom a tenth takes part in a round: one gradient of each (FedSGD), or
1 or 5 epochs in batches of 10, by the paper's 2NN or its CNN. What takes hours on a CPU is left out
there, and run where there is an accelerator.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from research.experiment import (
    CNNConfig,
    Experiment,
    FederatedConfig,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)
from research.reporting.comparison import draw_curves
from research.reporting.ledger import read_paper
from research.reproduction import Measurement, Reproduction, Results, Run

MODELS: dict[str, Any] = {"2NN": MLPConfig(widths=(200, 200)), "CNN": CNNConfig("mcmahan")}
TARGETS = {"2NN": 0.97, "CNN": 0.99}  # test accuracy
PAPER = {number.name: number.value for number in read_paper(Path(__file__).with_name("paper.json"))}
SHARE = 0.25  # of the paper's rounds, by which ours may differ


class Way(NamedTuple):
    """A row of the paper's tables 1 and 2."""

    model: str
    kind: Any  # of the partition
    epochs: int  # E; 0: FedSGD
    rate: float  # see the README
    rounds: int  # after which no one waits any longer
    hours: bool = False  # so long it takes on a CPU


WAYS = {
    "2NN, E = 1, B = 10, IID": Way("2NN", "iid", 1, 0.1, 60),
    "2NN, E = 1, B = 10, shards": Way("2NN", "shards", 1, 0.1, 300),
    "2NN, FedSGD, IID": Way("2NN", "iid", 0, 0.464, 900),
    "2NN, FedSGD, shards": Way("2NN", "shards", 0, 0.2, 900),
    "CNN, E = 5, B = 10, IID": Way("CNN", "iid", 5, 0.03, 40),
    "CNN, E = 5, B = 10, shards": Way("CNN", "shards", 5, 0.1, 400, hours=True),
    "CNN, E = 1, B = 10, IID": Way("CNN", "iid", 1, 0.06, 80, hours=True),
    "CNN, E = 1, B = 10, shards": Way("CNN", "shards", 1, 0.1, 600, hours=True),
    "CNN, FedSGD, IID": Way("CNN", "iid", 0, 0.2, 1500, hours=True),
    "CNN, FedSGD, shards": Way("CNN", "shards", 0, 0.2, 1500, hours=True),
}
QUICK = {"2NN, E = 1, B = 10, IID": 20, "2NN, E = 1, B = 10, shards": 5}
"""Rounds of the quick form."""


def variants(quick: bool) -> dict[str, Experiment]:
    """The rows; the test images are looked at after every round, with FedSGD after every fifth."""

    def experiment(way: Way, rounds: int) -> Experiment:
        rule: Any = "fedavg" if way.epochs else "fedsgd"
        return Experiment(
            model=MODELS[way.model],
            data=ImagesConfig(name="mnist", batch=10, hold_out=False),
            optimizer=OptimizerConfig(
                name="sgd", learning_rate=way.rate, schedule="constant", clip=None
            ),
            federated=FederatedConfig(rule, cohort=10, epochs=way.epochs or 1),
            partition=PartitionConfig(way.kind, clients=100),
            run=RunConfig(
                steps=rounds,
                log_every=rounds,
                evaluate_every=1 if way.epochs else 5,
                checkpoint_every=0 if way.model == "2NN" else 5,
                tensorboard=False,
            ),
        )

    return {
        name: experiment(way, QUICK.get(name, 0) if quick else way.rounds)
        for name, way in WAYS.items()
        if not quick or name in QUICK
    }


def best_so_far(run: Run) -> tuple[list[float], list[float]]:
    """Rounds, and the best test accuracy up to each, as in the paper's §3."""
    looked = [record for record in run.records() if "validation_accuracy" in record]
    best: list[float] = []
    for record in looked:
        best.append(max([record["validation_accuracy"], *best[-1:]]))
    return [record["step"] for record in looked], best


def rounds_to(target: float, rounds: Sequence[float], best: Sequence[float]) -> float:
    """Where the curve crosses the target, linearly between its points; inf if it does not."""
    for here, (after, accuracy) in enumerate(zip(rounds, best, strict=True)):
        if accuracy >= target:
            if here == 0:
                return after
            before, lower = rounds[here - 1], best[here - 1]
            return before + (target - lower) / (accuracy - lower) * (after - before)
    return math.inf


def measure(results: Results) -> list[Measurement]:
    """Rounds to the target, or in how many it was not reached."""

    def measured(name: str, target: float) -> Measurement:
        what = f"{name}: rounds to {target:.0%}"
        curves = [best_so_far(run) for run in results.runs.get(name, ())]
        return Measurement(
            what,
            [rounds_to(target, *curve) for curve in curves],
            "rounds",
            tolerance=SHARE * PAPER.get(what, 0.0),
            limit=max((rounds[-1] for rounds, _ in curves), default=None),
        )

    return [measured(name, TARGETS[way.model]) for name, way in WAYS.items()]


def draw(axes: Axes, results: Results) -> None:
    """Error over rounds, the best so far."""
    curves = {
        name: [(x, [1 - right for right in y]) for x, y in map(best_so_far, some)]
        for name, some in results.runs.items()
        if some
    }
    draw_curves(axes, curves)
    for target in TARGETS.values():
        axes.axhline(1 - target, color="gray", linewidth=0.8, linestyle="dashed")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("rounds")
    axes.set_ylabel("test error, the least so far")


reproduction = Reproduction(
    variants,
    seeds=(0,),
    measure=measure,
    draw=draw,
    for_accelerators=[name for name, way in WAYS.items() if way.hours],
)
