"""BatchEnsemble: members of rank one around one set of weights.

Wen, Tran and Ba 2020, *BatchEnsemble: An Alternative Approach to Efficient Ensemble and Lifelong
Learning*, arXiv:2002.06715, equations 1 to 3. Of a weight W [.., fan-in, fan-out] member m has

    W_m = W ∘ r_m s_mᵀ          r_m [fan-in], s_m [fan-out], drawn as random signs

and every vector (biases, scales of norms) for itself. Each member has a batch of its own; the loss
is the mean over all of them, of which W is learned together, r_m and s_m by each member alone:

    ∂W = 1/M Σ_m G_m ∘ r_m s_mᵀ,   ∂r_m = 1/M (G_m ∘ W) s_m,   ∂s_m = 1/M (G_m ∘ W)ᵀ r_m

where G_m = ∂ℓ_m/∂W_m. (The paper computes ((x ∘ r) W) ∘ s, which is the same number; here a member
is made as it is needed, so that any model of matrices and vectors will do.) With B bytes of W,
members cost M · (fan-in + fan-out) numbers a weight, and what crosses the wire over `replica` is an
all-reduce of ∂W: 2·(n-1)/n·B.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.exchange.message import of_leaves, sent
from research.exchange.replicas import DEVICE
from research.learning.ensemble.answers import BY_MEMBER, LEARNS, Answering, Member
from research.learning.ensemble.combination import Combination
from research.learning.gradients import Batch, Sums, Tree
from research.learning.replicated.rule import Sending, always
from research.learning.replicated.state import in_front
from research.learning.seats import Plan, each, repeated, seat_of
from research.learning.synchronous import StepMetrics, Synchronous, of_number
from research.parallel.layout import abstract

SHARED, ROWS, COLUMNS, OWN = "shared", "rows", "columns", "own"


class BatchEnsembleState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32
    parameters: Tree  # `shared` [...]; `rows` (r), `columns` (s) and `own` [members, ...], by path
    buffers: Tree  # [members, ...]
    optimizer: Tree  # of all parameters


def split(parameters: Tree, signs: jax.Array) -> Tree:
    """A model's `parameters` as W and one member around it, with r and s drawn by the key `signs`.

    r and s are called `scale`, as what does not decay.
    """
    made: Tree = {SHARED: {}, ROWS: {}, COLUMNS: {}, OWN: {}}
    for number, (path, leaf) in enumerate(
        sorted(nnx.traversals.flatten_mapping(parameters).items())
    ):
        name = "/".join(path)
        if leaf.ndim < 2:
            made[OWN][name] = {"bias": leaf}
            continue
        made[SHARED][name] = leaf
        for turn, (which, size) in enumerate(((ROWS, leaf.shape[-2]), (COLUMNS, leaf.shape[-1]))):
            key = jax.random.fold_in(signs, 2 * number + turn)
            made[which][name] = {"scale": jax.random.rademacher(key, (size,), jnp.float32)}
    return made


def member_of(parameters: Tree) -> Tree:
    """The model's parameters, of W and one member around it: the opposite of `split`."""
    made = {}
    for name, weight in parameters[SHARED].items():
        row, column = parameters[ROWS][name]["scale"], parameters[COLUMNS][name]["scale"]
        made[tuple(name.split("/"))] = weight * row[:, None] * column
    for name, own in parameters[OWN].items():
        made[tuple(name.split("/"))] = own["bias"]
    return nnx.traversals.unflatten_mapping(made)


