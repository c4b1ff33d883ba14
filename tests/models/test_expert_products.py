"""Products of groups of rows, each by the weights of its expert."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.expert_products import BLOCK, _grouped, batched

IN, OUT = 12, 20


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("blocks", [[1] * 4, [3, 0, 2, 1], [0, 0, 5, 0], [0] * 4], ids=str)
def test_blocks_one_by_one_are_a_ragged_product(blocks: list[int]) -> None:
    """Also with empty groups, and rows after the last, which give zeros."""
    sizes = jnp.array(blocks, jnp.int32) * BLOCK
    rows, weights = random(7 * BLOCK, IN), random(len(blocks), IN, OUT, seed=1)

    def with_gradients(product: Any) -> Any:
        made, back = jax.vjp(lambda rows, weights: product(rows, weights, sizes), rows, weights)
        return made, back(random(*made.shape, seed=2))

    made, gradients = with_gradients(_grouped)
    expected, expected_gradients = with_gradients(jax.lax.ragged_dot)
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)
    assert not np.asarray(made[sum(blocks) * BLOCK :]).any()
    for leaf, other in zip(gradients, expected_gradients, strict=True):
        # Sums of up to 320 products of order one, in blocks of 64.
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-4)


def test_batched_is_a_product_an_expert() -> None:
    rows, weights = random(3, 2, 5, IN), random(3, IN, OUT, seed=1)
    made = batched(rows, weights)
    for expert in range(3):
        np.testing.assert_allclose(made[expert], rows[expert] @ weights[expert], atol=1e-5)
