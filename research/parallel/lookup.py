"""Rows of a table that is split over the mesh, at indexes that are split over it too.

Shoeybi et al. 2019, *Megatron-LM*, arXiv:1909.08053, §3: every device looks up what lies in its own
rows, and one all-reduce of the activations over the rows' axis puts them together. On the way back
each device adds up the gradients of its own tokens, and one all-reduce of the table's gradient over
the axes of the batch follows. Left to the partitioner, either all activations are sent to every
device, or (inside a `shard_map` over other axes) some versions of XLA end the process.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.parallel.layout import partition_spec
from research.parallel.sums import summable


def take_rows(table: jax.Array, indexes: jax.Array) -> jax.Array:
    """Rows [batch, sequence, width] of `table` [vocab, width] at `indexes` [batch, sequence]."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return jnp.take(table, indexes, axis=0)
    (rows, _) = partition_spec(("vocab", None), table.shape, mesh, strict=False)
    tokens = partition_spec(("batch", "sequence"), indexes.shape, mesh, strict=False)
    axes = {axis for entry in (rows, *tokens) for axis in _names(entry)}
    if not axes:
        return jnp.take(table, indexes, axis=0)

    def own(number: jax.Array, table: jax.Array, indexes: jax.Array) -> jax.Array:
        if rows is None:
            return jnp.take(table, indexes, axis=0)
        place = indexes - number[0] * table.shape[0]
        is_here = (place >= 0) & (place < table.shape[0])
        found = jnp.take(table, jnp.where(is_here, place, 0), axis=0)
        return jax.lax.psum(jnp.where(is_here[..., None], found, 0), rows)

    dtype, table = table.dtype, summable(table)
    # As an array, not `axis_index`: that has no meaning to the partitioner of the other axes.
    parts = jnp.arange(1 if rows is None else mesh.shape[rows], dtype=indexes.dtype)
    return jax.shard_map(
        own,
        in_specs=(P(rows), P(rows, None), tokens),
        out_specs=P(*tokens, None),
        axis_names=axes,
        check_vma=False,
    )(parts, table, indexes).astype(dtype)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()
