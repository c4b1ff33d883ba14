"""Parameters cut into fragments by layers, as cards are dealt: layer i goes to fragment i mod P.

The strided pattern of Douillard et al. 2025, arXiv:2501.18512, in which every fragment has layers
from all depths. Layers are those that a model has stacked, and what is no layer's (a table
of tokens, the last norm) goes with the last fragment; a model that stacks none has a layer for each
module that holds arrays, in the order of their names.

An array that is split over `stage` is cut on every stage alike, so no layer ever leaves its stage.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from research.errors import UserError
from research.models.model import LAYERS

Tree = Any
Path = tuple[Any, ...]


def check(parameters: Tree, count: int) -> None:
    """Raises UserError where `parameters`, abstract or not, do not make `count` fragments."""
    if count == 1:
        return
    leaves = jax.tree_util.tree_leaves_with_path(parameters)
    stacked = [leaf for path, leaf in leaves if _is_stacked(path)]
    layers = stacked[0].shape[0] if stacked else len(_modules(parameters))
    if count > layers:
        raise UserError(
            f"--exchange.fragments {count} are more than the {layers} layers of this model: use "
            f"--exchange.fragments {layers} or fewer"
        )
    for leaf in stacked:
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            continue
        spec = tuple(sharding.spec)
        if spec[1:2] == ("stage",):
            raise UserError(
                f"--exchange.fragments {count} count layers in a row, which the rounds of an "
                "interleaved pipeline are not: use --pipeline.schedule 1f1b, or "
                "--exchange.fragments 1"
            )
        if spec[:1] == ("stage",):
            stages = sharding.mesh.shape["stage"]
            if layers // stages % count:
                raise UserError(
                    f"--exchange.fragments {count} does not divide the layers of a stage, "
                    f"{layers // stages}: use another number, or --model.layers "
                    f"{stages * count * -(-layers // (stages * count))}"
                )


def take(tree: Tree, number: int, count: int) -> Tree:
    """Fragment `number` of `count`: a tree like `tree`, [layers / count, ...] for [layers, ...] and
    None for what other fragments have; of arrays, or of abstract ones."""
    if count == 1:
        return tree

    def one(leaf: Any, stacked: bool) -> Any:
        return _layers(leaf, number, count) if stacked else leaf

    leaves, structure = jax.tree.flatten(tree)
    parts = [
        one(leaf, owner is None) if owner in (None, number) else None
        for leaf, owner in zip(leaves, _owners(tree, count), strict=True)
    ]
    return jax.tree.unflatten(structure, parts)


def put(tree: Tree, part: Tree, number: int, count: int) -> Tree:
    """`tree` with `part` in the place of fragment `number` of `count`."""
    if count == 1:
        return part
    leaves, structure = jax.tree.flatten(tree)
    parts = iter(jax.tree.leaves(part))
    changed = []
    for leaf, owner in zip(leaves, _owners(tree, count), strict=True):
        if owner is None:
            leaf = _with_layers(leaf, next(parts), number, count)
        elif owner == number:
            leaf = next(parts)
        changed.append(leaf)
    return jax.tree.unflatten(structure, changed)


def specs_of(
    specs: tuple[PartitionSpec, ...] | None, tree: Tree, number: int, count: int
) -> tuple[PartitionSpec, ...] | None:
    """Those of `specs`, one for every array of `tree`, of arrays that the fragment has part of."""
    if specs is None or count == 1:
        return specs
    owners = _owners(tree, count)
    return tuple(s for s, owner in zip(specs, owners, strict=True) if owner in (None, number))


# --------------------------------------------------------------------------------------------------


def _owners(tree: Tree, count: int) -> list[int | None]:
    """Of every array its fragment, or None where each fragment has layers of it."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    if any(_is_stacked(path) for path in paths):
        return [None if _is_stacked(path) else count - 1 for path in paths]
    numbers = {module: number for number, module in enumerate(_modules(tree))}
    return [numbers[path[:-1]] % count for path in paths]


def _is_stacked(path: Path) -> bool:
    return getattr(path[0], "key", None) == LAYERS if path else False


def _modules(tree: Tree) -> list[Path]:
    paths = [path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return list(dict.fromkeys(paths))


def _layers(leaf: Any, number: int, count: int) -> Any:
    """[layers of the fragment, ...] of [layers, ...]."""
    layers, *rest = leaf.shape
    if isinstance(leaf, jax.ShapeDtypeStruct):
        own = len(range(number, layers, count))
        return jax.ShapeDtypeStruct((own, *rest), leaf.dtype, sharding=leaf.sharding)
    if layers % count:
        return leaf[number::count]
    return leaf.reshape(layers // count, count, *rest)[:, number]  # splits over stages as it did


def _with_layers(leaf: jax.Array, part: jax.Array, number: int, count: int) -> jax.Array:
    layers, *rest = leaf.shape
    spread = jnp.repeat(part, count, axis=0)[:layers]  # layer i has that of its place, i // count
    spread = jnp.pad(spread, [(0, layers - len(spread)), *[(0, 0)] * len(rest)])
    own = jnp.arange(layers) % count == number
    return jnp.where(own.reshape(-1, *[1] * len(rest)), spread, leaf)
