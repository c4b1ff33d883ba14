"""A picture of which device holds which part of an array."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from research.errors import UserError
from research.parallel.layout import names_of
from research.parallel.mesh import describe

if TYPE_CHECKING:  # matplotlib is imported by what draws
    from matplotlib.axes import Axes

    from research.reporting.picture import Picture

Placed = jax.Array | jax.ShapeDtypeStruct
NUMBERED = 32
"""Devices up to which every part bears the number of its device."""


class Part(NamedTuple):
    """The part of an array that one device holds."""

    device: int  # place in the mesh, outermost axis slowest
    row: int  # place among the parts of a copy
    column: int


def copies(shape: tuple[int, ...], sharding: NamedSharding) -> list[list[Part]]:
    """The whole copies of an array on the mesh, each as the parts that make it up.

    The last dimension that is split counts the columns, those before it the rows. Raises UserError
    for a sharding without devices.
    """
    pieces = [size // part for size, part in zip(shape, sharding.shard_shape(shape), strict=True)]
    split = [dimension for dimension, count in enumerate(pieces) if count > 1]
    down, across = split[:-1], split[-1:]
    where = sharding.devices_indices_map(shape)
    made: list[list[Part]] = []
    seen: dict[tuple[int, int], int] = {}  # copies of a part so far
    for number, device in enumerate(_devices(sharding).devices.flat):
        block = [
            (index.start or 0) * count // size
            for index, count, size in zip(where[device], pieces, shape, strict=True)
        ]
        row = 0
        for dimension in down:
            row = row * pieces[dimension] + block[dimension]
        column = block[across[0]] if across else 0
        copy = seen.get((row, column), 0)
        seen[row, column] = copy + 1
        if copy == len(made):
            made.append([])
        made[copy].append(Part(number, row, column))
    return made


def placement(arrays: Mapping[str, Placed], path: Path | None = None) -> "Picture":
    """Which device of the mesh holds which part of `arrays`, a line each.

    Every device has a number and a color. The parts of one copy lie together, and an array has as
    many copies as lie side by side. `arrays` have a NamedSharding over one mesh, and may be
    abstract; the figure is written to `path` (.svg, .png, .pdf) if there is one. Raises
    UserError for an array that lies on no mesh.
    """
    from research.reporting.picture import one_picture

    return one_picture(
        5.6, 0.5 + 0.55 * len(arrays), lambda axes: draw_placement(axes, arrays), path
    )


def draw_placement(axes: "Axes", arrays: Mapping[str, Placed]) -> None:
    """Draws what `placement` describes. Raises UserError for an array that lies on no mesh."""
    from matplotlib.patches import Rectangle

    from research.reporting.picture import DEVICES, INK, QUIET

    line, height, left, right, gap = 1.0, 0.74, 0.42, 1.0, 0.018
    axes.set_axis_off()
    axes.set_xlim(0, right)
    axes.set_ylim(len(arrays) * line, 0)
    for number, (name, array) in enumerate(arrays.items()):
        sharding = array.sharding
        if not isinstance(sharding, NamedSharding):
            raise UserError(f"{name} lies on no mesh ({sharding}): place it on one first")
        mesh = _devices(sharding)
        if number == 0:
            axes.set_title(describe(mesh), pad=18)
            axes.annotate(
                "a number is a device; parts that touch make one copy",
                (0, 1),
                xytext=(0, 6),
                xycoords="axes fraction",
                textcoords="offset points",
                color=QUIET,
                size=7.5,
            )
        made = copies(array.shape, sharding)
        top = number * line + (line - height) / 2
        middle = top + height / 2
        axes.text(0, middle - 0.17, name, va="center", color=INK)
        axes.text(
            0, middle + 0.17, _in_words(array.shape, sharding), va="center", color=QUIET, size=7.5
        )
        width = (right - left - gap * (len(made) - 1)) / len(made)
        for place, parts in enumerate(made):
            start = left + place * (width + gap)
            rows = 1 + max(part.row for part in parts)
            columns = 1 + max(part.column for part in parts)
            for part in parts:
                x = start + part.column * width / columns
                y = top + part.row * height / rows
                color = DEVICES(part.device / max(mesh.size - 1, 1))
                axes.add_patch(
                    Rectangle(
                        (x, y),
                        width / columns,
                        height / rows,
                        facecolor=color,
                        edgecolor="white",
                        linewidth=0.8,
                    )
                )
                if mesh.size <= NUMBERED:
                    axes.text(
                        x + width / columns / 2,
                        y + height / rows / 2,
                        str(part.device),
                        ha="center",
                        va="center_baseline",
                        size=7.5,
                        color="white" if _luminance(color) < 0.45 else INK,
                    )


def _devices(sharding: NamedSharding) -> Mesh:
    if not isinstance(sharding.mesh, Mesh):
        raise UserError(f"{sharding} names no devices: place the array on a mesh of devices first")
    return sharding.mesh


def _in_words(shape: tuple[int, ...], sharding: NamedSharding) -> str:
    """Such as `[256/tensor, 128/fsdp]`."""
    spec = tuple(sharding.spec) + (None,) * (len(shape) - len(sharding.spec))
    words = []
    for size, entry in zip(shape, spec, strict=True):
        over = "·".join(names_of(entry))
        words.append(f"{size}/{over}" if over else str(size))
    return f"[{', '.join(words)}]"


def _luminance(color: tuple[float, ...]) -> float:
    return float(np.dot(color[:3], (0.2126, 0.7152, 0.0722)))
