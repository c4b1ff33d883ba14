"""What the tests of exchanges share: 8 replicas, on as many devices as is asked for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from research.exchange import Replicas
from research.exchange.replicas import DEVICE, SEAT
from research.parallel.mesh import MeshConfig


def _seen(function: Callable[..., Any], replicas: Replicas, *stacked: Any) -> Any:
    """`function(number, *parts)` of all 8 replicas, on as many devices as `replicas` has."""
    mesh = MeshConfig(replica=replicas.devices).build(jax.devices()[: replicas.devices])

    def device(numbers: jax.Array, *parts: Any) -> Any:
        if replicas.seats == 1:
            one = function(*jax.tree.map(lambda leaf: leaf[0], (numbers, *parts)))
            return jax.tree.map(lambda leaf: leaf[None], one)
        return jax.vmap(function, axis_name=SEAT)(numbers, *parts)

    with jax.set_mesh(mesh):
        run = jax.shard_map(
            device,
            in_specs=P(DEVICE),
            out_specs=P(DEVICE),
            axis_names={DEVICE},
            check_vma=False,
        )
        return jax.device_get(jax.jit(run)(jnp.arange(replicas.count), *stacked))


@pytest.fixture
def seen() -> Callable[..., Any]:
    """`seen(function, replicas, *stacked)`: what `function(number, *parts)` returns at every
    replica, stacked."""
    return _seen
