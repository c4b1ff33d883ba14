"""A training step, as what theory needs to know of it: sizes, and how often each part runs."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from research.learning import (
    Asynchronous,
    BackupWorkers,
    BatchEnsemble,
    Ensemble,
    Federated,
    Learner,
    LocalWorkers,
    Replicated,
    Snapshots,
    Synchronous,
)
from research.models.model import LAYERS
from research.parallel.layout import LAYOUT, axes_of_spec
from research.parallel.schedules import PipelineConfig


def bytes_on_a_device(tree: Any) -> int:
    """Of all arrays of a `tree`, by their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@dataclass(frozen=True)
class Step:
    """What the formulas are about."""

    learner: Synchronous
    model: Any
    batch: int  # rows of a replica or member, over all devices
    pipeline: PipelineConfig
    platform: str
    replicas: Replicated | Ensemble | BatchEnsemble | None = None
    """Around the learner, where there are several; all else here is about one of them."""
    server: Asynchronous | LocalWorkers | BackupWorkers | Snapshots | None = None
    """Around the learner, where there is one."""
    clients: Federated | None = None
    """Around the learner, where they keep their data; all else here is about one of their steps."""

    @classmethod
    def of(
        cls,
        learner: Learner,
        model: Any,
        batch: int,
        pipeline: PipelineConfig,
    ) -> "Step":
        """That of a learner, for `batch` rows over all devices, or of a client or member."""
        platform = learner.mesh.devices.flat[0].platform
        if isinstance(learner, Replicated):
            rows = batch // learner.replicas.count
            return cls(learner.one, model, rows, pipeline, platform, replicas=learner)
        if isinstance(learner, Ensemble | BatchEnsemble):
            return cls(learner.one, model, batch, pipeline, platform, replicas=learner)
        if isinstance(learner, Asynchronous | LocalWorkers | BackupWorkers | Snapshots):
            return cls(learner.one, model, batch, pipeline, platform, server=learner)
        if isinstance(learner, Federated):
            return cls(learner.one, model, batch, pipeline, platform, clients=learner)
        assert isinstance(learner, Synchronous)
        return cls(learner, model, batch, pipeline, platform)

    @property
    def state(self) -> Any:
        """The abstract state, of all replicas, or of a server and its workers or clients."""
        if self.clients is not None:
            return self.clients.on_devices
        return (self.server or self.replicas or self.learner).abstract_state

    @property
    def mesh(self) -> dict[str, int]:
        return dict(self.learner.mesh.shape)

    def among(self, *axes: str) -> tuple[str, ...]:
        """Those of `axes` that have more than one device."""
        return tuple(axis for axis in axes if self.mesh[axis] > 1)

    @property
    def axes_of_batch(self) -> tuple[str, ...]:
        """Those that split the rows: not `replica`, where each replica has rows of its own."""
        axes = LAYOUT["batch"].mesh_axes
        return tuple(axis for axis in axes if self.replicas is None or axis != "replica")

    @property
    def microbatches(self) -> int:
        return self.learner.microbatches

    @property
    def tokens(self) -> int:
        """Of a microbatch on one device."""
        mesh, (sequence,) = self.mesh, self.learner.specification.shape
        parts = self.microbatches * math.prod(mesh[axis] for axis in self.axes_of_batch)
        return self.batch // parts * sequence // mesh["context"]

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the computation on the wire."""
        return 4 if self.platform == "cpu" else jnp.dtype(self.model.dtype).itemsize

    @property
    def width(self) -> int:
        return int(self.model.width)

    @property
    def activation(self) -> int:
        """A, in bytes."""
        return self.tokens * self.width * self.itemsize

    @property
    def is_looped(self) -> bool:
        """Whether gradients are added up in a loop, for one part of `data` at a time."""
        return self.microbatches > 1 or self.mesh["stage"] > 1

    @property
    def recomputes(self) -> bool:
        """Whether the backward pass of a layer begins with its forward pass."""
        return bool(self.model.remat == "full")

    def is_split(self, name: str, axis: str = "tensor") -> bool:
        """Whether the layers' parameter `name`, such as `attention/query`, lies over `axis`."""
        leaf = self.learner.abstract_state.parameters[LAYERS]
        for key in name.split("/"):
            leaf = leaf[key]
        leaf = leaf["kernel"] if isinstance(leaf, dict) else leaf
        return axis in axes_of_spec(leaf.sharding.spec)


@dataclass(frozen=True)
class Passes:
    """How often a device runs parts of the model in a step."""

    forward: int  # a layer
    backward: int  # a layer
    gathers: int  # how often parameters of a layer are made whole
    here: int  # layers on a device
    embeds: int  # the embedding, forward
    embeds_back: int
    gathers_of_ends: int  # how often what is no layer's parameter is made whole
    gathers_of_head: int  # how often what makes the logits; once less where it is looked up, too
    ticks: int = 0  # in which stages send activations on
    ticks_back: int = 0  # in which they send their gradients back


def passes_of(step: Step) -> Passes:
    """How often a device runs what in `step`, by the loops over microbatches and ticks."""
    stages, count = step.mesh["stage"], step.microbatches
    layers = getattr(step.model, "layers", 1)
    if stages == 1:
        times = count * layers
        return Passes(times, times, 2 * times, layers, count, count, 1, 1)  # outside of loops
    schedule = step.pipeline.build(stages, count)
    of_round = layers // (stages * schedule.rounds)
    there = sum(phase.last - phase.first for phase in schedule.phases if phase.forward)
    back = sum(phase.last - phase.first for phase in schedule.phases if phase.backward)
    # 1f1b runs a stage forward once more before it goes back.
    is_mixed = schedule.name == "1f1b"
    again = back if is_mixed else 0
    # What the very last tick sends back, nobody takes: XLA leaves it out where it is in no loop.
    last = schedule.phases[-1]
    sent_back = back - (last.last - last.first == 1)
    return Passes(
        (there + again) * of_round,
        back * of_round,
        (there + again + back) * of_round,
        of_round * schedule.rounds,
        there + again,
        back,
        len(schedule.phases) if is_mixed else 1,
        1 if is_mixed else 1 + count,
        there,
        sent_back,
    )
