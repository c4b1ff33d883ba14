"""Averages over replicas: in one all-reduce, or in two levels of links.

    mean:         x̄ = 1/n · Σ_r x_r
    hierarchical: x̄ = 1/n · Σ_g Σ_{r ∈ g} x_r       first inside each of G groups, then between them

Replicas that are not alive give nothing and get the mean of those that are.

What crosses the wire, for B bytes a device and n devices: one all-reduce of B; in two levels one of
B between the n / G devices of a group (over fast links) and one of B between G (over slow ones), so
that of the slow links only 2·(G-1)/G·B a device is asked, however large the groups are.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.exchange.exchange import Exchange, Moment
from research.exchange.message import Message, of_leaves
from research.exchange.replicas import Replicas
from research.parallel.sums import summable

Tree = Any


def average(x: jax.Array, moment: Moment, spec: PartitionSpec | None = None) -> jax.Array:
    """The mean of one array over the living; it lies on other axes by `spec`, if there is one."""
    total = moment.replicas.sum(_counted(x, _weight(moment)), spec)
    return (total / moment.living).astype(x.dtype)


def mean() -> Exchange:
    """The mean over all replicas."""

    def apply(tree: Tree, state: Tree, moment: Moment) -> tuple[Tree, Tree]:
        return moment.each(lambda spec, x: average(x, moment, spec), tree), state

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        return of_leaves("all-reduce", shapes, replicas.devices)

    return Exchange(lambda like: (), apply, messages)


def hierarchical_mean(groups: int) -> Exchange:
    """The mean over all replicas, first in `groups` of equal size, then between these."""

    def apply(tree: Tree, state: Tree, moment: Moment) -> tuple[Tree, Tree]:
        replicas, weight = moment.replicas, _weight(moment)
        size = replicas.count // groups

        def total(spec: PartitionSpec | None, x: jax.Array) -> jax.Array:
            return replicas.sum_of_groups(replicas.sum_inside(x, size, spec), size, spec)

        count = replicas.count if weight is None else total(None, weight)

        def in_levels(spec: PartitionSpec | None, x: jax.Array) -> jax.Array:
            return (total(spec, _counted(x, weight)) / count).astype(x.dtype)

        return moment.each(in_levels, tree), state

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        near = max(replicas.devices // groups, 1)
        far = replicas.devices // near
        inside, between = (of_leaves("all-reduce", shapes, parties) for parties in (near, far))
        return [*inside, *(message._replace(turn=1) for message in between)]

    return Exchange(lambda like: (), apply, messages)


def _weight(moment: Moment) -> jax.Array | None:
    return None if moment.alive is None else moment.alive.astype(jnp.float32)


def _counted(x: jax.Array, weight: jax.Array | None) -> jax.Array:
    """What a replica adds to the sum: 0, not 0 · x, where it does not count: x may be infinite."""
    return summable(x if weight is None else jnp.where(weight > 0, x, 0))
