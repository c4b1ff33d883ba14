"""A picture of a pipeline schedule: time from left to right, a row a stage."""

from pathlib import Path
from typing import TYPE_CHECKING

from research.parallel.schedules import IDLE, Schedule

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

    from research.reporting.picture import Picture

NUMBERED = 64
"""Time units up to which every box bears the number of its microbatch."""


def timeline(schedule: Schedule, path: Path | None = None) -> "Picture":
    """Who does what when: a box is a stage at work on the microbatch whose number it bears, forward
    or backward, in time units of one forward pass of a stage; the empty ground is the bubble. A
    later round has a darker color. Written to `path` (.svg, .png, .pdf) if there is one."""
    from research.reporting.picture import one_picture

    return one_picture(
        7.2, 0.75 + 0.28 * schedule.stages, lambda axes: draw_timeline(axes, schedule), path
    )


def draw_timeline(axes: "Axes", schedule: Schedule) -> None:
    """Draws what `timeline` describes."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    from research.reporting.picture import INK, QUIET, SERIES

    colors = {"forward": to_rgb(SERIES[0]), "backward": to_rgb(SERIES[1])}
    slots = list(schedule.slots)
    total = sum(slot.time for slot in slots)
    start = 0
    for slot in slots:
        for stage, unit in enumerate(slot.units):
            if unit == IDLE:
                continue
            strength = 0.45 + 0.4 * (schedule.round(int(unit)) + 1) / schedule.rounds
            color = tuple(1 - strength * (1 - part) for part in colors[slot.kind])
            box = Rectangle(
                (start, stage + 0.06), slot.time, 0.88, facecolor=color, edgecolor="white", lw=0.6
            )
            axes.add_patch(box)
            if total <= NUMBERED:
                axes.text(
                    start + slot.time / 2,
                    stage + 0.5,
                    str(schedule.microbatch(int(unit))),
                    ha="center",
                    va="center",
                    size=6.5,
                    color="white" if strength > 0.6 else INK,
                )
        start += slot.time
    rounds = f", {schedule.rounds} rounds" if schedule.rounds > 1 else ""
    axes.set_title(
        f"{schedule.name}: {schedule.microbatches} microbatches{rounds}, "
        f"bubble {schedule.bubble:.1%}",
        size=9,
        pad=5,
    )
    axes.set_xlim(0, total)
    axes.set_ylim(schedule.stages, 0)
    axes.set_yticks([stage + 0.5 for stage in range(schedule.stages)])
    axes.set_yticklabels([f"stage {stage}" for stage in range(schedule.stages)])
    axes.tick_params(length=0)
    axes.set_xlabel("time (forward passes of one unit); blue forward, orange backward", color=QUIET)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
