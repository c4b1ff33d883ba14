"""Nearest-neighbor mixing: every update becomes the mean of those near to it.

Allouah et al. 2023, *Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity*,
arXiv:2302.01772, Alg. 2. With N_i the n - f updates nearest to x_i, itself among them:

    y_i = 1/(n - f) · Σ_{j ∈ N_i} x_j

and then any rule of the y_i. Honest clients that differ come closer to each other, by about f/n of
what was between them, and a rule loses less of each.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.exchange.updates import nearest, squared_distances, weighted

Tree = Any


def nearest_neighbors(x: Tree, alive: jax.Array, byzantine: int) -> Tree:
    """y, of the same shapes, with f = `byzantine`."""
    count = jnp.sum(alive) - byzantine
    near = nearest(squared_distances(x), alive, count)  # [n, n]
    return weighted(x, (near & alive[:, None]) / count)
