"""How much of one unit's vector counts: clipping, flat, a layer at a time, or by a quantile.

Abadi et al. 2016, *Deep Learning with Differential Privacy*, arXiv:1607.00133, Alg. 1:

    clip_C(g) = g · min(1, C / ‖g‖₂)

McMahan et al. 2018, arXiv:1710.06963, §2: by layers j of m, each to C_j, with C = (Σ_j C_j²)^½ of
all; here C_j = C/√m. What is not finite counts as zero, in all layers: no g moves the sum of
clipped vectors by more than C.

Andrew et al. 2021, *Differentially Private Learning with Adaptive Clipping*, arXiv:1905.03871,
Alg. 1: C follows the quantile γ of the norms. Each unit tells whether it was within (b_i = 1) or
not, and the count is released with noise of its own:

    b̃ = 1/(q·N) · (Σ_i (b_i - ½) + N(0, σ_b²)) + ½        C ← C · exp(-η_C·(b̃ - γ))
    z_Δ = (z⁻² - m·(2σ_b)⁻²)^-½                            noise of the sum itself (their Thm. 1)

so that counts and sum together are one Gaussian release of noise multiplier z: what is accounted.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.errors import UserError

Tree = Any
EXACT = jax.lax.Precision.HIGHEST
"""Of products that norms and clipped sums are made of: else accelerators round what they multiply
to 10 bits or fewer, and a bound would hold to a thousandth."""


class Quantile(NamedTuple):
    """How a bound follows the norms."""

    target: float  # γ: the share of units that are within
    rate: float  # η_C
    deviation: float  # σ_b: of the count, in units


class Groups(NamedTuple):
    """Which arrays of a tree are clipped together."""

    numbers: Tree  # like the parameters: the group of each array
    many: int  # m

    @classmethod
    def of(cls, parameters: Tree, by_layer: bool) -> "Groups":
        """All as one; or arrays that stand side by side in the nested dict, a layer's kernel and
        bias, say. Layers that are stacked in one array are one."""
        names: dict[tuple[Any, ...], int] = {}

        def number(path: tuple[Any, ...], _: Any) -> int:
            return names.setdefault(path[:-1] if by_layer else (), len(names))

        numbers = jax.tree_util.tree_map_with_path(number, parameters)
        return cls(numbers, len(names))

    def squared_norms(self, tree: Tree) -> jax.Array:
        """[groups]: of one unit's `tree`."""
        sums = [jnp.zeros(())] * self.many
        leaves = jax.tree.leaves(tree)
        for number, leaf in zip(jax.tree.leaves(self.numbers), leaves, strict=True):
            sums[number] = sums[number] + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        return jnp.stack(sums)


class Clipped(NamedTuple):
    """What clipping decides about units, [..., groups] each but `finite`."""

    factors: jax.Array  # what their vectors are multiplied with
    within: jax.Array  # float32: 1 where nothing was cut off
    finite: jax.Array  # [...] bool


def clipped(squared_norms: jax.Array, bounds: jax.Array) -> Clipped:
    """By the `squared_norms` [..., groups] of units and the `bounds` [groups]. The square of what
    is beyond 1e19 is not finite in float32: such a unit counts as zero, too."""
    finite = jnp.all(jnp.isfinite(squared_norms), axis=-1)
    norms = jnp.sqrt(jnp.where(finite[..., None], squared_norms, jnp.inf))
    factors = jnp.where(finite[..., None], bounds / jnp.maximum(norms, bounds), 0.0)
    return Clipped(factors, (norms <= bounds).astype(jnp.float32), finite)


def scaled_sum(rows: jax.Array, factors: jax.Array) -> jax.Array:
    """Σ factor·row in float32, of `rows` [n, ...] and their `factors` [n]; nothing of a row whose
    factor is zero, whatever it is.

    It is a product of matrices, which XLA's CPU backend computes 20 times as fast as a sum over the
    first axis.
    """
    kept = jnp.where(_like(factors, rows) > 0, rows.astype(jnp.float32), 0.0)
    return jnp.einsum("n,n...->...", factors, kept, precision=EXACT)


def _like(factors: jax.Array, rows: jax.Array) -> jax.Array:
    return factors.reshape(-1, *(1,) * (rows.ndim - 1))


def noise_of_sum(noise_multiplier: float, quantile: Quantile | None, groups: int) -> float:
    """z_Δ. Raises UserError where the counts alone would cost more than the whole step may."""
    if quantile is None or noise_multiplier == 0:
        return noise_multiplier
    left = noise_multiplier**-2 - groups * (2 * quantile.deviation) ** -2
    if left <= 0:
        least = noise_multiplier * math.sqrt(groups) / 2
        raise UserError(
            f"counts of a deviation of {quantile.deviation:.3g} tell more than a step of noise "
            f"{noise_multiplier:.3g} may: use a --privacy.quantile-noise for more than {least:.3g} "
            "units"
        )
    return left**-0.5


def adapted(
    bounds: jax.Array, within: jax.Array, key: jax.Array, quantile: Quantile, expected: float
) -> jax.Array:
    """The bounds [groups] of the next step; `within` [groups] is Σ (b_i - ½) over the units of this
    one, of which there are `expected` in the mean."""
    noise = quantile.deviation * jax.random.normal(key, within.shape)
    share = (within + noise) / expected + 0.5
    return bounds * jnp.exp(-quantile.rate * (share - quantile.target))
