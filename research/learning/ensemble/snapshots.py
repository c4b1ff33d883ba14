"""Snapshot ensembles: the members that one run passes on its way.

Huang, Li, Pleiss, Liu, Hopcroft and Weinberger 2017, *Snapshot Ensembles: Train 1, Get M for Free*,
arXiv:1704.00109, equation 2. In T steps the rate falls M times, each time along a half cosine, and
where it is near 0 the parameters are kept as a member; the next one starts from there:

    α(t) = α_0 / 2 · (cos(π · mod(t, ⌈T/M⌉) / ⌈T/M⌉) + 1)        t = 0, 1, ...

The members are [members, ...], split over the mesh axis `replica`, and the last one begun is what
learns; those after it do not answer yet. What crosses the wire over `replica` is an all-reduce of
that member's parameters, to where all devices compute its gradient, and what `Synchronous` sends
for a batch that is split over `replica` as over `data`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.learning.ensemble.answers import BY_MEMBER, LEARNS, Answering, Member
from research.learning.ensemble.combination import Combination
from research.learning.gradients import Batch, Tree
from research.learning.replicated.state import in_front
from research.learning.seats import repeated
from research.learning.synchronous import StepMetrics, Synchronous, TrainState
from research.parallel.layout import abstract

NOT_BEGUN = 0


def cycle(steps: int, count: int) -> int:
    """⌈T/M⌉: steps from one member to the next."""
    return max(math.ceil(steps / count), 1)


def restarts(peak: float, steps: int, count: int) -> optax.Schedule:
    """α(t), with `peak` as α_0."""
    length = cycle(steps, count)

    def rate(step: Any) -> Any:
        return peak / 2 * (jnp.cos(jnp.pi * (step % length) / length) + 1)

    return rate


class SnapshotState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32
    members: Member  # [members, ...] each, without optimizers
    optimizer: Tree  # of what learns

    @property
    def parameters(self) -> Tree:
        """[members, ...] each."""
        return self.members.parameters


class Snapshots(Answering):
    """The functions of a run of `steps` steps that passes `count` members, on one mesh.

    `one` is how it learns, by the rate of `restarts`. The interface is that of `Synchronous`.
    """

    def __init__(self, one: Synchronous, count: int, steps: int, rule: Combination):
        super().__init__(one, count, "scan", rule)
        self._length = cycle(steps, count)
        whole = NamedSharding(one.mesh, P())
        placed = one.shardings
        self.shardings: Any = SnapshotState(
            step=whole,  # type: ignore[arg-type]
            members=Member(
                parameters=jax.tree.map(in_front, placed.parameters),
                buffers=jax.tree.map(in_front, placed.buffers),
                optimizer=(),
                frozen=NamedSharding(one.mesh, BY_MEMBER),  # type: ignore[arg-type]
            ),
            optimizer=placed.optimizer,
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        shapes = jax.eval_shape(self._initial)
        self.abstract_state: SnapshotState = abstract(shapes, self.shardings)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))

    def parameters(self, state: SnapshotState) -> Tree:
        """Those of what learns, as the model has them."""
        return self.one.parameters(self._learning(state, state.step - 1))

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them."""
        return self._begun(self.one.in_rounds(parameters))

    def with_parameters(self, state: SnapshotState, parameters: Tree) -> SnapshotState:
        """The initial `state` with other parameters, as the state has them."""
        return state._replace(members=state.members._replace(parameters=parameters))

    def _initial(self) -> SnapshotState:
        one = self.one.init()
        frozen = jnp.full((self.count,), NOT_BEGUN, jnp.int32).at[0].set(LEARNS)
        members = Member(self._begun(one.parameters), self._begun(one.buffers), (), frozen)
        return SnapshotState(one.step, members, one.optimizer)

    def _begun(self, tree: Tree) -> Tree:
        """[members, ...]: all as the first one is."""
        return repeated(tree, self.count)

    def _learning(self, state: SnapshotState, step: jax.Array) -> TrainState:
        """What has learned in the step after `step` updates."""
        number = jnp.maximum(step, 0) // self._length
        # Of a `take` over the split axis XLA makes an all-reduce of one copy.
        take = partial(jnp.take, indices=number, axis=0, mode="clip")
        placed, members = self.one.shardings, state.members
        parameters = jax.tree.map(take, members.parameters)
        buffers = jax.tree.map(take, members.buffers)
        return TrainState(
            state.step,
            jax.lax.with_sharding_constraint(parameters, placed.parameters),
            jax.lax.with_sharding_constraint(buffers, placed.buffers),
            state.optimizer,
        )

    def _step(self, state: SnapshotState, batch: Batch) -> tuple[SnapshotState, StepMetrics]:
        number = jnp.minimum(state.step // self._length, self.count - 1)
        after, metrics = self.one.updated(self._learning(state, state.step - 1), batch)

        def put(kept: Tree, new: Tree) -> Tree:
            return jax.tree.map(lambda all_of, its: all_of.at[number].set(its), kept, new)

        members = Member(
            put(state.members.parameters, after.parameters),
            put(state.members.buffers, after.buffers),
            (),
            state.members.frozen.at[number].set(LEARNS),
        )
        return SnapshotState(after.step, members, after.optimizer), metrics
