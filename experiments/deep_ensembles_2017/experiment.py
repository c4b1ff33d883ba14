"""Deep ensembles (Lakshminarayanan et al. 2017): NLL, error and Brier over members, in and outside.

    research reproduce deep_ensembles_2017

15 MLPs of 3 × 200 units learn MNIST side by side, one MLP of as many parameters as all of them
together, and 10 LeNets; digits, digits with permuted pixels and photographs are what they are asked
about.
"""

import json
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from research import trained
from research.experiment import (
    CNNConfig,
    EnsembleConfig,
    Experiment,
    ImagesConfig,
    MLPConfig,
    OptimizerConfig,
    RunConfig,
)
from research.reporting.picture import SERIES
from research.reproduction import Measurement, Reproduction, Results, Run
from research.training.folder import RunFolder

MEMBERS = (1, 5, 10, 15)
TOGETHER, LARGE = "15 members", "one net of 15 times the parameters"
LENETS = "10 LeNets"
SCORES = {"nll": "NLL", "error": "error", "brier": "Brier score", "ece": "ECE"}
STRANGE = {"permuted": "permuted pixels", "cifar10_5k": "photographs"}


def variants(quick: bool) -> dict[str, Experiment]:
    """The ensembles, and the large net as an ensemble of one, so that the same is told of all."""

    def experiment(members: int, model: MLPConfig | CNNConfig) -> Experiment:
        return Experiment(
            model=model,
            data=ImagesConfig(name="mnist", batch=100),
            optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, clip=None),
            ensemble=EnsembleConfig("deep", members=members),
            run=RunConfig(
                steps=20 if quick else 2750,
                log_every=20 if quick else 100,
                evaluate_batches=2 if quick else 0,
                checkpoint_every=0 if quick else 500,
                tensorboard=False,
            ),
        )

    small, large = (20, 110) if quick else (200, 1154)
    made = {
        TOGETHER: experiment(15, MLPConfig(widths=(small,) * 3)),
        LARGE: experiment(1, MLPConfig(widths=(large,) * 3)),
    }
    return made if quick else made | {LENETS: experiment(10, CNNConfig(kind="lenet"))}


def judged(run: Run, strange: str) -> dict[str, Any]:
    """What is told of a finished run beside examples of one kind from outside; evaluated once."""
    kept = RunFolder(run.folder / strange)
    if not (kept.path / "ensemble.json").exists():
        made = trained.evaluate(
            run.folder,
            lambda e: replace(e, ensemble=replace(e.ensemble, outside=strange)),  # type: ignore
        )
        kept.path.mkdir(exist_ok=True)
        kept.write("ensemble", made["ensemble"])
    return json.loads((kept.path / "ensemble.json").read_text())


def measure(results: Results) -> list[Measurement]:
    """Scores of the first M members, of the mean member, and of the large net."""
    rows = []
    for score, name in SCORES.items():
        percent = score == "error"
        unit = "%" if percent else "nats" if score == "nll" else ""

        def add(who: str, values: list[float], percent: bool = percent, unit: str = unit) -> None:
            scale = 100 if percent else 1
            rows.append(Measurement(who, [scale * value for value in values], unit))

        of = [judged(run, "permuted") for run in results.runs[TOGETHER]]
        alone = [each["combinations"]["a member"][score] for each in of]
        add(f"{name} of a member, in the mean", alone)
        for members in MEMBERS[1:]:
            together = [each["by_members"][members - 1][score] for each in of]
            add(f"{name} of {members} members", together)
        large = [judged(run, "permuted") for run in results.runs[LARGE]]
        add(f"{name} of {LARGE}", [each["by_members"][0][score] for each in large])
        lenets = [judged(run, "permuted") for run in results.runs.get(LENETS, ())]
        add(
            f"{name} of a LeNet, in the mean",
            [m["combinations"]["a member"][score] for m in lenets],
        )
        add(f"{name} of {LENETS}", [each["by_members"][-1][score] for each in lenets])
    for strange, what in STRANGE.items():
        of = [judged(run, strange) for run in results.runs[TOGETHER]]
        large = [judged(run, strange) for run in results.runs[LARGE]]
        who = {
            "a member, in the mean": [each["combinations"]["a member"]["auroc"] for each in of],
            "5 members": [each["by_members"][4]["auroc"] for each in of],
            "15 members": [each["by_members"][14]["auroc"] for each in of],
            LARGE: [each["by_members"][0]["auroc"] for each in large],
        }
        for name, values in who.items():
            rows.append(Measurement(f"AUROC of {name}, digits against {what}", values, ""))
    return rows


def draw(axes: Axes, results: Results) -> None:
    """NLL over members: the first M together, and what the large net has."""
    for run in results.runs[TOGETHER]:
        content = judged(run, "permuted")
        together = [row["nll"] for row in content["by_members"]]
        numbers = range(1, len(together) + 1)
        first = run is results.runs[TOGETHER][0]
        label = "the first M members" if first else None
        axes.plot(numbers, together, "o-", markersize=3, color=SERIES[0], label=label)
        own = content["combinations"]["a member"]["nll"]
        axes.axhline(own, color=SERIES[1], label="a member, in the mean" if first else None)
    for run in results.runs[LARGE]:
        nll = judged(run, "permuted")["by_members"][0]["nll"]
        first = run is results.runs[LARGE][0]
        axes.axhline(
            nll, color=SERIES[2], linestyle="dashed", label="as many parameters" if first else None
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("members M")
    axes.set_ylabel("test NLL (nats)")
    axes.grid(axis="y")
    axes.legend()


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw)
