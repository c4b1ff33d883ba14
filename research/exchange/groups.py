"""Means of random groups, in the open, or as secure sums that nobody sees into.

Of n updates every one goes into one of G groups of nearly equal size, drawn anew in every round:

    x̄_g = 1/|g| · Σ_{k ∈ g} x_k

and what follows sees the G means. In the open that is bucketing, of n/G updates a bucket
(Karimireddy, He and Jaggi 2022, *Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing*, arXiv:2006.09365, Alg. 1): means differ less than single updates, and f Byzantine ones
spoil f groups at most. Where the sum of a group is a secure one (`secure_aggregation`), nobody sees
a single update, and a robust rule across the groups withstands f still, if it withstands f of G.

A secure sum is that of integers modulo 2^32, so it has the same bits as the protocol's. A group of
which fewer than 3 are left gives none: of two, each would have the other's.
"""

from typing import Any

import jax
import jax.numpy as jnp

from research.errors import UserError
from research.exchange.secure_aggregation import SMALLEST_COHORT, FixedPoint
from research.exchange.secure_aggregation.fixed_point_spmd import decode, encode
from research.exchange.stages import Round, Several, Stage
from research.exchange.updates import rows

Tree = Any


def open_groups(groups: int) -> Stage:
    """Means of `groups` groups, bucketing."""

    def apply(x: Several, state: Tree, round: Round) -> tuple[Several, Tree]:
        group = drawn_groups(round, groups)
        count = _added(x.alive.astype(jnp.float32), group, groups)
        totals = jax.tree.map(lambda leaf: _added(leaf, group, groups), x.updates)
        return _means(totals, count), state

    return Stage("groups", "all", "all", apply, counts_alike=True)


def secure_groups(groups: int, codec: FixedPoint) -> Stage:
    """Means of `groups` groups (1: of all) whose sums are secure, of values as in `codec`."""

    def apply(x: Several, state: Tree, round: Round) -> tuple[Several, Tree]:
        group = drawn_groups(round, groups)
        count = _added(x.alive.astype(jnp.float32), group, groups)
        sums = ring_sums(x.updates, group, groups, codec)
        totals = jax.tree.map(lambda leaf: decode(codec, leaf), sums)
        return _means(totals, jnp.where(count >= SMALLEST_COHORT, count, 0)), state

    return Stage(
        "secure sum",
        "one",
        "all" if groups > 1 else "sum",
        apply,
        sent=lambda like: 4 * sum(leaf.size for leaf in jax.tree.leaves(like)),
        counts_alike=True,
        gathers=True,
        secret=True,
    )


def ring_sums(updates: Tree, group: jax.Array, groups: int, codec: FixedPoint) -> Tree:
    """uint32 [groups, ...] of `updates` [n, ...]: the sum of each `group` [n] modulo 2^32, with
    zeros of those who are not alive.

    What is beyond the range of the codec only a Byzantine one sends, and is put at its end.
    """

    def of_leaf(leaf: jax.Array) -> jax.Array:
        bounded = jnp.clip(leaf, -codec.bound, codec.bound)
        integers, _ = encode(codec, bounded)
        return _added(integers, group, groups)

    return jax.tree.map(of_leaf, updates)


def drawn_groups(round: Round, groups: int) -> jax.Array:
    """int32 [n]: the group of each of those whose updates they are, by a draw of the round that
    does not depend on their order."""
    assert round.who is not None
    count = len(round.who)
    rank = jnp.argsort(jnp.argsort(round.who))
    return jax.random.permutation(round.key, count)[rank] * groups // count


def check_groups(groups: int, cohort: int) -> None:
    """Raises UserError for secure sums of fewer than 3 of a `cohort`."""
    if cohort // groups < SMALLEST_COHORT:
        most = cohort // SMALLEST_COHORT
        way = f"--federated.aggregation.groups {most} or fewer, or " if most else ""
        raise UserError(
            f"a secure sum protects nobody among fewer than {SMALLEST_COHORT}, since of two each "
            f"has the other's, and {groups} groups of {cohort} clients have {cohort // groups}: "
            f"use {way}--federated.cohort {groups * SMALLEST_COHORT} or more"
        )


def _added(leaf: jax.Array, group: jax.Array, groups: int) -> jax.Array:
    return jnp.zeros((groups, *leaf.shape[1:]), leaf.dtype).at[group].add(leaf)


def _means(totals: Tree, count: jax.Array) -> Several:
    """With the number of their members as weights; zeros where there are none."""
    scale = jnp.where(count > 0, 1 / jnp.maximum(count, 1), 0)
    return Several(jax.tree.map(lambda leaf: rows(scale, leaf) * leaf, totals), count)
