"""How members that were asked the same answer together.

With p_m the probabilities of member m of M, over the classes:

    mean        p = 1/M · Σ_m p_m               a mixture (Lakshminarayanan et al. 2017, §2.4)
    product     p ∝ (Π_m p_m)^(1/M)             a geometric mean (Hinton 2002's product, tempered)
    majority    p ∝ #{m: k = argmax p_m} + 1/K  votes, with Laplace's share for classes without one

All is done with logarithms, so that no probability is rounded to 0, and member by member: a
combination is a sum (of its own kind), and never holds more than one answer and the sum.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

Rule = Literal["mean", "product", "majority"]


@dataclass(frozen=True)
class Combination:
    """The sum of answers over members; all arrays are [..., classes], of one a wider one here."""

    of_one: Callable[[jax.Array], jax.Array]
    """What a member adds, of its log-probabilities."""
    nothing: float
    """What adds nothing."""
    add: Callable[[jax.Array, jax.Array], jax.Array]
    finish: Callable[[jax.Array], jax.Array]
    """Log-probabilities, of the sum over some members."""

    def together(self, answers: jax.Array) -> jax.Array:
        """Log-probabilities [..., classes] of the members whose are `answers` [members, ...]."""
        return self.finish(functools.reduce(self.add, [self.of_one(answer) for answer in answers]))


def combination(rule: Rule) -> Combination:
    """The combination of that name."""
    return {"mean": mean, "product": product, "majority": majority}[rule]()


def mean() -> Combination:
    """The probabilities' mean. That its sum over classes is 1 tells how many members there are."""
    return Combination(lambda log_p: log_p, -jnp.inf, jnp.logaddexp, jax.nn.log_softmax)


def product() -> Combination:
    """The probabilities' geometric mean; the sum has one more column, which counts members."""

    def of_one(log_p: jax.Array) -> jax.Array:
        return jnp.concatenate([log_p, jnp.ones_like(log_p[..., :1])], axis=-1)

    def finish(total: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(total[..., :-1] / total[..., -1:])

    return Combination(of_one, 0.0, jnp.add, finish)


def majority() -> Combination:
    """The members' votes."""

    def of_one(log_p: jax.Array) -> jax.Array:
        return jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1])

    def finish(votes: jax.Array) -> jax.Array:
        smoothed = votes + 1 / votes.shape[-1]
        return jnp.log(smoothed / jnp.sum(smoothed, axis=-1, keepdims=True))

    return Combination(of_one, 0.0, jnp.add, finish)
