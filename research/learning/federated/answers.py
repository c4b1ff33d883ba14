"""What clients are told in a round, and what comes back of them."""

from typing import NamedTuple

import jax

from research.learning.gradients import Batch, Sums, Tree

HELD = "held_"
"""Begins the names of what clients are evaluated on, beside what they learn from."""


class Answers(NamedTuple):
    """Sums over clients."""

    weight: jax.Array
    replies: Tree  # of move and more, by weight; () where they are kept side by side
    buffers: Tree  # by weight
    sums: Sums
    alive: jax.Array  # clients


class Updates(NamedTuple):
    """Of clients by themselves, [cohort, ...]."""

    sent: Tree  # move and more; zeros of those that are not alive; () where sums are enough
    weight: jax.Array  # 0 of those


def told(batch: Batch) -> tuple[Batch, Batch]:
    """What is told of each client, and the examples that it has."""
    of_cohort, of_clients = ("client", "present", "drawn"), ("steps", "examples")
    names = (*of_cohort, *of_clients, "pieces", "place", "staleness", "rank")
    who = {name: leaf for name, leaf in batch.items() if name in names}
    return who, {name: leaf for name, leaf in batch.items() if name not in names}
