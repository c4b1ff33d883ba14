"""Arrays cut into one part a replica, in such a way that no other axis of the mesh moves.

A dimension that divides is dealt out like cards: index i goes to part i mod n. So a dimension that
is split over the mesh is cut on every device alike, and the parts stay split as the array was.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.parallel.layout import names_of


def divides(shape: tuple[int, ...], parts: int, lanes: int = 1) -> bool:
    """Whether an array of `shape` can be cut."""
    return _axes(shape, parts, lanes) is not None


def split(x: jax.Array, parts: int, lanes: int = 1) -> jax.Array:
    """`x` as [parts, lanes, ...]: the same numbers in another order."""
    first, second = _chosen(x.shape, parts, lanes)
    dealt = _deal(x, first, parts)  # [parts, ...]
    return jnp.moveaxis(_deal(dealt, second + 1, lanes), 0, 1)


def join(cut: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array of `shape` that `split` cut."""
    parts, lanes = cut.shape[:2]
    first, second = _chosen(shape, parts, lanes)
    return _collect(_collect(jnp.moveaxis(cut, 1, 0), second + 1), first)


def spec_of_parts(
    shape: tuple[int, ...], spec: P, sizes: Mapping[str, int], parts: int, lanes: int = 1
) -> P:
    """How [parts, lanes, ...] lie where the array lies by `spec`, on a mesh of such `sizes`: as it
    does, but for dimensions that are too small now."""
    first, second = _chosen(shape, parts, lanes)
    entries: list[str | tuple[str, ...] | None] = []
    for axis, size in enumerate(shape):
        left = size // (parts if axis == first else 1) // (lanes if axis == second else 1)
        entry = spec[axis] if axis < len(spec) else None
        entries.append(entry if left % _shards(entry, sizes) == 0 else None)
    return P(None, None, *entries)


def elements_of_a_part(
    shape: tuple[int, ...], spec: P, sizes: Mapping[str, int], parts: int, lanes: int = 1
) -> int:
    """Elements that a device has of a part that lies so."""
    entries = spec_of_parts(shape, spec, sizes, parts, lanes)
    return math.prod(shape) // parts // math.prod(_shards(entry, sizes) for entry in entries)


def _shards(entry: str | tuple[str, ...] | None, sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in names_of(entry))


def _deal(x: jax.Array, axis: int, hands: int) -> jax.Array:
    """[hands, ...]: every `hands`-th index of `axis`."""
    cut = x.reshape(*x.shape[:axis], -1, hands, *x.shape[axis + 1 :])
    return jnp.moveaxis(cut, axis + 1, 0)


def _collect(dealt: jax.Array, axis: int) -> jax.Array:
    """The opposite of `_deal`."""
    cut = jnp.moveaxis(dealt, 0, axis + 1)
    return cut.reshape(*cut.shape[:axis], -1, *cut.shape[axis + 2 :])


def _axes(shape: tuple[int, ...], parts: int, lanes: int) -> tuple[int, int] | None:
    """Which dimension is dealt to the parts, and then which to the lanes: the largest that
    divides, the last of equals."""
    largest = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis), reverse=True)
    for first in largest:
        if shape[first] % parts == 0:
            left = [size // parts if axis == first else size for axis, size in enumerate(shape)]
            for second in largest:
                if left[second] % lanes == 0:
                    return first, second
    return None


def _chosen(shape: tuple[int, ...], parts: int, lanes: int) -> tuple[int, int]:
    axes = _axes(shape, parts, lanes)
    assert axes is not None, f"{shape} is not cut into {parts} × {lanes}"
    return axes
