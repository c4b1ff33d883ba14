"""Bulyan: several updates by Krum, then in each coordinate those that are near to their median.

El Mhamdi, Guerraoui and Rouault 2018, *The Hidden Vulnerability of Distributed Learning in
Byzantium*, arXiv:1802.07927, §4:

    S = θ = n - 2f updates: Krum's choice of all, then of those that are left, and so on
    of the θ numbers of a coordinate, the mean of the β = θ - 2f nearest to their median

It asks for n ≥ 4f + 3, and is for attacks that hide a large error in one coordinate from distances
of many.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.exchange.robust.coordinates import median
from research.exchange.robust.krum import scores
from research.exchange.updates import rows, squared_distances

Tree = Any


def bulyan(x: Tree, alive: jax.Array, byzantine: int) -> Tree:
    """See the file's head; f = `byzantine`."""
    theta = jnp.sum(alive) - 2 * byzantine
    chosen = selected(squared_distances(x), alive, byzantine)
    middle = median(x, chosen)
    inner = jnp.arange(len(alive)) < theta - 2 * byzantine

    def of_leaf(leaf: jax.Array, center: jax.Array) -> jax.Array:
        far = jnp.where(rows(chosen, leaf), jnp.abs(leaf - center), jnp.inf)
        _, ordered = jax.lax.sort((far, leaf), dimension=0, num_keys=1)
        kept = jnp.where(rows(inner, leaf), ordered, 0)
        return jnp.sum(kept, axis=0) / (theta - 2 * byzantine)

    return jax.tree.map(of_leaf, x, middle)


def selected(distances: jax.Array, alive: jax.Array, byzantine: int) -> jax.Array:
    """[n] bool: S, by squared `distances` [n, n]."""
    theta = jnp.sum(alive) - 2 * byzantine

    def choose(number: jax.Array, left: jax.Array) -> jax.Array:
        best = jnp.argmin(scores(distances, left, byzantine))
        return left & ((jnp.arange(len(left)) != best) | (number >= theta))

    return alive & ~jax.lax.fori_loop(0, len(alive) - 2 * byzantine, choose, alive)
