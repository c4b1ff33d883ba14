"""Synchronous learning: one model, one gradient of the whole batch, one update, every step.

    g_t = 1/n · Σ_i ∇ℓ(w_t; x_i)        over the n targets of the global batch
    w_{t+1} = w_t + update(g_t)          by any optax optimizer

What crosses the wire is what the layout asks for: an all-reduce of gradients over `data`,
all-gathers of parameters and reduce-scatters of gradients over `fsdp`, all-reduces of activations
over `tensor`. None of it is written here; XLA's partitioner derives it from the shardings of state
and batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import UserError
from research.learning.gradients import Sums, accumulated, at_once
from research.learning.objective import Totals, cross_entropies, cross_entropy
from research.learning.pipelined import Pipelined, into_rounds, out_of_rounds
from research.models.model import Extras, Model
from research.models.specification import Specification
from research.parallel.layout import abstract, constrain, parameter_shardings, unused_axes
from research.parallel.mesh import describe
from research.parallel.schedules import PipelineConfig

Tree = Any
Batch = dict[str, jax.Array]


class ModelConfig(Protocol):
    """What every model's config can do."""

    def build(self, specification: Specification, key: jax.Array) -> Model: ...


class TrainState(NamedTuple):
    """All that a step changes; a pytree of arrays that a checkpoint holds whole."""

    step: jax.Array  # [] int32, updates made so far
    parameters: Tree  # nested dict of float32
    buffers: Tree  # nested dict: what is not learned by gradients (BatchNorm's statistics)
    optimizer: Tree  # optax's state


StepMetrics = dict[str, jax.Array]
"""Of one step, over the global batch, [] float32 each: `loss` (nats a target, before the update and
without penalties), `accuracy` (share of targets), `gradient_norm` (before clipping),
`parameter_norm` (after the update), `learning_rate`, and what the model adds or reports (each
divided by the number of targets)."""


