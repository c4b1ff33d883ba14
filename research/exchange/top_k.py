"""The largest entries only: deep gradient compression.

Lin et al. 2018, *Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed
Training*, arXiv:1712.01887, §3.1 and 3.2, Alg. 1. Replica r keeps a velocity u and what it has not
sent, v; m is the momentum (which then the optimizer has not):

    u ← m·u + g             momentum correction
    v ← v + u
    M = the k largest of |v|, k = ratio · size of an array
    v·M is sent;  v ← v·(1 - M),  u ← u·(1 - M)     momentum factor masking

The result is the sum of all v·M over n. What crosses the wire: one all-gather of k values (float32)
and one of their k places (int32) an array, 8·k·(n-1) bytes: it grows with n. A masked sum of dense
arrays would save nothing.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.exchange.exchange import Exchange, Moment
from research.exchange.message import Message
from research.exchange.replicas import Replicas

Tree = Any


class Unsent(NamedTuple):
    """What a replica has yet to send."""

    velocity: Tree  # u
    values: Tree  # v


def top_k(ratio: float, momentum: float = 0.0) -> Exchange:
    """The mean of the `ratio` of every array's entries that are largest at each replica."""

    def init(like: Tree) -> Unsent:
        return Unsent(*(jax.tree.map(jnp.zeros_like, like) for _ in range(2)))

    def apply(tree: Tree, state: Unsent, moment: Moment) -> tuple[Tree, Unsent]:
        def one(g: jax.Array, u: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            # A dead replica sends zeros, and what it has waits.
            counts = jnp.ones((), bool) if moment.alive is None else moment.alive
            u_next = momentum * u + jnp.where(counts, g, 0)
            v_next = v + u_next
            size = kept(v.size, ratio)
            flat = jnp.where(counts, v_next, 0).reshape(-1)
            _, places = jax.lax.top_k(jnp.abs(flat), size)
            values = flat[places]
            everyone = (moment.replicas.gather(part, PartitionSpec()) for part in (values, places))
            values, its_places = (array.reshape(-1) for array in everyone)
            total = jnp.zeros(v.size, v.dtype).at[its_places].add(values)
            left = jnp.ones(v.size, v.dtype).at[places].set(0).reshape(v.shape)
            u_next, v_next = (
                jnp.where(counts, next_one * left, before)
                for next_one, before in ((u_next, u), (v_next, v))
            )
            return (total / moment.living).reshape(v.shape), u_next, v_next

        leaves, structure = jax.tree.flatten(tree)
        done = [one(*each) for each in zip(leaves, *map(jax.tree.leaves, state), strict=True)]
        result, velocity, values = (
            jax.tree.unflatten(structure, part) for part in zip(*done, strict=True)
        )
        return result, Unsent(velocity, values)

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        if replicas.devices == 1:
            return []
        # Of the whole array, however it is split over other axes: the largest are everyone's.
        return [
            Message(
                "all-gather",
                dtype,
                kept(math.prod(leaf.shape), ratio) * replicas.seats,
                replicas.devices,
            )
            for leaf in jax.tree.leaves(shapes)
            for dtype in (str(leaf.dtype), "int32")
        ]

    return Exchange(init, apply, messages)


def kept(size: int, ratio: float) -> int:
    """How many of `size` entries are sent: at least one."""
    return max(1, round(ratio * size))
