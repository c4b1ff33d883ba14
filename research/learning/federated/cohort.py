"""The clients of one device in a round: each answers from what it was sent, and answers add up.

Written for one part of the mesh axis `replica`; the other axes stay the partitioner's. Clients
follow one another, `width` of them side by side, and a device never holds more of their answers
than it computes at once, but where a stage has to see them side by side.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.exchange.replicas import Replicas
from research.exchange.updates import finite
from research.learning.federated.aggregation import Aggregation
from research.learning.federated.algorithm import Algorithm
from research.learning.federated.answers import Answers, Updates
from research.learning.federated.client import Client, Local
from research.learning.federated.state import FederatedState
from research.learning.gradients import Batch, Tree
from research.learning.synchronous import Synchronous
from research.models.convolution import as_products


@dataclass(frozen=True)
class Cohort:
    """How the clients of a device are computed."""

    one: Synchronous  # how a client alone learns
    algorithm: Algorithm
    aggregation: Aggregation
    optimizer: optax.GradientTransformation  # with a rate that does not change
    rate: optax.Schedule  # by round
    peak: float  # the optimizer's own rate
    width: int  # clients side by side
    uniform: bool  # whether clients count alike, else by their examples
    devices: int  # parts of `replica`
    split: bool  # whether a client's model lies on several devices

    def rate_of(self, step: jax.Array) -> jax.Array:
        """[] float32: of the local steps of a round."""
        return jnp.asarray(self.rate(step), jnp.float32)

    def answers(
        self, state: FederatedState, who: Tree, own: Tree, data: Batch
    ) -> tuple[Answers, Tree, Updates]:
        """The clients of one device: arrays are [clients of it, ...].

        That all sent finite numbers is seen by their sums, if they are sent as they are. Only if
        not, they are computed once more and each is looked at, which for small models is a seventh
        of a round.
        """
        devices = Replicas(self.devices)
        plain = self.aggregation.plain
        answers, (after, updates) = self._summed(state, who, own, data, checked=not plain)
        if plain:
            here = finite((answers.replies, answers.buffers, after)).astype(jnp.float32)
            answers, (after, updates) = jax.lax.cond(
                devices.sum(here) == devices.count,  # all alike: a model that is split has messages
                lambda: (answers, (after, updates)),
                lambda: self._summed(state, who, own, data, checked=True),
            )
        return jax.tree.map(devices.sum, answers), after, updates

    def _summed(
        self, state: FederatedState, who: Tree, own: Tree, data: Batch, checked: bool
    ) -> tuple[Answers, tuple[Tree, Updates]]:
        """The clients of one device, `width` at a time; who sends what is not finite is left out
        where that is `checked`."""
        here = len(who["client"])
        width = min(self.width, here)
        grouped = jax.tree.map(
            lambda rows: rows.reshape(here // width, width, *rows.shape[1:]), (who, own, data)
        )
        answer = partial(self._answer, state, checked)
        shapes = jax.eval_shape(answer, *jax.tree.map(lambda rows: rows[0, 0], grouped))[0]
        none = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def group(total: Answers, clients: Any) -> tuple[Answers, tuple[Tree, Updates]]:
            if width == 1:
                answers, rows = answer(*jax.tree.map(lambda row: row[0], clients))
                total = jax.tree.map(jnp.add, total, answers)
                return total, jax.tree.map(lambda row: row[None], rows)
            answers, rows = jax.vmap(answer)(*clients)
            return jax.tree.map(lambda t, each: t + jnp.sum(each, axis=0), total, answers), rows

        with as_products():
            answers, after = jax.lax.scan(group, none, grouped)
        return answers, jax.tree.map(lambda rows: rows.reshape(here, *rows.shape[2:]), after)

    def _answer(
        self, state: FederatedState, checked: bool, who: Tree, own: Tree, data: Batch
    ) -> tuple[Answers, tuple[Tree, Updates]]:
        """One client: what it adds to the sums, its row of the table, and its update by itself if
        that is needed."""
        client = self.client(state, who, own, data)
        reply = self.algorithm.client(client)
        sent = (reply.move, reply.more)
        alive = who["present"]
        if checked:
            alive &= finite((sent, reply.own))
        weight = reply.weight * (1.0 if self.uniform else client.examples)
        weight = jnp.where(alive, weight, 0.0)
        sent = self.aggregation.one(sent, state.stages, state.step, who["client"])
        stacks = self.aggregation.stacks

        def weighed(tree: Tree) -> Tree:
            return jax.tree.map(lambda x: jnp.where(alive, weight * x, 0), tree)

        answers = Answers(
            weight,
            () if stacks else weighed(sent),
            weighed(reply.descent.buffers),
            jax.tree.map(lambda x: jnp.where(alive, x, 0), reply.descent.sums),
            alive.astype(jnp.float32),
        )
        kept = jax.tree.map(lambda new, old: jnp.where(alive, new, old), reply.own, own)
        each = jax.tree.map(lambda x: jnp.where(alive, x, 0), sent) if stacks else ()
        return answers, (kept, Updates(each, weight))

    def client(self, state: FederatedState, who: Tree, own: Tree, data: Batch) -> Client:
        """One of a round, as its algorithm sees it."""
        rate = self.rate_of(state.step)
        return Client(
            Local(self.one, self.optimizer, rate, rate / self.peak, self.split),
            state.parameters,
            state.buffers,
            state.shared,
            own,
            data,
            who["steps"],
            who["examples"],
            jax.random.fold_in(self.one.key(state.step), who["client"]),
            who["client"],
            who.get("staleness", 0),
        )
