"""Several replicas, or members, of one device: how many they are, and how they are computed."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from research.configuration import multiples_near
from research.errors import UserError
from research.models.convolution import as_products

Tree = Any
Plan = Literal["scan", "unroll", "vmap"]
"""One after another, in a loop or without one, or side by side."""


def each(plan: Plan, function: Callable[..., Tree], *stacked: Tree) -> Tree:
    """`function` of every seat of `stacked` arrays [seats, ...], as [seats, ...]."""
    seats = len(jax.tree.leaves(stacked)[0])
    if seats == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(*seat_of(stacked, 0)))
    if plan == "unroll":
        made, done = [], jnp.int32(0)
        for seat in range(seats):
            take = partial(jax.lax.dynamic_index_in_dim, index=seat + done, keepdims=False)
            made.append(function(*jax.tree.map(take, stacked)))
            done = _done(made[-1])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    with as_products():
        if plan == "vmap":
            return jax.vmap(function)(*stacked)
        return jax.lax.map(lambda seat: function(*seat), stacked)


def seat_of(stacked: Tree, number: int) -> Tree:
    """One of `stacked` [seats, ...]."""
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def repeated(tree: Tree, count: int) -> Tree:
    """[count, ...]: all have the same."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


def _done(made: Tree) -> jax.Array:
    """0, but on a device that has its seats to itself no compiler knows before all of `made` is
    there: else XLA's CPU backend computes seats side by side, and what one has just computed leaves
    the cache before it is used (a step of 8 CNNs takes 1.3 times as long)."""
    mesh = jax.sharding.get_abstract_mesh()
    if any(size > 1 for axis, size in mesh.shape.items() if axis not in mesh.manual_axes):
        return jnp.int32(0)  # parts of an array are elsewhere
    floats = [leaf for leaf in jax.tree.leaves(made) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    firsts = [leaf.reshape(-1)[0].astype(jnp.float32) for leaf in floats if leaf.size]
    if not firsts:
        return jnp.int32(0)
    signs = jax.lax.bitcast_convert_type(jnp.stack(firsts), jnp.uint32) >> 31
    return (signs.sum() >> 31).astype(jnp.int32)


def check_seats(count: int, mesh: Mesh, what: str, flag: str) -> None:
    """Raises UserError where `count` of `what` do not divide over `replica`; `flag` sets how many
    there are."""
    devices = mesh.shape["replica"]
    if count % devices:
        raise UserError(
            f"{count} {what} do not divide over --mesh.replica {devices}: use "
            f"{flag} {multiples_near(count, devices)}, or a --mesh.replica that divides {count}"
        )
