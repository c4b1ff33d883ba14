"""Losses over the steps of a run, read from its folder."""

import operator
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from research.errors import UserError
from research.training.folder import RunFolder
from research.training.metrics import Record, read

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

    from research.reporting.picture import Picture


ROUND = (1, 2, 2.5, 5, 10)
"""Steps between ticks, times a power of 10."""


class Curve(NamedTuple):
    """What a run measured."""

    name: str
    unit: str  # what a loss is the mean over: "tokens" or "examples"
    per_step: int | None  # units a step; None: not known
    records: list[Record]  # as in metrics.jsonl: step, loss, sometimes validation_loss
    turns: int = 1  # parts of a step that were computed one after another, of as many replicas


def read_curve(run: Path) -> Curve:
    """The losses in the folder of a run, which may still be going on.

    Raises UserError for a folder that holds no run, or one that has logged no step.
    """
    folder = RunFolder.existing(run)
    records = read(folder.metrics)
    if not records:
        raise UserError(f"{run} has logged no step yet: there is no loss to draw")
    data, batch = folder.read("data"), folder.read("config")["data"]["batch"]
    is_text = data["unit"] == "tokens"
    return Curve(
        run.resolve().name, data["unit"], batch * (data["shape"][0] if is_text else 1), records
    )


def loss_curves(runs: Sequence[Path | Curve], path: Path | None = None) -> "Picture":
    """Training loss (a thin line) and validation loss (markers) of `runs` over their steps.

    A second axis counts the tokens or examples, where a step has as many in every run. The figure
    is written to `path` (.svg, .png, .pdf) if there is one. Raises as `read_curve`.
    """
    from research.reporting.picture import one_picture

    curves = [run if isinstance(run, Curve) else read_curve(run) for run in runs]
    return one_picture(5.6, 3.4, lambda axes: draw_losses(axes, curves), path)


def draw_losses(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Draws what `loss_curves` describes. Raises UserError for no curve, or unequal units."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    from research.reporting.picture import INK, QUIET, SERIES

    if not curves:
        raise UserError("there is no run to draw: give at least one run folder")
    name = loss_name(curves)
    for number, curve in enumerate(curves):
        color = SERIES[number % len(SERIES)]
        validation = _points(curve, "validation_loss")
        single = len(curves) == 1
        axes.plot(
            *_points(curve, "loss"),
            color=color,
            linewidth=1.1,
            label="training" if single else curve.name,
            zorder=2,
        )
        if validation[0]:
            marks = SERIES[1] if single else color
            axes.plot(
                *validation,
                color=marks,
                linestyle="none" if len(validation[0]) == 1 else (0, (1, 2)),
                linewidth=1,
                marker="o",
                markersize=4.5,
                markeredgecolor="white",
                markeredgewidth=0.8,
                label=f"validation (last: {validation[1][-1]:.2f})" if single else None,
                zorder=3,
            )
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    marked = any(_points(curve, "validation_loss")[0] for curve in curves)
    axes.legend(
        title="lines: training, dots: validation" if len(curves) > 1 and marked else None,
        title_fontsize="small",
        alignment="left",
        loc="upper right",
        labelcolor=INK,
    )
    per_step = {curve.per_step for curve in curves}
    scale = per_step.pop() if len(per_step) == 1 else None
    if scale:
        above = axes.secondary_xaxis(
            "top", functions=(partial(operator.mul, scale), partial(operator.mul, 1 / scale))
        )
        above.xaxis.set_major_formatter(EngFormatter(sep=" "))
        above.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=ROUND))
        above.spines["top"].set_visible(False)
        above.tick_params(length=0, labelcolor=QUIET)
        above.set_xlabel(curves[0].unit, color=QUIET)


def loss_name(curves: Sequence[Curve]) -> str:
    """What the losses of `curves` are means over. Raises UserError where that differs."""
    units = {curve.unit for curve in curves}
    if len(units) > 1:
        raise UserError(
            f"losses a token and losses an example do not compare ({', '.join(sorted(units))}): "
            "draw those runs apart"
        )
    return f"loss (nats {'a token' if units == {'tokens'} else 'an example'})"


def _points(curve: Curve, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that have `name`."""
    with_it = [record for record in curve.records if name in record]
    return [record["step"] for record in with_it], [record[name] for record in with_it]
