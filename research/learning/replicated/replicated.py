"""Learning by replicas that differ: whole models that learn side by side, and what they exchange.

A replica is one more array dimension. The state is that of `Synchronous` with an axis [replicas] in
front of every array but the step's number, split over the mesh axis `replica`, and each replica has
its own part of the batch. A step is written for one replica (its gradient is that of `Synchronous`)
and a `Rule` says what replicas do with gradients and parameters. Only `replica` is manual in the
`shard_map` around it; a replica itself may be split over all other axes.

Where more replicas than devices lie along the axis, those of one device follow one another (`scan`)
or are computed side by side (`vmap`). Draws are those of (seed, step, replica), wherever it is.

What crosses the wire over `replica` is the rule's, and some scalars of metrics.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.exchange import Moment, Replicas
from research.exchange.replicas import DEVICE, SEAT
from research.learning.gradients import Batch, Sums, Tree
from research.learning.replicated.rule import Rule, Sending, bytes_at, bytes_before, messages_before
from research.learning.replicated.state import (
    Replica,
    ReplicatedState,
    consensus_distance,
    in_front,
    like_parameters,
)
from research.learning.seats import each, repeated, seat_of
from research.learning.synchronous import StepMetrics, Synchronous, TrainState
from research.parallel.layout import abstract

Plan = Literal["scan", "vmap"]
Observations = dict[str, Any]


class Replicated:
    """The functions of learning by `count` replicas, compiled for one mesh.

    `one` is how a replica alone learns. With `drop`, a replica whose gradient is not finite is left
    out of that step: of averages, sums and metrics; it keeps its parameters, or gets what the
    others agree on. The interface is that of `Synchronous`.
    """

    def __init__(
        self, one: Synchronous, rule: Rule, count: int, plan: Plan = "scan", drop: bool = False
    ):
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.rule = rule
        devices = one.mesh.shape[DEVICE]
        self.replicas = Replicas(devices, count // devices)
        self._plan, self._drop = plan, drop

        whole = NamedSharding(one.mesh, P())
        shapes = jax.eval_shape(self._initial)
        placed = one.shardings
        first = NamedSharding(one.mesh, P(DEVICE))
        self.shardings: Any = ReplicatedState(
            step=whole,  # type: ignore[arg-type]
            replicas=Replica(
                parameters=jax.tree.map(in_front, placed.parameters),
                buffers=jax.tree.map(in_front, placed.buffers),
                optimizer=jax.tree.map(in_front, placed.optimizer),
                exchange=like_parameters(shapes.replicas.exchange, shapes.parameters, placed),
                dropped=first,  # type: ignore[arg-type]
            ),
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: ReplicatedState = abstract(shapes, self.shardings)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))
        self.evaluate = jax.jit(
            lambda state, batch: one.evaluate(self._merged(state), batch), out_shardings=whole
        )
        self._specs = tuple(sharding.spec for sharding in jax.tree.leaves(placed.parameters))
        self._distance = jax.jit(consensus_distance, out_shardings=whole)
        unsplit = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), one.abstract_state.parameters
        )
        self._sendings = rule.sendings(unsplit, Replicas(count))
        self._sendings_here = rule.sendings(one.abstract_state.parameters, self.replicas)

    # The interface of `Synchronous` ---------------------------------------------------------------

    def model(self, state: ReplicatedState) -> Any:
        """The Flax module with the mean of the replicas' parameters."""
        return self.one.model(self._merged(state))

    def parameters(self, state: ReplicatedState) -> Tree:
        """The mean of the replicas' parameters as the model has them."""
        return self.one.parameters(self._merged(state))

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them, the same for every replica."""
        return self._stacked(self.one.in_rounds(parameters))

    def with_parameters(self, state: ReplicatedState, parameters: Tree) -> ReplicatedState:
        """The initial `state` with other parameters, as the state has them; the same for all."""
        own = jax.tree.map(lambda leaf: leaf[0], parameters)
        begin = jax.jit(
            lambda own: self._stacked(self.rule.init(own)),
            out_shardings=self.shardings.replicas.exchange,
        )
        replicas = state.replicas._replace(parameters=parameters, exchange=begin(own))
        return state._replace(replicas=replicas)

    def events(self, step: int) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """None."""
        return None

    def observe(self, step: int, state: ReplicatedState) -> Observations:
        """After `step` updates: `bytes_sent` by a replica in the last of them and
        `bytes_sent_total` in all, in `messages_sent_total` messages one after another (as the rule
        states them, one replica a device, whatever the mesh), and the `consensus_distance`, 0 right
        after parameters were averaged; and what the rule tells of itself, such as a
        `spectral_gap`."""
        return {
            **self.rule.facts,
            "bytes_sent": bytes_at(self._sendings, step - 1),
            "bytes_sent_total": bytes_before(self._sendings, step),
            "messages_sent_total": messages_before(self._sendings, step),
            "consensus_distance": self._distance(state.parameters),
        }

    def sendings(self) -> list[Sending]:
        """What a device of this mesh sends over `replica`, for those parts of arrays it holds."""
        return self._sendings_here

    # A step -------------------------------------------------------------------------------------

    def _initial(self) -> ReplicatedState:
        one = self.one.init()
        rule = self.rule.init(one.parameters)
        dropped = jnp.zeros((), jnp.int32)
        replica = Replica(one.parameters, one.buffers, one.optimizer, rule, dropped)
        return ReplicatedState(one.step, self._stacked(replica))

    def _step(self, state: ReplicatedState, batch: Batch) -> tuple[ReplicatedState, StepMetrics]:
        # As an array, not `axis_index`: that has no meaning to the partitioner of the other axes.
        numbers = jnp.arange(self.replicas.count, dtype=jnp.int32)
        replicas, metrics = jax.shard_map(
            self._on_device,
            in_specs=(P(), P(DEVICE), P(DEVICE), P(DEVICE)),
            out_specs=(P(DEVICE), P()),
            axis_names={DEVICE},
            check_vma=False,
        )(state.step, numbers, state.replicas, batch)
        return ReplicatedState(state.step + 1, replicas), metrics

    def _on_device(
        self, step: jax.Array, numbers: jax.Array, replicas: Replica, batch: Batch
    ) -> tuple[Replica, StepMetrics]:
        """The replicas of one device: arrays are [seats, ...], those of the batch [rows, ...]."""
        seats = self.replicas.seats
        parts = jax.tree.map(lambda r: r.reshape(seats, r.shape[0] // seats, *r.shape[1:]), batch)
        learned = each(self._plan, partial(self._learn, step), numbers, replicas, parts)
        together = partial(self._exchange, step)
        if seats == 1:
            replica, metrics = together(*seat_of((numbers, replicas, learned), 0))
            return jax.tree.map(lambda leaf: leaf[None], replica), metrics
        return jax.vmap(together, out_axes=(0, None), axis_name=SEAT)(numbers, replicas, learned)

    def _learn(
        self, step: jax.Array, number: jax.Array, replica: Replica, batch: Batch
    ) -> tuple[Tree, Sums, Tree]:
        """A replica alone: its gradient, the sums over its part of the batch, its buffers after."""
        key = jax.random.fold_in(self.one.key(step), number)
        return self.one.gradients(replica.parameters, replica.buffers, batch, key)

    def _exchange(
        self, step: jax.Array, number: jax.Array, replica: Replica, learned: tuple[Tree, Sums, Tree]
    ) -> tuple[Replica, StepMetrics]:
        """The rest of a step of one replica, among the others."""
        gradients, sums, buffers = jax.lax.optimization_barrier(learned)
        alive = _finite(gradients, sums.totals.loss) if self._drop else None
        moment = Moment(self.replicas, step, number, self.one.key(step), alive, self._specs)
        gradients, inside = self.rule.on_gradients(gradients, replica.exchange, moment)
        updates, optimizer = self.one.optimizer.update(
            gradients, replica.optimizer, replica.parameters
        )
        parameters = optax.apply_updates(replica.parameters, updates)
        usable = _finite(gradients) if self._drop else None  # also by what the others agreed on
        parameters, optimizer = _chosen(
            usable, (parameters, optimizer), (replica.parameters, replica.optimizer)
        )
        buffers = _chosen(alive, buffers, replica.buffers)
        parameters, inside = self.rule.on_parameters(parameters, inside, moment)
        parameters = jax.lax.optimization_barrier(parameters)
        left_out = 0 if alive is None else 1 - alive.astype(jnp.int32)
        after = Replica(parameters, buffers, optimizer, inside, replica.dropped + left_out)
        return after, self._metrics(step, sums, gradients, after, moment, usable)

    def _metrics(
        self,
        step: jax.Array,
        sums: Sums,
        gradients: Tree,
        after: Replica,
        moment: Moment,
        usable: jax.Array | None,
    ) -> StepMetrics:
        """Those of `Synchronous`: sums over all replicas, means of the replicas' norms."""
        total = partial(jax.tree.map, self.replicas.sum)
        zeros = jax.tree.map(jnp.zeros_like, sums)
        sums = total(_chosen(moment.alive, sums, zeros))
        norm = optax.tree.norm(gradients)
        count: Any = self.replicas.count
        if usable is not None:
            count = total(usable.astype(jnp.float32))
            norm = jnp.where(usable, norm, 0.0)
        of_parameters = total(optax.tree.norm(after.parameters)) / self.replicas.count
        metrics = self.one.metrics(step, sums, total(norm) / count, of_parameters)
        if self._drop:
            metrics["replicas_dropped"] = total(after.dropped.astype(jnp.float32))
        return metrics

    # Between one replica and all --------------------------------------------------------------

    def _stacked(self, tree: Tree) -> Tree:
        """The same for every replica: [...] as [replicas, ...]."""
        count = self.replicas.count
        return repeated(tree, count)

    def _merged(self, state: ReplicatedState) -> TrainState:
        """One model: the mean of parameters and buffers."""

        def middle(leaf: jax.Array) -> jax.Array:
            return jnp.mean(leaf, axis=0).astype(leaf.dtype)

        parameters, buffers, *_ = state.replicas
        return TrainState(
            state.step, jax.tree.map(middle, parameters), jax.tree.map(middle, buffers), ()
        )


def _finite(*trees: Tree) -> jax.Array:
    return jnp.isfinite(sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(trees)))


def _chosen(condition: jax.Array | None, tree: Tree, otherwise: Tree) -> Tree:
    if condition is None:
        return tree
    return jax.tree.map(partial(jnp.where, condition), tree, otherwise)
