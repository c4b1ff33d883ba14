"""The exchange of unequal sizes, which accelerators have and XLA's CPU backend has not."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.models import TransformerConfig, dropless
from research.models.mixture import Mixture
from research.parallel.mesh import MeshConfig

CONFIG = TransformerConfig(
    width=32, heads=4, hidden=40, experts=8, activation="swiglu", initial_deviation=0.2
)
MESHES = [
    MeshConfig(data=2, expert=4),
    MeshConfig(data=1, expert=2, fsdp=2, tensor=2),
    MeshConfig(data=1, expert=4, tensor=2),
]


def ragged_all_to_all(
    operand: jax.Array,
    output: jax.Array,
    input_offsets: jax.Array,
    send_sizes: jax.Array,
    output_offsets: jax.Array,
    recv_sizes: jax.Array,
    *,
    axis_name: str,
) -> jax.Array:
    """As the documentation of `jax.lax.ragged_all_to_all` has it: from every device s the rows of
    its operand that begin at its `input_offsets[me]`, to where its `output_offsets[me]` says."""
    me = jax.lax.axis_index(axis_name)
    everyones = [
        jax.lax.all_gather(each, axis_name)
        for each in (operand, input_offsets, send_sizes, output_offsets)
    ]
    place = jnp.arange(len(output))
    for operand, begin, size, to in zip(*everyones, strict=True):
        number = place - to[me]
        rows = operand[jnp.clip(begin[me] + number, 0, len(operand) - 1)]
        output = jnp.where(((number >= 0) & (number < size[me]))[:, None], rows, output)
    agreed = jnp.all(everyones[2][:, me] == recv_sizes)
    return jnp.where(agreed, output, jnp.nan)


def gradients() -> tuple[Any, ...]:
    """A function of weights and tokens to the mixture's value and gradients; and arguments."""
    graph, state = nnx.split(Mixture(CONFIG, nnx.Rngs(0)))

    def value(weights: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(nnx.merge(graph, weights)(x, True)[0] ** 2)

    x = jax.random.normal(jax.random.key(1), (8, 16, CONFIG.width))
    return jax.value_and_grad(value, (0, 1)), nnx.to_pure_dict(state), x


@pytest.fixture
def unequal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The exchange of accelerators, on a CPU; nothing traced of it is kept."""
    jax.clear_caches()
    monkeypatch.setattr(dropless, "_padded", dropless._ragged)
    monkeypatch.setattr(jax.lax, "ragged_all_to_all", ragged_all_to_all)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_rows_of_unequal_numbers_come_where_equal_ones_would(
    mesh: MeshConfig, unequal: None
) -> None:
    function, *arguments = gradients()
    expected = jax.jit(function)(*arguments)
    with jax.set_mesh(mesh.build(jax.devices("cpu"))):
        made = jax.jit(function)(*jax.device_get(arguments))
    for leaf, other in zip(*map(jax.tree.leaves, (made, expected)), strict=True):
        largest = float(np.abs(other).max())  # of sums in another order
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_on_a_gpu_only_the_rows_that_are_chosen_are_sent(mesh: MeshConfig) -> None:
    function, *arguments = gradients()
    with jax.set_mesh(mesh.build(jax.devices("cpu"))):
        traced = jax.jit(function).trace(*arguments)
    for platform, ragged, equal in [("cuda", 4, 1), ("cpu", 0, 5)]:
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert program.count("@ragged_all_to_all(") == ragged
        assert program.count('"stablehlo.all_to_all"(') == equal
