"""Gaussian noise: the same numbers on every mesh, each device making its own part.

JAX's threefry counts, it does not step through a state: bit i of an array is a function of (key, i)
however the array is split (`jax_threefry_partitionable`, the default). Every step and array has a
key of its own, derived from the seed of the privacy config, which is 64 bits and *has to stay
secret*: with it the noise can be taken away again. Threefry is made for simulation. It is no
cryptographic generator, and floats have gaps that tell a little of what was added to them (Mironov
2012, *On Significance of the Least Significant Bits for Differential Privacy*, CCS): guarantees
here are those of real numbers and true randomness, as in the libraries that this is compared with.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any

SUM, COUNTS = range(2)
"""What noise is for."""

KEY = "privacy_key"
"""What a step is told beside its batch: the key of the run's noise, so that no compiled program
holds it."""


def words_of(seed: int) -> np.ndarray:
    """uint32 [2]: the data of the key of all noise of a run; `seed` below 2^64."""
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


def gaussian(like: Tree, key: jax.Array, shardings: Tree | None = None) -> Tree:
    """N(0, 1), float32, in the shapes of `like`, laid out by `shardings` if they are given."""
    leaves, structure = jax.tree.flatten(like)
    placed = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)

    def draw(number: int, leaf: Any, sharding: Any) -> jax.Array:
        made = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, jnp.float32)
        return made if sharding is None else jax.lax.with_sharding_constraint(made, sharding)

    numbered = enumerate(zip(leaves, placed, strict=True))
    return jax.tree.unflatten(structure, [draw(n, leaf, where) for n, (leaf, where) in numbered])


def key_at(words: jax.Array, step: jax.Array, purpose: int) -> jax.Array:
    """Of the noise of the step after `step` updates."""
    key = jax.random.wrap_key_data(words, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, step), purpose)
