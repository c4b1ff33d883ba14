"""One round of gossip: a replica's mean of its own array and its neighbors'.

    x_r ← 1/(k+1) · (x_r + Σ_{o ∈ offsets} x_{r-o})            W·x, see `research.exchange.topology`

What crosses the wire: k collective-permutes of B bytes, whatever n is. (With several replicas a
device, of those seats whose neighbors are elsewhere.)
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from research.exchange.exchange import Exchange, Moment
from research.exchange.message import Message, own_shape
from research.exchange.replicas import Replicas
from research.exchange.topology import check_connected

Tree = Any


def mix(offsets: list[int], count: int) -> Exchange:
    """With those `offsets` places before, of `count` replicas. Raises UserError where they are not
    connected."""
    if count > 1:
        check_connected(offsets, count)

    def apply(tree: Tree, state: Tree, moment: Moment) -> tuple[Tree, Tree]:
        def one(spec: PartitionSpec | None, x: jax.Array) -> jax.Array:
            heard = [moment.replicas.shift(x, offset, spec) for offset in offsets]
            return sum(heard, x) / (len(offsets) + 1)

        return moment.each(one, tree), state

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        return [
            message._replace(turn=turn)
            for turn, offset in enumerate(offsets)
            for message in shift_messages(shapes, replicas, offset)
        ]

    return Exchange(lambda like: (), apply, messages)


def shift_messages(shapes: Tree, replicas: Replicas, offset: int) -> list[Message]:
    """Of one shift: seats that take from a device `far` away, and those from the one after it."""
    far, seats = divmod(offset % replicas.count, replicas.seats)
    made = []
    for leaf in jax.tree.leaves(shapes):
        size = math.prod(own_shape(leaf))
        for distance, rows in ((far, replicas.seats - seats), (far + 1, seats)):
            if rows and distance % replicas.devices:
                made.append(
                    Message("collective-permute", str(leaf.dtype), size * rows, replicas.devices)
                )
    return made
