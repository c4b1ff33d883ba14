"""The layout: one table from logical axis names to mesh axes.

Models name what a dimension *is* (`embed`, `heads`, `vocab`, `batch`); this table says over which
mesh axes it is split. Nothing else in the code knows both. The names travel as the metadata `axes`
of a Flax parameter, and as arguments of `constrain` for activations; XLA's partitioner does the
rest.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from research.configuration import multiples_near
from research.errors import UserError


class Rule(NamedTuple):
    """Where one logical axis lies."""

    mesh_axes: tuple[str, ...]
    must_divide: bool = False
    """True: a size that does not divide is refused by name. False: it stays whole instead."""
    called: str | None = None
    """In that sentence, where a user knows the size by another name."""


LAYOUT: dict[str, Rule] = {
    # activations
    "batch": Rule(("replica", "data", "fsdp", "expert"), must_divide=True),
    "sequence": Rule(("context",), must_divide=True),
    "group": Rule(("data", "fsdp")),  # the batch, where its tokens are with the experts
    # parameters, and the activations made by them
    "embed": Rule(("fsdp",)),  # the model's width, in parameters only
    "heads": Rule(("tensor",), must_divide=True),
    "key_value_heads": Rule(("tensor",)),  # fewer than `heads`: may stay whole
    "mlp": Rule(("tensor",)),
    "vocab": Rule(("tensor",)),
    "head_dim": Rule(()),
    "layers": Rule(("stage",), must_divide=True),
    "expert": Rule(("expert",), must_divide=True, called="experts"),
}

Axes = tuple[str | None, ...]


def partition_spec(
    axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh, strict: bool = True
) -> PartitionSpec:
    """How an array with logical `axes` (one a dimension) is split over `mesh`.

    A dimension takes the mesh axes of its rule, each mesh axis at most once in an array. Where the
    product does not divide the dimension, the rule decides: refuse (if `strict`), or leave the
    dimension whole.

    Raises UserError for a refused size, naming the sizes that divide.
    """
    taken: set[str] = set()
    entries: list[str | tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        rule = LAYOUT[name] if name is not None else Rule(())
        split = tuple(a for a in _split_over(rule, mesh) if a not in taken)
        parts = math.prod(mesh.shape[a] for a in split)
        if size % parts:
            if rule.must_divide and strict:
                raise UserError(_does_not_divide(rule.called or str(name), size, split, mesh))
            split = ()
        taken.update(split)
        entries.append(split[0] if len(split) == 1 else split or None)
    return PartitionSpec(*entries)


def _split_over(rule: Rule, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes of `rule` with more than one device. Inside a `shard_map` those that it makes
    manual are left out: there an array is this device's part already."""
    return tuple(a for a in rule.mesh_axes if mesh.shape[a] > 1 and a not in mesh.manual_axes)


def _does_not_divide(
    name: str, size: int, split: tuple[str, ...], mesh: Mesh | AbstractMesh
) -> str:
    parts = math.prod(mesh.shape[a] for a in split)
    product = " × ".join(split)
    smaller = math.gcd(size, parts)
    return (
        f"{name} {size} does not divide over {product} = {parts}: use {name} "
        f"{multiples_near(size, parts)}, or a mesh with {product} = {smaller}"
    )


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """`array` laid out as its logical `axes` say, on the mesh set by `jax.set_mesh`.

    Without a mesh the array passes unchanged, so a model runs in a notebook as it is. A dimension
    that does not divide stays whole: data and parameters were checked before, and a single prompt
    may run on any mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return array
    spec = partition_spec(axes, array.shape, mesh, strict=False)
    return jax.lax.with_sharding_constraint(array, spec)


def parts_of(name: str) -> int:
    """Over how many devices of the mesh in force the logical axis `name` is split."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[a] for a in _split_over(LAYOUT[name], mesh))


def is_split(name: str) -> bool:
    """Whether the logical axis `name` lies on more than one device of the mesh in force."""
    return parts_of(name) > 1


def parameter_shardings(state: nnx.State, mesh: Mesh) -> dict[str, Any]:
    """The sharding of every variable of an (abstract) module's `state`, as a nested dict.

    A variable with one more dimension than it has names was stacked over layers. A variable without
    names is whole on every device.
    """

    def sharding(variable: Any) -> NamedSharding:
        shape = variable.get_value().shape
        names: Axes = variable.get_metadata().get("axes") or (None,) * len(shape)
        stacked = len(shape) - len(names)  # [layers, ...], or [rounds, layers of a round, ...]
        axes = (None,) * (stacked - 1) + ("layers",) * min(stacked, 1) + names
        return NamedSharding(mesh, partition_spec(axes, shape, mesh))

    flat = {path: sharding(variable) for path, variable in nnx.to_flat_state(state)}
    return nnx.traversals.unflatten_mapping(flat)


def abstract(shapes: Any, shardings: Any) -> Any:
    """A tree of `shapes` as abstract arrays that lie by `shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def names_of(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`: those that split one dimension."""
    return (entry,) if isinstance(entry, str) else entry or ()


def axes_of_spec(spec: PartitionSpec) -> tuple[str, ...]:
    """The mesh axes over which an array that lies by `spec` is split."""
    return tuple(axis for entry in spec for axis in names_of(entry))


def unused_axes(tree: Any, mesh: Mesh, splits: Sequence[str] = ()) -> list[str]:
    """Mesh axes of more than one device that this model has no use for: over `data` and `fsdp` the
    batch is split, over `context` the sequence if it is among the logical axes `splits` of its
    activations, over any other axis one of `tree`'s shardings has to be."""
    used = {"data", "fsdp"}
    if "sequence" in splits:
        used.update(LAYOUT["sequence"].mesh_axes)
    for sharding in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, NamedSharding)):
        used.update(axes_of_spec(sharding.spec))
    return [axis for axis, size in mesh.shape.items() if size > 1 and axis not in used]


def batch_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """How the rows of a batch lie on the mesh. Raises UserError where they do not divide."""
    return NamedSharding(mesh, partition_spec(("batch",), (batch,), mesh))


def rows_of_this_process(sharding: NamedSharding, batch: int) -> np.ndarray:
    """The rows of a batch that this process's devices hold, ascending: all that it has to read."""
    of_rows = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
    held = {
        row
        for index in of_rows.addressable_devices_indices_map((batch,)).values()
        for row in range(*(index or (slice(None),))[0].indices(batch))
    }
    return np.array(sorted(held))


def place(rows: dict[str, np.ndarray], sharding: NamedSharding, batch: int) -> dict[str, jax.Array]:
    """The global batch from the rows that each process has read.

    `rows` has leaves [rows of this process, ...]; the result has leaves [batch, ...].
    """
    if sharding.is_fully_addressable:  # one process holds every row: one transfer, no slicing
        return jax.device_put(rows, sharding)
    position = {row: i for i, row in enumerate(rows_of_this_process(sharding, batch))}

    def globally(leaf: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            first, last, _ = index[0].indices(batch)
            return leaf[(slice(position[first], position[last - 1] + 1), *index[1:])]

        return jax.make_array_from_callback((batch, *leaf.shape[1:]), sharding, part)

    return {name: globally(leaf) for name, leaf in rows.items()}


def into_microbatches(rows: jax.Array, microbatches: int) -> jax.Array:
    """[batch, ...] as [microbatches, batch / microbatches, ...]. Row i goes to microbatch
    i mod m, so that every device cuts up its own rows and none moves."""
    cut = rows.reshape(rows.shape[0] // microbatches, microbatches, *rows.shape[1:])
    return cut.swapaxes(0, 1)
