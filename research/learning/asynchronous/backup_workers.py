"""Synchronous learning that does not wait for the slowest.

Chen et al. 2016, *Revisiting Distributed Synchronous SGD*, arXiv:1604.00981: of n + b workers, each
with its part of the batch and all with the same parameters, the first n gradients that arrive make
the step, and the others are dropped:

    w_t+1 = w_t + update(1/n · Σ_k g_k)        over the n workers k that were first

Here late rows count nothing in the loss, so that the gradient is the mean over the targets of the
others: with equal parts, the average of their gradients. (A mixture's penalties and BatchNorm's
statistics still see them.) Late workers give up and begin anew with the rest.
With B bytes of parameters the server gets n·B a step and sends (n + b)·B.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from research.learning.asynchronous.virtual_time import Rounds
from research.learning.gradients import Batch
from research.learning.synchronous import StepMetrics, Synchronous, TrainState
from research.parallel.layout import constrain


class BackupWorkers:
    """`Synchronous` learning by the workers that are in time; the interface is the same.

    Rows of a batch that follow one another are a worker's; their number divides the batch.
    """

    def __init__(self, one: Synchronous, rounds: Rounds):
        self.one = one
        self.mesh = one.mesh
        self.specification = one.specification
        self.graph = one.graph
        self.rounds = rounds
        self.shardings, self.abstract_state = one.shardings, one.abstract_state
        self.init, self.evaluate = one.init, one.evaluate
        self.model, self.parameters, self.in_rounds = one.model, one.parameters, one.in_rounds
        self.complaint = one.complaint
        self.with_parameters = one.with_parameters
        whole = NamedSharding(one.mesh, PartitionSpec())
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(one.shardings, whole))

    def events(self, step: int) -> dict[str, np.ndarray]:
        """Whose gradients are in time, in the step after `step` updates."""
        return {"arrived": self.rounds.arrived(step).astype(np.float32)}

    def observe(self, step: int, state: TrainState) -> dict[str, Any]:
        """After `step` updates: `virtual_seconds`, `bytes_sent` by workers and server together in a
        step, and `bytes_sent_total`."""
        each = (self.rounds.needed + self.rounds.workers) * self.one.size
        return {
            "virtual_seconds": self.rounds.seconds(step),
            "bytes_sent": each,
            "bytes_sent_total": step * each,
        }

    def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        batch = dict(batch)
        arrived = batch.pop("arrived")  # [workers]
        each = len(batch["targets"]) // self.rounds.workers
        weights = constrain(jnp.repeat(arrived, each), "batch")
        return self.one.updated(state, batch | {"weights": weights})
