"""Ways to learn beside each other: one curve a way, and thin ones for its seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

Curves = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
"""Of every way, x and y of each of its seeds."""


def draw_curves(axes: "Axes", curves: Curves) -> None:
    """Draws the mean over seeds of every way, named, above the seeds themselves.

    The seeds of a way have their values at the same x.
    """
    from research.reporting.picture import INK, SERIES

    for number, (name, seeds) in enumerate(curves.items()):
        color = SERIES[number % len(SERIES)]
        if len(seeds) > 1:
            for x, y in seeds:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.4, zorder=2)
        middle = np.mean([y for _, y in seeds], axis=0)
        axes.plot(seeds[0][0], middle, color=color, linewidth=1.4, label=name, zorder=3)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(labelcolor=INK)
