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

    The seeds of a way have their values at the same x, in the mean of which are those that go as
    far as any: one that diverged is drawn as far as it went.
    """
    from research.reporting.picture import INK, SERIES

    for number, (name, seeds) in enumerate(curves.items()):
        color = SERIES[number % len(SERIES)]
        if len(seeds) > 1:
            for x, y in seeds:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.4, zorder=2)
        far = max(len(x) for x, _ in seeds)
        whole = [(x, y) for x, y in seeds if len(x) == far]
        middle = np.mean([y for _, y in whole], axis=0)
        axes.plot(whole[0][0], middle, color=color, linewidth=1.4, label=name, zorder=3)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(labelcolor=INK)
