"""Streaming DiLoCo: fragments of the parameters meet one by one, while the replicas go on learning.

Douillard et al. 2025, *Streaming DiLoCo with overlapping communication: Towards a Distributed Free
Lunch*, arXiv:2501.18512, Alg. 2. The parameters are cut into P fragments by layers (see
`fragments`). In step t = 1, 2, ..., after the inner update of w_r, for fragment p = 1, ..., P with
its own offset t_p = p·H/P:

    Δ_r = w̃ - w_r                          where H divides t - t_p: what the steps since then did
    m ← μ·m + Δ̄,  w̃ ← w̃ - η·(Δ̄ + μ·m)     the outer Nesterov, as in DiLoCo
    w_r ← α·w_r + (1-α)·w̃                  τ steps later, where H divides t - t_p - τ

What crosses the wire, for B bytes of parameters by rings: 2·(n-1)/n·B / P every H / P steps, if the
fragments are of equal size. In all it is what DiLoCo sends; the most that a step sends is a P-th.

A message is due τ steps after it was sent, and a network has so long for it. Here, where a step is
one program, it arrives within the step that sends it, and is not looked at before it is due. What
is under way when a run ends is not merged.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from research.exchange import Exchange, Moment, Replicas, mean
from research.learning.replicated.fragments import check, put, specs_of, take
from research.learning.replicated.local_updates import Outer, outer_step
from research.learning.replicated.rule import Rule, Sending, When, alone, every

Tree = Any


def streaming_diloco(
    period: int,
    fragments: int,
    overlap: int = 0,
    mixing: float = 0.0,
    learning_rate: float = 0.7,
    momentum: float = 0.9,
    exchange: Exchange | None = None,
) -> Rule:
    """See the file's head: H = `period` (steps), P = `fragments`, τ = `overlap` (steps, below H),
    α = `mixing`, η = `learning_rate`, μ = `momentum`; `exchange` makes the mean Δ̄.

    One fragment without overlap or mixing is `diloco`. `init` and `sendings` raise UserError where
    there are more fragments than layers, or stages that do not divide.
    """
    exchange = mean() if exchange is None else exchange
    numbers = range(fragments)
    # `every` counts from a step that may lie before the first.
    begins = [(number + 1) * period // fragments - period for number in numbers]
    sends = [every(period, begin) for begin in begins]
    merges = [every(period, begin + overlap) for begin in begins]

    def init(parameters: Tree) -> Outer:
        check(parameters, fragments)
        velocity = jax.tree.map(jnp.zeros_like, parameters) if momentum else ()
        inside = tuple(exchange.init(take(parameters, number, fragments)) for number in numbers)
        return Outer(parameters, velocity, inside)

    def send(number: int, parameters: Tree, state: Outer, moment: Moment) -> Outer:
        own, start, velocity = (
            take(tree, number, fragments) for tree in (parameters, state.start, state.velocity)
        )
        moved = jax.tree.map(jnp.subtract, start, own)
        specs = specs_of(moment.specs, parameters, number, fragments)
        moved, inside = exchange.apply(moved, state.exchange[number], moment._replace(specs=specs))
        start, velocity = outer_step(start, velocity, moved, learning_rate, momentum)
        return Outer(
            put(state.start, start, number, fragments),
            put(state.velocity, velocity, number, fragments),
            (*state.exchange[:number], inside, *state.exchange[number + 1 :]),
        )

    def merge(number: int, parameters: Tree, start: Tree) -> Tree:
        own, outer = (take(tree, number, fragments) for tree in (parameters, start))
        if mixing:
            outer = jax.tree.map(lambda w, s: mixing * w + (1 - mixing) * s, own, outer)
        return put(parameters, outer, number, fragments)

    def on_parameters(parameters: Tree, state: Outer, moment: Moment) -> tuple[Tree, Outer]:
        state = _one_of(
            sends,
            moment.step,
            [lambda w, s, n=n: send(n, w, s, moment) for n in numbers],
            lambda w, s: s,
            parameters,
            state,
        )
        parameters = _one_of(
            merges,
            moment.step,
            [partial(merge, number) for number in numbers],
            lambda w, start: w,
            parameters,
            state.start,
        )
        return parameters, state

    def sendings(shapes: Tree, replicas: Replicas) -> list[Sending]:
        check(shapes, fragments)
        return [
            Sending(when, exchange.messages(take(shapes, number, fragments), replicas))
            for number, when in enumerate(sends)
        ]

    return Rule(init, alone, on_parameters, sendings)


def _one_of(
    whens: list[When],
    step: jax.Array,
    branches: list[Callable[..., Tree]],
    otherwise: Callable[..., Tree],
    *operands: Tree,
) -> Tree:
    """The branch whose time it is, of which there is at most one."""
    due = jnp.stack([*(when(step) for when in whens), jnp.ones((), bool)])
    return jax.lax.switch(jnp.argmax(due), [*branches, otherwise], *operands)
