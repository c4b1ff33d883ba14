"""Rows of a split table: as from a whole one, with the messages of Megatron's embedding."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from research.parallel.layout import constrain
from research.parallel.lookup import take_rows
from research.parallel.mesh import MeshConfig

MESHES = [
    MeshConfig(data=8),
    MeshConfig(data=2, tensor=4),
    MeshConfig(data=1, fsdp=4, tensor=2),
    MeshConfig(data=2, context=2, tensor=2),
]
WEIGHTS = np.random.default_rng(1).normal(size=(8, 12, 16)).astype(np.float32)


def gradient(manual: frozenset[str]) -> Any:
    """A function of (table, indexes): what is looked up, and the gradient of the table."""

    def both(table: jax.Array, indexes: jax.Array, weights: jax.Array) -> tuple[Any, Any]:
        def loss(table: jax.Array) -> tuple[jax.Array, jax.Array]:
            found = constrain(take_rows(table, indexes), "batch", "sequence", None)
            return jnp.sum(found * weights), found

        of_table, found = jax.grad(loss, has_aux=True)(constrain(table, "vocab", None))
        for axis in manual:
            of_table = jax.lax.psum(of_table, axis)
        return found, of_table

    if not manual:
        return both
    split = P(*manual)
    return jax.shard_map(
        both,
        in_specs=(P(), split, split),
        out_specs=(split, P()),
        axis_names=manual,
        check_vma=False,
    )


@pytest.mark.parametrize("mesh_config", MESHES, ids=lambda mesh: str(mesh)[11:-1])
@pytest.mark.parametrize("vocabulary", [40, 37], ids=["divides", "does-not"])
@pytest.mark.parametrize("manual", [frozenset(), frozenset({"data"})], ids=["automatic", "manual"])
def test_rows_and_gradients_are_those_of_a_whole_table(mesh_config, vocabulary, manual):
    generator = np.random.default_rng(0)
    table = generator.normal(size=(vocabulary, 16)).astype(np.float32)
    indexes = generator.integers(vocabulary, size=(8, 12), dtype=np.int32)
    expected = np.zeros_like(table)
    np.add.at(expected, indexes, WEIGHTS)
    mesh = mesh_config.build(jax.devices("cpu"))
    if any(mesh.shape[axis] == 1 for axis in manual):
        pytest.skip("nothing is split over the manual axis")
    with jax.set_mesh(mesh):
        step = jax.jit(gradient(manual))
        found, of_table = step(table, indexes, WEIGHTS)
        text = step.lower(table, indexes, WEIGHTS).compile().as_text()
    np.testing.assert_array_equal(found, table[indexes])
    np.testing.assert_allclose(of_table, expected, rtol=1e-5, atol=1e-5)
    assert not re.findall(r"f32\S* all-gather\(", text)  # nobody is sent another's activations


def test_without_a_mesh_it_is_a_plain_lookup():
    table = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(take_rows(table, np.array([[1, 3]])), table[[[1, 3]]])
