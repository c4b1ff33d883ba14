"""What a sender does to its own update before it sends it: stages that see one.

    clip      x · min(1, C / ‖x‖₂)          over all arrays of the update together
    coded     decode(encode(x)), array by array: what the receiver reads (see `codecs`)
    largest   the k = ratio · size largest entries of each array, and zeros

Of these `coded` by qsgd has no bias; the others have one, and nothing of what they lose is kept for
the next time: a client may not come again for long. An update of B bytes of float32 is sent in
about B/2 (bfloat16), B/4 (int8, qsgd), B/32 (sign) or 2·ratio·B bytes (a value and a place each).
An array that a codec cannot cut goes as it is.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.exchange.message import itemsize
from research.exchange.parts import divides, join, split
from research.exchange.stages import Round, Stage
from research.exchange.top_k import kept
from research.exchange.two_shot import Codec

Tree = Any


def clip(bound: float) -> Stage:
    """To a norm of C = `bound`."""

    def apply(x: Tree, state: Tree, round: Round) -> tuple[Tree, Tree]:
        return clipped(x, bound), state

    return Stage("clip", "one", "one", apply, bounds=True)


def clipped(x: Tree, bound: jax.Array | float) -> Tree:
    """x · min(1, C / ‖x‖₂) with C = `bound`."""
    norm = optax.tree.norm(x)
    scale = jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1), 1)
    return jax.tree.map(lambda leaf: scale * leaf, x)


def coded(name: str, codec: Codec) -> Stage:
    """By a `codec` of that `name`, an array at a time."""

    def apply(x: Tree, state: Tree, round: Round) -> tuple[Tree, Tree]:
        leaves, structure = jax.tree.flatten(x)
        read = [one(leaf, jax.random.fold_in(round.key, n)) for n, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, read), state

    def one(leaf: jax.Array, key: jax.Array) -> jax.Array:
        if not divides(leaf.shape, 1, codec.lanes):
            return leaf
        cut = split(leaf, 1, codec.lanes)  # [1, lanes, ...]
        return join(codec.decode(codec.encode(cut, key)), leaf.shape).astype(leaf.dtype)

    def sent(like: Tree) -> int:
        return sum(bytes_of(leaf) for leaf in jax.tree.leaves(like))

    def bytes_of(leaf: Any) -> int:
        size = math.prod(leaf.shape)
        if not divides(leaf.shape, 1, codec.lanes):
            return size * itemsize(leaf.dtype)
        return sum(itemsize(dtype) * count for dtype, count in codec.contents(size))

    return Stage(name, "one", "one", apply, sent=sent)


def largest(ratio: float) -> Stage:
    """The `ratio` of every array's entries that are largest."""

    def apply(x: Tree, state: Tree, round: Round) -> tuple[Tree, Tree]:
        return jax.tree.map(one, x), state

    def one(leaf: jax.Array) -> jax.Array:
        flat = leaf.reshape(-1)
        _, places = jax.lax.top_k(jnp.abs(flat), kept(leaf.size, ratio))
        return jnp.zeros_like(flat).at[places].set(flat[places]).reshape(leaf.shape)

    def sent(like: Tree) -> int:
        leaves = jax.tree.leaves(like)
        return sum(kept(math.prod(x.shape), ratio) * (itemsize(x.dtype) + 4) for x in leaves)

    return Stage("top_k", "one", "one", apply, sent=sent)
