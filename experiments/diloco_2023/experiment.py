"""DiLoCo: an exchange every 50 steps beside one every step, equal tokens, on the source of Python.

    research reproduce diloco_2023

Douillard et al. 2023, arXiv:2311.08105. DiLoCo is `configs/python_diloco.py`; synchronous learning
is the same run with gradients averaged in every step and a peak rate of its own. Both were tuned
with seed 0, which is none of the seeds here.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from research.experiment import Experiment
from research.reporting.comparison import draw_curves
from research.reproduction import Measurement, Reproduction, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG = Path(__file__).parents[2] / "configs" / "python_diloco.py"
SYNCHRONOUS_RATE = 1.2e-2  # of 8, 12 and 18e-3 the best


def variants(quick: bool) -> Mapping[str, Experiment]:
    """Two ways to learn from the same batches by four replicas."""
    diloco = Experiment.load(CONFIG)
    run = replace(diloco.run, sample_tokens=0, tensorboard=False)
    if quick:
        run = replace(run, steps=500, evaluate_every=100, evaluate_batches=50)
    diloco = replace(diloco, run=run)
    rate = replace(
        diloco.optimizer,
        learning_rate=SYNCHRONOUS_RATE,
        final_learning_rate=SYNCHRONOUS_RATE / 100,
    )
    every_step = replace(diloco.exchange, rule="every_step")
    return {
        "synchronous": replace(diloco, optimizer=rate, exchange=every_step),
        "DiLoCo": diloco,
    }


def measure(results: Results) -> list[Measurement]:
    """Losses of the mean model on the whole validation split, and the bytes they cost."""
    synchronous = results.last("synchronous", "validation_loss")
    diloco = results.last("DiLoCo", "validation_loss")
    sent = [results.last(variant, "bytes_sent_total")[0] for variant in results.runs]
    return [
        Measurement("validation loss, synchronous", synchronous, "nats a byte"),
        Measurement("validation loss, DiLoCo", diloco, "nats a byte"),
        Measurement(
            "validation loss, DiLoCo above synchronous",
            100 * (diloco / synchronous - 1),
            "%",
            tolerance=1.0,
            because="a replica's batch has 512 tokens and not half a million, so that averaging "
            "gradients is worth more here",
        ),
        Measurement("bytes a replica sends, synchronous", sent[0] / 1e6, "MB"),
        Measurement("bytes a replica sends, DiLoCo", sent[1] / 1e6, "MB"),
        Measurement("bytes, synchronous over DiLoCo", sent[0] / sent[1], "times"),
    ]


def draw(axes: "Axes", results: Results) -> None:
    """Validation loss of the mean model over the steps."""
    draw_curves(axes, results.curves("step", "validation_loss"))
    axes.set_xlabel("steps")
    axes.set_ylabel("validation loss (nats a byte)")


reproduction = Reproduction(variants, seeds=(1, 2, 3), measure=measure, draw=draw)
