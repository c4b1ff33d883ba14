"""Gossip (Assran et al. 2019, Lian et al. 2017): accuracy of SGP and D-PSGD beside all-reduce.

    research reproduce gossip_2019

Eight replicas learn MNIST by a LeNet: gradients averaged in every step, parameters mixed with two
neighbors on a ring (D-PSGD), or half of everything pushed to one peer (SGP).
"""

from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from research.experiment import (
    CNNConfig,
    ExchangeConfig,
    Experiment,
    ImagesConfig,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
)
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results

EXCHANGES = {
    "all-reduce": ExchangeConfig("every_step"),
    "D-PSGD": ExchangeConfig("dpsgd", graph="ring"),
    "SGP": ExchangeConfig("sgp"),
}
GOSSIP = ("D-PSGD", "SGP")


def variants(quick: bool) -> dict[str, Experiment]:
    """Ways to exchange, all else being equal: Nesterov momentum, of each replica its own."""
    steps = 40 if quick else 860  # two epochs of 55,000 images
    whole = Experiment(
        model=CNNConfig(kind="lenet"),
        data=ImagesConfig(name="mnist", batch=128),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.05,
            warmup_steps=steps // 20,
            beta1=0.9,
            weight_decay=1e-4,
            clip=None,
            arguments={"nesterov": 1},  # arguments are numbers
        ),
        mesh=MeshConfig(replica=-1, data=1),
        run=RunConfig(
            steps=steps,
            log_every=steps // 4,
            evaluate_every=steps // (2 if quick else 20),
            evaluate_batches=2 if quick else 0,
            checkpoint_every=0,
            tensorboard=False,
        ),
    )
    return {
        name: replace(whole, exchange=replace(exchange, replicas=8))
        for name, exchange in EXCHANGES.items()
    }


def measure(results: Results) -> list[Measurement]:
    """Accuracies of the mean of the replicas, what it cost, and how far apart they were."""
    accuracy = {name: 100 * results.test(name, "accuracy") for name in EXCHANGES}
    apart = results.curves("step", "consensus_distance")
    sent = {name: results.last(name, "bytes_sent_total")[0] for name in EXCHANGES}
    return [
        *(
            Measurement(
                f"accuracy below all-reduce's, {name}",
                accuracy["all-reduce"] - accuracy[name],
                "points",
                holds="at most",
            )
            for name in GOSSIP
        ),
        *(Measurement(f"test accuracy, {name}", accuracy[name], "%") for name in EXCHANGES),
        *(
            Measurement(f"bytes beside all-reduce's, {name}", sent[name] / sent["all-reduce"], "×")
            for name in GOSSIP
        ),
        *(
            Measurement(
                f"largest consensus distance, {name}", [max(y) for _, y in apart[name]], "norm"
            )
            for name in GOSSIP
        ),
    ]


def draw(axes: Axes, results: Results) -> None:
    """Error over what it cost."""
    curves = results.curves("bytes_sent_total", "validation_accuracy")
    draw_curves(
        axes,
        {
            name: [([x / 1e6 for x in sent], [1 - y for y in right]) for sent, right in seeds]
            for name, seeds in curves.items()
        },
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("sent by a replica (MB)")
    axes.set_ylabel("validation error")


reproduction = Reproduction(variants, seeds=(0, 1, 2), measure=measure, draw=draw, cpu_devices=8)
