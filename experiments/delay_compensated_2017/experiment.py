"""Delay compensation (Zheng et al. 2017): asynchronous SGD beside sequential, 4 and 8 workers.

    research reproduce delay_compensated_2017

One worker (sequential SGD), or 4 or 8 around a parameter server in virtual time, learn MNIST by a
small MLP at the rate that is best for one. Their delayed gradients are used as they come, with
compensation by a constant (DC-ASGD-c) or adaptive λ (DC-ASGD-a), or at a smaller rate.
"""

from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from research.experiment import (
    AsynchronousConfig,
    Experiment,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    RunConfig,
)
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results

RULES = {
    "ASGD": AsynchronousConfig("plain"),
    "DC-ASGD-c": AsynchronousConfig("dc_asgd", compensation=1),
    "DC-ASGD-a": AsynchronousConfig("dc_asgd", compensation=2, compensation_decay=0.95),
    "staleness-aware": AsynchronousConfig("staleness_aware"),
}
SEQUENTIAL = "sequential"
DRAWN = ("ASGD", "DC-ASGD-a")

# Two standard errors of the difference between two errors of the paper, by its 10,000 test images.
TOLERANCE = 0.8  # points
SETTING = "an MLP on MNIST, not a ResNet-20 on CIFAR-10"


def variants(quick: bool) -> dict[str, Experiment]:
    """Rules and numbers of workers, all else being equal, the examples seen included."""
    steps = 40 if quick else 3440  # two epochs of 55,000 images
    whole = Experiment(
        model=MLPConfig(widths=(64,)),
        data=ImagesConfig(name="mnist", batch=32),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.2, warmup_steps=steps // 20, clip=None
        ),
        run=RunConfig(
            steps=steps,
            log_every=steps // 4,
            evaluate_every=steps // (2 if quick else 20),
            evaluate_batches=2 if quick else 0,
            checkpoint_every=0,
            tensorboard=False,
        ),
    )
    servers = {SEQUENTIAL: replace(RULES["ASGD"], workers=1)} | {
        f"{name}, {workers} workers": replace(rule, workers=workers)
        for workers in ((4,) if quick else (4, 8))
        for name, rule in RULES.items()
    }
    return {
        name: replace(whole, asynchronous=replace(server, durations="log_normal", spread=0.2))
        for name, server in servers.items()
    }


def measure(results: Results) -> list[Measurement]:
    """Errors, how far they are above sequential SGD's, and how late gradients were."""
    errors = {name: 100 * (1 - results.test(name, "accuracy")) for name in results.runs}
    lost = {name: results.diverged(name) for name in results.runs}
    late = [name for name in results.runs if name.startswith("ASGD")]
    return [
        *(
            Measurement(f"test error, {name}", error, "%", because=SETTING, diverged=lost[name])
            for name, error in errors.items()
        ),
        *(
            Measurement(
                f"error above sequential's, {name}",
                error - errors[SEQUENTIAL],
                "points",
                TOLERANCE,
                because=SETTING,
                diverged=sorted({*lost[name], *lost[SEQUENTIAL]}),
            )
            for name, error in errors.items()
            if name != SEQUENTIAL
        ),
        *(
            Measurement(
                f"mean staleness{name.removeprefix('ASGD')}",
                results.last(name, "staleness_mean"),
                "updates",
            )
            for name in late
        ),
    ]


def draw(axes: Axes, results: Results) -> None:
    """Error over virtual time, in which a gradient takes a second."""
    curves = results.curves("virtual_seconds", "validation_accuracy")
    drawn = {}
    for name, seeds in curves.items():
        if name == SEQUENTIAL or name.startswith(DRAWN):
            far = max(len(x) for x, _ in seeds)
            middle = np.mean([x for x, _ in seeds if len(x) == far], axis=0).tolist()
            lost = len(results.diverged(name))
            label = f"{name} ({lost} of {len(seeds)} diverged)" if lost else name
            drawn[label] = [(middle[: len(y)], [1 - right for right in y]) for _, y in seeds]
    draw_curves(axes, drawn)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.006)  # room for the names
    axes.legend(loc="lower left", fontsize="small")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("virtual seconds, one a gradient")
    axes.set_ylabel("validation error")


reproduction = Reproduction(
    variants, seeds=(0, 1, 2, 3, 4), measure=measure, draw=draw, may_diverge=True
)
