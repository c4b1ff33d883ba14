"""Several replicas, or members, of one device: how many they are, and how they are computed."""

from collections.abc import Callable
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
        made = [function(*seat_of(stacked, seat)) for seat in range(seats)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    with as_products():
        if plan == "vmap":
            return jax.vmap(function)(*stacked)
        return jax.lax.map(lambda seat: function(*seat), stacked)


def seat_of(stacked: Tree, number: int) -> Tree:
    """One of `stacked` [seats, ...]."""
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def check_seats(count: int, mesh: Mesh, what: str, flag: str) -> None:
    """Raises UserError where `count` of `what` do not divide over `replica`; `flag` sets how many
    there are."""
    devices = mesh.shape["replica"]
    if count % devices:
        raise UserError(
            f"{count} {what} do not divide over --mesh.replica {devices}: use "
            f"{flag} {multiples_near(count, devices)}, or a --mesh.replica that divides {count}"
        )
