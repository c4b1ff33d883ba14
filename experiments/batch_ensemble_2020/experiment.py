"""BatchEnsemble (Wen et al. 2020): four members of rank one beside one net and four whole ones.

    research reproduce batch_ensemble_2020

LeNets learn 4,500 images of CIFAR-10: one, four that share their weights but for signs of rank one,
four that share nothing, and one that passes four snapshots.
"""

from typing import Any

import jax
from matplotlib.axes import Axes

from research import trained
from research.experiment import (
    CNNConfig,
    EnsembleConfig,
    Experiment,
    ImagesConfig,
    OptimizerConfig,
    RunConfig,
)
from research.reporting.picture import SERIES
from research.reproduction import Measurement, Reproduction, Results, Run
from research.restored import Restored
from research.training.folder import RunFolder

MEMBERS = 4
ONE, BATCH, DEEP, SNAPSHOTS = "one net", "BatchEnsemble", "deep ensemble", "snapshots"
ENSEMBLES = {
    ONE: EnsembleConfig("deep", members=1),
    BATCH: EnsembleConfig("batch", members=MEMBERS),
    DEEP: EnsembleConfig("deep", members=MEMBERS),
    SNAPSHOTS: EnsembleConfig("snapshot", members=MEMBERS),
}
SCORES = {"error": ("error", "%"), "nll": ("NLL", "nats"), "ece": ("ECE", "")}


def variants(quick: bool) -> dict[str, Experiment]:
    """Every member has 64 images a step, of which it sees as many as the one net."""
    return {
        name: Experiment(
            model=CNNConfig(kind="lenet"),
            data=ImagesConfig(name="cifar10_5k", batch=64),
            optimizer=OptimizerConfig(
                name="adamw", learning_rate=2e-3, warmup_steps=20, weight_decay=1e-2, clip=None
            ),
            ensemble=ensemble,
            run=RunConfig(
                steps=12 if quick else 300,
                log_every=12 if quick else 50,
                evaluate_batches=2 if quick else 0,
                checkpoint_every=0,
                tensorboard=False,
            ),
        )
        for name, ensemble in ENSEMBLES.items()
    }


def judged(run: Run) -> dict[str, Any]:
    """What is told of a finished run; evaluated once."""
    folder = RunFolder(run.folder)
    if not (run.folder / "evaluation.json").exists():
        trained.evaluate(run.folder)
    return folder.read("evaluation")["ensemble"]


def parameters(run: Run) -> int:
    """Numbers that its state learns, of all members."""
    learner: Any = Restored(RunFolder(run.folder)).learner
    return sum(leaf.size for leaf in jax.tree.leaves(learner.abstract_state.parameters))


def measure(results: Results) -> list[Measurement]:
    """Scores of the members together and each for itself, and how many parameters they need."""
    rows = []
    for score, (name, unit) in SCORES.items():
        scale = 100 if unit == "%" else 1
        for variant, runs in results.runs.items():
            together = [scale * judged(run)["combinations"]["mean"][score] for run in runs]
            rows.append(Measurement(f"{name} of {variant}", together, unit))
            if variant != ONE:
                alone = [scale * judged(run)["combinations"]["a member"][score] for run in runs]
                rows.append(Measurement(f"{name} of a member of {variant}", alone, unit))
    one = parameters(results.runs[ONE][0])
    for variant in (BATCH, DEEP):
        share = parameters(results.runs[variant][0]) / one
        rows.append(Measurement(f"parameters of {variant}, of one net's", share, ""))
    for variant in (BATCH, DEEP, SNAPSHOTS):
        apart = [100 * judged(run)["disagreement"] for run in results.runs[variant]]
        rows.append(Measurement(f"disagreement of members of {variant}", apart, "%"))
    return rows


def draw(axes: Axes, results: Results) -> None:
    """Error and NLL of every seed: of members each for itself, and together."""
    for color, (variant, runs) in zip(SERIES, results.runs.items(), strict=False):
        for number, run in enumerate(runs):
            table = judged(run)["combinations"]
            (x, y), (own_x, own_y) = (
                (100 * table[who]["error"], table[who]["nll"]) for who in ("mean", "a member")
            )
            axes.plot([own_x, x], [own_y, y], color=color, linewidth=0.9)
            axes.plot(own_x, own_y, "o", color=color, markerfacecolor="white", markersize=5)
            axes.plot(x, y, "o", color=color, markersize=5, label=None if number else variant)
    axes.set_xlabel("test error (%): open, a member; full, all together")
    axes.set_ylabel("test NLL (nats)")
    axes.legend()


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw)
