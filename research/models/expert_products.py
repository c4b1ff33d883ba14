"""Products of rows and the weights of the expert that each belongs to.

`batched` has as many rows for every expert, `grouped` as many as there are. An accelerator has a
kernel for either (`jax.lax.ragged_dot` is the one for groups, as in MegaBlocks, Gale et al. 2022,
arXiv:2211.15841). XLA's CPU backend has none for groups: it multiplies all rows by all experts and
masks, which takes four times as long for 8 experts as what is done here instead: groups are padded
to blocks of `BLOCK` rows, and the blocks that hold any are multiplied one after another.
"""

import jax
import jax.numpy as jnp

from research.parallel.mesh import platform

BLOCK = 64
"""Rows of a block on a CPU: enough for a fast product, few enough to waste little on padding."""


def block_rows() -> int:
    """Of what number the sizes of groups have to be multiples, for `grouped`."""
    return BLOCK if platform() == "cpu" else 1


def batched(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """`rows` [expert, batch, n, in] by `weights` [expert, in, out]: [expert, batch, n, out]."""
    if platform() != "cpu":
        return jnp.einsum("ebni,eio->ebno", rows, weights)
    experts, batch, n, width = rows.shape
    # The rows of the batch and of the experts as one: half the time of the gradient there.
    return (rows.reshape(experts, batch * n, width) @ weights).reshape(experts, batch, n, -1)


def grouped(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """`rows` [n, in], of which the first `sizes[0]` belong to expert 0 and so on, by `weights`
    [expert, in, out]: [n, out]. Rows after the last group give zeros.

    Every size is a multiple of `block_rows()`.
    """
    if platform() != "cpu":
        return jax.lax.ragged_dot(rows, weights, sizes)
    return _grouped(rows, weights, sizes)


@jax.custom_vjp
def _grouped(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    ends = jnp.cumsum(sizes)

    def multiply(number: jax.Array, made: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(rows, number * BLOCK, BLOCK)
        product = block @ weights[_expert_of(number, ends)]
        return jax.lax.dynamic_update_slice_in_dim(made, product, number * BLOCK, 0)

    zeros = jnp.zeros((rows.shape[0], weights.shape[-1]), rows.dtype)
    return jax.lax.fori_loop(0, ends[-1] // BLOCK, multiply, zeros)


def _grouped_forward(
    rows: jax.Array, weights: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _grouped(rows, weights, sizes), (rows, weights, sizes)


def _grouped_backward(
    saved: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    rows, weights, sizes = saved
    ends = jnp.cumsum(sizes)

    def add(number: jax.Array, carry: jax.Array) -> jax.Array:
        block = jax.lax.dynamic_slice_in_dim(rows, number * BLOCK, BLOCK)
        its = jax.lax.dynamic_slice_in_dim(gradient, number * BLOCK, BLOCK)
        expert = _expert_of(number, ends)
        more = carry[expert] + jax.lax.optimization_barrier(block.T) @ its
        return jax.lax.dynamic_update_index_in_dim(carry, more, expert, 0)

    of_weights = jax.lax.fori_loop(0, ends[-1] // BLOCK, add, jnp.zeros_like(weights))
    return _grouped(gradient, weights.swapaxes(1, 2), sizes), of_weights, None


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _expert_of(block: jax.Array, ends: jax.Array) -> jax.Array:
    """Whose rows the block of that number holds."""
    return jnp.sum(block * BLOCK >= ends)
