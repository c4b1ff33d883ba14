"""Trees of arrays as bytes, and back: what crosses between a server and its workers.

Both sides know the shapes; a message has the leaves in their order, as safetensors. Nothing in it
is run, and what does not have the shapes is refused.
"""

from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

Tree = Any


def encoded(tree: Tree) -> bytes:
    """The leaves of `tree`."""
    leaves = jax.tree.leaves(jax.device_get(tree))
    return save({str(number): np.asarray(leaf, order="C") for number, leaf in enumerate(leaves)})


def decoded(message: bytes, like: Tree) -> Tree:
    """The tree with the structure, types and places of `like` (abstract arrays) that `message`
    holds. Raises ValueError where it holds another."""
    leaves, structure = jax.tree.flatten(like)
    arrays = load(message)
    if len(arrays) != len(leaves):
        raise ValueError(f"{len(arrays)} arrays came, and {len(leaves)} were expected")
    made = []
    for number, leaf in enumerate(leaves):
        array = arrays[str(number)]
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"array {number} came as {array.dtype}{list(array.shape)}, and "
                f"{leaf.dtype}{list(leaf.shape)} was expected"
            )
        made.append(jax.device_put(array, leaf.sharding))
    return jax.tree.unflatten(structure, made)
