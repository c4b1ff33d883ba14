"""Coordinate by coordinate: the median, and the mean of what is not extreme.

Yin et al. 2018, *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*,
arXiv:1803.01498, def. 1 and 2. Of n numbers in each coordinate, x_(1) ≤ ... ≤ x_(n):

    median          the middle one, or the mean of the two middle ones
    trimmed mean    1/(n - 2f) · Σ_{i = f+1, ..., n-f} x_(i)            β = f/n

Both withstand f < n/2 numbers of any size, as estimates of one number. What they make of updates
may be none of them, and where honest updates differ in their signs much of each is lost.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.exchange.updates import rows

Tree = Any


def median(x: Tree, alive: jax.Array) -> Tree:
    """Of every coordinate, among those that are alive."""
    count = jnp.sum(alive)
    low, high = (count - 1) // 2, count // 2

    def of_leaf(leaf: jax.Array) -> jax.Array:
        ordered = ascending(leaf, alive)
        return (ordered[low] + ordered[high]) / 2

    return jax.tree.map(of_leaf, x)


def trimmed_mean(x: Tree, alive: jax.Array, byzantine: int) -> Tree:
    """Of every coordinate, without the f = `byzantine` smallest and largest."""
    count = jnp.sum(alive)
    rank = jnp.arange(len(alive))
    inner = (rank >= byzantine) & (rank < count - byzantine)

    def of_leaf(leaf: jax.Array) -> jax.Array:
        kept = jnp.where(rows(inner, leaf), ascending(leaf, alive), 0)
        return jnp.sum(kept, axis=0) / (count - 2 * byzantine)

    return jax.tree.map(of_leaf, x)


def ascending(leaf: jax.Array, alive: jax.Array) -> jax.Array:
    """`leaf` [n, ...] sorted over n, those that are not alive last."""
    return jnp.sort(jnp.where(rows(alive, leaf), leaf, jnp.inf), axis=0)
