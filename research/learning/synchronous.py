"""Synchronous learning: one model, one gradient of the whole batch, one update, every step.

    g_t = 1/n · Σ_i ∇ℓ(w_t; x_i)        over the n targets of the global batch
    w_{t+1} = w_t + update(g_t)          by any optax optimizer

What crosses the wire is what the layout asks for: an all-reduce of gradients over `data`,
all-gathers of parameters and reduce-scatters of gradients over `fsdp`, all-reduces of activations
over `tensor`. None of it is written here; XLA's partitioner derives it from the shardings of state
and batch.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from research.errors import UserError
from research.learning.objective import Totals, cross_entropy
from research.models.specification import Specification
from research.parallel.layout import parameter_shardings, unused_axes
from research.parallel.mesh import describe

Tree = Any
Batch = dict[str, jax.Array]


class ModelConfig(Protocol):
    """What every model's config can do."""

    def build(self, specification: Specification, key: jax.Array) -> nnx.Module: ...


class TrainState(NamedTuple):
    """All that a step changes; a pytree of arrays that a checkpoint holds whole."""

    step: jax.Array  # [] int32, updates made so far
    parameters: Tree  # nested dict of float32
    buffers: Tree  # nested dict: what is not learned by gradients (BatchNorm's statistics)
    optimizer: Tree  # optax's state


class StepMetrics(NamedTuple):
    """Of one step, over the global batch."""

    loss: jax.Array  # [] float32, nats a target, before the update
    accuracy: jax.Array  # [] float32, share of targets
    gradient_norm: jax.Array  # [] float32, before clipping
    parameter_norm: jax.Array  # [] float32, after the update
    learning_rate: jax.Array  # [] float32


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
    ):
        self.mesh = mesh
        self.specification = specification
        self.microbatches = microbatches
        self._optimizer = optimizer
        self._learning_rate = learning_rate
        self._seed = seed

        def build(key: jax.Array) -> Any:
            return nnx.split(model.build(specification, key), nnx.Param, ...)

        self.graph, parameters, buffers = jax.eval_shape(build, jax.random.key(0))
        whole = NamedSharding(mesh, PartitionSpec())
        placed = parameter_shardings(parameters, mesh)
        unused = unused_axes(placed, mesh)
        if unused:
            names = " and ".join(f"`{axis}` = {mesh.shape[axis]}" for axis in unused)
            flags = " ".join(f"--mesh.{axis} 1" for axis in unused)
            raise UserError(
                f"mesh {describe(mesh)}: nothing of this model is split over {names}: "
                f"set {flags} and give those devices to another axis"
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

        def init() -> TrainState:
            key = jax.random.fold_in(jax.random.key(seed), 0)
            _, parameters, buffers = build(key)
            parameters = nnx.to_pure_dict(parameters)
            zero = jnp.zeros((), jnp.int32)
            return TrainState(
                zero, parameters, nnx.to_pure_dict(buffers), optimizer.init(parameters)
            )

        self.init: jax.stages.Wrapped = jax.jit(init, out_shardings=self.shardings)
        self.abstract_state: TrainState = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(init),
            self.shardings,
        )
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(self.shardings, whole))
        self.evaluate = jax.jit(self._evaluate, out_shardings=whole)

    def model(self, state: TrainState) -> Any:
        """The Flax module with the state's parameters."""
        return nnx.merge(self.graph, state.parameters, state.buffers)

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self._seed), 1), state.step)
        gradients, totals, buffers = self.gradients(state.parameters, state.buffers, batch, key)
        # Without the barriers XLA's CPU backend computes the update twice, for itself and its norm.
        gradients = jax.lax.optimization_barrier(gradients)
        updates, optimizer = self._optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        parameters = jax.lax.optimization_barrier(parameters)
        metrics = StepMetrics(
            loss=totals.loss / totals.targets,
            accuracy=totals.correct / totals.targets,
            gradient_norm=optax.tree.norm(gradients),
            parameter_norm=optax.tree.norm(parameters),
            learning_rate=jnp.asarray(self._learning_rate(state.step), jnp.float32),
        )
        return TrainState(state.step + 1, parameters, buffers, optimizer), metrics

    def gradients(
        self, parameters: Tree, buffers: Tree, batch: Batch, key: jax.Array
    ) -> tuple[Tree, Totals, Tree]:
        """Gradient of the mean loss over `batch` (a tree like `parameters`), the totals, and the
        buffers after the pass. With microbatches, the parts' sums are added up in a scan."""

        def loss(parameters: Tree, buffers: Tree, batch: Batch, key: jax.Array) -> Any:
            model = nnx.merge(self.graph, parameters, buffers)
            logits = model(batch["inputs"], train=True, key=key)
            totals = cross_entropy(logits, batch["targets"])
            after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
            return totals.loss, (totals, after)

        gradient_of_sum = jax.grad(loss, has_aux=True)
        if self.microbatches == 1:
            summed, (totals, buffers) = gradient_of_sum(parameters, buffers, batch, key)
        else:

            def accumulate(carry: Any, part: tuple[jax.Array, Batch]) -> tuple[Any, None]:
                summed, totals, buffers = carry
                index, rows = part
                more, (its_totals, buffers) = gradient_of_sum(
                    parameters, buffers, rows, jax.random.fold_in(key, index)
                )
                return (jax.tree.map(jnp.add, summed, more), totals.add(its_totals), buffers), None

            zeros = jax.tree.map(jnp.zeros_like, parameters)
            nothing = Totals(*(jnp.zeros((), jnp.float32) for _ in Totals._fields))
            parts = jnp.arange(self.microbatches), jax.tree.map(self._into_microbatches, batch)
            (summed, totals, buffers), _ = jax.lax.scan(
                accumulate, (zeros, nothing, buffers), parts
            )
        return jax.tree.map(lambda g: g / totals.targets, summed), totals, buffers

    def _into_microbatches(self, rows: jax.Array) -> jax.Array:
        # Row i goes to microbatch i mod m, so that every device cuts up its own rows and none
        # moves.
        m = self.microbatches
        cut = rows.reshape(rows.shape[0] // m, m, *rows.shape[1:])  # [batch/m, m, ...]
        return cut.swapaxes(0, 1)

    def _evaluate(self, state: TrainState, batch: Batch) -> Totals:
        logits = self.model(state)(batch["inputs"])
        return cross_entropy(logits, batch["targets"], batch["weights"])
