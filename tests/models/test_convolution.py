"""Convolutions are the same by patches, which are what a CPU computes inside of loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from research.models import CNNConfig, Specification
from research.models.convolution import as_products, convolve, patches

KEY = jax.random.key(0)
LAYOUT = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("side", [3, 4])
def test_products_of_patches_are_convolutions(padding, strides, side):
    """As XLA's own, and so are both gradients; sums of 36 or 48 float32 products."""
    x = jax.random.normal(KEY, (2, 7, 9, 3))
    kernel = jax.random.normal(jax.random.fold_in(KEY, 1), (side, side, 3, 5))

    def squares(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = convolve(x, kernel, strides, padding, **LAYOUT)
        return jnp.sum(y**2), y

    both = jax.value_and_grad(squares, (0, 1), has_aux=True)
    (_, y), gradients = both(x, kernel)
    with as_products():
        (_, same), same_gradients = both(x, kernel)
    np.testing.assert_allclose(same, y, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, same_gradients, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-3)


def test_patches_are_what_an_output_sees():
    x = jnp.arange(12.0).reshape(1, 3, 4, 1)
    seen = patches(x, (2, 2), "VALID")
    assert seen.shape == (1, 2, 3, 4)
    np.testing.assert_array_equal(seen[0, 1, 2], [6, 7, 10, 11])


def test_a_loop_on_a_cpu_has_none_of_the_slow_ones():
    """Read in the compiled programs: outside of loops they stay XLA's."""
    if jax.default_backend() != "cpu":
        pytest.skip("an accelerator computes convolutions in loops as it does outside of them")
    model = CNNConfig("lenet").build(Specification((8, 8, 1), 10), KEY)
    graph, state = nnx.split(model)
    x = jax.random.normal(KEY, (2, 8, 8, 1))

    def gradient(state, x):
        return jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(x)))(state)

    def looped(state, x):
        def step(i, total):
            return jax.tree.map(jnp.add, total, gradient(state, x))

        with as_products():
            return jax.lax.fori_loop(0, 3, step, jax.tree.map(jnp.zeros_like, state))

    def convolutions(function):
        text = jax.jit(function).lower(state, x).compile().as_text()
        return sum(" convolution(" in line or "__cpu$conv" in line for line in text.splitlines())

    assert convolutions(gradient) > 0
    assert convolutions(looped) == 0
