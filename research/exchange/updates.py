"""Updates side by side: trees of arrays [n, ...], and who of the n is alive.

Distances are those of whole updates, of all arrays together, and sums of squared differences: not
‖x‖² + ‖y‖² - 2·x·y, which loses what is small beside one huge update.
"""

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def rows(weight: jax.Array, leaf: jax.Array) -> jax.Array:
    """`weight` [n] so that it multiplies `leaf` [n, ...]."""
    return weight.reshape(-1, *(1,) * (leaf.ndim - 1))


def weighted(x: Tree, weight: jax.Array) -> Tree:
    """Σ_i a_i·x_i with a = `weight` [n]; of a weight [m, n] m such sums."""
    precise = jax.lax.Precision.HIGHEST
    return jax.tree.map(lambda leaf: jnp.tensordot(weight, leaf, 1, precision=precise), x)


def mean(x: Tree, alive: jax.Array) -> Tree:
    """Of those that are alive."""
    return weighted(x, alive / jnp.sum(alive))


def squared_to(x: Tree, center: Tree) -> jax.Array:
    """[n]: ‖x_i - center‖²."""
    parts = jax.tree.map(lambda leaf, c: _squared(leaf - c), x, center)
    return sum(jax.tree.leaves(parts), jnp.float32(0))


def squared_distances(x: Tree) -> jax.Array:
    """[n, n]: ‖x_i - x_j‖²."""
    count = len(jax.tree.leaves(x)[0])

    def from_one(i: jax.Array) -> jax.Array:
        return squared_to(x, jax.tree.map(lambda leaf: leaf[i], x))

    return jax.lax.map(from_one, jnp.arange(count))


def nearest(distances: jax.Array, alive: jax.Array, count: jax.Array) -> jax.Array:
    """[n, n] bool: of each row of `distances` the `count` smallest among those alive, the first of
    equals."""
    order = jnp.argsort(jnp.where(alive, distances, jnp.inf), axis=1)  # stable
    return (jnp.argsort(order, axis=1) < count) & alive


def finite(tree: Tree) -> jax.Array:
    """[] bool: whether every number of it is."""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves))


def finite_rows(x: Tree) -> jax.Array:
    """[n] bool: whether every number of x_i is."""
    parts = jax.tree.map(
        lambda leaf: jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))), x
    )
    return jnp.all(jnp.stack(jax.tree.leaves(parts)), axis=0)


def _squared(difference: jax.Array) -> jax.Array:
    return jnp.sum(difference.astype(jnp.float32) ** 2, axis=tuple(range(1, difference.ndim)))
