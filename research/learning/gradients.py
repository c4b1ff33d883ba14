"""The gradient of a batch: at once, or in microbatches that follow one another.

Every function here returns sums over the batch: of gradients, losses and counts. Sums of parts add
up to the sum of the whole, on any mesh and in any number of parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from research.learning.objective import Totals
from research.models.convolution import as_products
from research.models.model import Extras
from research.parallel.layout import into_microbatches

Tree = Any
Batch = dict[str, jax.Array]


class Sums(NamedTuple):
    """Of one pass over examples."""

    totals: Totals
    extras: Extras


Loss = Callable[[Tree, Tree, Batch], tuple[jax.Array, tuple[Sums, Tree]]]
"""`loss(parameters, buffers, batch)`: the sum to be differentiated, (sums, buffers after it)."""


def at_once(
    loss: Loss, parameters: Tree, buffers: Tree, batch: Batch
) -> tuple[Tree, tuple[Sums, Tree]]:
    """Gradient of the sum over `batch` (a tree like `parameters`), its sums, the buffers after."""
    return jax.grad(loss, has_aux=True)(parameters, buffers, batch)


def accumulated(
    loss: Loss, parameters: Tree, buffers: Tree, batch: Batch, microbatches: int, mesh: Mesh
) -> tuple[Tree, tuple[Sums, Tree]]:
    """As `at_once`, with the memory of one microbatch at a time.

    Left to the partitioner, every microbatch's gradients would be reduced over `data`. So the loop
    is written for one `data` part of the mesh (the other axes stay the partitioner's), and reduces
    once after it. A model with buffers wants statistics of whole microbatches: it stays as it is.
    """
    manual = {"data"} if mesh.shape["data"] > 1 and not jax.tree.leaves(buffers) else set()

    def part(parameters: Tree, buffers: Tree, batch: Batch) -> tuple[Tree, tuple[Sums, Tree]]:
        parts = jax.tree.map(lambda rows: into_microbatches(rows, microbatches), batch)
        shapes = jax.eval_shape(
            lambda rows: at_once(loss, parameters, buffers, rows), jax.tree.map(_first, parts)
        )
        gradients, (sums, _) = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def accumulate(carry: Any, rows: Batch) -> tuple[Any, None]:
            summed, buffers = carry
            gradients, (sums, buffers) = at_once(loss, parameters, buffers, rows)
            return (jax.tree.map(jnp.add, summed, (gradients, sums)), buffers), None

        with as_products():
            ((gradients, sums), buffers), _ = jax.lax.scan(
                accumulate, ((gradients, sums), buffers), parts
            )
        if manual:
            gradients, sums = jax.lax.psum((gradients, sums), "data")
        return gradients, (sums, buffers)

    if not manual:
        return part(parameters, buffers, batch)
    return jax.shard_map(
        part, in_specs=(P(), P(), P("data")), out_specs=P(), axis_names=manual, check_vma=False
    )(parameters, buffers, batch)


def _first(array: jax.Array) -> jax.Array:
    return array[0]
