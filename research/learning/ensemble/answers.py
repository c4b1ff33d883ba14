"""How members answer together, on any mesh, whatever makes a member.

Members lie over `replica`, those of a device in seats. A combination is a sum, so a device adds up
the answers of its own, one by one, and one all-gather over `replica` brings the sums together.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.exchange.replicas import DEVICE, Replicas
from research.learning.ensemble.combination import Combination
from research.learning.gradients import Batch, Tree
from research.learning.objective import Totals, cross_entropy
from research.learning.replicated.rule import Sending
from research.learning.seats import Plan, each, seat_of
from research.learning.synchronous import Synchronous
from research.models.convolution import as_products
from research.parallel.layout import LAYOUT

LEARNS = -1
BY_MEMBER = P(DEVICE)


class Member(NamedTuple):
    """What a member has; in a state every array is [members, ...]."""

    parameters: Tree
    buffers: Tree
    optimizer: Tree
    frozen: jax.Array  # [] int32: updates it had made when it was frozen, LEARNS if it is not


class Predictions(NamedTuple):
    """Of a batch, in the order in which the model has its targets."""

    log_probabilities: jax.Array  # [members, batch, ..., classes] float32, nan of frozen members
    targets: jax.Array  # [batch, ...]


class Answering:
    """What all ensembles share: `evaluate`, `predict` and `model`, of `count` members.

    An ensemble says by `_parts` which arrays its members share and which are [members, ...], and
    by `_own` what a member is. Raises UserError over stages, which do not give answers but losses.
    """

    def __init__(self, one: Synchronous, count: int, plan: Plan, rule: Combination):
        if one.mesh.shape["stage"] > 1:
            raise UserError(
                f"members' probabilities are not put together over --mesh.stage "
                f"{one.mesh.shape['stage']}, which adds up losses: use --mesh.stage 1"
            )
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.rule = rule
        devices = one.mesh.shape[DEVICE]
        self.replicas = Replicas(devices, count // devices)
        self._plan = plan
        whole = NamedSharding(one.mesh, P())
        self.evaluate = jax.jit(self._evaluate, out_shardings=whole)
        self.predict = jax.jit(self._predict, out_shardings=whole)
        """`predict(state, batch)`: `Predictions`, whole on every device."""

    @property
    def count(self) -> int:
        """M."""
        return self.replicas.count

    def model(self, state: Any) -> Callable[[jax.Array], jax.Array]:
        """From inputs [batch, ...] to the members' log-probabilities together [..., classes]."""
        return partial(self._together, state)

    def events(self, step: int) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def observe(self, step: int, state: Any) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sendings(self) -> list[Sending]:
        """What a device of this mesh sends over `replica` in a step: nothing."""
        return []

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """None."""
        return None

    def _parts(self, state: Any) -> tuple[Tree, Member]:
        """What all members share, and what is [members, ...]."""
        return (), state.members

    def _own(self, same: Tree, member: Member) -> tuple[Tree, Tree]:
        """The parameters and buffers of a member."""
        return member.parameters, member.buffers

    # --------------------------------------------------------------------------------------------

    def _evaluate(self, state: Any, batch: Batch) -> Totals:
        targets = self._arranged(state, batch["targets"])
        return cross_entropy(self._together(state, batch["inputs"]), targets, batch.get("weights"))

    def _together(self, state: Any, inputs: jax.Array) -> jax.Array:
        """Log-probabilities [batch, ..., classes] of the members that learn."""
        rule, (same, members) = self.rule, self._parts(state)

        def on_device(inputs: jax.Array, same: Tree, members: Member) -> jax.Array:
            def add(total: jax.Array | None, member: Member) -> tuple[jax.Array, None]:
                answer = rule.of_one(self._answer(inputs, same, member))
                answer = jnp.where(member.frozen == LEARNS, answer, rule.nothing)
                return answer if total is None else rule.add(total, answer), None

            here, _ = add(None, seat_of(members, 0))
            if self._plan == "unroll":
                for seat in range(1, self.replicas.seats):
                    here, _ = add(here, seat_of(members, seat))
            elif self.replicas.seats > 1:
                others = jax.tree.map(lambda leaf: leaf[1:], members)
                with as_products():
                    here, _ = jax.lax.scan(add, here, others)
            answers = Replicas(self.replicas.devices).gather(here, self._spec(here))
            total = answers[0]
            for answer in answers[1:]:
                total = rule.add(total, answer)
            return rule.finish(total)

        return self._on_devices(on_device, inputs, same, out_specs=P())(members)

    def _predict(self, state: Any, batch: Batch) -> Predictions:
        same, members = self._parts(state)

        def on_device(inputs: jax.Array, same: Tree, members: Member) -> jax.Array:
            def answer(member: Member) -> jax.Array:
                answered = self._answer(inputs, same, member)
                return jnp.where(member.frozen == LEARNS, answered, jnp.nan)

            answers = each(self._plan, answer, members)
            gathered = Replicas(self.replicas.devices).gather(answers)  # [devices, seats, ...]
            return gathered.reshape(-1, *answers.shape[1:])

        answers = self._on_devices(on_device, batch["inputs"], same, out_specs=P())(members)
        return Predictions(answers, self._arranged(state, batch["targets"]))

    def _answer(self, inputs: jax.Array, same: Tree, member: Member) -> jax.Array:
        """Log-probabilities [batch, ..., classes] of a member."""
        model = self.one.merged(*self._own(same, member))
        return jax.nn.log_softmax(model.forward(inputs)[0])

    def _arranged(self, state: Any, targets: jax.Array) -> jax.Array:
        """`targets` in the order of answers, which is the same for all members."""
        return self.one.merged(*self._first(state)).arrange(targets)

    def _first(self, state: Any) -> tuple[Tree, Tree]:
        """Parameters and buffers of member 0."""
        same, members = self._parts(state)
        return self._own(same, seat_of(members, 0))

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

    def _spec(self, answer: jax.Array) -> P:
        """How a device's answers lie on the other axes: by rows, where these divide."""
        mesh = jax.sharding.get_abstract_mesh()
        axes = [a for a in LAYOUT["batch"].mesh_axes if a != DEVICE and mesh.shape[a] > 1]
        parts = int(np.prod([mesh.shape[a] for a in axes]))
        return P(tuple(axes)) if axes and answer.shape[0] % parts == 0 else P()
