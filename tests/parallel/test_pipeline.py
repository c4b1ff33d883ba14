"""The pipeline as it runs: gradients by the chain rule, and no more kept than the table says."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.learning.pipelined import Pipelined
from research.models import Specification, TransformerConfig
from research.parallel import one_forward_one_backward
from research.parallel.mesh import MeshConfig
from research.parallel.pipeline import Gradients, Place, Staged, Sums, forward, on_stages
from research.parallel.schedules import PipelineConfig, Schedule

STAGES, MICROBATCHES = 4, 8
SCHEDULES = [PipelineConfig("gpipe"), PipelineConfig("interleaved", 2), PipelineConfig("1f1b")]


def scaling() -> Staged:
    """A model whose layers multiply by their weight, and whose loss is a weighted sum."""

    def run(layers: Any, x: jax.Array, batch: Any, first: jax.Array) -> tuple[jax.Array, Sums]:
        return x * jnp.prod(layers), Sums(jnp.zeros(()), jnp.float32(1))

    def leave(shared: Any, x: jax.Array, batch: Any, own: Any) -> Sums:
        loss = jnp.sum(x * own(batch["targets"])[..., None]) * shared
        return Sums(loss, loss)

    return Staged(lambda shared, batch: batch["inputs"][..., None] + 0.0, run, leave)


def gradients(staged: Staged, schedule: Schedule) -> tuple[Gradients, Any]:
    """Of one step with 8 layers, 2 sequences of 4 tokens a microbatch."""
    mesh = MeshConfig(stage=STAGES, data=1).build(jax.devices("cpu")[:STAGES])
    layers = jnp.linspace(0.9, 1.1, 8).reshape(schedule.rounds, -1)
    tokens = jnp.arange(1.0, 2 * MICROBATCHES * 4 + 1).reshape(2 * MICROBATCHES, 4)
    batch = {"inputs": tokens, "targets": jnp.cos(tokens)}

    def run(place: Place) -> tuple[Gradients, Any]:
        if schedule.name == "1f1b":
            return one_forward_one_backward.gradients(staged, place)

        def objective(layers: Any, shared: Any) -> Sums:
            return forward(staged, place._replace(layers=layers, shared=shared))

        made, report = jax.grad(objective, (0, 1), has_aux=True)(place.layers, place.shared)
        return Gradients(*made), report

    with jax.set_mesh(mesh):
        step = jax.jit(lambda: on_stages(run, schedule, layers, jnp.float32(2.0), batch))
        made: tuple[Gradients, Any] = step()
    return made


@pytest.mark.parametrize("config", SCHEDULES, ids=lambda config: config.schedule)
def test_gradients_are_those_of_the_chain_rule(config: PipelineConfig) -> None:
    schedule = config.build(STAGES, MICROBATCHES)
    made, (units, losses) = gradients(scaling(), schedule)
    weights = np.linspace(0.9, 1.1, 8)
    tokens = np.arange(1.0, 2 * MICROBATCHES * 4 + 1)
    plain = np.sum(tokens * np.cos(tokens))
    expected = 2 * plain * np.prod(weights) / weights
    np.testing.assert_allclose(np.ravel(made.layers), expected, rtol=1e-5)
    np.testing.assert_allclose(made.shared, plain * np.prod(weights), rtol=1e-5)
    np.testing.assert_allclose(losses, 2 * plain * np.prod(weights), rtol=1e-5)
    assert units == schedule.units * STAGES  # idle stages report nothing


def temporary_bytes(config: PipelineConfig, microbatches: int) -> int:
    """What the compiled gradients of a transformer take beside their arguments, on one device."""
    from flax import nnx

    mesh = MeshConfig(stage=STAGES, data=1).build(jax.devices("cpu")[:STAGES])
    model = TransformerConfig(layers=4, width=32, heads=4)
    specification = Specification((64,), 65)
    split = jax.eval_shape(
        lambda key: nnx.split(model.build(specification, key), nnx.Param), jax.random.key(0)
    )
    pipelined = Pipelined(split[0], config, mesh, microbatches, 64)
    rows = jax.ShapeDtypeStruct((2 * microbatches, 64), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2 * microbatches))
    batch = {"inputs": rows, "targets": rows, "keys": keys}
    with jax.set_mesh(mesh):
        step = jax.jit(lambda p, batch: pipelined.gradients(p, {}, batch))
        compiled = step.lower(nnx.to_pure_dict(split[1]), batch).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def test_1f1b_memory_is_flat_in_the_number_of_microbatches_and_gpipes_grows() -> None:
    flat = [temporary_bytes(PipelineConfig("1f1b"), m) for m in (8, 64)]
    grown = [temporary_bytes(PipelineConfig("gpipe"), m) for m in (8, 64)]
    activation = 2 * 64 * 32 * 4  # bytes of one microbatch between two stages
    # Tokens and tables of ticks grow, activations do not: 56 more microbatches are not one more.
    assert flat[1] - flat[0] < activation * 8
    assert grown[1] - grown[0] > 56 * activation
    assert flat[0] < grown[0]
