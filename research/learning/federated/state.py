"""What a federation keeps from round to round, and how it lies on the mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.learning.gradients import Tree
from research.learning.replicated.state import in_front
from research.learning.synchronous import TrainState


class FederatedState(NamedTuple):
    """All that a round changes."""

    step: jax.Array  # [] int32, rounds made so far
    parameters: Tree  # the server's; [clusters, ...] if it has several models
    buffers: Tree  # the server's
    optimizer: Tree  # the server's
    shared: Tree  # what else it sends
    clients: Tree  # [population, ...]: what every client keeps; over `replica` if that divides it
    dropped: jax.Array  # [] int32: clients that were left out of a round, in all rounds
    stages: Tree  # what the stages of the aggregation keep, by their names


class Population(NamedTuple):
    """Who there is, and how many of them a round has."""

    clients: int
    cohort: int
    minimum: int = 1  # a round with fewer survivors is none


def shardings(
    shapes: FederatedState,
    placed: TrainState,
    server: optax.GradientTransformation,
    several: bool,
    divides: bool,
) -> Any:
    """Of a state of those `shapes`, where one model lies as `placed`; the server has `several`, and
    `replica` `divides` the population, or does not."""
    mesh = jax.tree.leaves(placed)[0].mesh
    whole = NamedSharding(mesh, P())
    one = placed.parameters
    servers = jax.tree.map(_whole_in_front, one) if several else one
    return FederatedState(
        step=whole,  # type: ignore[arg-type]
        parameters=servers,
        buffers=placed.buffers,
        optimizer=optax.tree.map_params(
            server,
            lambda _, sharding: sharding,
            shapes.optimizer,
            servers,
            transform_non_params=lambda _: whole,
        ),
        shared=_lies(shapes.shared, one),
        clients=_lies(shapes.clients, one, in_front if divides else _whole_in_front),
        dropped=whole,  # type: ignore[arg-type]
        stages=_like_updates(shapes.stages, one, whole),
    )


def _lies(
    tree: Tree, placed: Tree, change: Callable[[Any], Any] = lambda sharding: sharding
) -> Tree:
    """Of a `tree` like the parameters, or like a part of them; what is not lies whole."""
    known = dict(jax.tree_util.tree_leaves_with_path(placed))
    whole = NamedSharding(jax.tree.leaves(placed)[0].mesh, P())
    return jax.tree_util.tree_map_with_path(
        lambda path, _: change(known[path]) if path in known else whole, tree
    )


def _like_updates(tree: Tree, placed: Tree, whole: NamedSharding) -> Tree:
    """Of what stages keep by name: updates, of which each part lies like the parameters; or what
    is whole everywhere."""
    known = dict(jax.tree_util.tree_leaves_with_path(placed))
    return jax.tree_util.tree_map_with_path(lambda path, _: known.get(path[2:], whole), tree)


def _whole_in_front(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, P(None, *sharding.spec))
