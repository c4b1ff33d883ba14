"""Parts of the parameters: a tree like theirs, with None for what is in another part."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from research.errors import UserError

Tree = Any
Part = Callable[[Tree], Tree]
"""`part(tree)`: of a tree like the parameters, or of one that has that part already."""

HEAD = "head"
LAST_LAYERS = ("output", "head")
"""What models call theirs."""


def part(paths: Sequence[str]) -> tuple[Part, Part]:
    """What lies at those `paths`, or below them, and the rest."""

    def inside(path: tuple[Any, ...]) -> bool:
        name = f"{_name(path)}/"
        return any(name.startswith(f"{start.rstrip('/')}/") for start in paths)

    def own(tree: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda p, x: x if inside(p) else None, tree)

    def rest(tree: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(lambda p, x: None if inside(p) else x, tree)

    return own, rest


def joined(one: Tree, other: Tree) -> Tree:
    """Two parts in one tree; `other` may be () for nothing."""
    if other == ():
        return one
    return jax.tree.map(lambda a, b: b if a is None else a, one, other, is_leaf=_is_none)


def filled(some: Tree, tree: Tree) -> Tree:
    """`some` with the leaves of `tree` where it has none."""
    return jax.tree.map(lambda x, s: x if s is None else s, tree, some)


def like(some: Tree, tree: Tree) -> Tree:
    """The part of `tree` that `some` is."""
    return jax.tree.map(lambda s, x: None if s is None else x, some, tree, is_leaf=_is_none)


def own_paths(asked: Sequence[str], parameters: Tree) -> tuple[str, ...]:
    """`asked` with the last layer's name for `head`.

    Raises UserError for paths that the `parameters` do not have, for a model without a last layer
    of its own, and where nothing would be left to share.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(parameters)]
    paths: list[str] = []
    for start in asked:
        here = [last for last in LAST_LAYERS if _below(last, names)] if start == HEAD else [start]
        if not here:
            raise UserError(
                "this model reads its output by the table of its input, so that it has no head of "
                "its own: use --model.tied-head False, or name other parameters in --federated.own"
            )
        if not _below(here[0], names):
            raise UserError(
                f"no parameter lies at --federated.own {start}: there are {', '.join(names)}"
            )
        paths += here[:1]
    if names and all(any(name in _below(p, names) for p in paths) for name in names):
        raise UserError(
            f"--federated.own {' '.join(asked)} are all parameters, so that clients share none: "
            f"leave some of {', '.join(names)} out"
        )
    return tuple(paths)


def _below(start: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if f"{name}/".startswith(f"{start.rstrip('/')}/")]


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in path)


def _is_none(leaf: Any) -> bool:
    return leaf is None
