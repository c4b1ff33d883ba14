"""Clipping: nobody pulls harder than τ, around zero or around what was agreed on before.

Sun et al. 2019, *Can You Really Backdoor Federated Learning?*, arXiv:1911.07963, §4 (norm
thresholding), and Karimireddy, He and Jaggi 2021, *Learning from History for Byzantine Robust
Optimization*, arXiv:2012.10333, Alg. 2 (centered clipping):

    norm clipping        1/n · Σ_i x_i·min(1, τ / ‖x_i‖)
    centered clipping    v ← v + 1/n · Σ_i (x_i - v)·min(1, τ / ‖x_i - v‖)      L times

where v begins with the result of the round before. Neither needs to know f. The bias that f of n
can bring is about f/n·τ, and adds up over the rounds in which they agree.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.exchange.updates import rows, squared_to

Tree = Any
STEPS = 3
"""L."""


def norm_clipping(x: Tree, alive: jax.Array, radius: float) -> Tree:
    """With τ = `radius`."""
    zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), x)
    return _towards(x, alive, zero, radius)


def centered_clipping(x: Tree, alive: jax.Array, center: Tree, radius: float) -> Tree:
    """v from `center`, with τ = `radius`."""

    def step(v: Tree, _: None) -> tuple[Tree, None]:
        return _towards(x, alive, v, radius), None

    return jax.lax.scan(step, center, None, length=STEPS)[0]


def _towards(x: Tree, alive: jax.Array, v: Tree, radius: float) -> Tree:
    distance = jnp.sqrt(squared_to(x, v))
    share = jnp.where(distance > radius, radius / jnp.where(distance > 0, distance, 1), 1)
    share = jnp.where(alive, share, 0) / jnp.sum(alive)

    def of_leaf(leaf: jax.Array, v: jax.Array) -> jax.Array:
        a = rows(share, leaf)
        return v + jnp.sum(jnp.where(a == 0, 0, a * (leaf - v)), axis=0)

    return jax.tree.map(of_leaf, x, v)
