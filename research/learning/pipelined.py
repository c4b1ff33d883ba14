"""The gradient of a batch through a pipeline: `stage` groups of layers, microbatches one by one.

Joins what `research.parallel.pipeline` knows (who does what when) with what a learner knows: that a
model embeds, runs its layers and reads, and what the loss is.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from research.configuration import multiples_near
from research.errors import UserError
from research.learning.gradients import Batch, Sums, Tree
from research.learning.objective import Totals, cross_entropy
from research.models.model import LAYERS
from research.parallel import one_forward_one_backward
from research.parallel.pipeline import Gradients, Own, Place, Staged, forward, on_stages
from research.parallel.pipeline import Sums as Part
from research.parallel.schedules import PipelineConfig


class Pipelined:
    """Passes of one model (an nnx graph) through the stages of a mesh."""

    def __init__(
        self, graph: Any, config: PipelineConfig, mesh: Mesh, microbatches: int, sequence: int
    ):
        """Raises UserError where stages do not fit the microbatches, or the `sequence` (tokens)."""
        stages = mesh.shape["stage"]
        _check_sequence(sequence, mesh)
        self._graph = graph
        self._schedule = config.build(stages, microbatches)
        self._there = config.forward(stages, microbatches)

    def gradients(self, parameters: Tree, buffers: Tree, batch: Batch) -> tuple[Tree, Sums]:
        """Gradient of the sum of losses and penalties over `batch`, a tree like `parameters`; and
        the sums."""
        staged = self._staged(parameters, buffers, train=True)

        def all_forward_first(place: Place) -> tuple[Gradients, Any]:
            def objective(layers: Tree, shared: Tree) -> Part:
                return forward(staged, place._replace(layers=layers, shared=shared))

            differentiate = jax.grad(objective, argnums=(0, 1), has_aux=True)
            gradients, report = differentiate(place.layers, place.shared)
            return Gradients(*gradients), report

        def one_by_one(place: Place) -> tuple[Gradients, Any]:
            return one_forward_one_backward.gradients(staged, place)

        run = one_by_one if self._schedule.name == "1f1b" else all_forward_first
        layers, shared = self._cut(parameters)
        gradients, (extras, totals) = on_stages(run, self._schedule, layers, shared, batch)
        return self._join(gradients), Sums(totals, extras)

    def totals(self, parameters: Tree, buffers: Tree, batch: Batch) -> Totals:
        """Totals over `batch`, without gradients or dropout: an evaluation."""
        staged = self._staged(parameters, buffers, train=False)
        layers, shared = self._cut(parameters)
        nothing = Gradients((), ())
        _, (_, totals) = on_stages(
            lambda place: (nothing, forward(staged, place).report),
            self._there,
            layers,
            shared,
            batch,
        )
        return totals

    def _staged(self, parameters: Tree, buffers: Tree, train: bool) -> Staged:
        # Every part needs some of the parameters only; the others have but a shape there.
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parameters)

        def model(some: Tree) -> Any:
            return nnx.merge(self._graph, shapes | some, buffers)

        def keys(batch: Batch) -> jax.Array | None:
            return batch["keys"] if train else None

        def enter(shared: Tree, batch: Batch) -> jax.Array:
            return model(shared).embed(batch["inputs"], keys(batch))

        def run(
            layers: Tree, x: jax.Array, batch: Batch, first: jax.Array
        ) -> tuple[jax.Array, Part]:
            x, extras = model({LAYERS: layers}).run(x, keys(batch), first)
            return x, Part(sum(extras.penalties.values(), jnp.zeros(())), extras)

        def leave(shared: Tree, x: jax.Array, batch: Batch, own: Own) -> Part:
            reader = model(shared)
            targets = own(reader.arrange(batch["targets"]))
            totals = cross_entropy(reader.read(x), targets, batch.get("weights"))
            return Part(totals.loss, totals)

        return Staged(enter, run, leave)

    def _cut(self, parameters: Tree) -> tuple[Tree, Tree]:
        """Layers [rounds, layers a round, ...] each, and what all stages have."""
        shared = dict(parameters)
        layers = shared.pop(LAYERS)
        if self._schedule.rounds == 1:
            layers = jax.tree.map(lambda leaf: leaf[None], layers)
        return layers, shared

    def _join(self, gradients: Gradients) -> Tree:
        layers, shared = gradients
        if self._schedule.rounds == 1:
            layers = jax.tree.map(lambda leaf: leaf[0], layers)
        return shared | {LAYERS: layers}


def _check_sequence(sequence: int, mesh: Mesh) -> None:
    stages, context = mesh.shape["stage"], mesh.shape["context"]
    if sequence % (stages * context):
        product = f"stage {stages}" + (f" × context {context}" if context > 1 else "")
        raise UserError(
            f"the loss of a sequence is shared by the stages, and {sequence} tokens do not divide "
            f"over {product} = {stages * context}: use --data.context "
            f"{multiples_near(sequence, stages * context)}"
        )


def into_rounds(parameters: Tree, rounds: int, stages: int) -> Tree:
    """Layers [layers, ...] as [rounds, layers a round, ...]: the same order, so that a stage can
    hold its part of every round. Raises UserError where they do not divide."""
    if rounds == 1:
        return parameters
    parts = stages * rounds

    def cut(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if path[0].key != LAYERS:
            return leaf
        layers = leaf.shape[0]
        if layers % parts:
            raise UserError(
                f"layers {layers} do not divide over stage {stages} × {rounds} rounds = {parts}: "
                f"use --model.layers {multiples_near(layers, parts)}, or another --pipeline.rounds"
            )
        return leaf.reshape(rounds, leaf.shape[0] // rounds, *leaf.shape[1:])

    return jax.tree_util.tree_map_with_path(cut, parameters)


def out_of_rounds(parameters: Tree, rounds: int) -> Tree:
    """The opposite of `into_rounds`, for a nested dict."""
    if rounds == 1:
        return parameters
    layers = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), parameters[LAYERS])
    return parameters | {LAYERS: layers}
