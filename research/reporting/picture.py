"""Figures that look alike: a light ground, quiet colors, and none of pyplot's global state."""

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, QUIET, RULE = "#24292f", "#6e7781", "#d8dee4"
SERIES = ("#2f6690", "#c4683c", "#4f8a5b", "#86598f", "#a8842c", "#5b6f80")
# Neighbors in the mesh get neighboring colors; the two halves of its outermost axis are cold and
# warm.
DEVICES = LinearSegmentedColormap.from_list(
    "devices", ["#3f6f9b", "#76a0c4", "#b4cde1", "#f2dab2", "#e2b077", "#c97a45"]
)

STYLE: Any = {
    "font.size": 9,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlepad": 10,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "reigen",  # the same picture is the same file
}


class Picture(Figure):
    """A figure in the project's style; the last value of a notebook's cell shows it."""

    def __init__(self, width: float, height: float):
        """`width` and `height` in inches."""
        super().__init__(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")

    def save(self, path: Path) -> None:
        """Writes the picture; the suffix of `path` (.svg, .png, .pdf) names the format."""
        path.parent.mkdir(parents=True, exist_ok=True)
        dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
        with matplotlib.rc_context(STYLE):
            self.savefig(path, metadata={dated: None} if dated else None)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(file, format="png")
        return file.getvalue()


def one_picture(width: float, height: float, draw: Any, path: Path | None) -> Picture:
    """A picture of one panel that `draw(axes)` fills, written to `path` if there is one."""
    with matplotlib.rc_context(STYLE):
        picture = Picture(width, height)
        axes: Axes = picture.add_subplot()
        draw(axes)
    if path is not None:
        picture.save(path)
    return picture
