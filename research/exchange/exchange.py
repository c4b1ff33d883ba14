"""An exchange: what a replica gives of a tree, and what it gets back.

In the manner of optax, a pair of pure functions and a state. It is written for one tree of one
replica, inside a `shard_map` that is manual over `replica` alone: whatever else of the mesh the
arrays are split over stays the partitioner's. Beside it stands what it sends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.exchange.message import Message
from research.exchange.replicas import Replicas

Tree = Any


class Moment(NamedTuple):
    """When, who, and with whom."""

    replicas: Replicas
    step: jax.Array  # [] int32: updates made before this one; the same everywhere
    number: jax.Array  # [] int32: of this replica, from 0
    key: jax.Array  # of this step, the same on all replicas
    alive: jax.Array | None = None  # [] bool: whether this replica counts (None: all do)
    specs: tuple[PartitionSpec, ...] | None = None
    """How each array of a tree lies on the other axes of the mesh (None: wherever it likes)."""

    @property
    def own_key(self) -> jax.Array:
        """Of this step and replica."""
        return jax.random.fold_in(self.key, self.number)

    @property
    def living(self) -> Any:
        """How many replicas count (0 if none does)."""
        if self.alive is None:
            return self.replicas.count
        return self.replicas.sum(self.alive.astype(jnp.float32))

    def each(self, function: Callable[..., jax.Array], tree: Tree, *trees: Tree) -> Tree:
        """`function(spec, x, ...)` of every array of a tree (and of others like it)."""
        leaves, structure = jax.tree.flatten(tree)
        specs = self.specs or (None,) * len(leaves)
        more = map(jax.tree.leaves, trees)
        done = [function(*each) for each in zip(specs, leaves, *more, strict=True)]
        return jax.tree.unflatten(structure, done)


class Exchange(NamedTuple):
    """What replicas exchange of a tree."""

    init: Callable[[Tree], Tree]
    """`init(like)`: the state at the start, the same on every replica."""
    apply: Callable[[Tree, Tree, Moment], tuple[Tree, Tree]]
    """`apply(tree, state, moment)`: a tree of the same shapes, and the state."""
    messages: Callable[[Tree, Replicas], list[Message]]
    """`messages(shapes, replicas)`: what a device sends for a tree of (abstract) arrays, or for its
    shards of them where they have a sharding."""


def chain(*exchanges: Exchange) -> Exchange:
    """One after another, each on what the one before it returned."""

    def init(like: Tree) -> Tree:
        return tuple(exchange.init(like) for exchange in exchanges)

    def apply(tree: Tree, states: Tree, moment: Moment) -> tuple[Tree, Tree]:
        after = []
        for exchange, state in zip(exchanges, states, strict=True):
            tree, state = exchange.apply(tree, state, moment)
            after.append(state)
        return tree, tuple(after)

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        return [
            message for exchange in exchanges for message in exchange.messages(shapes, replicas)
        ]

    return Exchange(init, apply, messages)


def named(tree: Tree) -> list[tuple[str, Any]]:
    """Arrays by the keys on their way, such as `blocks.mlp.up.kernel`."""
    return [
        (".".join(str(getattr(key, "key", key)) for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