class BatchEnsemble(Answering):
    """The functions of learning by `count` members of rank one, compiled for one mesh.

    `one` is how a model alone learns. The interface is that of `Synchronous`.
    """

    def __init__(self, one: Synchronous, count: int, plan: Plan, rule: Combination):
        super().__init__(one, count, plan, rule)
        whole = NamedSharding(one.mesh, P())
        with jax.set_mesh(one.mesh):
            shapes = jax.eval_shape(self._initial)
        of_model = {
            "/".join(path): leaf
            for path, leaf in nnx.traversals.flatten_mapping(one.shardings.parameters).items()
        }
        each = NamedSharding(one.mesh, BY_MEMBER)
        parameters = {
            which: {
                name: of_model[name] if which == SHARED else jax.tree.map(lambda _: each, leaf)
                for name, leaf in shapes.parameters[which].items()
            }
            for which in shapes.parameters
        }
        self.shardings: Any = BatchEnsembleState(
            step=whole,  # type: ignore[arg-type]
            parameters=parameters,
            buffers=jax.tree.map(in_front, one.shardings.buffers),
            optimizer=optax.tree.map_params(
                one.optimizer,
                lambda _, sharding: sharding,
                shapes.optimizer,
                parameters,
                transform_non_params=lambda _: whole,
            ),
        )
        self.init: jax.stages.Wrapped = jax.jit(self._initial, out_shardings=self.shardings)
        self.abstract_state: BatchEnsembleState = abstract(shapes, self.shardings)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))

    def parameters(self, state: BatchEnsembleState) -> Tree:
        """Those of member 0, as the model has them."""
        return self._first(state)[0]

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as `with_parameters` takes them."""
        return self.one.in_rounds(parameters)

    def with_parameters(self, state: BatchEnsembleState, parameters: Tree) -> BatchEnsembleState:
        """The initial `state` with other matrices, and all members with the same vectors."""
        made, before = split(parameters, jax.random.key(0)), state.parameters
        own = jax.tree.map(
            lambda new, all_of: jnp.broadcast_to(new, all_of.shape), made[OWN], before[OWN]
        )
        return state._replace(parameters=before | {SHARED: made[SHARED], OWN: own})

    def observe(self, step: int, state: BatchEnsembleState) -> dict[str, Any]:
        """After `step` updates: `bytes_sent` by a member that has a device to itself in the last of
        them, and `bytes_sent_total` in all."""
        each = sent(of_leaves("all-reduce", state.parameters[SHARED], self.count))
        return {"bytes_sent": each, "bytes_sent_total": step * each}

    def sendings(self) -> list[Sending]:
        """The gradients of what is shared, in every step."""
        shared = self.abstract_state.parameters[SHARED]
        return [Sending(always, of_leaves("all-reduce", shared, self.replicas.devices))]

    def _parts(self, state: BatchEnsembleState) -> tuple[Tree, Member]:
        own = {which: state.parameters[which] for which in (ROWS, COLUMNS, OWN)}
        frozen = jnp.full((self.count,), LEARNS, jnp.int32)
        return state.parameters[SHARED], Member(own, state.buffers, (), frozen)

    def _own(self, same: Tree, member: Member) -> tuple[Tree, Tree]:
        return member_of({SHARED: same, **member.parameters}), member.buffers

    # A step -------------------------------------------------------------------------------------

    def _initial(self) -> BatchEnsembleState:
        parameters, buffers = self.one.drawn()
        key = jax.random.fold_in(jax.random.key(self.one.seed), 2)
        keys = jax.vmap(partial(jax.random.fold_in, key))(self._numbers())
        made = jax.vmap(lambda signs: split(parameters, signs))(keys)
        made[SHARED] = seat_of(made[SHARED], 0)
        buffers = repeated(buffers, self.count)
        zero = jnp.zeros((), jnp.int32)
        return BatchEnsembleState(zero, made, buffers, self.one.optimizer.init(made))

    def _step(
        self, state: BatchEnsembleState, batch: Batch
    ) -> tuple[BatchEnsembleState, StepMetrics]:
        shared, members = self._parts(state)

        def on_device(step: jax.Array, shared: Tree, *members: Tree) -> Any:
            def learn(number: jax.Array, member: Member, batch: Batch) -> Any:
                return self._learn(step, shared, number, member, batch)

            of_shared, *others = each(self._plan, learn, *members)
            summed = jax.tree.map(lambda leaf: self._summed(leaf), (of_shared, others[-1]))
            return summed, (others[0], others[1])

        (of_shared, sums), (own, buffers) = jax.shard_map(
            on_device,
            in_specs=(P(), P(), *3 * (BY_MEMBER,)),
            out_specs=(P(), BY_MEMBER),
            axis_names={DEVICE},
            check_vma=False,
        )(state.step, shared, self._numbers(), members, batch)
        gradients = jax.tree.map(lambda leaf: leaf / self.count, {SHARED: of_shared, **own})
        gradients = jax.lax.optimization_barrier(gradients)
        updates, optimizer = self.one.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        parameters = jax.lax.optimization_barrier(parameters)
        norms = optax.tree.norm(gradients), optax.tree.norm(parameters)
        metrics = self.one.metrics(state.step, sums, *norms)
        return BatchEnsembleState(state.step + 1, parameters, buffers, optimizer), metrics

    def _learn(
        self, step: jax.Array, shared: Tree, number: jax.Array, member: Member, batch: Batch
    ) -> tuple[Tree, Tree, Tree, Sums]:
        """A member alone: the gradients of what is shared and of its own, its buffers, its sums."""
        model, back = jax.vjp(member_of, {SHARED: shared, **member.parameters})
        key = of_number(self.one.key(step), number)
        gradients, sums, buffers = self.one.gradients(model, member.buffers, batch, key)
        (made,) = back(gradients)
        return made.pop(SHARED), made, buffers, sums

    def _summed(self, leaf: jax.Array) -> jax.Array:
        """[seats, ...] over all members."""
        here = jnp.sum(leaf, axis=0)
        return here if self.replicas.devices == 1 else jax.lax.psum(here, DEVICE)
