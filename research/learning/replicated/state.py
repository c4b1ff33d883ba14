"""The state of replicas that differ: that of one model, with an axis [replicas] in front."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.exchange.replicas import DEVICE
from research.learning.synchronous import TrainState
from research.parallel.layout import names_of

Tree = Any


class Replica(NamedTuple):
    """What a replica has for itself; in a state every array is [replicas, ...]."""

    parameters: Tree
    buffers: Tree
    optimizer: Tree
    exchange: Tree  # the rule's state
    dropped: jax.Array  # [] int32: steps in which it was left out


class ReplicatedState(NamedTuple):
    """All that a step changes."""

    step: jax.Array  # [] int32, the same for all
    replicas: Replica

    @property
    def parameters(self) -> Tree:
        """[replicas, ...] each."""
        return self.replicas.parameters

    @property
    def optimizer(self) -> Tree:
        """[replicas, ...] each."""
        return self.replicas.optimizer


def consensus_distance(parameters: Tree) -> jax.Array:
    """√(1/n · Σ_r ‖w_r - w̄‖²) of `parameters` [replicas, ...]: how far the replicas are apart."""
    apart = jax.tree.map(lambda leaf: leaf - jnp.mean(leaf, axis=0, keepdims=True), parameters)
    count = jax.tree.leaves(parameters)[0].shape[0]
    return optax.tree.norm(apart) / jnp.sqrt(count)


def in_front(sharding: NamedSharding) -> NamedSharding:
    """How [replicas, ...] lies where one replica's lies by `sharding`."""
    return NamedSharding(sharding.mesh, P(DEVICE, *sharding.spec))


def like_parameters(state: Tree, parameters: Tree, placed: TrainState) -> Tree:
    """Shardings of a rule's `state`: an array that stands for a parameter, or for some of its
    layers, by the end of its path and its shape, lies as that does."""
    known = {
        path: (leaf.shape, in_front(sharding))
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(parameters),
            jax.tree.leaves(placed.parameters),
            strict=True,
        )
    }
    whole = NamedSharding(jax.tree.leaves(placed.step)[0].mesh, P(DEVICE))

    def lies(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], ((), whole))
            if leaf.shape == shape or _is_of_layers(leaf.shape, shape, sharding):
                return sharding
        return whole

    return jax.tree_util.tree_map_with_path(lies, state)


def _is_of_layers(shape: tuple[int, ...], whole: tuple[int, ...], sharding: NamedSharding) -> bool:
    """Whether [replicas, some layers, ...] is like [replicas, layers, ...] and can lie so."""
    if len(shape) != len(whole) or shape[:1] + shape[2:] != whole[:1] + whole[2:]:
        return False
    entry = sharding.spec[1] if len(sharding.spec) > 1 else None
    return shape[1] % math.prod(sharding.mesh.shape[axis] for axis in names_of(entry)) == 0
