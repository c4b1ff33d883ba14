"""Deep ensembles: members that learn side by side, never talk, and are judged together.

Lakshminarayanan, Pritzel and Blundell 2017, *Simple and Scalable Predictive Uncertainty Estimation
using Deep Ensembles*, arXiv:1612.01474, algorithm 1, for m = 1 .. M:

    θ_m ~ initial          of a key of its own
    θ_m ← θ_m - update(∇ℓ(θ_m; batch of m))      in an order of its own, or on data of its own
    p(y|x) = 1/M · Σ_m p(y|x, θ_m)               or another `Combination`

A member is one more array dimension: [members, ...] state and [members, batch, ...] data, split
over the mesh axis `replica`; a member may itself be split over all other axes. Several of a device
follow one another (`scan`) or are computed side by side (`vmap`). What they are may differ, too
(`Traits`): a sweep is an ensemble. Member 0 learns what a single model of the same seed learns.

A member whose loss or norms are not finite is frozen as it was before, counted, and left out from
then on; the others go on.

What crosses the wire over `replica`: nothing in a step, one all-gather in a prediction. What is
told of a step, scalars, is put together by a second program, after it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.exchange.replicas import DEVICE, Replicas
from research.learning.ensemble.combination import Combination, mean
from research.learning.ensemble.traits import Traits
from research.learning.gradients import Batch, Tree
from research.learning.objective import Totals, cross_entropy
from research.learning.replicated.replicated import Plan
from research.learning.replicated.rule import Sending
from research.learning.replicated.state import in_front
from research.learning.synchronous import StepMetrics, Synchronous, of_number
from research.models.model import dropping
from research.parallel.layout import LAYOUT, abstract

LEARNS = -1
BY_MEMBER = P(DEVICE)


class Member(NamedTuple):
    """What a member has; in a state every array is [members, ...]."""

    parameters: Tree
    buffers: Tree
    optimizer: Tree
    frozen: jax.Array  # [] int32: updates it had made when it was frozen, LEARNS if it is not


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


class Predictions(NamedTuple):
    """Of a batch, in the order in which the model has its targets."""

    log_probabilities: jax.Array  # [members, batch, ..., classes] float32, nan of frozen members
    targets: jax.Array  # [batch, ...]


class Ensemble:
    """The functions of learning by `count` members, compiled for one mesh.

    `one` is how a member alone learns, but for its `traits`. The interface is that of
    `Synchronous`; what is evaluated and sampled is the members' answers, put together by `rule`.
    Raises UserError over stages, which do not give answers but their losses.
    """

    def __init__(
        self,
        one: Synchronous,
        count: int,
        plan: Plan = "scan",
        traits: Traits | None = None,
        rule: Combination | None = None,
    ):
        if one.mesh.shape["stage"] > 1:
            raise UserError(
                f"members' probabilities are not put together over --mesh.stage "
                f"{one.mesh.shape['stage']}, which adds up losses: use --mesh.stage 1"
            )
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.rule = rule or mean()
        self.traits = traits or Traits(lambda own: one.optimizer, {})
        devices = one.mesh.shape[DEVICE]
        self.replicas = Replicas(devices, count // devices)
        self._plan = plan

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
        self.evaluate = jax.jit(self._evaluate, out_shardings=whole)
        self.predict = jax.jit(self._predict, out_shardings=whole)
        """`predict(state, batch)`: `Predictions`, whole on every device."""

    @property
    def count(self) -> int:
        """M."""
        return self.replicas.count

    # The interface of `Synchronous` ---------------------------------------------------------------

    def model(self, state: EnsembleState) -> Callable[[jax.Array], jax.Array]:
        """From inputs [batch, ...] to the members' log-probabilities together [..., classes]."""
        return partial(self._together, state)

    def parameters(self, state: EnsembleState) -> Tree:
        """Those of member 0, as the model has them."""
        return self.one.parameters(self._first(state))

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them, the same for every member."""
        made = self.one.in_rounds(parameters)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.count, *leaf.shape)), made)

    def with_parameters(self, state: EnsembleState, parameters: Tree) -> EnsembleState:
        """The initial `state` with other parameters, as the state has them."""
        return state._replace(members=state.members._replace(parameters=parameters))

    def events(self, step: int) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def observe(self, step: int, state: EnsembleState) -> dict[str, Any]:
        """Nothing."""
        return {}

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """That no member is left."""
        if metrics["members_frozen"] < self.count:
            return None
        return (
            f"all {self.count} members are frozen, as the loss or a norm of each was not finite "
            f"(the first after {metrics['first_frozen']:.0f} updates): lower the learning rate or "
            "look at the data"
        )

    def sendings(self) -> list[Sending]:
        """Nothing: members never talk."""
        return []

    # A step -------------------------------------------------------------------------------------

    def _initial(self) -> EnsembleState:
        def begin(number: jax.Array, own: dict[str, jax.Array]) -> Member:
            parameters, buffers = self.one.drawn(number)
            parameters = self.traits.begin(own, parameters)
            optimizer = self.traits.optimizer(own).init(parameters)
            return Member(parameters, buffers, optimizer, jnp.int32(LEARNS))

        members = self._on_devices(partial(self._each, begin))(self._numbers(), self.traits.values)
        return EnsembleState(jnp.zeros((), jnp.int32), members)

    def _step(self, state: EnsembleState, batch: Batch) -> tuple[EnsembleState, StepMetrics]:
        def on_device(step: jax.Array, *members: Any) -> tuple[Member, StepMetrics]:
            return self._each(partial(self._learn, step), *members)

        arguments = (self._numbers(), self.traits.values, state.members, batch)
        members, metrics = self._on_devices(on_device, state.step)(*arguments)
        return EnsembleState(state.step + 1, members), metrics

    def _learn(
        self,
        step: jax.Array,
        number: jax.Array,
        own: dict[str, jax.Array],
        member: Member,
        batch: Batch,
    ) -> tuple[Member, StepMetrics]:
        """A member alone."""
        key = of_number(self.one.key(step), number)
        with dropping(own.get("dropout")):
            learned = self.one.gradients(member.parameters, member.buffers, batch, key)
        gradients, sums, buffers = jax.lax.optimization_barrier(learned)
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

    # Predictions --------------------------------------------------------------------------------

    def _evaluate(self, state: EnsembleState, batch: Batch) -> Totals:
        targets = self._arranged(state, batch["targets"])
        return cross_entropy(self._together(state, batch["inputs"]), targets, batch.get("weights"))

    def _together(self, state: EnsembleState, inputs: jax.Array) -> jax.Array:
        """Log-probabilities [batch, ..., classes] of the members that learn."""
        rule = self.rule

        def on_device(inputs: jax.Array, members: Member) -> jax.Array:
            def add(total: jax.Array | None, member: Member) -> tuple[jax.Array, None]:
                answer = rule.of_one(self._answer(inputs, member))
                answer = jnp.where(member.frozen == LEARNS, answer, rule.nothing)
                return answer if total is None else rule.add(total, answer), None

            seats = self.replicas.seats
            here, _ = add(None, _seat(members, 0))
            if seats > 1:
                others = jax.tree.map(lambda leaf: leaf[1:], members)
                here, _ = jax.lax.scan(add, here, others)
            answers = Replicas(self.replicas.devices).gather(here, self._spec(here))
            total = answers[0]
            for answer in answers[1:]:
                total = rule.add(total, answer)
            return rule.finish(total)

        return self._on_devices(on_device, inputs, out_specs=P())(state.members)

    def _predict(self, state: EnsembleState, batch: Batch) -> Predictions:
        def on_device(inputs: jax.Array, members: Member) -> jax.Array:
            def answer(member: Member) -> jax.Array:
                return jnp.where(member.frozen == LEARNS, self._answer(inputs, member), jnp.nan)

            answers = self._each(answer, members)
            gathered = Replicas(self.replicas.devices).gather(answers)  # [devices, seats, ...]
            return gathered.reshape(-1, *answers.shape[1:])

        answers = self._on_devices(on_device, batch["inputs"], out_specs=P())(state.members)
        return Predictions(answers, self._arranged(state, batch["targets"]))

    def _answer(self, inputs: jax.Array, member: Member) -> jax.Array:
        """Log-probabilities [batch, ..., classes] of a member."""
        model = self.one.merged(member.parameters, member.buffers)
        return jax.nn.log_softmax(model.forward(inputs)[0])

    def _arranged(self, state: EnsembleState, targets: jax.Array) -> jax.Array:
        """`targets` in the order of answers, which is the same for all members."""
        first = self._first(state)
        return self.one.merged(first.parameters, first.buffers).arrange(targets)

    # Members and devices --------------------------------------------------------------------------

    def _numbers(self) -> jax.Array:
        # As an array, not `axis_index`: that has no meaning to the partitioner of the other axes.
        return jnp.arange(self.count, dtype=jnp.int32)

    def _on_devices(
        self, function: Callable[..., Tree], *same: Tree, out_specs: P = BY_MEMBER
    ) -> Callable[..., Tree]:
        """`function(*same, *members)` for `members` [members, ...] each, of which a device has its
        own, [seats, ...]."""

        def call(*members: Tree) -> Tree:
            return jax.shard_map(
                function,
                in_specs=(*(P() for _ in same), *(P(DEVICE) for _ in members)),
                out_specs=out_specs,
                axis_names={DEVICE},
                check_vma=False,
            )(*same, *members)

        return call

    def _each(self, function: Callable[..., Tree], *stacked: Tree) -> Tree:
        """`function` of every seat of `stacked` arrays [seats, ...], as the plan says."""
        if self.replicas.seats == 1:
            return jax.tree.map(lambda leaf: leaf[None], function(*_seat(stacked, 0)))
        if self._plan == "vmap":
            return jax.vmap(function)(*stacked)
        return jax.lax.map(lambda seat: function(*seat), stacked)

    def _spec(self, answer: jax.Array) -> P:
        """How a device's answers lie on the other axes: by rows, where these divide."""
        mesh = jax.sharding.get_abstract_mesh()
        axes = [a for a in LAYOUT["batch"].mesh_axes if a != DEVICE and mesh.shape[a] > 1]
        parts = int(np.prod([mesh.shape[a] for a in axes]))
        return P(tuple(axes)) if axes and answer.shape[0] % parts == 0 else P()

    def _first(self, state: EnsembleState) -> Any:
        return _seat(state.members, 0)


def _seat(members: Tree, number: int) -> Tree:
    return jax.tree.map(lambda leaf: leaf[number], members)


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
