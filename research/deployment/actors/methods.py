"""What a server does with a push, by the pure functions that virtual time calls as well.

A method has the server's arrays, and knows neither who is alive nor what time it is. A worker
pushes a gradient (`OfGradients`) or what its parameters have come to (`OfMoves`).
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from research.deployment.actors.leases import Lease
from research.learning.asynchronous import (
    Asynchronous,
    AsynchronousState,
    LocalWorkers,
    LocalWorkersState,
)
from research.learning.asynchronous.asynchronous import of_rule
from research.learning.asynchronous.move_rules import Center, Move
from research.learning.asynchronous.server_rules import Arrival, Server, served

Tree = Any


class Pushed(NamedTuple):
    """What a worker sends."""

    update: Tree  # like parameters: a gradient, or the worker's parameters
    buffers: Tree  # after its last pass
    numbers: dict[str, float]  # means over its batches


class Method(Protocol):
    """The arrays of a server, and what changes them."""

    buffers: Tree

    @property
    def parameters(self) -> Tree:
        """The server's."""
        ...

    def own(self, worker: int) -> Tree:
        """What a worker begins with that was restored, or is new."""
        ...

    def take(
        self, worker: int, lease: Lease, pushed: Pushed, staleness: int
    ) -> dict[str, float | jax.Array]:
        """Takes a push in; returns what is measured of it."""
        ...

    def merge(self, count: int) -> None:
        """Makes a change of what was taken in since the last merge."""
        ...

    def fetch(self, worker: int) -> None:
        """`worker` begins with the server's parameters."""
        ...

    def state(self, step: int) -> Any:
        """The learner's state after so many steps, for a checkpoint."""
        ...


def method_of(learner: Asynchronous | LocalWorkers, state: Any) -> Method:
    """The method of a `learner` that has come to `state`."""
    if isinstance(learner, Asynchronous):
        return OfGradients(learner, state)
    return OfMoves(learner, state)


class OfGradients:
    """`Asynchronous`, with gradients that are real."""

    def __init__(self, learner: Asynchronous, state: AsynchronousState):
        self._learner = learner
        self._server = Server(state.parameters, state.optimizer, state.rule)
        self.buffers = state.buffers
        self._fetched = _apart(state.fetched, learner.arrivals.workers)
        shardings = learner.shardings
        placed = Server(shardings.parameters, shardings.optimizer, shardings.rule)

        def serve(
            server: Server, gradient: Tree, fetched: Tree, staleness: jax.Array, step: jax.Array
        ) -> tuple[Server, dict[str, jax.Array]]:
            gradient = jax.lax.optimization_barrier(gradient)
            arrival = Arrival(gradient, fetched, staleness, of_rule(learner.one.key(step)))
            server, gradient = served(learner.rule, learner.one.optimizer, server, arrival)
            server = server._replace(parameters=jax.lax.optimization_barrier(server.parameters))
            return server, _norms(gradient, server.parameters)

        self._serve = jax.jit(serve, out_shardings=(placed, None))
        self._stack = jax.jit(_together, out_shardings=shardings.fetched)

    @property
    def parameters(self) -> Tree:
        return self._server.parameters

    def own(self, worker: int) -> Tree:
        """What the server has: there is nothing to go on from."""
        self.fetch(worker)
        return self.parameters

    def take(
        self, worker: int, lease: Lease, pushed: Pushed, staleness: int
    ) -> dict[str, float | jax.Array]:
        late, step = jnp.int32(staleness), jnp.int32(lease.steps[0])
        self._server, norms = self._serve(self._server, pushed.update, lease.parameters, late, step)
        self.buffers = pushed.buffers
        self.fetch(worker)
        return {**pushed.numbers, **norms}

    def merge(self, count: int) -> None:
        """Every gradient was a change."""

    def fetch(self, worker: int) -> None:
        self._fetched[worker] = self.parameters

    def state(self, step: int) -> AsynchronousState:
        fetched = self._stack(*self._fetched)
        return AsynchronousState(
            jnp.int32(step), self.parameters, self.buffers, *self._server[1:], fetched
        )


class OfMoves:
    """`LocalWorkers`, with moves that are real. Their optimizers stay with them: a checkpoint has
    those of the start."""

    def __init__(self, learner: LocalWorkers, state: LocalWorkersState):
        self._learner = learner
        self._center = Center(state.parameters, state.velocity, state.total)
        self.buffers = state.buffers
        self._own = _apart(state.workers.parameters, learner.turns.workers)
        self._start = state.workers.optimizer
        shardings = learner.shardings
        placed = Center(shardings.parameters, shardings.velocity, shardings.total)

        def receive(
            center: Center, own: Tree, fetched: Tree, staleness: jax.Array
        ) -> tuple[Center, Tree, dict[str, jax.Array]]:
            center, own = learner.rule.receive(center, Move(own, fetched, staleness))
            return center, own, {"parameter_norm": optax.tree.norm(center.parameters)}

        self._receive = jax.jit(receive, out_shardings=(placed, shardings.parameters, None))
        self._merge = jax.jit(learner.rule.merge, out_shardings=placed)
        self._stack = jax.jit(_together, out_shardings=shardings.workers.parameters)

    @property
    def parameters(self) -> Tree:
        return self._center.parameters

    def own(self, worker: int) -> Tree:
        """Under elastic averaging what it had after its last push; else what the server has."""
        if jax.tree.leaves(self._center.total):
            self.fetch(worker)
        return self._own[worker]

    def take(
        self, worker: int, lease: Lease, pushed: Pushed, staleness: int
    ) -> dict[str, float | jax.Array]:
        self._center, self._own[worker], norm = self._receive(
            self._center, pushed.update, lease.parameters, jnp.int32(staleness)
        )
        self.buffers = pushed.buffers
        return {**pushed.numbers, **norm}

    def merge(self, count: int) -> None:
        self._center = self._merge(self._center, jnp.int32(count))

    def fetch(self, worker: int) -> None:
        self._own[worker] = self.parameters

    def state(self, step: int) -> LocalWorkersState:
        own = self._stack(*self._own)
        center = self._center
        collects = bool(jax.tree.leaves(center.total))
        workers = self._learner.abstract_state.workers
        return LocalWorkersState(
            jnp.int32(step),
            center.parameters,
            self.buffers,
            center.velocity,
            center.total,
            type(workers)(own, own if collects else (), self._start),
        )


def _norms(gradient: Tree, parameters: Tree) -> dict[str, jax.Array]:
    return {
        "gradient_norm": optax.tree.norm(gradient),
        "parameter_norm": optax.tree.norm(parameters),
    }


def _apart(stacked: Tree, count: int) -> list[Tree]:
    return [jax.tree.map(lambda leaf, n=number: leaf[n], stacked) for number in range(count)]


def _together(*trees: Tree) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
