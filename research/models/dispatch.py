"""Dispatch: rows of tokens moved to places that belong to experts, and back.

Every place is known before anything moves, by a stable sort of the assignments. So a move is a
gather, and its gradient is the gather of the way back: nothing is scattered, and nothing added
where two rows might meet.

The rule of capacity is GShard's, Lepikhin et al. 2020, arXiv:2006.16668, section 2.2 and algorithm
1, with a sequence as the group:

    C = ceil(factor · S · k / N)        places of each of N experts, of S tokens with k choices

First choices are seated before second ones, and earlier tokens before later ones; who finds no
place is dropped, and the token goes on with what its other experts make of it (at worst with the
residual stream alone). So whether a token's second choice is seated depends on first choices of
later tokens: a dropping mixture is causal only where it does not drop.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Order(NamedTuple):
    """A stable sort of `n` assignments by their expert."""

    sorted: jax.Array  # [n] int32: which assignment stands at each place
    place: jax.Array  # [n] int32: at which place each assignment stands
    counts: jax.Array  # [experts] int32
    starts: jax.Array  # [experts] int32: the first place of each expert


def order(experts: jax.Array, count: int) -> Order:
    """The assignments sorted by `experts` [n]; those of expert `count` or more stand last."""
    by_expert = jnp.argsort(experts, stable=True).astype(jnp.int32)
    place = jnp.argsort(by_expert).astype(jnp.int32)
    chosen = experts[:, None] == jnp.arange(count)
    counts = jnp.sum(chosen, axis=0, dtype=jnp.int32)
    return Order(by_expert, place, counts, jnp.cumsum(counts) - counts)


class Seats(NamedTuple):
    """Who sits where, of `capacity` seats of every expert, in every sequence."""

    taken: jax.Array  # [batch, experts, capacity] int32: which token sits there (S: nobody)
    assignment: jax.Array  # [batch, experts, capacity] int32: its token · k + choice (S·k: nobody)
    seat: jax.Array  # [batch, S, k] int32: expert · capacity + number (experts·capacity: dropped)


def capacity_of(factor: float, tokens: int, k: int, experts: int) -> int:
    """Seats of an expert in a sequence of `tokens`; never more than there are tokens."""
    return min(math.ceil(factor * tokens * k / experts), tokens)


def seats(experts: jax.Array, count: int, capacity: int) -> Seats:
    """The seats of `experts` [batch, S, k], of `count` experts with `capacity` seats each."""

    def of_sequence(experts: jax.Array) -> Seats:
        tokens, k = experts.shape
        ranked = order(experts.T.reshape(-1), count)  # first choices first: choice · S + token
        number = jnp.arange(capacity)
        holds = number < ranked.counts[:, None]  # [experts, capacity]
        at = jnp.minimum(ranked.starts[:, None] + number, tokens * k - 1)
        choice, token = jnp.divmod(ranked.sorted[at], tokens)
        place = ranked.place.reshape(k, tokens).T  # [S, k]
        number_of = place - ranked.starts[experts]
        return Seats(
            jnp.where(holds, token, tokens),
            jnp.where(holds, token * k + choice, tokens * k),
            jnp.where(number_of < capacity, experts * capacity + number_of, count * capacity),
        )

    return jax.vmap(of_sequence)(experts)


@jax.custom_vjp
def take(rows: jax.Array, index: jax.Array, back: jax.Array) -> jax.Array:
    """`rows` [batch, n, width] at `index` [batch, m], zeros where it is n: [batch, m, width].

    `back` [batch, n, r] says to which r places every row went (m: to none), for the gradient.
    """
    return jnp.take_along_axis(rows, index[..., None], axis=1, mode="fill", fill_value=0)


def _forward(
    rows: jax.Array, index: jax.Array, back: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return take(rows, index, back), (index, back)


def _backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None, None]:
    _, back = saved
    batch, rows, times = back.shape
    flat = back.reshape(batch, rows * times)
    taken = jnp.take_along_axis(gradient, flat[..., None], axis=1, mode="fill", fill_value=0)
    return jnp.sum(taken.reshape(batch, rows, times, -1), axis=2), None, None


take.defvjp(_forward, _backward)
