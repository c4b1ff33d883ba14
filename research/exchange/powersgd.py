"""Matrices as products of two thin ones, by one step of power iteration.

Vogels, Karimireddy and Jaggi 2019, *PowerSGD: Practical Low-Rank Gradient Compression for
Distributed Optimization*, arXiv:1905.13727, Alg. 1 and 2. For every matrix M_r [a, b] of replica r,
with Q [b, rank] of the step before (warm start), the same everywhere:

    M_r ← G_r + e_r
    P ← mean_r M_r·Q               P ← orthonormal columns of P (Gram-Schmidt)
    Q ← mean_r M_rᵀ·P
    result M̂ = P·Qᵀ                e_r ← M_r - M̂

What crosses the wire: all-reduces of P and Q, of 4·rank·(a + b) bytes for 4·a·b. Vectors, and
matrices that it would not make smaller, go as they are. An array of more dimensions is cut into
rows and columns where a + b is least; what is stacked over layers is a matrix for each layer.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from research.errors import UserError
from research.exchange.average import average
from research.exchange.exchange import Exchange, Moment, named
from research.exchange.message import Message, of_leaves
from research.exchange.replicas import Replicas
from research.models.model import LAYERS

Tree = Any
EPSILON = 1e-8
Matrices = tuple[int, int, int]
"""How many, rows, columns."""


class LowRank(NamedTuple):
    """What a replica keeps from step to step."""

    error: Tree  # e: like the arrays
    right: dict[str, jax.Array]  # Q [matrices, columns, rank] of each compressed array, by name


def powersgd(rank: int, seed: int = 0) -> Exchange:
    """The mean in `rank` dimensions."""

    def init(like: Tree) -> LowRank:
        right = {}
        for number, (name, leaf) in enumerate(named(like)):
            if (form := matrices(name, leaf.shape, rank)) is not None:
                key = jax.random.fold_in(jax.random.key(seed), number)
                right[name] = jax.random.normal(key, (form[0], form[2], rank), leaf.dtype)
        if not right:
            raise UserError(
                f"rank {rank} makes no array of this model smaller: use a smaller --exchange.rank, "
                "or no --exchange.compression"
            )
        return LowRank(jax.tree.map(jnp.zeros_like, like), right)

    def apply(tree: Tree, state: LowRank, moment: Moment) -> tuple[Tree, LowRank]:
        results, errors, right = [], [], dict(state.right)
        specs = moment.specs or (None,) * len(jax.tree.leaves(tree))
        for spec, (name, x), e in zip(
            specs, named(tree), jax.tree.leaves(state.error), strict=True
        ):
            form = matrices(name, x.shape, rank)
            if form is None:
                results.append(average(x, moment, spec))
                errors.append(e)
                continue
            dead = moment.alive is not None and ~moment.alive
            whole = jnp.where(dead, 0, x) + e
            result, right[name] = approximate(whole.reshape(form), state.right[name], moment)
            result = result.reshape(x.shape)
            results.append(result)
            errors.append(jnp.where(dead, e, whole - result))
        structure = jax.tree.structure(tree)
        return jax.tree.unflatten(structure, results), LowRank(
            jax.tree.unflatten(structure, errors), right
        )

    def messages(shapes: Tree, replicas: Replicas) -> list[Message]:
        made: list[Message] = []
        for name, leaf in named(shapes):
            form = matrices(name, leaf.shape, rank)
            if form is None:
                made += of_leaves("all-reduce", leaf, replicas.devices)
            elif replicas.devices > 1:
                count, rows, columns = form
                for turn, side in enumerate((rows, columns)):
                    size, dtype = count * side * rank, str(leaf.dtype)
                    made.append(Message("all-reduce", dtype, size, replicas.devices, turn))
        return made

    return Exchange(init, apply, messages)


def approximate(whole: jax.Array, right: jax.Array, moment: Moment) -> tuple[jax.Array, jax.Array]:
    """M̂ and Q of `whole` M [matrices, rows, columns] and the `right` Q of before."""
    everywhere = PartitionSpec()  # they are thin: whole on every device of a replica
    left = orthonormal(average(whole @ right, moment, everywhere))
    right = average(jnp.swapaxes(whole, 1, 2) @ left, moment, everywhere)
    return left @ jnp.swapaxes(right, 1, 2), right


def orthonormal(columns: jax.Array) -> jax.Array:
    """Gram-Schmidt, of [..., rows, rank]: as in the paper, and the same however rows are split."""
    done: list[jax.Array] = []
    for number in range(columns.shape[-1]):
        column = columns[..., number]
        for other in done:
            column = column - jnp.sum(column * other, axis=-1, keepdims=True) * other
        norm = jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))
        done.append(column / (norm + EPSILON))
    return jnp.stack(done, axis=-1)


def matrices(name: str, shape: tuple[int, ...], rank: int) -> Matrices | None:
    """The form in which an array is compressed; None where it is not."""
    stacked = 1 if LAYERS in name.split(".") else 0
    count, own = math.prod(shape[:stacked]), shape[stacked:]
    cuts = [(math.prod(own[:cut]), math.prod(own[cut:])) for cut in range(1, len(own))]
    if not cuts:
        return None
    rows, columns = min(cuts, key=sum)
    if rank * (rows + columns) >= rows * columns:
        return None
    return count, rows, columns