class Synchronous:
    """The functions of synchronous learning, compiled for one mesh.

    `init()`, `step(state, batch)` and `evaluate(state, batch)` expect `jax.set_mesh(mesh)` to be in
    force. Raises UserError where model and mesh do not fit.
    """

    def __init__(
        self,
        model: ModelConfig,
        specification: Specification,
        optimizer: optax.GradientTransformation,
        learning_rate: optax.Schedule,
        mesh: Mesh,
        seed: int = 0,
        microbatches: int = 1,
        pipeline: PipelineConfig | None = None,
        outside: Sequence[str] = (),
    ):
        """`outside` names mesh axes that whoever calls this splits something over."""
        self.mesh = mesh
        self.specification = specification
        self.microbatches = microbatches
        self.optimizer = optimizer
        self.seed = seed
        self._learning_rate = learning_rate

        stages = mesh.shape["stage"]
        pipeline = pipeline or PipelineConfig()
        self._rounds = pipeline.rounds_of(stages)

        def build(key: jax.Array) -> Any:
            graph, *states = nnx.split(model.build(specification, key), nnx.Param, ...)
            parameters, buffers = states
            return graph, self.in_rounds(parameters), buffers

        self.graph, parameters, buffers = jax.eval_shape(build, jax.random.key(0))
        whole = NamedSharding(mesh, PartitionSpec())
        placed = parameter_shardings(parameters, mesh)
        module = jax.eval_shape(lambda key: model.build(specification, key), jax.random.key(0))
        unused = [axis for axis in unused_axes(placed, mesh, module.splits) if axis not in outside]
        if unused:
            names = " and ".join(f"`{axis}` = {mesh.shape[axis]}" for axis in unused)
            flags = " ".join(f"--mesh.{axis} 1" for axis in unused)
            raise UserError(
                f"mesh {describe(mesh)}: nothing of this model is split over {names}: "
                f"set {flags} and give those devices to another axis"
            )
        with jax.set_mesh(mesh):
            module.check_mesh(specification)
        self._pipeline = (
            Pipelined(self.graph, pipeline, mesh, microbatches, specification.shape[0])
            if stages > 1
            else None
        )
        shapes = jax.eval_shape(optimizer.init, nnx.to_pure_dict(parameters))
        self.shardings: Any = TrainState(
            step=whole,  # type: ignore[arg-type]
            parameters=placed,
            buffers=jax.tree.map(lambda _: whole, nnx.to_pure_dict(buffers)),
            optimizer=optax.tree.map_params(
                optimizer,
                lambda _, sharding: sharding,
                shapes,
                placed,
                transform_non_params=lambda _: whole,
            ),
        )

        def drawn(number: int | jax.Array = 0) -> tuple[Tree, Tree]:
            _, *made = build(of_number(jax.random.fold_in(jax.random.key(seed), 0), number))
            parameters, buffers = map(nnx.to_pure_dict, made)
            return parameters, buffers

        self.drawn = drawn

        def init() -> TrainState:
            parameters, buffers = drawn()
            zero = jnp.zeros((), jnp.int32)
            return TrainState(zero, parameters, buffers, optimizer.init(parameters))

        self.init: jax.stages.Wrapped = jax.jit(init, out_shardings=self.shardings)
        self.abstract_state: TrainState = abstract(jax.eval_shape(init), self.shardings)
        self.step = jax.jit(self.updated, donate_argnums=0, out_shardings=(self.shardings, whole))
        self.evaluate = jax.jit(
            lambda state, batch: self.totals(state.parameters, state.buffers, batch),
            out_shardings=whole,
        )
        self.evaluate_each = jax.jit(
            lambda state, batch: self.totals_of_each(state.parameters, state.buffers, batch),
            out_shardings=whole,
        )

    def model(self, state: TrainState) -> Any:
        """The Flax module with the state's parameters."""
        return self.merged(state.parameters, state.buffers)

    def parameters(self, state: TrainState) -> Tree:
        """The state's parameters as the model has them: layers in a row, in whatever rounds a
        pipeline runs them."""
        return out_of_rounds(state.parameters, self._rounds)

    def in_rounds(self, parameters: Tree) -> Tree:
        """The model's parameters as the state has them: the opposite of `parameters`."""
        return into_rounds(parameters, self._rounds, self.mesh.shape["stage"])

    @property
    def size(self) -> int:
        """Of all parameters (bytes)."""
        leaves = jax.tree.leaves(self.abstract_state.parameters)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    def with_parameters(self, state: TrainState, parameters: Tree) -> TrainState:
        """The initial `state` with other parameters, as the state has them."""
        return state._replace(parameters=parameters)

    def events(self, step: int) -> dict[str, np.ndarray]:
        """What the step after `step` updates is told beside its batch, the same on all devices:
        here nothing."""
        return {}

    def observe(self, step: int, state: TrainState) -> StepMetrics:
        """What is measured only where it is logged, after `step` updates: here nothing."""
        return {}

    def complaint(self, metrics: dict[str, float]) -> str | None:
        """Why a run with these metrics of a step cannot go on, if so: here it always can."""
        return None

    def updated(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        """The state after one update, and its metrics: what `step` compiles."""
        key = self.key(state.step)
        gradients, sums, buffers = self.gradients(state.parameters, state.buffers, batch, key)
        # Without the barriers XLA's CPU backend computes the update twice, for itself and its norm.
        gradients = jax.lax.optimization_barrier(gradients)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        parameters = jax.lax.optimization_barrier(parameters)
        norms = optax.tree.norm(gradients), optax.tree.norm(parameters)
        metrics = self.metrics(state.step, sums, *norms)
        return TrainState(state.step + 1, parameters, buffers, optimizer), metrics

    def key(self, step: jax.Array) -> jax.Array:
        """Of the draws of the step after `step` updates."""
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 1), step)

    def metrics(
        self, step: jax.Array, sums: Sums, gradient_norm: jax.Array, parameter_norm: jax.Array
    ) -> StepMetrics:
        """Of the step after `step` updates, by the sums over its batch."""
        totals, (penalties, statistics) = sums
        return {
            "loss": totals.loss / totals.targets,
            "accuracy": totals.correct / totals.targets,
            "gradient_norm": gradient_norm,
            "parameter_norm": parameter_norm,
            "learning_rate": jnp.asarray(self._learning_rate(step), jnp.float32),
            **{name: each / totals.targets for name, each in (penalties | statistics).items()},
        }

    def gradients(
        self, parameters: Tree, buffers: Tree, batch: Batch, key: jax.Array
    ) -> tuple[Tree, Sums, Tree]:
        """Gradient of the mean loss over `batch` (a tree like `parameters`), the batch's sums, and
        the buffers after the pass. `key` and an example's place in the batch draw its dropout."""
        rows = jnp.arange(batch["targets"].shape[0])
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
        batch = batch | {"keys": constrain(keys, "batch")}
        arguments = (self.loss, parameters, buffers, batch)
        if self._pipeline is not None:
            summed, sums = self._pipeline.gradients(parameters, buffers, batch)
        elif self.microbatches == 1:
            summed, (sums, buffers) = at_once(*arguments)
        else:
            summed, (sums, buffers) = accumulated(*arguments, self.microbatches, self.mesh)
        share = 1 / sums.totals.targets  # to divide every number takes longer
        return jax.tree.map(lambda g: share * g, summed), sums, buffers

    def totals(self, parameters: Tree, buffers: Tree, batch: Batch) -> Totals:
        """Over `batch`, of an evaluation: what `evaluate` compiles."""
        if self._pipeline is not None:
            return self._pipeline.totals(parameters, buffers, batch)
        return _totals(self.merged(parameters, buffers), batch)[0]

    def totals_of_each(self, parameters: Tree, buffers: Tree, batch: Batch) -> Totals:
        """Of each example of `batch`, [batch] each: what `evaluate_each` compiles.

        Raises UserError over stages, which add up what passes through them.
        """
        if self._pipeline is not None:
            raise UserError(
                f"examples are not evaluated one by one over --mesh.stage "
                f"{self.mesh.shape['stage']}: use --mesh.stage 1"
            )
        model = self.merged(parameters, buffers)
        logits, _ = model.forward(batch["inputs"])
        return cross_entropies(logits, model.arrange(batch["targets"]), batch.get("weights"))

    def merged(self, parameters: Tree, buffers: Tree) -> Any:
        """The Flax module with `parameters` as the state has them."""
        return nnx.merge(self.graph, out_of_rounds(parameters, self._rounds), buffers)

    def loss(self, parameters: Tree, buffers: Tree, batch: Batch) -> Any:
        """What is differentiated: the sum of losses and penalties over `batch`; (its sums, the
        buffers after the pass)."""
        model = nnx.merge(self.graph, parameters, buffers)
        totals, extras = _totals(model, batch, train=True)
        after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return totals.loss + sum(extras.penalties.values()), (Sums(totals, extras), after)


def of_number(key: jax.Array, number: int | jax.Array) -> jax.Array:
    """The key of one of several: of number 0 `key` itself, as if it were alone."""
    if isinstance(number, int):
        return jax.random.fold_in(key, number) if number else key
    return jnp.where(number == 0, key, jax.random.fold_in(key, number))


def _totals(model: Model, batch: Batch, train: bool = False) -> tuple[Totals, Extras]:
    """Of `batch`: `inputs` and `targets`, `keys` to train, `weights` where not all rows count, and
    `soft` where a teacher says what is wanted."""
    logits, extras = model.forward(batch["inputs"], train=train, keys=batch.get("keys"))
    targets = model.arrange(batch["targets"])
    return cross_entropy(logits, targets, batch.get("weights"), batch.get("soft")), extras
