"""What Byzantine ones send instead of their updates: attacks that see everything.

Of n updates x_i, f are Byzantine; those of the others have the mean μ and, by coordinate, the
deviation σ. A Byzantine one sends, with a strength z:

    sign_flip   -z·x_i        its own, turned round                                        z = 1
    scaling     z·x_i         model replacement (Bagdasaryan et al. 2018,                  z = n/f
                              arXiv:1807.00459, eq. 3)
    gaussian    z·N(0, 1)     in every coordinate (Blanchard et al. 2017, §6)              z = 200
    alie        μ - z·σ       a little is enough (Baruch et al. 2019, arXiv:1902.06156,    z = z_max
                              Alg. 3)
    ipm         -z·μ          inner product manipulation (Xie et al. 2019,                 z = 0.1
                              arXiv:1903.03936, §4)
    mimic       x_{i*}        all send what one honest one has sent (Karimireddy et al.
                              2022, arXiv:2006.09365, §3.3)

alie's z_max is the largest with which a majority of all would be farther from μ than what is sent,
were honest numbers normal: Φ(z_max) = (n - f - s) / (n - f) with s = ⌊n/2 + 1⌋ - f. mimic's i* is
the honest one farthest along the direction d in which honest ones differ most, learned from round
to round as in Oja's rule (there appendix B):

    d ← t/(t+1)·d + 1/(t+1)·Σ_i ⟨x_i - μ, d⟩·(x_i - μ) / ‖...‖        i* = argmax_i ⟨x_i, d⟩
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from research.exchange.updates import finite_rows, mean, rows, weighted

Tree = Any


class Seen(NamedTuple):
    """What attackers see."""

    x: Tree  # [n, ...]
    honest: jax.Array  # [n] bool, and alive
    byzantine: jax.Array  # [n] bool, and alive
    strength: float | None
    key: jax.Array
    step: jax.Array
    direction: Tree  # d; () where it is not learned

    def z(self, otherwise: Any) -> Any:
        """The strength that was asked for, or the attack's own."""
        return otherwise if self.strength is None else self.strength

    @property
    def middle(self) -> Tree:
        """μ."""
        return mean(self.x, self.honest)


def sign_flip(seen: Seen) -> Tree:
    """-z·x_i."""
    return jax.tree.map(lambda leaf: -seen.z(1.0) * leaf, seen.x)


def scaling(seen: Seen) -> Tree:
    """z·x_i."""
    bad = jnp.sum(seen.byzantine)
    share = (bad + jnp.sum(seen.honest)) / jnp.maximum(bad, 1)
    return jax.tree.map(lambda leaf: seen.z(share) * leaf, seen.x)


def gaussian(seen: Seen) -> Tree:
    """z·N(0, 1)."""
    leaves, structure = jax.tree.flatten(seen.x)
    drawn = [
        seen.z(200.0) * jax.random.normal(jax.random.fold_in(seen.key, n), leaf.shape, leaf.dtype)
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def alie(seen: Seen) -> Tree:
    """μ - z·σ."""
    good, bad = jnp.sum(seen.honest), jnp.sum(seen.byzantine)
    supporters = jnp.floor((good + bad) / 2 + 1) - bad
    z = seen.z(jax.scipy.stats.norm.ppf((good - supporters) / good))
    share = seen.honest / good

    def of_leaf(leaf: jax.Array, middle: jax.Array) -> jax.Array:
        variance = weighted((leaf - middle) ** 2, share)
        return jnp.broadcast_to(middle - z * jnp.sqrt(variance), leaf.shape)

    return jax.tree.map(of_leaf, seen.x, seen.middle)


def ipm(seen: Seen) -> Tree:
    """-z·μ."""
    return jax.tree.map(
        lambda leaf, middle: jnp.broadcast_to(-seen.z(0.1) * middle, leaf.shape),
        seen.x,
        seen.middle,
    )


def mimic(seen: Seen) -> Tree:
    """x_{i*}, by the direction as it is."""
    along = jnp.where(seen.honest, _inner(seen.x, seen.direction), -jnp.inf)
    chosen = jnp.argmax(along)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[chosen], leaf.shape), seen.x)


ATTACKS: dict[str, Callable[[Seen], Tree]] = {
    "sign_flip": sign_flip,
    "scaling": scaling,
    "gaussian": gaussian,
    "alie": alie,
    "ipm": ipm,
    "mimic": mimic,
}


@dataclass(frozen=True)
class Attack:
    """One of them by name, with its strength (None: as its paper has it)."""

    name: str
    strength: float | None = None

    def init(self, like: Tree) -> Tree:
        """What attackers know at the start, of updates like this."""
        if self.name != "mimic":
            return ()
        leaves, structure = jax.tree.flatten(like)
        keys = jax.random.split(jax.random.key(0), max(len(leaves), 1))
        drawn = [jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=False)]
        return _normalized(jax.tree.unflatten(structure, drawn))

    def apply(
        self,
        x: Tree,
        alive: jax.Array,
        byzantine: jax.Array,
        state: Tree,
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[Tree, jax.Array, Tree]:
        """x [n, ...] with what the `byzantine` [n] of them send, who of all sent finite numbers,
        and what attackers know after it."""
        seen = Seen(x, alive & ~byzantine, alive & byzantine, self.strength, key, step, state)
        if self.name == "mimic":
            seen = seen._replace(direction=_learned(seen))
        sent = ATTACKS[self.name](seen)
        x = jax.tree.map(
            lambda own, other: jnp.where(rows(seen.byzantine, own), other, own), x, sent
        )
        fine = finite_rows(x)
        x = jax.tree.map(lambda leaf: jnp.where(rows(fine, leaf), leaf, 0), x)
        return x, alive & fine, seen.direction


def _learned(seen: Seen) -> Tree:
    """d, after what is seen."""
    difference = jax.tree.map(jnp.subtract, seen.x, seen.middle)
    along = jnp.where(seen.honest, _inner(difference, seen.direction), 0)
    new = _normalized(weighted(difference, along))
    t = seen.step.astype(jnp.float32)
    return _normalized(
        jax.tree.map(lambda d, n: t / (t + 1) * d + n / (t + 1), seen.direction, new)
    )


def _inner(x: Tree, d: Tree) -> jax.Array:
    """[n]: ⟨x_i, d⟩."""
    parts = jax.tree.map(lambda leaf, d: jnp.sum((leaf * d).reshape(len(leaf), -1), axis=1), x, d)
    return sum(jax.tree.leaves(parts), jnp.float32(0))


def _normalized(tree: Tree) -> Tree:
    norm = optax.tree.norm(tree)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1), tree)
