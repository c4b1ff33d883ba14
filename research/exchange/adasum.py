"""Adasum: sums what is orthogonal, averages what is parallel.

Maleki et al. 2020, *Scaling Distributed Training with Adaptive Summation*, arXiv:2006.02924, eq. 4,
Horovod's `op=Adasum`: of two gradients, array by array,

    Adasum(g, h) = (1 - g·h / 2‖g‖²)·g + (1 - g·h / 2‖h‖²)·h

and of n = 2^k replicas by recursive doubling: r with r XOR 1, what comes of it with that of r XOR
2, and so on. What crosses the wire: log2(n) collective-permutes of B bytes. (Horovod halves vectors
and sends 2·(n-1)/n·B, for two more exchanges of scalars a level.)
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.errors import UserError
from research.exchange.exchange import Exchange, Moment
from research.exchange.message import Message, own_shape
from research.exchange.replicas import Replicas

Tree = Any


def adasum(count: int) -> Exchange:
    """Of `count` replicas. Raises UserError where that is no power of two."""
    if count & (count - 1):
        below = 1 << (count.bit_length() - 1)
        raise UserError(
            f"adasum joins replicas two by two, and {count} is no power of two: use "
            f"--exchange.replicas {below} or {2 * below}"
        )
    distances = [1 << level for level in range(count.bit_length() - 1)]

    def apply(tree: Tree, state: Tree, moment: Moment) -> tuple[Tree, Tree]:
        def join(spec: PartitionSpec | None, g: jax.Array) -> jax.Array:
            g = g if moment.alive is None else jnp.where(moment.alive, g, 0)
            for distance in distances:
                g = _adasum(g, moment.replicas.pair(g, distance, spec))
            return g

        return moment.each(join, tree), state

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        far = [distance for distance in distances if distance >= replicas.seats]
        return [
            Message(
                "collective-permute",
                str(leaf.dtype),
                math.prod(own_shape(leaf)) * replicas.seats,
                replicas.devices,
                turn,
            )
            for leaf in jax.tree.leaves(shapes)
            for turn, _ in enumerate(far)
        ]

    return Exchange(lambda like: (), apply, messages)


def _adasum(g: jax.Array, h: jax.Array) -> jax.Array:
    dot = jnp.sum(g * h)
    return (1 - dot / _not_zero(2 * jnp.sum(g**2))) * g + (
        1 - dot / _not_zero(2 * jnp.sum(h**2))
    ) * h


def _not_zero(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1.0)
