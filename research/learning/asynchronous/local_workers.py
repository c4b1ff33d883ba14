"""Workers that take steps of their own around a server, in deterministic virtual time.

A step of the loop is one gradient, of the worker whose turn it is in `Turns`:

    w_k ← w_k + η_t·update(∇ℓ(w_k; batch t))      its own optimizer; η_t is the rate of step t
    every H-th of its steps                        its move, by a `MoveRule`

The batch, the rate and the draws are those of the step, whoever takes it. What workers have is
[workers, ...], split over the mesh axis `replica`; as in `Asynchronous` a gradient is computed by
all devices, and buffers (BatchNorm's statistics) are the server's.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.learning.asynchronous.move_rules import Center, Move, MoveRule
from research.learning.asynchronous.turns import Turns
from research.learning.asynchronous.virtual_time import histogram
from research.learning.gradients import Batch, Sums, Tree
from research.learning.replicated.state import in_front
from research.learning.seats import repeated
from research.learning.synchronous import StepMetrics, Synchronous
from research.parallel.layout import abstract


class Worker(NamedTuple):
    """What a worker has; in a state every array is [workers, ...]."""

    parameters: Tree
    fetched: Tree  # where its turn began; () where moves are not collected
    optimizer: Tree


class LocalWorkersState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32, gradients so far
    parameters: Tree  # the server's
    buffers: Tree  # the server's
    velocity: Tree  # of `Center`
    total: Tree  # of `Center`
    workers: Worker

    @property
    def optimizer(self) -> Tree:
        """[workers, ...] each."""
        return self.workers.optimizer


class LocalWorkers:
    """The functions of learning by moves, compiled for one mesh.

    `one` is how a worker alone learns, with a rate of 1 where `rate` is the schedule; `turns` say
    who moves when. The interface is that of `Synchronous`, and what is evaluated is the server's.
    """

    def __init__(self, one: Synchronous, rule: MoveRule, turns: Turns, rate: optax.Schedule):
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.rule, self.turns, self.rate = rule, turns, rate
        self.model, self.parameters, self.in_rounds = one.model, one.parameters, one.in_rounds
        self.complaint = one.complaint
        self.evaluate = one.evaluate  # looks at parameters and buffers only

        shapes = jax.eval_shape(self._initial)
        placed, several = one.shardings, partial(jax.tree.map, in_front)
        self.shardings: Any = LocalWorkersState(
            step=placed.step,
            parameters=placed.parameters,
            buffers=placed.buffers,
            velocity=placed.parameters if jax.tree.leaves(shapes.velocity) else (),
            total=placed.parameters if jax.tree.leaves(shapes.total) else (),
            workers=Worker(
                several(placed.parameters),
                several(placed.parameters) if jax.tree.leaves(shapes.total) else (),
                several(placed.optimizer),
            ),
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: LocalWorkersState = abstract(shapes, self.shardings)
        whole = NamedSharding(one.mesh, P())
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))

    def with_parameters(self, state: LocalWorkersState, parameters: Tree) -> LocalWorkersState:
        """The initial `state` with other parameters, which all workers have."""
        fetch = jax.jit(self._by_all, out_shardings=self.shardings.workers.parameters)
        fetched = fetch(parameters) if jax.tree.leaves(state.total) else ()
        workers = state.workers._replace(parameters=fetch(parameters), fetched=fetched)
        return state._replace(parameters=parameters, workers=workers)

    def events(self, step: int) -> dict[str, np.ndarray]:
        """Whose gradient that of the step after `step` others is, and what follows from it."""
        event = self.turns.before(step + 1)[step]
        begins = np.zeros(self.turns.workers, bool)
        begins[list(event.begins)] = True
        return {
            "worker": np.array(event.worker, np.int32),
            "moves": np.array(event.moves),
            "staleness": np.array(event.staleness, np.int32),
            "merges": np.array(event.merges, np.int32),
            "begins": begins,
        }

    def observe(self, step: int, state: LocalWorkersState) -> dict[str, Any]:
        """After `step` gradients: `virtual_seconds`, how many `merges` there were, if there are
        any, and of all moves so far what `Asynchronous` tells of updates."""
        events = self.turns.before(step)
        moves = [event for event in events if event.moves]
        staleness = np.array([event.staleness for event in moves], np.int32)
        refused = sum(event.refused for event in events)
        each = 2 * self.one.size
        merges = {"merges": sum(event.merges > 0 for event in events)}
        return {
            "virtual_seconds": events[-1].seconds,
            **({} if self.turns.meeting.kind == "each" else merges),
            "pushes_refused": refused,
            "staleness_mean": float(staleness.mean()) if len(moves) else 0.0,
            "staleness_maximum": int(staleness.max(initial=0)),
            "bytes_sent": each * (events[-1].moves or events[-1].refused),
            "bytes_sent_total": each * (len(moves) + refused),
            **{
                f"staleness_{first}": count
                for first, count in histogram(staleness, self.turns.workers).items()
            },
        }

    # A step -------------------------------------------------------------------------------------

    def own_step(
        self, parameters: Tree, buffers: Tree, optimizer: Tree, batch: Batch, step: jax.Array
    ) -> tuple[Tree, Tree, Tree, Sums, jax.Array]:
        """A worker alone, with the batch of `step`: its parameters, buffers and optimizer after it,
        the sums over the batch, and the norm of the gradient."""
        gradients, sums, buffers = self.one.gradients(
            parameters, buffers, batch, self.one.key(step)
        )
        # As in `Synchronous`: else XLA's CPU backend computes an update for each use of it.
        gradients = jax.lax.optimization_barrier(gradients)
        updates, optimizer = self.one.optimizer.update(gradients, optimizer, parameters)
        rate = jnp.asarray(self.rate(step), jnp.float32)
        updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
        parameters = jax.lax.optimization_barrier(optax.apply_updates(parameters, updates))
        return parameters, buffers, optimizer, sums, optax.tree.norm(gradients)

    def _initial(self) -> LocalWorkersState:
        one = self.one.init()
        center = self.rule.init(one.parameters)
        own = self._by_all(one.parameters)
        fetched = own if jax.tree.leaves(center.total) else ()
        workers = Worker(own, fetched, self._by_all(one.optimizer))
        return LocalWorkersState(
            one.step, one.parameters, one.buffers, center.velocity, center.total, workers
        )

    def _by_all(self, tree: Tree) -> Tree:
        """[workers, ...]: all have the same."""
        return repeated(tree, self.turns.workers)

    def _step(
        self, state: LocalWorkersState, batch: Batch
    ) -> tuple[LocalWorkersState, StepMetrics]:
        batch = dict(batch)
        names = ("worker", "moves", "staleness", "merges", "begins")
        number, moves, staleness, merges, begins = (batch.pop(name) for name in names)
        take = partial(jnp.take, indices=number, axis=0, mode="clip")
        worker = jax.tree.map(take, state.workers)
        placed = self.one.shardings
        constrained = jax.lax.with_sharding_constraint
        worker = Worker(
            constrained(worker.parameters, placed.parameters),
            constrained(worker.fetched, placed.parameters) if jax.tree.leaves(state.total) else (),
            constrained(worker.optimizer, placed.optimizer),
        )
        own, buffers, optimizer, sums, norm = self.own_step(
            worker.parameters, state.buffers, worker.optimizer, batch, state.step
        )
        center = Center(state.parameters, state.velocity, state.total)
        move = Move(own, worker.fetched, staleness)
        center, own = jax.lax.cond(
            moves, self.rule.receive, lambda center, move: (center, move.parameters), center, move
        )
        center = jax.lax.cond(merges > 0, self.rule.merge, lambda c, count: c, center, merges)
        parameters = jax.lax.optimization_barrier(center.parameters)
        put = partial(jax.tree.map, lambda all_of, new: all_of.at[number].set(new))
        workers = Worker(
            put(state.workers.parameters, own),
            state.workers.fetched,
            put(state.workers.optimizer, optimizer),
        )
        metrics = self.one.metrics(state.step, sums, norm, optax.tree.norm(parameters))
        metrics["staleness"] = staleness.astype(jnp.float32)
        after = LocalWorkersState(
            state.step + 1,
            parameters,
            buffers,
            center.velocity,
            center.total,
            jax.lax.cond(jnp.any(begins), _begun, lambda w, *_: w, workers, parameters, begins),
        )
        return after, metrics


def _begun(workers: Worker, parameters: Tree, begins: jax.Array) -> Worker:
    """`workers`, of whom those that `begins` [workers] names have fetched `parameters`."""

    def fetch(leaf: jax.Array, new: jax.Array) -> jax.Array:
        mask = begins.reshape(-1, *[1] * new.ndim)
        return jnp.where(mask, new, leaf)

    fetched = workers.fetched and jax.tree.map(fetch, workers.fetched, parameters)
    return workers._replace(
        parameters=jax.tree.map(fetch, workers.parameters, parameters), fetched=fetched
    )
