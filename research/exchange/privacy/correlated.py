"""Noise that takes itself back: correlated over steps by a banded matrix.

Kairouz et al. 2021, *Practical and Private (Deep) Learning without Sampling or Shuffling*,
arXiv:2103.00039 (DP-FTRL), with the noise of Denisov et al. 2022, arXiv:2202.08312, and the bands
of Choquette-Choo et al. 2023, *(Amplified) Banded Matrix Factorization*, arXiv:2306.08153. The T
sums of clipped vectors, rows of X, are released with

    X + z·L·y,   C·y = ζ:   y_t = (ζ_t - Σ_{1 <= i < b} c_i·y_{t-i}) / c_0       ζ_t ~ N(0, I)

L is the bound on the norm of a vector; C is lower triangular, Toeplitz (c_i on diagonal i) and has
b bands. What a model sees is sums over steps, and in those the noise of a step is mostly taken back
by the next. The coefficients are those of the square root of the matrix of all prefix sums, cut
after b,

    c_i = binom(2i, i) / 4^i          divided by their norm, so that no column is longer than 1

It is the release of C·X + z·L·ζ. Who takes part at most every b steps meets columns that have no
row in common: those of k times are together √k long (§3 of Choquette-Choo et al.), also where X
hangs on what was released before (Denisov et al., Thm. 2.1). So k passes cost what k Gaussian
releases of noise multiplier z cost, and nothing hangs on a secret draw. With b = 1 noise is
independent.

y is a state of b - 1 models, as C⁻¹ is full: to make y_t from keys alone takes all t of them. It is
our own, since `jax-privacy` 2.0 comes with two more libraries for these few lines, and the state of
its noise would not lie on the mesh as the parameters do.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def coefficients(bands: int) -> np.ndarray:
    """float64 [bands]: c, of norm 1."""
    i = np.arange(1, bands)
    c = np.cumprod(np.concatenate([[1.0], (2 * i - 1) / (2 * i)]))
    return c / np.linalg.norm(c)


def no_past(like: Tree, bands: int) -> Tree:
    """y of the `bands` - 1 steps before the first, the last one first: zero."""
    if bands == 1:
        return ()
    return jax.tree.map(lambda leaf: jnp.zeros((bands - 1, *leaf.shape), jnp.float32), like)


def correlated(independent: Tree, past: Tree, bands: int) -> tuple[Tree, Tree]:
    """y_t of ζ_t, which is `independent` of all else, and the past of the next step."""
    if bands == 1:
        return independent, past
    first, *others = coefficients(bands)
    weights = jnp.array(others, jnp.float32)

    def next_of(z: jax.Array, before: jax.Array) -> jax.Array:
        return (z - jnp.tensordot(weights, before, axes=1)) / first

    made = jax.tree.map(next_of, independent, past)
    kept = jax.tree.map(lambda y, before: jnp.concatenate([y[None], before[:-1]]), made, past)
    return made, kept


def deviation_of_sums(steps: int, bands: int) -> float:
    """The root mean square, over t = 1, ..., `steps`, of the deviation of y_1 + ... + y_t: of the
    noise in what the first t steps add up to, for z·L = 1. It is √((steps + 1)/2) for one band, and
    falls with more, which cost the same ε, as long as nobody comes again before they are through.
    """
    first, *others = coefficients(bands)
    inverse = np.zeros(steps)  # of C, a column: Toeplitz, too
    inverse[0] = 1 / first
    for t in range(1, steps):
        before = inverse[max(t - bands + 1, 0) : t][::-1]
        inverse[t] = -np.dot(others[: len(before)], before) / first
    variances = np.cumsum(np.cumsum(inverse) ** 2)  # of each sum
    return float(np.sqrt(np.mean(variances)))
