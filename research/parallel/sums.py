"""What can be summed over devices inside a `shard_map`.

XLA's CPU backend has no all-reduce of bfloat16: it widens it to float32, and inside a `shard_map`
over some of the mesh's axes it ends the process instead. So there it is widened here.
"""

import jax
import jax.numpy as jnp

from research.parallel.mesh import platform


def summable(array: jax.Array) -> jax.Array:
    """`array` in a type whose sums over devices every backend can take."""
    if array.dtype == jnp.bfloat16 and platform() == "cpu":
        return array.astype(jnp.float32)
    return array
