"""The geometric median, by a smoothed Weiszfeld iteration.

Pillutla, Kakade and Harchaoui 2019, *Robust Aggregation for Federated Learning* (RFA),
arXiv:1912.13445, eq. 4 and Alg. 2:

    v* = argmin_v Σ_i ‖v - x_i‖
    a_i = 1 / max(ν, ‖v - x_i‖)
    v ← Σ_i a_i·x_i / Σ_i a_i          T times

It withstands f < n/2 as an estimate; a rotation of all updates rotates it, unlike the median of
coordinates. The paper begins at the mean; here it is the median of coordinates, since what one huge
update does to a mean takes many steps to undo.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.exchange.robust.coordinates import median
from research.exchange.updates import squared_to, weighted

Tree = Any
STEPS = 8
"""T: after so many, v is within a hundredth of the spread of the updates."""
SMOOTHING = 1e-6
"""ν: no distance counts as a smaller one."""


def geometric_median(x: Tree, alive: jax.Array) -> Tree:
    """v, of those that are alive."""

    def step(v: Tree, _: None) -> tuple[Tree, None]:
        distance = jnp.sqrt(squared_to(x, v))
        a = alive / jnp.maximum(SMOOTHING, distance)
        return weighted(x, a / jnp.sum(a)), None

    return jax.lax.scan(step, median(x, alive), None, length=STEPS)[0]
