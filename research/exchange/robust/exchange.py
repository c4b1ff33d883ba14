"""Robust rules between replicas: every one hears all, and applies the rule itself.

    m_r ← β·m_r + (1 - β)·g_r          worker momentum (β = 0: none)
    result = rule(m_1, ..., m_n)

Karimireddy, He and Jaggi 2021, arXiv:2012.10333, Alg. 1, and El Mhamdi, Guerraoui and Rouault 2021,
*Distributed Momentum for Byzantine-resilient Stochastic Gradient Descent*, arXiv:2003.00010:
momentum at the workers, before the rule, makes honest ones differ less from each other, while what
a few bad ones do in every step adds up to nothing that a rule would not see.

What crosses the wire: an all-gather, (n-1)·B of B bytes, and who is alive: nobody is trusted to
apply the rule for others. On the other axes of the mesh arrays stay split, so that a device has n
shards, never n models. Who sends what is not finite is left out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.exchange.attacks import Attack
from research.exchange.exchange import Exchange, Moment
from research.exchange.message import Message, of_leaves
from research.exchange.replicas import Replicas
from research.exchange.robust.rules import Robust
from research.exchange.updates import finite

Tree = Any
ATTACKING = 2**31 - 1
"""Tells an attack's draws from those of replicas, which are of (step, replica)."""


class Kept(NamedTuple):
    """By a replica, from step to step."""

    momentum: Tree  # m; () without
    before: Tree  # the last result, where the rule looks at it
    attack: Tree


def robust(
    rule: Robust, momentum: float = 0.0, attack: Attack | None = None, attackers: int = 0
) -> Exchange:
    """By `rule`, with β = `momentum`; what the last `attackers` send is the `attack`'s."""

    def init(like: Tree) -> Kept:
        zeros = jax.tree.map(jnp.zeros_like, like) if momentum else ()
        return Kept(zeros, rule.init(like), attack.init(like) if attack else ())

    def apply(tree: Tree, state: Kept, moment: Moment) -> tuple[Tree, Kept]:
        living = finite(tree) if moment.alive is None else moment.alive
        own = state.momentum
        if momentum:
            tree = jax.tree.map(lambda m, g: momentum * m + (1 - momentum) * g, own, tree)
            own = _chosen(living, tree, own)
        tree = jax.tree.map(lambda x: jnp.where(living, x, 0), tree)
        alive = moment.replicas.gather(living)
        x = moment.each(lambda spec, leaf: _side_by_side(leaf, moment, spec), tree)
        inside = state.attack
        if attack:
            bad = jnp.arange(len(alive)) >= len(alive) - attackers
            key = jax.random.fold_in(moment.key, ATTACKING)
            x, alive, inside = attack.apply(x, alive, bad, inside, moment.step, key)
        result, before = rule.apply(x, alive, state.before)
        result = moment.each(lambda spec, leaf: _lying(leaf, spec), result)
        return result, Kept(own, before, inside)

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        if replicas.devices == 1:
            return []
        who = Message("all-gather", "bool", replicas.seats, replicas.devices)
        updates = of_leaves("all-gather", shapes, replicas.devices)
        return [who, *(each._replace(elements=each.elements * replicas.seats) for each in updates)]

    return Exchange(init, apply, messages)


def _side_by_side(leaf: jax.Array, moment: Moment, spec: P | None) -> jax.Array:
    """[replicas, ...] of every replica's `leaf`, which lies by `spec`."""
    after = None if spec is None else P(None, *spec)
    return _lying(moment.replicas.gather(leaf, spec), after)


def _chosen(condition: jax.Array, tree: Tree, otherwise: Tree) -> Tree:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), tree, otherwise)


def _lying(leaf: jax.Array, spec: P | None) -> jax.Array:
    if spec is None or jax.sharding.get_abstract_mesh().empty:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, spec)
