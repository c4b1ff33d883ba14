"""Clipped sums of a batch, microbatch by microbatch, however large the drawn batch is.

A way to clip is a function of one microbatch, `Part`. Everything it returns is a sum over examples,
so that microbatches and devices add up. The loop over microbatches ends after the last one that has
an example in it: empty places cost no computation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from research.exchange.privacy import Clipped
from research.learning.gradients import Batch, Sums, Tree
from research.learning.objective import Totals
from research.models.convolution import as_products
from research.models.model import Extras
from research.parallel.layout import LAYOUT, into_microbatches


class ClippedSum(NamedTuple):
    """Of a batch: what is released once there is noise on it, and what is only told."""

    gradients: Tree  # Σ clip(g_i), like the parameters, float32
    within: jax.Array  # [groups] Σ (b_i - ½), b_i = 1 where nothing was cut off
    sums: Sums  # over the examples that are finite
    examples: jax.Array  # [] drawn
    dropped: jax.Array  # [] of them not finite: they count as zero
    cut: jax.Array  # [] of them longer than a bound


Part = Callable[[Tree, Batch, jax.Array], ClippedSum]
"""`part(parameters, rows, bounds)`: of a microbatch with `weights` of 0 or 1."""


def told(decided: Clipped, weights: jax.Array, totals: Totals, extras: Extras) -> dict[str, Any]:
    """All but the gradients, from what clipping `decided` of each example, and each one's totals
    and extras, [rows, ...]."""
    drawn = weights > 0
    kept = drawn & decided.finite & jnp.isfinite(totals.loss)

    def sum_of(leaf: jax.Array) -> jax.Array:
        chosen = kept.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.sum(jnp.where(chosen, leaf, 0), axis=0)

    cut = jnp.any(decided.within == 0, axis=-1) & decided.finite
    return {
        "within": jnp.sum(weights[:, None] * (decided.within - 0.5), axis=0),
        "sums": jax.tree.map(sum_of, Sums(totals, extras)),
        "examples": jnp.sum(weights),
        "dropped": jnp.sum(drawn & ~decided.finite),
        "cut": jnp.sum(drawn & cut),
    }


def places(most: int, microbatch: int, mesh: Mesh) -> tuple[int, int]:
    """Rows of a batch that has up to `most` examples, and the microbatches they are cut into, each
    with `microbatch` examples on a device or fewer."""
    devices = math.prod(mesh.shape[axis] for axis in LAYOUT["batch"].mesh_axes)
    size = min(microbatch, -(-most // devices)) * devices
    microbatches = -(-most // size)
    return size * microbatches, microbatches


def over_microbatches(
    part: Part, parameters: Tree, batch: Batch, bounds: jax.Array, microbatches: int, mesh: Mesh
) -> ClippedSum:
    """`part` of the whole `batch`, with the memory of one of its `microbatches` at a time.

    As with gradients that are accumulated, the loop is written for one `data` part of the mesh and
    reduces once after it. There `parameters` are the same everywhere, and what the gradient of an
    example is made of must not be added up over devices before it is clipped: with `check_vma`,
    `shard_map` would do that, without a word.
    """
    manual = {"data"} if mesh.shape["data"] > 1 else set()
    filled = jnp.any(into_microbatches(batch["weights"], microbatches) > 0, axis=1)
    trips = jnp.max(jnp.where(filled, jnp.arange(1, microbatches + 1), 0))

    def here(parameters: Tree, bounds: jax.Array, trips: jax.Array, batch: Batch) -> ClippedSum:
        parts = jax.tree.map(lambda rows: into_microbatches(rows, microbatches), batch)

        def rows_of(number: Any) -> Batch:
            return jax.tree.map(
                lambda rows: jax.lax.dynamic_index_in_dim(rows, number, keepdims=False), parts
            )

        def add(number: Any, total: ClippedSum) -> ClippedSum:
            return jax.tree.map(jnp.add, total, part(parameters, rows_of(number), bounds))

        shapes = jax.eval_shape(lambda: part(parameters, rows_of(0), bounds))
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        with as_products():
            total = jax.lax.fori_loop(0, trips, add, none)
        return jax.lax.psum(total, "data") if manual else total

    if not manual:
        return here(parameters, bounds, trips, batch)
    return jax.shard_map(
        here,
        in_specs=(P(), P(), P(), P("data")),
        out_specs=P(),
        axis_names=manual,
        check_vma=False,
    )(parameters, bounds, trips, batch)
