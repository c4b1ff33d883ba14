"""PowerSGD (Vogels et al. 2019): bytes an epoch of ResNet-18, and accuracy by rank.

    research reproduce powersgd_2019

The bytes are those that the rule states for the real ResNet-18 and the paper's 16 workers. The
accuracies are of a LeNet on 4,500 images of CIFAR-10, learned by 4 replicas.
"""

from dataclasses import replace

import jax
from flax import nnx
from matplotlib.axes import Axes

from research.exchange import Replicas
from research.experiment import (
    CNNConfig,
    ExchangeConfig,
    Experiment,
    ImagesConfig,
    MeshConfig,
    OptimizerConfig,
    ResNetConfig,
    RunConfig,
)
from research.models import Specification
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results

EXCHANGES = {"SGD": ExchangeConfig("every_step")} | {
    f"rank {rank}": ExchangeConfig("every_step", compression="powersgd", rank=rank)
    for rank in (1, 2, 4)
}
WORKERS, STEPS_AN_EPOCH = 16, 50_000 // (16 * 128)  # the paper's; the last, short batch is dropped


def variants(quick: bool) -> dict[str, Experiment]:
    """A learner for each exchange, all else being equal."""
    steps = 20 if quick else 420  # 12 epochs of 4,500 images
    whole = Experiment(
        model=CNNConfig(kind="lenet"),
        data=ImagesConfig(name="cifar10_5k", batch=128),
        optimizer=OptimizerConfig(
            name="sgd",
            learning_rate=0.02,
            warmup_steps=steps // 10,
            beta1=0.9,
            weight_decay=1e-4,
            clip=None,
        ),
        mesh=MeshConfig(replica=-1, data=1),
        run=RunConfig(
            steps=steps,
            log_every=steps // 4,
            evaluate_every=steps // (2 if quick else 12),
            checkpoint_every=0,
            tensorboard=False,
        ),
    )
    return {
        name: replace(whole, exchange=replace(exchange, replicas=4))
        for name, exchange in EXCHANGES.items()
    }


def mebibytes_an_epoch(exchange: ExchangeConfig) -> float:
    """Of the messages of one worker; what an all-reduce makes of them is not counted."""
    model = nnx.eval_shape(
        lambda: ResNetConfig().build(Specification((32, 32, 3), 10), jax.random.key(0))
    )
    parameters = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rule = replace(exchange, replicas=WORKERS).build(STEPS_AN_EPOCH)
    sendings = rule.sendings(parameters, Replicas(WORKERS))
    return (
        sum(
            message.payload * sum(bool(sending.when(step)) for step in range(STEPS_AN_EPOCH))
            for sending in sendings
            for message in sending.messages
        )
        / 2**20
    )


def measure(results: Results) -> list[Measurement]:
    """Bytes as the rules state them, accuracies of the runs."""
    rows = [
        # Half a unit of the last digit.
        Measurement(
            f"data an epoch, {name}",
            mebibytes_an_epoch(exchange),
            "MiB",
            tolerance=0.5 if name == "SGD" else 0.05,
        )
        for name, exchange in EXCHANGES.items()
    ]
    accuracy = {name: 100 * results.test(name, "accuracy") for name in EXCHANGES}
    rows += [Measurement(f"test accuracy, {name}", accuracy[name], "%") for name in EXCHANGES]
    rows += [
        Measurement(f"accuracy below SGD's, {name}", accuracy["SGD"] - accuracy[name], "points")
        for name in EXCHANGES
        if name != "SGD"
    ]
    return rows


def draw(axes: Axes, results: Results) -> None:
    """Accuracy over what it cost."""
    draw_curves(axes, results.curves("bytes_sent_total", "validation_accuracy"))
    axes.set_xscale("log")
    axes.set_xlabel("bytes sent by a replica")
    axes.set_ylabel("validation accuracy")


reproduction = Reproduction(
    variants, seeds=(0, 1, 2, 3, 4), measure=measure, draw=draw, cpu_devices=4
)
