"""Deep ensembles: members that learn side by side, never talk, and are judged together.

Lakshminarayanan, Pritzel and Blundell 2017, *Simple and Scalable Predictive Uncertainty Estimation
using Deep Ensembles*, arXiv:1612.01474, algorithm 1, for m = 1 .. M:

    θ_m ~ initial          of a key of its own
    θ_m ← θ_m - update(∇ℓ(θ_m; batch of m))      in an order of its own, or on data of its own
    p(y|x) = 1/M · Σ_m p(y|x, θ_m)               or another `Combination`

A member is one more array dimension: [members, ...] state and [members, batch, ...] data, split
over the mesh axis `replica`; a member may itself be split over all other axes. Several of a device
follow one another (`scan`, or `unroll`: without a loop) or are computed side by side (`vmap`).
What they are may differ, too (`Traits`): a sweep is an ensemble. Member 0 learns what a single
model of the same seed learns.

A member whose loss or norms are not finite is frozen as it was before, counted, and left out from
then on; the others go on.

What crosses the wire over `replica`: nothing in a step, one all-gather in a prediction. What is
told of a step, scalars, is put together by a second program, after it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.exchange.replicas import DEVICE
from research.learning.ensemble.answers import LEARNS, Answering, Member
from research.learning.ensemble.combination import Combination, mean
from research.learning.ensemble.traits import Traits
from research.learning.gradients import Batch, Tree
from research.learning.replicated.state import in_front
from research.learning.seats import Plan, each, repeated, seat_of
from research.learning.synchronous import StepMetrics, Synchronous, of_number
from research.models.model import dropping
from research.parallel.layout import abstract


class EnsembleState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32, the same for all
    members: Member

    @property
    def parameters(self) -> Tree:
        """[members, ...] each."""
        return self.members.parameters

    @property
    def optimizer(self) -> Tree:
        """[members, ...] each."""
        return self.members.optimizer


class Ensemble(Answering):
    """The functions of learning by `count` members, compiled for one mesh.

    `one` is how a member alone learns, but for its `traits`. The interface is that of
    `Synchronous`; what is evaluated and sampled is the members' answers, put together by `rule`.
    Raises UserError over stages.
    """

    def __init__(
        self,
        one: Synchronous,
        count: int,
        plan: Plan = "scan",
        traits: Traits | None = None,
        rule: Combination | None = None,
    ):
        super().__init__(one, count, plan, rule or mean())
        self.traits = traits or Traits(lambda own: one.optimizer, {})

        whole, each = NamedSharding(one.mesh, P()), NamedSharding(one.mesh, P(DEVICE))
        with jax.set_mesh(one.mesh):
            shapes = jax.eval_shape(self._initial)
        placed = one.shardings
        self.shardings: Any = EnsembleState(
            step=whole,  # type: ignore[arg-type]
            members=Member(
                parameters=jax.tree.map(in_front, placed.parameters),
                buffers=jax.tree.map(in_front, placed.buffers),
                optimizer=jax.tree.map(in_front, placed.optimizer),
                frozen=each,  # type: ignore[arg-type]
            ),
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: EnsembleState = abstract(shapes, self.shardings)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, each))
        self.told = jax.jit(_told, out_shardings=whole)
        """`told(metrics)`: those of a step [members], as [] over the members that learn."""

    # The interface of `Synchronous` ---------------------------------------------------------------

    def parameters(self, state: EnsembleState) -> Tree:
        """Those of member 0, as the model has them."""
        return self.one.parameters(seat_of(state.members, 0))

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them, the same for every member."""
        return repeated(self.one.in_rounds(parameters), self.count)

    def with_parameters(self, state: EnsembleState, parameters: Tree) -> EnsembleState:
        """The initial `state` with other parameters, as the state has them."""
        return state._replace(members=state.members._replace(parameters=parameters))

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """That no member is left."""
        if metrics["members_frozen"] < self.count:
            return None
        return (
            f"all {self.count} members are frozen, as the loss or a norm of each was not finite "
            f"(the first after {metrics['first_frozen']:.0f} updates): lower the learning rate or "
            "look at the data"
        )

    # A step -------------------------------------------------------------------------------------

    def _initial(self) -> EnsembleState:
        def begin(number: jax.Array, own: dict[str, jax.Array]) -> Member:
            parameters, buffers = self.one.drawn(number)
            parameters = self.traits.begin(own, parameters)
            optimizer = self.traits.optimizer(own).init(parameters)
            return Member(parameters, buffers, optimizer, jnp.int32(LEARNS))

        members = self._on_devices(partial(each, self._plan, begin))(
            self._numbers(), self.traits.values
        )
        return EnsembleState(jnp.zeros((), jnp.int32), members)

    def _step(self, state: EnsembleState, batch: Batch) -> tuple[EnsembleState, StepMetrics]:
        def on_device(
            step: jax.Array, numbers: jax.Array, own: Any, members: Member, batch: Batch
        ) -> tuple[Member, StepMetrics]:
            seen = (numbers, own, members.parameters, members.buffers, batch)
            learned = each(self._plan, partial(self._gradients, step), *seen)
            # What follows is the same arithmetic for every number, of whichever member it is.
            learned = jax.lax.optimization_barrier(learned)
            return jax.vmap(partial(self._updated, step))(own, members, learned)

        arguments = (self._numbers(), self.traits.values, state.members, batch)
        members, metrics = self._on_devices(on_device, state.step)(*arguments)
        return EnsembleState(state.step + 1, members), metrics

    def _gradients(
        self,
        step: jax.Array,
        number: jax.Array,
        own: dict[str, jax.Array],
        parameters: Tree,
        buffers: Tree,
        batch: Batch,
    ) -> Any:
        """Of a member alone, as `Synchronous.gradients`."""
        key = of_number(self.one.key(step), number)
        with dropping(own.get("dropout")):
            return self.one.gradients(parameters, buffers, batch, key)

    def _updated(
        self, step: jax.Array, own: dict[str, jax.Array], member: Member, learned: Any
    ) -> tuple[Member, StepMetrics]:
        """A member after what it `learned`; as it was, if that is not finite."""
        gradients, sums, buffers = learned
        updates, optimizer = self.traits.optimizer(own).update(
            gradients, member.optimizer, member.parameters
        )
        parameters = optax.apply_updates(member.parameters, updates)
        parameters = jax.lax.optimization_barrier(parameters)
        norms = optax.tree.norm(gradients), optax.tree.norm(parameters)
        metrics = self.one.metrics(step, sums, *norms)
        metrics["learning_rate"] *= own.get("learning_rate", 1.0)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norms[0]) & jnp.isfinite(norms[1])
        learns = (member.frozen == LEARNS) & finite
        frozen = jnp.where(finite | (member.frozen != LEARNS), member.frozen, step)
        after = Member(parameters, buffers, optimizer, frozen)
        kept = jax.tree.map(partial(jnp.where, learns), after, member._replace(frozen=frozen))
        return kept, metrics | {"frozen": frozen}


def _told(metrics: StepMetrics) -> StepMetrics:
    """Means over the members that learn, the lowest and the highest loss among these, how many
    others there are, and after how many updates the first of these was frozen (-1: there is
    none)."""
    metrics = dict(metrics)
    frozen = metrics.pop("frozen")
    learns = frozen == LEARNS
    count = jnp.sum(learns)
    told = {
        name: jnp.sum(jnp.where(learns, each, 0), axis=0) / count for name, each in metrics.items()
    }
    first = jnp.min(jnp.where(learns, jnp.iinfo(jnp.int32).max, frozen))
    return told | {
        "loss_lowest": jnp.min(jnp.where(learns, metrics["loss"], jnp.inf)),
        "loss_highest": jnp.max(jnp.where(learns, metrics["loss"], -jnp.inf)),
        "members_frozen": jnp.sum(~learns).astype(jnp.float32),
        "first_frozen": jnp.where(jnp.all(learns), LEARNS, first).astype(jnp.float32),
    }
