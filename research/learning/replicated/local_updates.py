"""Rules that average: gradients at every step, or parameters after some steps alone.

Steps have numbers t = 1, 2, ...; n replicas r have parameters w_r and gradients g_r; x̄ is the mean
of x_r over replicas, by any `Exchange` that computes one. With B bytes of parameters a replica
sends, by rings:

    every_step       2·(n-1)/n·B       every step
    local_sgd        2·(n-1)/n·B       every H-th step
    post_local_sgd   2·(n-1)/n·B       every step, and from step t' on every H-th
    diloco           2·(n-1)/n·B       every H-th step (up to step t' every step)
    easgd            2·(n-1)/n·B       every H-th step
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.exchange import Exchange, Message, Moment, Replicas, mean
from research.exchange.message import of_leaves
from research.learning.replicated.rule import Rule, Sending, alone, always, at, before, every

Tree = Any


def every_step(exchange: Exchange | None = None) -> Rule:
    """Synchronous learning: every optimizer gets ḡ, and the replicas stay equal."""
    exchange = mean() if exchange is None else exchange
    return Rule(
        init=exchange.init,
        on_gradients=exchange.apply,
        on_parameters=alone,
        sendings=lambda shapes, replicas: [Sending(always, exchange.messages(shapes, replicas))],
    )


def local_sgd(period: int, exchange: Exchange | None = None) -> Rule:
    """Stich 2018, *Local SGD Converges Fast and Communicates Little*, arXiv:1805.09767, Alg. 1:

    w_r ← w̄        where H = `period` divides t

    Optimizers keep their states to themselves.
    """
    exchange = mean() if exchange is None else exchange
    when = every(period)
    return Rule(
        init=exchange.init,
        on_gradients=alone,
        on_parameters=at(when, exchange.apply),
        sendings=lambda shapes, replicas: [Sending(when, exchange.messages(shapes, replicas))],
    )


def post_local_sgd(period: int, first: int, exchange: Exchange | None = None) -> Rule:
    """Lin et al. 2020, *Don't Use Large Mini-Batches, Use Local SGD*, arXiv:1808.07217, Alg. 2:

    every optimizer gets ḡ                  up to t' = `first` steps
    w_r ← w̄  where H divides t - t'         from then on
    """
    exchange = mean() if exchange is None else exchange
    early, late = before(first), every(period, first)

    def sendings(shapes: Tree, replicas: Replicas) -> list[Sending]:
        messages = exchange.messages(shapes, replicas)
        return [Sending(early, messages), Sending(late, messages)]

    return Rule(exchange.init, at(early, exchange.apply), at(late, exchange.apply), sendings)


class Outer(NamedTuple):
    """DiLoCo's state."""

    start: Tree  # w̃: where all replicas last began
    velocity: Tree  # m; () without momentum
    exchange: Tree


def diloco(
    period: int,
    learning_rate: float = 0.7,
    momentum: float = 0.9,
    exchange: Exchange | None = None,
    first: int = 0,
) -> Rule:
    """Douillard et al. 2023, *DiLoCo: Distributed Low-Communication Training of Language Models*,
    arXiv:2311.08105, Alg. 1, with Nesterov's momentum outside:

    Δ_r = w̃ - w_r                    where H = `period` divides t - t': what H inner steps did
    m ← μ·m + Δ̄                      μ = `momentum`
    w_r ← w̃ ← w̃ - η·(Δ̄ + μ·m)        η = `learning_rate`

    The inner optimizer (the paper's: AdamW) is the experiment's, and keeps its state. The paper
    begins with a model that was pretrained; here, up to t' = `first` steps every optimizer gets ḡ.
    """
    exchange, pretraining = mean() if exchange is None else exchange, mean()
    early, when = before(first), every(period, first)

    def init(parameters: Tree) -> Outer:
        velocity = jax.tree.map(jnp.zeros_like, parameters) if momentum else ()
        return Outer(parameters, velocity, exchange.init(parameters))

    def synchronize(parameters: Tree, state: Outer, moment: Moment) -> tuple[Tree, Outer]:
        moved = jax.tree.map(jnp.subtract, state.start, parameters)
        moved, inside = exchange.apply(moved, state.exchange, moment)
        start, velocity = outer_step(state.start, state.velocity, moved, learning_rate, momentum)
        return start, Outer(start, velocity, inside)

    def average(gradients: Tree, state: Outer, moment: Moment) -> tuple[Tree, Outer]:
        return pretraining.apply(gradients, (), moment)[0], state

    def begin(parameters: Tree, state: Outer, moment: Moment) -> tuple[Tree, Outer]:
        return parameters, state._replace(start=parameters)

    def on_parameters(parameters: Tree, state: Outer, moment: Moment) -> tuple[Tree, Outer]:
        if first:
            parameters, state = at(early, begin)(parameters, state, moment)
        return at(when, synchronize)(parameters, state, moment)

    def sendings(shapes: Tree, replicas: Replicas) -> list[Sending]:
        later = Sending(when, exchange.messages(shapes, replicas))
        if not first:
            return [later]
        return [Sending(early, pretraining.messages(shapes, replicas)), later]

    return Rule(init, at(early, average) if first else alone, on_parameters, sendings)


def outer_step(
    start: Tree, velocity: Tree, moved: Tree, learning_rate: float, momentum: float
) -> tuple[Tree, Tree]:
    """w̃ and m after the outer Nesterov of DiLoCo, for a mean move Δ̄."""
    if momentum:
        velocity = jax.tree.map(lambda m, d: momentum * m + d, velocity, moved)
        moved = jax.tree.map(lambda d, m: d + momentum * m, moved, velocity)
    return jax.tree.map(lambda w, d: w - learning_rate * d, start, moved), velocity


def easgd(period: int, alpha: float) -> Rule:
    """Zhang, Choromanska and LeCun 2015, *Deep learning with Elastic Averaging SGD*,
    arXiv:1412.6651, §3, eq. 5 and 6, in the synchronous form:

    e_r = α·(w_r - w̃)                where τ = `period` divides t
    w_r ← w_r - e_r
    w̃ ← w̃ + Σ_r e_r                  the center: Σ_r w_r + w̃ stays what it was

    The paper's α is 0.9 / n. Every replica keeps the center, for which no other place is needed.
    """
    when = every(period)

    def pull(parameters: Tree, center: Tree, moment: Moment) -> tuple[Tree, Tree]:
        def force(w: jax.Array, c: jax.Array) -> jax.Array:
            e = alpha * (w - c)
            return e if moment.alive is None else jnp.where(moment.alive, e, 0)

        forces = jax.tree.map(force, parameters, center)
        parameters = jax.tree.map(jnp.subtract, parameters, forces)
        center = moment.each(lambda spec, c, e: c + moment.replicas.sum(e, spec), center, forces)
        return parameters, center

    def sendings(shapes: Tree, replicas: Replicas) -> list[Sending]:
        messages: list[Message] = of_leaves("all-reduce", shapes, replicas.devices)
        return [Sending(when, messages)]

    return Rule(lambda parameters: parameters, alone, at(when, pull), sendings)
