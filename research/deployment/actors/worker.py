"""What a worker makes of a lease: a gradient, or H steps of its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from research.deployment.actors.leases import Lease
from research.deployment.actors.methods import Pushed
from research.learning.asynchronous import Asynchronous, LocalWorkers
from research.learning.gradients import Batch, Tree
from research.learning.synchronous import StepMetrics


class Worker:
    """Computes pushes on its own mesh, by the functions of a `learner`; `batch(step)` are the rows
    of a step on the devices. `jax.set_mesh(learner.mesh)` is expected to be in force."""

    def __init__(self, learner: Asynchronous | LocalWorkers, batch: Callable[[int], Batch]):
        self._learner, self._batch = learner, batch
        self._local = isinstance(learner, LocalWorkers)
        placed = learner.one.shardings
        after: Any = placed.parameters, placed.buffers, None
        if self._local:
            self._optimizer = learner.one.init().optimizer
            after = placed.parameters, placed.buffers, placed.optimizer, None
        function = self._of_step if self._local else self._of_gradient
        donated = (2,) if self._local else ()
        self._compiled = jax.jit(function, donate_argnums=donated, out_shardings=after)

    def compile(self) -> None:
        """Compiles, so that no lease has to wait for it; what is computed for that is dropped."""
        state = self._learner.one.init()
        arguments = [state.parameters, state.buffers, self._batch(0), jnp.int32(0)]
        if self._local:
            arguments.insert(2, state.optimizer)
        jax.block_until_ready(self._compiled(*arguments))

    def work(self, lease: Lease) -> Pushed:
        """What is to be pushed."""
        turn = self._steps if self._local else self._gradient
        update, buffers, measured = turn(lease)
        numbers = jax.device_get(measured)
        mean = {name: float(sum(n[name] for n in numbers) / len(numbers)) for name in numbers[0]}
        return Pushed(update, buffers, mean)

    def _gradient(self, lease: Lease) -> tuple[Tree, Tree, list[StepMetrics]]:
        [step] = lease.steps
        gradient, buffers, metrics = self._compiled(
            lease.parameters, lease.buffers, self._batch(step), jnp.int32(step)
        )
        return gradient, buffers, [metrics]

    def _steps(self, lease: Lease) -> tuple[Tree, Tree, list[StepMetrics]]:
        parameters, buffers, measured = lease.parameters, lease.buffers, []
        for step in lease.steps:
            parameters, buffers, self._optimizer, metrics = self._compiled(
                parameters, buffers, self._optimizer, self._batch(step), jnp.int32(step)
            )
            measured.append(metrics)
        return parameters, buffers, measured

    def _of_gradient(
        self, parameters: Tree, buffers: Tree, batch: Batch, step: jax.Array
    ) -> tuple[Tree, Tree, StepMetrics]:
        one = self._learner.one
        gradients, sums, buffers = one.gradients(parameters, buffers, batch, one.key(step))
        gradients = jax.lax.optimization_barrier(gradients)
        norm = optax.tree.norm(gradients)
        return gradients, buffers, one.metrics(step, sums, norm, jnp.float32(0))

    def _of_step(
        self, parameters: Tree, buffers: Tree, optimizer: Tree, batch: Batch, step: jax.Array
    ) -> tuple[Tree, Tree, Any, StepMetrics]:
        learner = self._learner
        assert isinstance(learner, LocalWorkers)
        parameters, buffers, optimizer, sums, norm = learner.own_step(
            parameters, buffers, optimizer, batch, step
        )
        metrics = learner.one.metrics(step, sums, norm, jnp.float32(0))
        return parameters, buffers, optimizer, metrics
