"""What a server does with moves: with what a worker has after H steps of its own.

Worker k began at w_k' and has come to w_k, while the server came to w̃, τ changes later. A rule
takes the move in (`receive`), and where it collects moves, merges them now and then (`merge`); who
is waited for is not its business. All are pure functions, called in virtual time and by a server
that real moves reach. With B bytes of parameters a worker sends B for a move and is sent B.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.learning.replicated.local_updates import outer_step

Tree = Any


class Move(NamedTuple):
    """A worker's parameters at the server."""

    parameters: Tree  # w_k
    fetched: Tree  # w_k': where it began
    staleness: jax.Array  # [] int32: τ


class Center(NamedTuple):
    """What the server has."""

    parameters: Tree  # w̃
    velocity: Tree  # m of the outer optimizer; () without momentum
    total: Tree  # of the moves since the last merge; () where they are not collected


class MoveRule(NamedTuple):
    """One way to use moves."""

    init: Callable[[Tree], Center]
    """`init(parameters)`: what the server has at the start."""
    receive: Callable[[Center, Move], tuple[Center, Tree]]
    """`receive(center, move)`: the server after it, and what the worker has then."""
    merge: Callable[[Center, jax.Array], Center]
    """`merge(center, count)`: the server after a merge of `count` moves."""


def easgd(alpha: float) -> MoveRule:
    """Zhang, Choromanska and LeCun 2015, *Deep learning with Elastic Averaging SGD*,
    arXiv:1412.6651, Alg. 1 (asynchronous EASGD), after every τ = H steps of a worker:

    e = α·(w_k - w̃)
    w_k ← w_k - e
    w̃ ← w̃ + e
    """

    def receive(center: Center, move: Move) -> tuple[Center, Tree]:
        force = jax.tree.map(lambda w, c: alpha * (w - c), move.parameters, center.parameters)
        own = jax.tree.map(jnp.subtract, move.parameters, force)
        return center._replace(parameters=jax.tree.map(jnp.add, center.parameters, force)), own

    return MoveRule(lambda parameters: Center(parameters, (), ()), receive, lambda c, count: c)


def buffered(learning_rate: float = 1.0, momentum: float = 0.0) -> MoveRule:
    """Nguyen et al. 2022, *Federated Learning with Buffered Asynchronous Aggregation* (FedBuff),
    arXiv:2106.06639, Alg. 1, with every K-th move:

    Δ_k = w_k' - w_k                             it began τ merges ago
    w̃ ← w̃ - η·1/K · Σ_k s(τ_k)·Δ_k               s(τ) = 1/√(1 + τ), η = `learning_rate`

    and Nesterov's `momentum`, as in `diloco`, if there is some.
    """
    return _collecting(lambda staleness: 1 / jnp.sqrt(1.0 + staleness), learning_rate, momentum)


def diloco(learning_rate: float = 0.7, momentum: float = 0.9) -> MoveRule:
    """Douillard et al. 2026, *Decoupled DiLoCo for Resilient Distributed Pre-training*,
    arXiv:2604.21428, of whole models: of those who came in time, M of them,

    Δ̄ = 1/M · Σ_k (w_k' - w_k)
    m ← μ·m + Δ̄                                  μ = `momentum`
    w̃ ← w̃ - η·(Δ̄ + μ·m)                          η = `learning_rate`

    The paper weighs a move by its tokens, of which each has as many here; it sends a model in
    fragments, and its learners do not wait while they are merged.
    """
    return _collecting(lambda staleness: jnp.float32(1), learning_rate, momentum)


def _collecting(
    weight: Callable[[jax.Array], jax.Array], learning_rate: float, momentum: float
) -> MoveRule:
    def init(parameters: Tree) -> Center:
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        return Center(parameters, zeros if momentum else (), zeros)

    def receive(center: Center, move: Move) -> tuple[Center, Tree]:
        scale = weight(move.staleness)
        total = jax.tree.map(
            lambda t, start, w: t + scale.astype(t.dtype) * (start - w),
            center.total,
            move.fetched,
            move.parameters,
        )
        return center._replace(total=total), move.parameters

    def merge(center: Center, count: jax.Array) -> Center:
        mean = jax.tree.map(lambda t: t / jnp.maximum(count, 1).astype(t.dtype), center.total)
        parameters, velocity = outer_step(
            center.parameters, center.velocity, mean, learning_rate, momentum
        )
        return Center(parameters, velocity, jax.tree.map(jnp.zeros_like, center.total))

    return MoveRule(init, receive, merge)
