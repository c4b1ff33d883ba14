"""Krum: the update whose neighbors are nearest. Multi-Krum: the mean of several such.

Blanchard et al. 2017, *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*,
arXiv:1703.02757, §4. With i → j for the n - f - 2 updates j ≠ i that are nearest to x_i:

    s(i) = Σ_{i → j} ‖x_i - x_j‖²
    Krum = x_{i*},    i* = argmin_i s(i)
    multi-Krum = the mean of the n - f updates with the least s

Both ask for n ≥ 2f + 3. What Krum returns somebody has sent, so of heterogeneous clients it serves
one. (The paper leaves the number of multi-Krum's open; n - f is how many are honest at least.)
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.exchange.updates import nearest, squared_distances, weighted

Tree = Any


def krum(x: Tree, alive: jax.Array, byzantine: int) -> Tree:
    """x_{i*}, with f = `byzantine`."""
    best = jnp.argmin(scores(squared_distances(x), alive, byzantine))
    return jax.tree.map(lambda leaf: leaf[best], x)


def multi_krum(x: Tree, alive: jax.Array, byzantine: int) -> Tree:
    """The mean of the n - f best."""
    count = jnp.sum(alive) - byzantine
    score = scores(squared_distances(x), alive, byzantine)
    chosen = nearest(score[None], alive, count)[0]
    return weighted(x, chosen / count)


def scores(distances: jax.Array, alive: jax.Array, byzantine: int) -> jax.Array:
    """[n]: s(i) of squared `distances` [n, n] among those alive; infinite for others."""
    others = jnp.where(jnp.eye(len(alive), dtype=bool), jnp.inf, distances)
    count = jnp.maximum(jnp.sum(alive) - byzantine - 2, 1)  # less is left to the last of Bulyan's
    near = nearest(others, alive, count)
    return jnp.where(alive, jnp.sum(jnp.where(near, distances, 0), axis=1), jnp.inf)
