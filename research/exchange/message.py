"""What one device sends, stated: the kind of collective, the type of its numbers, how many.

Bytes are those of `research.parallel.wire`. Here an operand is stated, of B bytes on each of n
devices: of an all-gather all have n·B afterwards; a collective-permute sends B.
"""

import math
from typing import Any, Literal, NamedTuple

import jax

from research.parallel.wire import wire_messages, wire_share

Tree = Any
Kind = Literal["all-reduce", "reduce-scatter", "all-to-all", "all-gather", "collective-permute"]


class Message(NamedTuple):
    """One collective between the replicas, as each device takes part in it."""

    kind: Kind
    dtype: str  # NumPy's name
    elements: int  # of the operand, on one device
    parties: int  # devices that take part together
    turn: int = 0  # more than 0 of what is sent after others of its kind, and not with them

    @property
    def payload(self) -> int:
        """Size of the operand (bytes)."""
        return self.elements * itemsize(self.dtype)

    @property
    def sent(self) -> int:
        """What the device sends (bytes)."""
        if self.kind == "collective-permute":
            return self.payload
        gathered = self.parties if self.kind == "all-gather" else 1
        return round(wire_share(self.kind, self.parties) * gathered * self.payload)


def sent(messages: list[Message]) -> int:
    """What a device sends with all of them (bytes)."""
    return sum(message.sent for message in messages)


def messages_sent(messages: list[Message]) -> int:
    """How many messages a device sends one after another for all of them: those of one kind, turn
    and number of parties as one, as a compiler or a library packs the arrays of a tree."""
    together = {(each.kind, each.parties, each.turn) for each in messages}
    return sum(wire_messages(kind, parties) for kind, parties, _ in together)


def itemsize(dtype: Any) -> int:
    """Bytes of a number."""
    return jax.numpy.dtype(dtype).itemsize


def of_leaves(kind: Kind, shapes: Tree, parties: int, dtype: str | None = None) -> list[Message]:
    """A message for every array of `shapes`, in its own type or in `dtype`; none to nobody."""
    if parties == 1:
        return []
    return [
        Message(kind, dtype or str(leaf.dtype), math.prod(own_shape(leaf)), parties)
        for leaf in jax.tree.leaves(shapes)
    ]


def own_shape(leaf: Any) -> tuple[int, ...]:
    """What a device holds of an abstract array: all of it, if that has no sharding."""
    sharding = getattr(leaf, "sharding", None)
    return tuple(leaf.shape) if sharding is None else sharding.shard_shape(leaf.shape)
