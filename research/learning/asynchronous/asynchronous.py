"""Asynchronous learning: workers and a parameter server, in deterministic virtual time.

A step of the loop is one update of the server, by the gradient of the worker whose turn it is:

    g     = ∇ℓ(w^k; batch t)            at the parameters w^k that worker k fetched τ updates ago
    w_t+1 = served(w_t, g, w^k, τ)      by a `ServerRule` and any optax optimizer
    w^k   = w_t+1                       it fetches

Whose turn it is, and τ, come from `Arrivals`; the batch is that of the step, whoever takes it. So
one seed gives one run, bit for bit, and several rules can be compared on the same events.

What workers have fetched is [workers, ...], split over the mesh axis `replica`; a worker's own
gradient is computed by all devices, with its batch split over `replica` as over `data`, and over
all other axes as anyone's. Buffers (BatchNorm's statistics) are the server's. With B bytes of
parameters, what would cross a real wire is a gradient up and B down for every update; of the
simulation, w^k is an all-reduce over `replica`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.learning.asynchronous.server_rules import Arrival, Server, ServerRule, served
from research.learning.asynchronous.virtual_time import Arrivals, histogram
from research.learning.gradients import Batch, Tree
from research.learning.replicated.state import in_front
from research.learning.seats import repeated
from research.learning.synchronous import StepMetrics, Synchronous
from research.parallel.layout import abstract

NO_ROW = 2**32 - 1
"""A number that no row of a batch has."""


def of_rule(key: jax.Array) -> jax.Array:
    """Of what a rule draws, where `key` is that of the step."""
    return jax.random.fold_in(key, NO_ROW)


class AsynchronousState(NamedTuple):
    """All that an update changes."""

    step: jax.Array  # [] int32, updates made so far
    parameters: Tree  # the server's
    buffers: Tree  # the server's
    optimizer: Tree  # the server's
    rule: Tree  # what the server's rule remembers
    fetched: Tree  # [workers, ...]: the parameters that each worker has


class Asynchronous:
    """The functions of asynchronous learning, compiled for one mesh.

    `one` is how a worker alone learns; `arrivals` say who comes when. The interface is that of
    `Synchronous`, and what is evaluated, sampled and exported is the server's.
    """

    def __init__(self, one: Synchronous, rule: ServerRule, arrivals: Arrivals):
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.rule = rule
        self.arrivals = arrivals
        self.model, self.parameters, self.in_rounds = one.model, one.parameters, one.in_rounds
        self.complaint = one.complaint
        self.evaluate = one.evaluate  # looks at parameters and buffers only

        shapes = jax.eval_shape(self._initial)
        placed = one.shardings
        self.shardings: Any = AsynchronousState(
            step=placed.step,
            parameters=placed.parameters,
            buffers=placed.buffers,
            optimizer=placed.optimizer,
            rule=placed.parameters if jax.tree.leaves(shapes.rule) else (),
            fetched=jax.tree.map(in_front, placed.parameters),
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: AsynchronousState = abstract(shapes, self.shardings)
        whole = NamedSharding(one.mesh, P())
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))

    def with_parameters(self, state: AsynchronousState, parameters: Tree) -> AsynchronousState:
        """The initial `state` with other parameters, which all workers have fetched."""
        fetch = jax.jit(self._by_all, out_shardings=self.shardings.fetched)
        return state._replace(parameters=parameters, fetched=fetch(parameters))

    def events(self, step: int) -> dict[str, np.ndarray]:
        """Whose gradient the server's update after `step` others uses, and how stale it is."""
        events = self.arrivals.before(step + 1)
        return {"worker": events.worker[step], "staleness": events.staleness[step]}

    def observe(self, step: int, state: AsynchronousState) -> dict[str, Any]:
        """After `step` updates: `virtual_seconds`; of all updates so far the `staleness_mean` and
        `staleness_maximum`, and in `staleness_4` how many had a staleness from 4 up to the next of
        these names; `pushes_refused` that were too stale; `bytes_sent` by worker and server
        together for one update, and `bytes_sent_total`."""
        events = self.arrivals.before(step)
        counts = histogram(events.staleness, self.arrivals.workers)
        each = self.rule.bytes_sent(self.one.size)
        return {
            "virtual_seconds": float(events.seconds[-1]),
            "pushes_refused": int(events.refused[-1]),
            "staleness_mean": float(events.staleness.mean()),
            "staleness_maximum": int(events.staleness.max()),
            "bytes_sent": each,
            "bytes_sent_total": (step + int(events.refused[-1])) * each,
            **{f"staleness_{first}": count for first, count in counts.items()},
        }

    # A step -------------------------------------------------------------------------------------

    def _initial(self) -> AsynchronousState:
        one = self.one.init()
        rule = self.rule.init(one.parameters)
        fetched = self._by_all(one.parameters)
        return AsynchronousState(
            one.step, one.parameters, one.buffers, one.optimizer, rule, fetched
        )

    def _by_all(self, parameters: Tree) -> Tree:
        """[workers, ...]: all have fetched the same."""
        return repeated(parameters, self.arrivals.workers)

    def _step(
        self, state: AsynchronousState, batch: Batch
    ) -> tuple[AsynchronousState, StepMetrics]:
        batch = dict(batch)
        worker, staleness = batch.pop("worker"), batch.pop("staleness")
        key = self.one.key(state.step)
        # Of a `take` over the split axis XLA makes an all-reduce of one copy.
        take = partial(jnp.take, indices=worker, axis=0, mode="clip")
        fetched = jax.tree.map(take, state.fetched)
        fetched = jax.lax.with_sharding_constraint(fetched, self.shardings.parameters)
        gradients, sums, buffers = self.one.gradients(fetched, state.buffers, batch, key)
        # As in `Synchronous`: else XLA's CPU backend computes an update for each use of it.
        gradients = jax.lax.optimization_barrier(gradients)
        server = Server(state.parameters, state.optimizer, state.rule)
        arrival = Arrival(gradients, fetched, staleness, of_rule(key))
        server, gradients = served(self.rule, self.one.optimizer, server, arrival)
        parameters = jax.lax.optimization_barrier(server.parameters)
        norms = optax.tree.norm(gradients), optax.tree.norm(parameters)
        metrics = self.one.metrics(state.step, sums, *norms)
        metrics["staleness"] = staleness.astype(jnp.float32)
        fetched = jax.tree.map(lambda w, new: w.at[worker].set(new), state.fetched, parameters)
        after = AsynchronousState(
            state.step + 1, parameters, buffers, server.optimizer, server.rule, fetched
        )
        return after, metrics
