"""Robust rules (Yin et al. 2018): median and trimmed mean under flipped labels; and a table of all.

    research reproduce robust_2018

The paper's settings: 40 clients learn MNIST by softmax regression, or 10 by a CNN, one gradient
each a round; those that are Byzantine take every digit for 9 minus it. The table: rules × attacks,
on digits and MNIST, where 25 clients, of whom 5 are Byzantine, have parts of a shuffle (iid), or a
label or two each (sorted).
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.experiment import (
    AggregationConfig,
    AttackConfig,
    CNNConfig,
    Experiment,
    FederatedConfig,
    ImagesConfig,
    LinearConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    RunConfig,
)
from research.reproduction import Measurement, Reproduction, Results

RATE, ROUNDS = 0.1, 100

# The paper's settings ------------------------------------------------------------------------

SETTINGS: dict[str, tuple[Any, int, int, int]] = {
    "softmax regression": (LinearConfig(), 40, 2, 150),
    "CNN": (CNNConfig("lenet"), 10, 1, 64),
}
"""Model, clients, of whom so many are Byzantine, and the digits that each takes in a round."""
PAPERS = {
    "mean, nobody Byzantine": "mean",
    "mean": "mean",
    "median": "median",
    "trimmed mean": "trimmed_mean",
}

# The table -----------------------------------------------------------------------------------

CLIENTS, BYZANTINE = 25, 5
SIMILARITY = {"iid": 1.0, "sorted": 0.0}
NEIGHBORS = {"mixing": "nearest_neighbors"}
RULES: dict[str, dict[str, Any]] = {
    "mean": {"rule": "mean"},
    "median": {"rule": "median"},
    "trimmed mean": {"rule": "trimmed_mean"},
    "geometric median": {"rule": "geometric_median"},
    "Krum": {"rule": "krum"},
    "multi-Krum": {"rule": "multi_krum"},
    "Bulyan": {"rule": "bulyan"},
    "norm clipping": {"rule": "norm_clipping"},
    "centered clipping": {"rule": "centered_clipping"},
    "median of neighbors": {"rule": "median", **NEIGHBORS},
    "Krum of neighbors": {"rule": "krum", **NEIGHBORS},
}
TABLES: dict[str, tuple[int, tuple[str, ...]]] = {
    "digits": (16, tuple(RULES)),
    "mnist": (32, ("mean", "median", "trimmed mean", "Krum", "norm clipping")),
}
"""Digits that a client takes in a round, and the rules."""
RADIUS = 2 * RATE
"""Of gradients 2, about what those of honest clients begin with."""
ATTACKS = {
    "no attack": AttackConfig(),
    "sign flip": AttackConfig("sign_flip", BYZANTINE),
    "label flip": AttackConfig("label_flip", BYZANTINE),
    "ALIE": AttackConfig("alie", BYZANTINE),
    "IPM": AttackConfig("ipm", BYZANTINE),
    "Gaussian": AttackConfig("gaussian", BYZANTINE),
    "mimic": AttackConfig("mimic", BYZANTINE),
    "backdoor": AttackConfig("backdoor", BYZANTINE),
    "scaled backdoor": AttackConfig("backdoor", BYZANTINE, strength=CLIENTS / BYZANTINE),
}
OPENS = {"backdoor": "it opens", "scaled backdoor": "scaled, it opens"}
"""Attacks whose success is a number of its own."""


def variants(quick: bool) -> dict[str, Experiment]:
    """The paper's settings, then the table; the test images are looked at when it is over."""
    made = {}
    for setting, (model, clients, byzantine, batch) in SETTINGS.items():
        for what, rule in PAPERS.items():
            flipped = AttackConfig("label_flip", 0 if "nobody" in what else byzantine)
            made[f"{setting}, {what}"] = experiment(
                model,
                ImagesConfig("mnist", batch, hold_out=False),
                PartitionConfig(clients=clients),
                flipped,
                {"rule": rule, "byzantine": byzantine},
                quick,
            )
    for data, how, rule, attack in cells():
        made[name(data, how, rule, attack)] = experiment(
            MLPConfig(widths=(32,)),
            ImagesConfig(data, TABLES[data][0], hold_out=False),  # type: ignore[arg-type]
            PartitionConfig("similarity", clients=CLIENTS, similarity=SIMILARITY[how]),
            ATTACKS[attack],
            {"byzantine": BYZANTINE, "radius": RADIUS, **RULES[rule]},
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


def cells() -> list[tuple[str, str, str, str]]:
    """Of all tables: data, how it is dealt out, rule and attack."""
    return [
        (data, how, rule, attack)
        for data, (_, rules) in TABLES.items()
        for how in SIMILARITY
        for rule in rules
        for attack in ATTACKS
    ]


def name(data: str, how: str, rule: str, attack: str) -> str:
    """Of a cell's variant."""
    return f"{data}, {how}, {rule}, {attack}"


QUICK = (
    "softmax regression, median",
    name("digits", "sorted", "Krum", "ALIE"),
    name("digits", "iid", "median of neighbors", "scaled backdoor"),
)


def measure(results: Results) -> list[Measurement]:
    """Test accuracies at the end; of backdoors also how often they open."""
    rows = [
        row(results, f"{setting}, {what}", "validation_accuracy")
        for setting in SETTINGS
        for what in PAPERS
    ]
    for cell in cells():
        rows.append(row(results, name(*cell), "validation_accuracy"))
        if cell[-1] in OPENS:
            rows.append(row(results, name(*cell), "validation_backdoor_success", ": opens"))
    return rows


def row(results: Results, variant: str, metric: str, more: str = "") -> Measurement:
    """A metric of a variant at its end."""
    return Measurement(
        variant + more,
        at_the_end(results, variant, metric),
        "%",
        diverged=results.diverged(variant) if variant in results.runs else (),
    )


def at_the_end(results: Results, variant: str, metric: str) -> list[float]:
    """%, of every seed; nan of one that diverged."""
    runs = results.runs.get(variant, ())
    return [np.nan if run.diverged else 100 * run.last(metric) for run in runs]


def draw(axes: Axes, results: Results) -> None:
    """The tables as heat maps, a panel each, with a backdoor's success at their right."""
    picture = axes.figure
    assert isinstance(picture, Figure)
    axes.remove()
    picture.set_size_inches(13, 7.4)
    heights = [len(rules) for _, rules in TABLES.values()]
    panels = picture.subplots(
        len(TABLES), len(SIMILARITY), sharex=True, sharey="row", height_ratios=heights
    )
    for of_data, (data, (_, rules)) in zip(panels, TABLES.items(), strict=True):
        for panel, how in zip(of_data, SIMILARITY, strict=True):
            heat(panel, results, data, how, rules)
            panel.set_title(f"{data}, {how}: test accuracy (%)")


def heat(panel: Axes, results: Results, data: str, how: str, rules: tuple[str, ...]) -> None:
    """One table."""
    columns = [(attack, "validation_accuracy") for attack in ATTACKS]
    columns += [(attack, "validation_backdoor_success") for attack in OPENS]
    good = np.full((len(rules), len(columns)), np.nan)
    for i, rule in enumerate(rules):
        for j, (attack, metric) in enumerate(columns):
            values = at_the_end(results, name(data, how, rule, attack), metric)
            if not values:
                continue
            ended = [value for value in values if not np.isnan(value)]
            mean = float(np.mean(ended)) if ended else 0.0
            good[i, j] = 100 - mean if metric == "validation_backdoor_success" else mean
            panel.text(j, i, f"{mean:.0f}" if ended else "–", ha="center", va="center", fontsize=7)
    panel.imshow(good, cmap="RdYlGn", vmin=10, vmax=95, aspect="auto")
    panel.axvline(len(ATTACKS) - 0.5, color="white", linewidth=3)
    panel.set_xticks(range(len(columns)), [*ATTACKS, *OPENS.values()], rotation=40, ha="right")
    panel.set_yticks(range(len(rules)), rules)
    panel.grid(False)


reproduction = Reproduction(variants, seeds=(0, 1), measure=measure, draw=draw, may_diverge=True)
