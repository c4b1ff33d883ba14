"""The codec of `fixed_point` inside a compiled program, where replicas stand for clients.

A compiled program cannot refuse, so it counts: `encode` returns how many values had no place in the
ring, which enter as 0, and whoever runs the program has to look (`check_faults`). The sum is
that of uint32, which is associative: it has the same bits as the protocol's, however replicas lie
on devices. What crosses the wire: an all-reduce of uint32, as many bytes as of float32.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.exchange.replicas import Replicas
from research.exchange.secure_aggregation.errors import OutOfRange
from research.exchange.secure_aggregation.fixed_point import FixedPoint


def encode(codec: FixedPoint, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Float32 [...] as uint32 [...], and how many are not finite or beyond the limit, int32 []."""
    fits = jnp.abs(values) <= codec.bound  # NaN does not
    steps = jnp.rint(jnp.where(fits, values, 0) * jnp.float32(codec.scale))
    integers = jax.lax.bitcast_convert_type(steps.astype(jnp.int32), jnp.uint32)
    return integers, jnp.sum(~fits, dtype=jnp.int32)


def decode(codec: FixedPoint, total: jax.Array) -> jax.Array:
    """Uint32 [...] as float32 [...]: the nearest to what `FixedPoint.decode` says."""
    signed = jax.lax.bitcast_convert_type(total, jnp.int32)
    return signed.astype(jnp.float32) * jnp.float32(1 / codec.scale)


def ring_sum(
    replicas: Replicas,
    integers: jax.Array,
    alive: jax.Array | None = None,
    spec: PartitionSpec | None = None,
) -> jax.Array:
    """The sum modulo 2^32 over all replicas, or over the `alive` ([] bool of this one)."""
    return replicas.sum(integers if alive is None else jnp.where(alive, integers, 0), spec)


def check_faults(codec: FixedPoint, faults: int) -> None:
    """Raises OutOfRange where `encode` counted any."""
    if faults:
        raise OutOfRange(
            f"{faults} values were not finite or beyond ±{codec.limit:g}, and were left out of a "
            "sum: clip them before, or raise the limit"
        )
