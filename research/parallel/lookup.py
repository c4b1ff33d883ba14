"""Rows of a table that is split over the mesh, at indexes that are split over it too.

Shoeybi et al. 2019, *Megatron-LM*, arXiv:1909.08053, §3: every device looks up what lies in its own
rows, and one all-reduce of the activations over the rows' axis puts them together. On the way back
nothing is sent over that axis: each device adds up the gradients of its own tokens that fall into
its rows, and these sums are reduced over the axes of the batch, scattered over `fsdp`, where the
table lies that way. Left to the partitioner, either all activations are sent to every device, or
(inside a `shard_map` over other axes) some versions of XLA end the process.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from research.parallel.layout import axes_of_spec, names_of, partition_spec
from research.parallel.sums import summable


def take_rows(table: jax.Array, indexes: jax.Array) -> jax.Array:
    """Rows [batch, sequence, width] of `table` [vocab, width] at `indexes` [batch, sequence]."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return jnp.take(table, indexes, axis=0)
    split = _split(table, indexes, mesh)
    if not (split.rows or split.batch):
        return jnp.take(table, indexes, axis=0)
    return _take(table, indexes, split)


class _Split(NamedTuple):
    """How a lookup lies on the mesh in force."""

    tokens: P
    rows: tuple[str, ...]  # axes over which the table's rows are split: one, or none
    batch: tuple[str, ...]  # axes over which the tokens are
    features: tuple[str, ...]  # of those, the axes over which the table's gradient is scattered
    parts: int  # of the rows


def _split(table: jax.Array, indexes: jax.Array, mesh: AbstractMesh) -> _Split:
    rows, features = partition_spec(("vocab", "embed"), table.shape, mesh, strict=False)
    tokens = partition_spec(("batch", "sequence"), indexes.shape, mesh, strict=False)
    batch = axes_of_spec(tokens)
    scattered = tuple(axis for axis in names_of(features) if axis in batch)
    parts = mesh.shape[rows] if isinstance(rows, str) else 1
    return _Split(tokens, names_of(rows), batch, scattered, parts)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _take(table: jax.Array, indexes: jax.Array, split: _Split) -> jax.Array:
    dtype, table = table.dtype, summable(table)

    def own(number: jax.Array, table: jax.Array, indexes: jax.Array) -> jax.Array:
        place, is_here = _place(number, table.shape[0], indexes)
        found = jnp.take(table, jnp.where(is_here, place, 0), axis=0)
        return jax.lax.psum(jnp.where(is_here[..., None], found, 0), split.rows)

    rows = P(split.rows or None)
    found = jax.shard_map(
        own,
        in_specs=(rows, rows, split.tokens),
        out_specs=P(*split.tokens, None),
        axis_names={*split.rows, *split.batch},
        check_vma=False,
    )(_numbers(split), table, indexes)
    return found.astype(dtype)


def _forward(
    table: jax.Array, indexes: jax.Array, split: _Split
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _take(table, indexes, split), (table, indexes)


def _backward(
    split: _Split, saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None]:
    table, indexes = saved
    whole = tuple(axis for axis in split.batch if axis not in split.features)
    height, width = table.shape[0] // split.parts, table.shape[1]

    def own(number: jax.Array, indexes: jax.Array, gradient: jax.Array) -> jax.Array:
        place, is_here = _place(number, height, indexes)
        sums = jnp.zeros((height, width), jnp.float32)
        sums = sums.at[jnp.where(is_here, place, height)].add(
            gradient.astype(jnp.float32), mode="drop"
        )
        sums = summable(sums.astype(table.dtype))
        for axis in split.features:
            sums = jax.lax.psum_scatter(sums, axis, scatter_dimension=1, tiled=True)
        sums = jax.lax.psum(sums, whole).astype(table.dtype)
        # XLA for TPUs fails where it would take a scattered sum out of a loop over microbatches.
        return jax.lax.optimization_barrier(sums) if split.features else sums

    sums = jax.shard_map(
        own,
        in_specs=(P(split.rows or None), split.tokens, P(*split.tokens, None)),
        out_specs=P(split.rows or None, split.features or None),
        axis_names={*split.rows, *split.batch},
        check_vma=False,
    )(_numbers(split), indexes, gradient)
    return sums, None


_take.defvjp(_forward, _backward)


def _place(number: jax.Array, height: int, indexes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the rows at `indexes` are among the `height` of part `number` [1], and whether."""
    place = indexes - number[0] * height
    return place, (place >= 0) & (place < height)


def _numbers(split: _Split) -> jax.Array:
    # As an array, not `axis_index`: that has no meaning to the partitioner of the other axes.
    return jnp.arange(split.parts, dtype=jnp.int32)
